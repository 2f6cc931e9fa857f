"""Renyi divergence of one step of each mechanism at an integer order, never below the true one.

The divergence is between a node with and a node without one patient, the larger of the two
directions. A mechanism that is not in the table below has no bound here.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Final

from privacy.releases import Release

OVER_ANY_LIMIT: Final = Fraction(10**36)
"""Stands for a divergence that no float holds."""

_SERIES_ROUNDING: Final = 1 + Fraction(1, 10**11)
"""Covers the rounding errors of the subsampled series (under 1e-12 of its value)."""

_SERIES_NOISE_MAX: Final = 1.0e100
"""Above it a term of the series has fewer digits than a float should, or none."""

_SERIES_LEAST: Final = 1.0e-299
_SERIES_LEAST_LOG: Final = -690.0
"""e to this is below `_SERIES_LEAST`, which stands for anything smaller: noise never costs 0."""

_LAPLACE_DIGITS: Final = 60
_LAPLACE_ROUNDING: Final = 1 + Fraction(1, 10**20)
"""The logarithm's argument is 1 + x with x above 1e-24: of 60 digits more than 30 are left."""

_LAPLACE_NOISE_MAX: Final = 10.0**12
_LAPLACE_NOISE_MIN: Final = 1.0e-4


def rdp_per_step(release: Release, order: int) -> Fraction | None:
    """Divergence at `order` of one of the release's steps; None for a mechanism without a bound.

    Sources: "gaussian": Mironov 2017 (arXiv 1702.07476), Proposition 7. "poisson_gaussian":
    Mironov, Talwar and Zhang 2019 (1908.10530), section 3.3; the direction that they bound (with
    against without the patient) is the larger. "laplace": Mironov 2017, Proposition 6.
    "discrete_gaussian": Canonne, Kamath and Steinke 2020 (2004.00010), Proposition 5, an equality
    at integer orders. "exponential": bounded range r gives r^2/8-zCDP (Dong, Durfee and Rogers
    2020, 1909.13830; Cesar and Rogers 2021, 2004.07223), and r itself bounds every order.
    """
    noise = release.noise_multiplier
    if noise is None:
        return None
    match release.mechanism:
        case "gaussian" | "discrete_gaussian":
            return _gaussian(noise, order)
        case "poisson_gaussian":
            if release.sample_rate == 1.0 or noise > _SERIES_NOISE_MAX:
                return _gaussian(noise, order)  # a sample never costs more than all records
            rdp = subsampled_rdp(release.sample_rate, noise, order)
            return Fraction(rdp) * _SERIES_ROUNDING if math.isfinite(rdp) else OVER_ANY_LIMIT
        case "laplace":
            return laplace_rdp(noise, order)
        case "exponential":
            bounded_range = 2 / Fraction(noise)
            return min(order * bounded_range**2 / 8, bounded_range)
        case _:
            return None


def _gaussian(noise_multiplier: float, order: int) -> Fraction:
    return Fraction(order, 2) / Fraction(noise_multiplier) ** 2


@lru_cache(maxsize=1024)
def laplace_rdp(noise_multiplier: float, order: int) -> Fraction:
    """Divergence at integer `order` of Laplace noise of scale `noise_multiplier` sensitivities.

    `log(order/(2 order - 1) e^((order-1) e) + (order-1)/(2 order - 1) e^(-order e)) / (order-1)`
    with e = 1/noise_multiplier, in 60 decimal digits. Where even they would not do, the bounds
    that hold for every e-DP mechanism: order e^2/2 for tiny e (Bun and Steinke 2016, Proposition
    1.4), within 1e-9 of the formula there; and e for huge e.
    """
    epsilon = 1 / Fraction(noise_multiplier)
    if noise_multiplier > _LAPLACE_NOISE_MAX:
        return order * epsilon**2 / 2
    if noise_multiplier < _LAPLACE_NOISE_MIN:
        return epsilon
    with localcontext() as context:
        context.prec = _LAPLACE_DIGITS
        e, a = 1 / Decimal(noise_multiplier), Decimal(order)
        mean = (a * ((a - 1) * e).exp() + (a - 1) * (-a * e).exp()) / (2 * a - 1)
        value = mean.ln() / (a - 1)
    return min(Fraction(value) * _LAPLACE_ROUNDING, epsilon)


def subsampled_rdp(sample_rate: float, noise_multiplier: float, order: int) -> float:
    """Renyi divergence at integer `order` of one Poisson-subsampled Gaussian step.

    With `sum_i binomial(order, i) (1-q)^(order-i) q^i = 1` taken out, every term left is
    positive, so a divergence far below 1e-16 keeps its digits.
    """
    log_q, log_rest = math.log(sample_rate), math.log1p(-sample_rate)
    logs = []
    for i in range(2, order + 1):
        exponent = (i * i - i) / 2 / noise_multiplier / noise_multiplier
        log_growth = exponent + math.log(-math.expm1(-exponent)) if exponent > 0 else -math.inf
        logs.append(math.log(math.comb(order, i)) + (order - i) * log_rest + i * log_q + log_growth)
    top = max(logs)
    if math.isinf(top):
        return max(0.0, top)
    log_excess = top + math.log(math.fsum(math.exp(value - top) for value in logs))
    if log_excess < _SERIES_LEAST_LOG:
        return _SERIES_LEAST
    # log(1 + e^x) without overflow.
    log_a = max(log_excess, 0.0) + math.log1p(math.exp(-abs(log_excess)))
    return (math.exp(log_excess) if log_excess < -40.0 else log_a) / (order - 1)
