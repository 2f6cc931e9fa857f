"""From a budget and a plan that is fixed beforehand to the least noise that keeps within it."""

from typing import Final

from privacy.filters import Filter, make_filter
from privacy.releases import Release
from protos.errors import BudgetRefused, Malformed

GRID: Final = 10**6
"""Noise multipliers are whole multiples of 1/GRID, so that they print and compare exactly."""

NOISE_MULTIPLIER_MAX: Final = 10**6

REPORT_SLACK_UNITS: Final = 1750
"""Units of mu^2 left unused for each release of a gdp plan.

The reported epsilon comes from dp-accounting's discretised privacy loss. Its grid of width
h = 1e-4 adds a variance of about h^2/6 for each ledger entry, 1,667 of our units. With this much
left unused a plan that uses up its target still reports at most the target. It costs under 0.02 %
of epsilon for up to 60 releases at epsilon 0.05, 220 at 0.1 and 4,200 at 0.5 (delta 1e-5).
"""

_REPORT_SLACK_SHARE: Final = 10**8
"""One part in this many is left as well, for the accountant's truncated tails."""


def noise_multiplier_for(
    filter_: Filter, budget_units: int, releases: int, steps: int, sample_rate: float
) -> float:
    """The smallest noise multiplier, on a grid of 1e-6, with which a plan fits a budget.

    Args:
        budget_units: the most that the whole plan may cost in `filter_`'s units. A gdp plan
            leaves `REPORT_SLACK_UNITS` of it unused for each release.
        releases: how many releases of `steps` steps each.
        sample_rate: 1 for full batches, else the Poisson sampling rate.

    Raises:
        Malformed: RELEASE_INVALID, nonsense in the plan.
        BudgetRefused: BUDGET_TOO_SMALL, no noise multiplier up to 1e6 fits;
            MECHANISM_NOT_COVERED, `filter_` does not cover this sampling.
    """
    if type(releases) is not int or releases < 1:
        raise Malformed("RELEASE_INVALID", "A plan has at least one release.")
    usable = budget_units
    if filter_.kind == "gdp":
        usable -= releases * REPORT_SLACK_UNITS + -(-max(budget_units, 0) // _REPORT_SLACK_SHARE)
    mechanism = "gaussian" if sample_rate == 1 else "poisson_gaussian"

    def fits(point: int) -> bool:
        release = Release(mechanism, point / GRID, sample_rate, steps)  # type: ignore[arg-type]
        return releases * filter_.cost_units(release) <= usable

    high = NOISE_MULTIPLIER_MAX * GRID
    if not fits(high):
        raise BudgetRefused(
            "BUDGET_TOO_SMALL",
            f"A plan of {releases} releases of {steps} steps does not fit what is left, whatever "
            "the noise: plan fewer releases or give the job more epsilon.",
        )
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high / GRID


def units_for(kind: str, order: int, epsilon: float, delta: float) -> int:
    """Units that a guarantee of (`epsilon`, `delta`) is worth, rounded down.

    Raises:
        Malformed: as `privacy.filters.make_filter`.
    """
    return make_filter(kind, order, epsilon, delta).limit_units
