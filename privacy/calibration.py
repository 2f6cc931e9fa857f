"""From a budget and a plan that is fixed beforehand to the least noise that keeps within it."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from privacy.accounting import round_up
from privacy.filters import ORDER_MAX, ORDER_MIN, Filter, conversion_cost, make_filter
from privacy.releases import Mechanism, Release
from protos.errors import BudgetRefused, Malformed

GRID: Final = 10**6
"""Noise multipliers are whole multiples of 1/GRID, so that they print and compare exactly."""

NOISE_MULTIPLIER_MAX: Final = 10**6

REPORT_SLACK_UNITS: Final = 1750
"""Units of mu^2 left unused for each release of a gdp plan.

What others recompute comes from dp-accounting's discretised privacy loss. Its grid of width
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
    unused = 0
    if filter_.kind == "gdp":
        unused = releases * REPORT_SLACK_UNITS + -(-max(budget_units, 0) // _REPORT_SLACK_SHARE)
    mechanism: Mechanism = "gaussian" if sample_rate == 1 else "poisson_gaussian"

    def taken(point: int) -> int:
        release = Release(mechanism, point / GRID, sample_rate, steps)
        return releases * filter_.cost_units(release) + unused

    def fits(point: int) -> bool:
        return taken(point) <= budget_units

    high = NOISE_MULTIPLIER_MAX * GRID
    if not fits(high):
        least, left = (round_up(filter_.epsilon_of(n), 2) for n in (taken(high), budget_units))
        raise BudgetRefused(
            "BUDGET_TOO_SMALL",
            f"A plan of {releases} releases of {steps} steps takes epsilon {least:g} at the least, "
            f"whatever the noise, and what is left for it is worth {left:g}: plan fewer releases "
            "or give the job more epsilon.",
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


def best_order(plan: Iterable[Release], epsilon_limit: float, delta: float) -> int:
    """The rdp order at which an account of this limit books the least epsilon for `plan`.

    For an account that is made for one plan. Of equal orders the smallest, which costs later
    releases with little noise the least.

    Raises:
        Malformed: as `make_filter`, the limit apart.
        BudgetRefused: BUDGET_TOO_SMALL, the plan passes the limit at every order, and the message
            says what the least limit is; MECHANISM_NOT_COVERED, a release has no Renyi bound.
    """
    counts = Counter(plan)
    if not counts:
        raise Malformed("RELEASE_INVALID", "A plan has at least one release.")
    make_filter("gdp", 0, epsilon_limit, delta)  # refuses a limit or a delta that is none
    booked = {order: _booked(counts, order, delta) for order in range(ORDER_MIN, ORDER_MAX + 1)}
    order = min(booked, key=booked.__getitem__)
    if booked[order] > epsilon_limit:
        raise BudgetRefused(
            "BUDGET_TOO_SMALL",
            f"The plan takes epsilon {round_up(booked[order], 4):g} at delta {delta:g} at the "
            f"least (rdp of order {order}), and the limit is {epsilon_limit:g}: raise the limit, "
            "or plan more noise or fewer releases.",
        )
    return order


def _booked(counts: Counter[Release], order: int, delta: float) -> float:
    """What an rdp account of `order` books for a plan, whatever its limit."""
    account = make_filter("rdp", order, max(1.0, 2.0 * conversion_cost(order, delta)), delta)
    return account.epsilon_of(sum(count * account.cost_units(one) for one, count in counts.items()))
