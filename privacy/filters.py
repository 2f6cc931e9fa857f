"""Privacy filters: one number that adds up, and a limit on it fixed with the budget.

A filter is valid for jobs that are chosen after seeing earlier results and for jobs that run at
the same time, because what it adds up is a single number per release: mu^2 of Gaussian
differential privacy, or the Renyi divergence at one order that was fixed beforehand.

Sources: Feldman and Zrnic 2021 (arXiv 2008.11193); Haney et al. 2023 (2309.05901); Whitehouse et
al. 2023 (2203.05481). Costs are integers, rounded up; limits are integers, rounded down; so a sum
has no rounding errors and no order.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Final, Literal, Protocol

from privacy.gaussian_dp import (
    bounded_range_mu_squared,
    delta_above,
    epsilon_above,
    float_above,
    pure_mu_squared,
    sqrt_above,
)
from privacy.releases import UNNOISED, Release
from privacy.renyi import rdp_per_step
from protos.errors import BudgetRefused, Malformed

UNITS: Final = 10**12
"""Units in 1 of mu^2 (gdp) or in 1 of Renyi divergence (rdp)."""

EPSILON_MIN: Final = 1.0e-4
EPSILON_MAX: Final = 1.0e4
"""Keeps `limit_units` well below 2^63."""
DELTA_MIN: Final = 1.0e-30
DELTA_MAX: Final = 0.5
ORDER_MIN: Final = 2
ORDER_MAX: Final = 256

_FULL_BATCH_BELOW: Final = 1000
_DEFAULT_ORDERS: Final = range(2, 129)


class Filter(Protocol):
    """Counts releases against one account's limit.

    Attributes:
        kind: "gdp" or "rdp"; `order` is 0 for gdp, the committed Renyi order for rdp.
        limit_units: the most that may ever be reserved and posted, rounded down.
    """

    @property
    def kind(self) -> Literal["gdp", "rdp"]: ...
    @property
    def order(self) -> int: ...
    @property
    def epsilon_limit(self) -> float: ...
    @property
    def delta(self) -> float: ...
    @property
    def limit_units(self) -> int: ...
    @property
    def epsilon_start(self) -> float:
        """The epsilon at which the account starts with its first release, rounded up."""
        ...

    def cost_units(self, release: Release) -> int:
        """Units that `release` costs, rounded up; 0 for "no_data" and for "none".

        Raises:
            BudgetRefused: MECHANISM_NOT_COVERED, no proven bound for this mechanism here.
        """
        ...

    def epsilon_of(self, units: int) -> float:
        """The epsilon at `delta` that `units` in all guarantee, rounded up; 0.0 for 0 units.

        At most `epsilon_limit` for every `units` up to `limit_units`.
        """
        ...


@dataclass(frozen=True, slots=True)
class GdpFilter:
    """Adds up mu^2: exact for full-batch Gaussian releases, a proven bound for pure-DP ones."""

    epsilon_limit: float
    delta: float
    limit_units: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit_units", _gdp_limit(self.epsilon_limit, self.delta))

    @property
    def kind(self) -> Literal["gdp", "rdp"]:
        """Gaussian differential privacy."""
        return "gdp"

    @property
    def order(self) -> int:
        """No order."""
        return 0

    @property
    def epsilon_start(self) -> float:
        """Nothing: the first unit costs what it is worth."""
        return 0.0

    def cost_units(self, release: Release) -> int:
        """See `Filter.cost_units`."""
        if release.mechanism in UNNOISED:
            return 0
        units = _gdp_units(release)
        if units is None:
            raise not_covered("counted by gdp", release)
        return units

    def epsilon_of(self, units: int) -> float:
        """See `Filter.epsilon_of`."""
        if units <= 0:
            return 0.0
        mu = sqrt_above(Fraction(units, UNITS))
        # The limit was certified by this very test; the search below ends an ulp or so above.
        if units <= self.limit_units:
            return min(epsilon_above(mu, self.delta), self.epsilon_limit)
        return epsilon_above(mu, self.delta)


@dataclass(frozen=True, slots=True)
class RdpFilter:
    """Adds up the Renyi divergence at one integer order, fixed with the budget."""

    order: int
    epsilon_limit: float
    delta: float
    limit_units: int = field(init=False)

    def __post_init__(self) -> None:
        room = Fraction(self.epsilon_limit) - _conversion(self.order, self.delta)
        units = math.floor(room * UNITS)
        if units < 1:
            cost = conversion_cost(self.order, self.delta)
            raise Malformed(
                "LIMIT_BELOW_CONVERSION_COST",
                f"An rdp account of order {self.order} at delta {self.delta:g} starts at epsilon "
                f"{math.ceil(cost * 100) / 100:.2f}, its conversion cost, and the limit is "
                f"{self.epsilon_limit:g}: raise the order or the limit, or use gdp.",
            )
        object.__setattr__(self, "limit_units", units)

    @property
    def kind(self) -> Literal["gdp", "rdp"]:
        """Renyi differential privacy."""
        return "rdp"

    @property
    def epsilon_start(self) -> float:
        """The order's conversion cost; 0 where that is negative."""
        return max(0.0, conversion_cost(self.order, self.delta))

    def cost_units(self, release: Release) -> int:
        """See `Filter.cost_units`; the bounds and their sources are in `privacy.renyi`."""
        if release.mechanism in UNNOISED:
            return 0
        per_step = rdp_per_step(release, self.order)
        if per_step is None:
            raise not_covered("counted by rdp", release)
        return math.ceil(release.steps * UNITS * per_step)

    def epsilon_of(self, units: int) -> float:
        """See `Filter.epsilon_of`; a running account starts at its conversion cost."""
        if units <= 0:
            return 0.0
        return max(0.0, float_above(Fraction(units, UNITS) + _conversion(self.order, self.delta)))


def make_filter(kind: str, order: int, epsilon_limit: float, delta: float) -> Filter:
    """The filter of an account whose lifetime limit is (`epsilon_limit`, `delta`).

    Args:
        kind: "gdp" (full-batch Gaussian, Laplace and exponential releases) or "rdp" (all).
        order: 0 for gdp; the Renyi order, 2 to 256, for rdp.

    Raises:
        Malformed: FILTER_INVALID, or LIMIT_BELOW_CONVERSION_COST for an rdp account whose limit
            its conversion alone would use up.
    """
    if not _within(epsilon_limit, EPSILON_MIN, EPSILON_MAX):
        raise Malformed(
            "FILTER_INVALID", f"epsilon_limit must be from {EPSILON_MIN:g} to {EPSILON_MAX:g}."
        )
    check_delta(delta)
    if kind == "gdp":
        if type(order) is not int or order != 0:
            raise Malformed("FILTER_INVALID", "A gdp filter has no order: leave rdp_order at 0.")
        return GdpFilter(float(epsilon_limit), float(delta))
    if kind == "rdp":
        _check_order(order)
        return RdpFilter(order, float(epsilon_limit), float(delta))
    raise Malformed("FILTER_INVALID", "A filter is gdp or rdp.")


def conversion_cost(order: int, delta: float) -> float:
    """The epsilon at which an rdp account of `order` starts, rounded up; may be negative.

    Source: Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), Proposition 12.

    Raises:
        Malformed: FILTER_INVALID.
    """
    _check_order(order)
    check_delta(delta)
    return float_above(_conversion(order, delta))


def default_filter(
    declared_n: int, epsilon_limit: float, delta: float, epsilon_per_job_max: float
) -> tuple[str, int]:
    """(kind, order) for an account whose largest data set declares `declared_n` records.

    gdp under 1,000 records, where full batches cost nothing; else rdp at the smallest order of 2
    to 128 whose conversion cost is at most a quarter of the limit and half of what one job may
    spend; gdp where no order is.

    No plan is known yet. A job's target is counted at the same order, so that none below the
    conversion cost can run, and one little above it needs much noise. A quarter asks for at most
    1.3 times the noise of the order that is best for a job of half the limit, 1.2 of a third, and
    1.75 (1.25 for most) for one plan that takes the whole limit, over plans of 20 to 2,000 steps,
    sampled or not. Half of the limit would do with 1.3 there, and would refuse jobs of less than
    half or ask them for 2 to 3 times the noise. `privacy.calibration.best_order` is for an account
    whose plan is known.
    """
    start_max = min(epsilon_limit / 4, epsilon_per_job_max / 2)
    if declared_n >= _FULL_BATCH_BELOW:
        for order in _DEFAULT_ORDERS:
            if conversion_cost(order, delta) <= start_max:
                return "rdp", order
    return "gdp", 0


@lru_cache(maxsize=4096)  # a job's attempts are alike, and a ledger asks for each of its entries
def _gdp_units(release: Release) -> int | None:
    per_step = _mu_squared_per_step(release)
    return None if per_step is None else math.ceil(release.steps * UNITS * per_step)


def _mu_squared_per_step(release: Release) -> Fraction | None:
    """mu^2 of one step; None for a mechanism without a proven bound in Gaussian DP.

    The discrete Gaussian has none: it is not mu-GDP with the mu of the continuous one (at sigma 1
    the total variation is .3989 and would have to be .3829). Nor has Poisson sampling.
    """
    if release.noise_multiplier is None:
        return None
    noise = Fraction(release.noise_multiplier)
    match release.mechanism:
        case "gaussian":
            return 1 / noise**2
        case "laplace":
            return pure_mu_squared(1 / noise)
        case "exponential":
            return bounded_range_mu_squared(2 / noise)
        case _:
            return None


def not_covered(how: str, release: Release) -> BudgetRefused:
    """The refusal of a release that has no proven bound where it was to be counted.

    Args:
        how: "counted by gdp", "counted by rdp" or "reported".
    """
    return BudgetRefused(
        "MECHANISM_NOT_COVERED",
        f"A release by {release.mechanism} cannot be {how}: there is no proven bound for it there. "
        "What an account counts is in docs/privacy.md.",
    )


@lru_cache(maxsize=1024)  # 0.7 ms each, and asked for whenever an account is read
def _gdp_limit(epsilon: float, delta: float) -> int:
    """The most units whose mu the exact curve certifies at (`epsilon`, `delta`)."""

    def fits(units: int) -> bool:
        return delta_above(epsilon, sqrt_above(Fraction(units, UNITS))) <= delta

    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low < 1:
        raise Malformed("FILTER_INVALID", "This epsilon and delta leave no budget at all.")
    return low


def _conversion(order: int, delta: float) -> Fraction:
    """The conversion cost as an exact number a little above the real one."""
    cost = math.log1p(-1.0 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return Fraction(cost) + Fraction(1, 10**13)


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and low <= value <= high


def check_delta(delta: float) -> None:
    """Raise Malformed (FILTER_INVALID) unless `delta` is one that an account may have."""
    if not _within(delta, DELTA_MIN, DELTA_MAX):
        raise Malformed("FILTER_INVALID", f"delta must be from {DELTA_MIN:g} to {DELTA_MAX:g}.")


def _check_order(order: int) -> None:
    if type(order) is not int or not ORDER_MIN <= order <= ORDER_MAX:
        raise Malformed(
            "FILTER_INVALID", f"An rdp order is a whole number from {ORDER_MIN} to {ORDER_MAX}."
        )
