"""When an attempt's outcome leaves, and how much work fits before that.

Both are fixed before the data is opened, from a rehearsal on made-up records of the declared size.
"""

import math
from typing import Final

REHEARSALS: Final = 4.0
"""The outcome is due after so many times what the rehearsal took: room for a busy machine, and for
a hospital that holds more records than its steward declared."""

TRAINING_SHARE: Final = 0.9
"""Of the time to the outcome; the rest is for booking it."""

DEADLINE_SHARE: Final = 0.8
"""Of the time to the round's deadline; the rest is for handing the update in."""

OFFERED_SHARE: Final = 0.6
"""The same where a node says how much it can do, so that the next rehearsal, which may find a
busier machine, does not lead to another refusal."""


def outcome_after_s(tick_s: float, rehearsal_s: float) -> float:
    """When the outcome leaves, counted from the opening: fixed before the data is opened.

    A whole number of ticks; 0 where no data is read.
    """
    if tick_s <= 0:
        return 0.0
    return tick_s * max(1, math.ceil(REHEARSALS * rehearsal_s / tick_s))


def steps_that_fit(tick_s: float, rehearsal_s: float, steps: int, available_s: float) -> int:
    """How many of `steps` leave an outcome within `available_s`, if `steps` took `rehearsal_s`.

    Found before the data is opened, on made-up records of the declared size: a number that
    followed from the data would tell something of it.
    """
    if tick_s <= 0 or outcome_after_s(tick_s, rehearsal_s) <= available_s:
        return steps
    if rehearsal_s <= 0:
        return 0
    whole_s = tick_s * math.floor(available_s / tick_s)
    return max(0, min(steps, math.floor(steps * whole_s / (REHEARSALS * rehearsal_s))))
