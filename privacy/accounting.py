"""Epsilon of what was released, for reports: dp-accounting's privacy loss distributions.

Releases are composed as if their parameters had been fixed in advance. A plan is; a running
account is not, and there the figure is "running": the guarantee is the account's filter.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from typing import Final

from privacy.filters import check_delta, conversion_cost, subsampled_rdp
from privacy.gaussian_dp import epsilon_above, sqrt_above
from privacy.releases import Release

DISCRETIZATION: Final = 1.0e-4
"""Grid width of the privacy loss: dp-accounting's default, so that others get our figures."""

EPSILON_FINE_MAX: Final = 100.0
"""Up to here the grid has its default width; above it grows with epsilon, which bounds memory."""

EPSILON_USELESS: Final = 1.0e4
"""Above this the upper bound is reported as it is; no account may have such a limit."""

DELTA_FINE_MIN: Final = 1.0e-11
"""Below this the mass that dp-accounting truncates (1e-15 for each composition) would show."""

SIGNIFICANT_DIGITS: Final = 5
_ORDERS: Final = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)


def epsilon_spent(releases: Iterable[Release], delta: float) -> float | None:
    """Epsilon at `delta` of everything released, rounded up to 5 significant digits.

    Adjacency: add or remove one patient. Composes each release as an outsider would each ledger
    entry: `SelfComposedDpEvent(GaussianDpEvent(noise_multiplier), steps)`, with
    `PoissonSampledDpEvent(sample_rate, ...)` around the Gaussian where patients were sampled.

    Returns:
        0.0 for nothing, or nothing that read data; None where a release is not accounted for.

    Raises:
        Malformed: FILTER_INVALID, `delta` out of range.
    """
    check_delta(delta)
    counts = Counter(release for release in releases if release.mechanism != "no_data")
    if any(release.mechanism == "none" for release in counts):
        return None
    if not counts:
        return 0.0
    bound = _rdp_epsilon(counts, delta)
    full_batch = all(release.sample_rate == 1.0 for release in counts)
    exact = _gaussian_epsilon(counts, delta) if full_batch else 0.0
    bound_max = EPSILON_FINE_MAX if full_batch else EPSILON_USELESS
    if bound > bound_max or delta < DELTA_FINE_MIN:
        return round_up(exact if full_batch else bound)
    epsilon = _pld_epsilon(counts, delta, max(1.0, bound / EPSILON_FINE_MAX) * DISCRETIZATION)
    # dp-accounting answers inf where its truncated mass alone is more than delta.
    return round_up(max(exact, epsilon if math.isfinite(epsilon) else bound))


def round_up(value: float, digits: int = SIGNIFICANT_DIGITS) -> float:
    """`value` to so many significant digits, never to a smaller decimal number."""
    if value == 0 or not math.isfinite(value):
        return value
    return float(Context(prec=digits, rounding=ROUND_CEILING).plus(Decimal(value)))


def _pld_epsilon(counts: Mapping[Release, int], delta: float, interval: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution as pld

    total = pld.identity(value_discretization_interval=interval)
    for release, count in counts.items():
        noise_multiplier = release.noise_multiplier or 0.0
        # As in dp-accounting's PLDAccountant: full-batch steps are one Gaussian with less noise.
        if release.sample_rate == 1.0:
            one = pld.from_gaussian_mechanism(
                noise_multiplier / math.sqrt(release.steps), value_discretization_interval=interval
            )
            times = count
        else:
            one = pld.from_gaussian_mechanism(
                noise_multiplier,
                value_discretization_interval=interval,
                sampling_prob=release.sample_rate,
            )
            times = count * release.steps
        # Equal entries have equal grids, so composing them at once is composing them in turn.
        total = total.compose(one.self_compose(times) if times > 1 else one)
    return float(total.get_epsilon_for_delta(delta))


def _gaussian_epsilon(counts: Mapping[Release, int], delta: float) -> float:
    """Closed form for full batches."""
    mu_squared = sum(
        Fraction(count * release.steps) / Fraction(release.noise_multiplier or 0.0) ** 2
        for release, count in counts.items()
    )
    return epsilon_above(sqrt_above(Fraction(mu_squared)), delta)


def _rdp_epsilon(counts: Mapping[Release, int], delta: float) -> float:
    """An upper bound that costs no memory: the best of a few Renyi orders."""
    best = math.inf
    for order in _ORDERS:
        total = 0.0
        for release, count in counts.items():
            noise_multiplier = release.noise_multiplier or 0.0
            if release.sample_rate == 1.0:
                per_step = order / 2 / noise_multiplier / noise_multiplier
            else:
                per_step = subsampled_rdp(release.sample_rate, noise_multiplier, order)
            total += count * release.steps * per_step
        best = min(best, total * (1 + 1e-9) + conversion_cost(order, delta))
    return max(0.0, best)
