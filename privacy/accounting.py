"""Epsilon of what was released, for reports: exact for full batches of Gaussian noise, else by
privacy loss distributions, as dp-accounting would, in bounded work.

Releases are composed as if their parameters had been fixed in advance. A plan is; a running
account is not, and there the figure is "running": what is booked is the account's filter's, and the
guarantee the highest limit that it ever had.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Context, Decimal
from typing import Final

from privacy.filters import check_delta, conversion_cost, not_covered
from privacy.gaussian_dp import epsilon_above, float_above, sqrt_above
from privacy.kinds import coarser_and_coarser, merged, mu_squared
from privacy.releases import MECHANISMS, TRAINED, Release
from privacy.renyi import rdp_per_step

DISCRETIZATION: Final = 1.0e-4
"""Grid width of the privacy loss at the least: dp-accounting's default, so that others get our
figures."""

EPSILON_FINE_MAX: Final = 100.0
"""Up to here the grid has its default width; above it grows with epsilon, which bounds memory."""

EPSILON_USELESS: Final = 1.0e4
"""Above this the upper bound is reported as it is; no account may have such a limit."""

DELTA_FINE_MIN: Final = 1.0e-11
"""Below this the rounding errors of a composition would show."""

STEPS_PER_DELTA_MAX: Final = 1.0e15
"""With more steps their rounding errors would show: 10^10 at a delta of 1e-5."""

DISCRETE_NOISE_FINE_MAX: Final = 10_000.0
"""Above this sigma a discrete Gaussian has too many atoms to list, and costs next to nothing."""

KINDS_MAX: Final = 512
"""So many kinds of step are told apart: each takes a millisecond for its Renyi divergences."""

WORK_MAX: Final = 2**26
"""Points of the grid for all kinds of step: one or two seconds."""

SIGNIFICANT_DIGITS: Final = 5
_FLOAT_MAX: Final = 10**300
_SUM_ROUNDING: Final = 1.0 + 1.0e-9
_WIDER: Final = (1, 2, 4)
"""Wider grids that are tried before fewer kinds are."""

_FEW_ORDERS: Final = (2, 3, 4, 6, 8, 16, 32)
_ORDERS: Final = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)


def epsilon_spent(
    releases: Iterable[Release] | Mapping[Release, int], delta: float, work_max: int = WORK_MAX
) -> float | None:
    """Epsilon at `delta` of all releases, or so many of each, rounded up to 5 digits.

    Adjacency: add or remove one patient. Composes all releases as an outsider would the ledger's
    entries; docs/privacy.md has the outsider's program. Where that is more work than `work_max`,
    which is counted from the releases alone, it is an upper bound: of fewer kinds of release,
    each of which costs no less, or from Renyi divergences.

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
    bound, steps, renyi = _renyi_bound(counts, delta)
    too_fine = any(
        release.mechanism == "discrete_gaussian"
        and (release.noise_multiplier or 0.0) > DISCRETE_NOISE_FINE_MAX
        for release in steps
    )
    too_many = sum(steps.values()) > STEPS_PER_DELTA_MAX * delta
    if bound > EPSILON_USELESS or delta < DELTA_FINE_MIN or too_fine or too_many:
        return round_up(bound)
    return round_up(_composed(steps, renyi, bound, delta, work_max))


def _composed(
    steps: Mapping[Release, int],
    renyi: Mapping[int, float],
    bound: float,
    delta: float,
    work_max: int,
) -> float:
    """By privacy loss distributions; `bound` where that is too much work in any way."""
    from privacy.composition import composed_epsilon

    interval = max(1.0, bound / EPSILON_FINE_MAX) * DISCRETIZATION
    trained = all(release.mechanism in TRAINED for release in steps)
    for fewer in coarser_and_coarser(steps):
        if fewer is not steps:
            renyi = {order: _divergence(fewer, order) for order in _FEW_ORDERS}
        for wider in _WIDER:
            epsilon = composed_epsilon(fewer, renyi, delta, wider * interval, work_max)
            # Inf where what is cut off alone is more than delta.
            if epsilon is None or not math.isfinite(epsilon):
                continue
            if fewer is steps and wider == 1 and not trained:
                return epsilon  # what others recompute, also where Renyi's is a little less
            # With very many steps of tiny losses the grid adds more than the bound does.
            return min(epsilon, bound)
    return bound


def _is_full_batch_gaussian(release: Release) -> bool:
    sampled = release.mechanism == "poisson_gaussian" and release.sample_rate < 1.0
    return release.mechanism in ("gaussian", "poisson_gaussian") and not sampled


def round_up(value: float, digits: int = SIGNIFICANT_DIGITS) -> float:
    """`value` to so many significant digits, never to a smaller decimal number."""
    if value == 0 or not math.isfinite(value):
        return value
    return float(Context(prec=digits, rounding=ROUND_CEILING).plus(Decimal(value)))


def full_batch_epsilon(counts: Mapping[Release, int], delta: float) -> float:
    """Closed form for full batches of Gaussian noise and nothing else."""
    return epsilon_above(sqrt_above(mu_squared(counts)), delta)


def _pure_epsilon(steps: Mapping[Release, int]) -> float:
    """The sum of pure epsilons, which holds at any delta; inf where a release has none."""
    total = 0.0
    for release, count in steps.items():
        times = {"laplace": 1, "exponential": 2}.get(release.mechanism)
        if times is None or release.noise_multiplier is None:
            return math.inf
        total += count * times / release.noise_multiplier
    return total * _SUM_ROUNDING


def _renyi_bound(
    counts: Mapping[Release, int], delta: float
) -> tuple[float, Mapping[Release, int], Mapping[int, float]]:
    """An upper bound that costs no memory: the best of a few Renyi orders, or the pure sum.

    Returns:
        It, the kinds of step that were counted, and each order's divergence of all of them.

    Raises:
        BudgetRefused: MECHANISM_NOT_COVERED, a mechanism that nothing here knows how to count.
    """
    for release in counts:
        if release.mechanism not in MECHANISMS:
            raise not_covered("reported", release)
    steps: Mapping[Release, int] = merged(counts)
    if len(steps) > KINDS_MAX:
        steps = next(one for one in coarser_and_coarser(steps) if len(one) <= KINDS_MAX)
    totals = {order: _divergence(steps, order) for order in _ORDERS}
    best = min(total + conversion_cost(order, delta) for order, total in totals.items())
    return min(max(0.0, best), _pure_epsilon(steps)), steps, totals


def _divergence(steps: Mapping[Release, int], order: int) -> float:
    total = 0.0
    for release, count in steps.items():
        per_step = rdp_per_step(release, order)
        if per_step is None:
            raise not_covered("reported", release)
        total += math.inf if per_step > _FLOAT_MAX else count * float_above(per_step)
    return total * _SUM_ROUNDING
