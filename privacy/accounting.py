"""Epsilon of what was released, for reports: exact for full batches of Gaussian noise, else by
dp-accounting's privacy loss distributions.

Releases are composed as if their parameters had been fixed in advance. A plan is; a running
account is not, and there the figure is "running": what is booked is the account's filter's, and the
guarantee the highest limit that it ever had.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from typing import Final

from privacy.filters import check_delta, conversion_cost, not_covered
from privacy.gaussian_dp import epsilon_above, float_above, sqrt_above
from privacy.releases import Release
from privacy.renyi import rdp_per_step

DISCRETIZATION: Final = 1.0e-4
"""Grid width of the privacy loss: dp-accounting's default, so that others get our figures."""

EPSILON_FINE_MAX: Final = 100.0
"""Up to here the grid has its default width; above it grows with epsilon, which bounds memory."""

EPSILON_USELESS: Final = 1.0e4
"""Above this the upper bound is reported as it is; no account may have such a limit."""

DELTA_FINE_MIN: Final = 1.0e-11
"""Below this the mass that dp-accounting truncates (1e-15 for each composition) would show."""

DISCRETE_NOISE_FINE_MAX: Final = 10_000.0
"""Above this sigma a discrete Gaussian has too many atoms to list, and costs next to nothing."""

SIGNIFICANT_DIGITS: Final = 5
_FINE: Final = 10**24
_FLOAT_MAX: Final = 10**300
_SUM_ROUNDING: Final = 1.0 + 1.0e-9
_ORDERS: Final = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)


def epsilon_spent(
    releases: Iterable[Release] | Mapping[Release, int], delta: float
) -> float | None:
    """Epsilon at `delta` of all releases, or so many of each, rounded up to 5 digits.

    Adjacency: add or remove one patient. Composes each release as an outsider would each ledger
    entry; docs/privacy.md has the outsider's program.

    Returns:
        0.0 for nothing, or nothing that read data; None where a release is not accounted for.

    Raises:
        Malformed: FILTER_INVALID, `delta` out of range.
        BudgetRefused: MECHANISM_NOT_COVERED, a mechanism that nothing here knows how to count.
    """
    check_delta(delta)
    counts = Counter(releases)
    for idle in [release for release in counts if release.mechanism == "no_data"]:
        del counts[idle]
    if any(release.mechanism == "none" for release in counts):
        return None
    if not counts:
        return 0.0
    if all(_is_full_batch_gaussian(release) for release in counts):
        # Exact, and it keeps 100 MiB of libraries out of a process that needs nothing else.
        return round_up(full_batch_epsilon(counts, delta))
    bound = min(_rdp_epsilon(counts, delta), _pure_epsilon(counts))
    too_fine = any(
        release.mechanism == "discrete_gaussian"
        and (release.noise_multiplier or 0.0) > DISCRETE_NOISE_FINE_MAX
        for release in counts
    )
    if bound > EPSILON_USELESS or delta < DELTA_FINE_MIN or too_fine:
        return round_up(bound)
    epsilon = _pld_epsilon(counts, delta, max(1.0, bound / EPSILON_FINE_MAX) * DISCRETIZATION)
    # dp-accounting answers inf where its truncated mass alone is more than delta.
    return round_up(epsilon if math.isfinite(epsilon) else bound)


def _is_full_batch_gaussian(release: Release) -> bool:
    sampled = release.mechanism == "poisson_gaussian" and release.sample_rate < 1.0
    return release.mechanism in ("gaussian", "poisson_gaussian") and not sampled


def round_up(value: float, digits: int = SIGNIFICANT_DIGITS) -> float:
    """`value` to so many significant digits, never to a smaller decimal number."""
    if value == 0 or not math.isfinite(value):
        return value
    return float(Context(prec=digits, rounding=ROUND_CEILING).plus(Decimal(value)))


def _pld_epsilon(counts: Mapping[Release, int], delta: float, interval: float) -> float:
    from privacy.loss import identity, loss_of

    total = identity(interval)
    for release, count in counts.items():
        one, times = loss_of(release, interval)
        # Equal entries have equal grids, so composing them at once is composing them in turn.
        total = total.compose(one.self_compose(times * count) if times * count > 1 else one)
    return float(total.get_epsilon_for_delta(delta))


def full_batch_epsilon(counts: Mapping[Release, int], delta: float) -> float:
    """Closed form for full batches of Gaussian noise and nothing else."""
    # Each mu^2 is rounded up to 24 decimal places: exact fractions would grow with every term.
    mu_squared = sum(
        math.ceil(count * release.steps * _FINE / Fraction(release.noise_multiplier or 0.0) ** 2)
        for release, count in counts.items()
    )
    return epsilon_above(sqrt_above(Fraction(mu_squared, _FINE)), delta)


def _pure_epsilon(counts: Mapping[Release, int]) -> float:
    """The sum of pure epsilons, which holds at any delta; inf where a release has none."""
    total = 0.0
    for release, count in counts.items():
        times = {"laplace": 1, "exponential": 2}.get(release.mechanism)
        if times is None or release.noise_multiplier is None:
            return math.inf
        total += count * release.steps * times / release.noise_multiplier
    return total * _SUM_ROUNDING


def _rdp_epsilon(counts: Mapping[Release, int], delta: float) -> float:
    """An upper bound that costs no memory: the best of a few Renyi orders.

    Raises:
        BudgetRefused: MECHANISM_NOT_COVERED, a mechanism that nothing here knows how to count.
    """
    best = math.inf
    for order in _ORDERS:
        total = 0.0
        for release, count in counts.items():
            per_step = rdp_per_step(release, order)
            if per_step is None:
                raise not_covered("reported", release)
            large = per_step > _FLOAT_MAX
            total += math.inf if large else count * release.steps * float_above(per_step)
        best = min(best, total * _SUM_ROUNDING + conversion_cost(order, delta))
    return max(0.0, best)
