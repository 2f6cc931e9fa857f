"""How far an account has come towards its limit; for people, nothing is admitted by it."""

from typing import Final, Literal

from privacy.filters import Filter

Stage = Literal["", "nearly_spent", "spent", "over_limit"]

NEARLY_SPENT_PER_MILLE: Final = 800
SPENT_PER_MILLE: Final = 999
"""Above it so little is left that hardly a release fits. The policy's least noise is no measure of
that: it says what the dearest release costs, and a cheaper one may still fit."""


def stage_of(
    used_units: int, posted_units: int, limit_units: int, running: float | None, limit: float
) -> Stage:
    """The stage of an account by the larger of its units' and its epsilon's share.

    Units add up and grow with the square of epsilon in `gdp`, so that the two shares differ: who
    looks at epsilon is warned by epsilon.

    Args:
        used_units: posted and reserved.
        running: epsilon of what is posted, the running or the booked one; None where there is no
            guarantee.
        limit: epsilon, in force now.
    """
    if posted_units > limit_units:
        return "over_limit"
    share = (running or 0.0) / limit
    if used_units * 1000 > limit_units * SPENT_PER_MILLE or share * 1000 > SPENT_PER_MILLE:
        return "spent"
    nearly_by_units = used_units * 1000 >= limit_units * NEARLY_SPENT_PER_MILLE
    if nearly_by_units or share * 1000 >= NEARLY_SPENT_PER_MILLE:
        return "nearly_spent"
    return ""


def stage_of_share(filter_: Filter, used_units: int) -> Stage:
    """The stage of a limit within an account, for all jobs of a purpose or of a project.

    Args:
        filter_: the account's, at that limit.
        used_units: posted and reserved.
    """
    running = filter_.epsilon_of(used_units)
    return stage_of(used_units, used_units, filter_.limit_units, running, filter_.epsilon_limit)
