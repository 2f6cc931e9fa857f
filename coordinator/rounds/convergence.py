"""When the global model has stopped moving.

What is compared with `convergence_threshold`: the *drift*, how far the global model moved per
round, relative to its own size (or to 1, if that is larger), averaged over the last W rounds. The
size is its norm less three times what the noise of all its rounds adds up to: a model that noise
alone has made long must not pass for one that hardly moves. Global models are sums of released
updates, so the drift is public and costs nothing.

Chance must neither fake convergence nor hide it. It is the noise and, where patients are sampled,
who is in a step, which moves a model that stands still, too: by no more than is public
(`bounds.global_sampling_norm`), nor than the model moved in that round. Independent chance of W
rounds adds up to the root of the sum of its squares, so that its share of the drift, per round,
shrinks with the root of W. The window is the shortest, from `convergence_patience` up to half the
rounds done, over which that share is at most a fifth of the threshold; a round counts as settled if
the drift plus three times the share is below the threshold. A model that stands still shows a drift
of about the share, hence four fifths in all, and settles. Where no window is long enough, the model
cannot be told to have settled, and the planned rounds decide. A job converges after
`convergence_patience` settled rounds in a row.

The drift is the way between both ends of the window. A model that swings to and fro, by a step
size that is too large or as groups of hospitals take turns, may be back where it was. So a settled
round also has a *step* below the threshold: its own movement less three times its chance.

So chance that is too strong to tell never ends a job. A model that still moves by the threshold in
each round, all the same way, settles by accident if chance takes three times its share off the
movement, which for D values is 3 sqrt(D) deviations. Simulated at noise of every size that can be
resolved (`tests/coordinator/rounds/test_convergence.py`), this ends about 1 in 100 jobs of 100
rounds with D = 1 and none of 400 with D = 2; with sampled patients none of 100 from D = 3 on.
Each further round is another chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CHANCE_SHARE_MAX: Final = 0.2
"""Of the threshold. From a quarter on, the drift that chance makes of a model that stands still and
three times its share would be the threshold itself, and such a model would not settle."""

CHANCE_DOUBT: Final = 3.0
"""So many times its share chance may have taken off the drift."""


@dataclass(frozen=True, slots=True)
class Window:
    """The rounds that the drift is averaged over.

    Attributes:
        rounds: W.
        chance_share: what chance alone makes of the drift over them; None if unknown.
        resolvable: whether chance leaves room to see a drift below the threshold.
    """

    rounds: int
    chance_share: float | None
    resolvable: bool


def size_of(model_norm: float, noise_norms: Sequence[float | None]) -> float:
    """What movements are relative to: what is sure of a model's norm, at least 1.

    Args:
        noise_norms: expected norm of the noise that each round added to the global model. Unknown
            ones count as none: no round of such a job settles.
    """
    noise = math.sqrt(math.fsum(one * one for one in noise_norms if one is not None))
    return max(1.0, model_norm - CHANCE_DOUBT * noise)


def chance_norm(
    noise_norm: float | None, sampling_norm: float | None, moved: float
) -> float | None:
    """What chance has made of one round's movement, at least the noise; None if unknown.

    Args:
        noise_norm: expected norm of the noise that the round added to the global model.
        sampling_norm: what the choice of patients can have made, at most.
    """
    if noise_norm is None or sampling_norm is None:
        return None
    return max(noise_norm, min(moved, math.hypot(noise_norm, sampling_norm)))


def choose_window(
    chance_norms: Sequence[float | None], patience: int, threshold: float, size: float
) -> Window:
    """The window after one round or more.

    Args:
        chance_norms: of each round, the newest last; None if unknown.
        size: of the newest global model.
    """
    done = len(chance_norms)
    shortest = min(patience, done)
    longest = max(shortest, done // 2)
    squares, share = 0.0, None
    for rounds in range(1, longest + 1):
        chance = chance_norms[-rounds]
        if chance is None:
            return Window(shortest, None, False)
        squares += chance * chance
        share = math.sqrt(squares) / rounds / size
        if rounds >= shortest and share <= threshold * CHANCE_SHARE_MAX:
            return Window(rounds, share, rounds >= patience)
    return Window(longest, share, False)


def drift(moved: float, window: int, size: float) -> float:
    """Relative movement per round, from the distance between both ends of the window."""
    return moved / window / size


def step(moved: float, chance: float | None, size: float) -> float:
    """Relative movement of one round that chance, as `chance_norm` gives it, cannot have made."""
    return max(0.0, moved - CHANCE_DOUBT * (chance or 0.0)) / size


def settled(window: Window, drift_: float, step_: float, threshold: float) -> bool:
    """Whether this round counts towards `convergence_patience`.

    Args:
        step_: of this round.
    """
    if not window.resolvable or window.chance_share is None:
        return False
    return max(step_, drift_ + CHANCE_DOUBT * window.chance_share) < threshold
