"""Privacy loss distributions of one step of each mechanism, on a grid.

Each is that of a pair of distributions which no neighbouring pair of data sets can be told apart
better than, so composing them is an upper bound also for mechanisms that are chosen adaptively
one after the other, as long as their parameters were fixed beforehand. Imports numpy: not for an
idle agent.

A loss between two points of the grid is shared out over both, so that its mass and its mean of
e^-loss stay: the tightest upper bound with these points (Doroshenko et al. 2022, arXiv 2207.04380,
"connect the dots", which dp-accounting uses too).
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from privacy.filters import not_covered
from privacy.releases import Release

NOISE_MAX: Final = 1.0e6
"""More noise is counted as this much, which costs no less: it is what a job may ask for at most."""

SYMMETRIC: Final = frozenset({"gaussian", "laplace", "discrete_gaussian", "exponential"})
"""With and without the patient can be told apart as well as without and with."""

_TAIL_MIN: Final = 1.0e-300
_LARGE: Final = 1.0
"""Above this loss e^loss - 1 + q is computed by its logarithm, which does not overflow."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Loss:
    """Masses at `first`, `first + 1`, ... times the grid's width, and one at infinity."""

    first: int
    masses: Floats
    infinite: float


def reach(release: Release, tail: float) -> tuple[float, float]:
    """The least and the largest loss of one step, either way round, but for mass `tail`.

    Raises:
        BudgetRefused: MECHANISM_NOT_COVERED.
    """
    noise = _noise(release)
    match release.mechanism:
        case "gaussian" | "poisson_gaussian":
            mu, far = 1.0 / noise, _far(tail)
            low = _sampled_loss(-far, mu, release.sample_rate)
            high = _sampled_loss(far + mu, mu, release.sample_rate)
        case "laplace":
            low, high = -1.0 / noise, 1.0 / noise
        case "exponential":
            low, high = -2.0 / noise, 2.0 / noise
        case "discrete_gaussian":
            high = (1.0 + 2.0 * _atoms(noise, tail)) / (2.0 * noise * noise)
            low = -high
        case _:
            raise not_covered("reported", release)
    end = max(-low, high)
    return (-end, end) if release.sample_rate < 1.0 else (low, high)


def losses(release: Release, interval: float, tail: float) -> tuple[Loss, Loss]:
    """One step's loss with the patient against without, and without against with.

    `tail` is about the mass that may be put at infinity though its loss is finite.
    """
    noise = _noise(release)
    match release.mechanism:
        case "gaussian" | "poisson_gaussian":
            return _gaussian(1.0 / noise, release.sample_rate, interval, tail)
        case "laplace":
            one = _by_divergence(1.0 / noise, interval, _laplace_divergence)
        case "exponential":
            one = _by_divergence(2.0 / noise, interval, _choice_divergence)
        case "discrete_gaussian":
            one = _discrete_gaussian(noise, interval, tail)
        case _:
            raise not_covered("reported", release)
    return one, one


def variance(release: Release) -> float:
    """About the variance of a Gaussian step's loss, of the smaller of its two; else 0."""
    if release.mechanism not in ("gaussian", "poisson_gaussian"):
        return 0.0
    mu, rate = 1.0 / _noise(release), release.sample_rate
    if rate == 1.0:
        return mu * mu
    z = np.linspace(-8.0, 8.0, 161)
    weights = np.exp(-z * z / 2.0)
    weights /= weights.sum()
    loss = np.logaddexp(math.log1p(-rate), math.log(rate) + mu * z - mu * mu / 2.0)
    return float(np.sum(weights * (loss - np.sum(weights * loss)) ** 2))


def _noise(release: Release) -> float:
    return min(release.noise_multiplier or 0.0, NOISE_MAX)


def _far(tail: float) -> float:
    return float(-ndtri(max(tail, _TAIL_MIN)))


def _sampled_loss(z: float, mu: float, rate: float) -> float:
    """log(1 - rate + rate e^(mu z - mu^2/2))."""
    exponent = mu * z - mu * mu / 2.0
    if rate == 1.0:
        return exponent
    if exponent < _LARGE:
        return math.log1p(rate * math.expm1(exponent))
    return float(np.logaddexp(math.log1p(-rate), math.log(rate) + exponent))


def _gaussian(mu: float, rate: float, interval: float, tail: float) -> tuple[Loss, Loss]:
    """Normal noise moved by `mu` with probability `rate`, against normal noise; and the reverse."""
    far = _far(tail)
    first = math.floor(_sampled_loss(-far, mu, rate) / interval)
    last = math.ceil(_sampled_loss(far + mu, mu, rate) / interval)
    last = max(last, first + 1)
    points = np.arange(first, last + 1, dtype=np.float64) * interval
    if rate == 1.0:
        z = points / mu + mu / 2.0
    else:
        with np.errstate(divide="ignore", over="ignore"):
            small = np.log(np.maximum(np.expm1(np.minimum(points, _LARGE)) + rate, 0.0))
        large = points + np.log1p(-(1.0 - rate) * np.exp(-np.maximum(points, _LARGE)))
        z = (np.where(points < _LARGE, small, large) - math.log(rate)) / mu + mu / 2.0
    still, still_below, still_above = _cells(z)
    moved, _, moved_above = _cells(z - mu)
    mixed = (1.0 - rate) * still + rate * moved
    mixed_above = (1.0 - rate) * still_above + rate * moved_above
    with_patient = _shared_out(mixed, still, points[:-1], interval)
    # What lies below the first point is moved up to it.
    with_patient[0] += max(0.0, 1.0 - mixed.sum() - mixed_above)
    if rate == 1.0:
        one = Loss(first, with_patient, mixed_above)
        return one, one
    without = _shared_out(still[::-1], mixed[::-1], -points[:0:-1], interval)
    without[0] += still_above
    return Loss(first, with_patient, mixed_above), Loss(-last, without, still_below)


def _cells(z: Floats) -> tuple[Floats, float, float]:
    """Normal mass between neighbours of `z`, below the first and above the last."""
    tails = ndtr(-np.abs(z))
    low, high = tails[:-1], tails[1:]
    between = np.where(
        z[:-1] >= 0.0, low - high, np.where(z[1:] <= 0.0, high - low, 1.0 - low - high)
    )
    below = tails[0] if z[0] < 0.0 else 1.0 - tails[0]
    above = tails[-1] if z[-1] > 0.0 else 1.0 - tails[-1]
    return np.maximum(between, 0.0), float(below), float(above)


def _shared_out(upper: Floats, lower: Floats, at: Floats, interval: float) -> Floats:
    """Each cell's mass on its two ends; `at` is each cell's left end."""
    with np.errstate(divide="ignore"):
        weighted = np.exp(at + np.log(lower))
    right = np.clip((upper - weighted) / -math.expm1(-interval), 0.0, upper)
    masses = np.zeros(len(upper) + 1)
    masses[1:] = right
    masses[:-1] += upper - right
    return masses


def _by_divergence(end: float, interval: float, divergence: Any) -> Loss:
    """From the hockey-stick divergence at e^x for |x| <= `end`, beyond which no loss lies."""
    ends = math.ceil(end / interval)
    points = np.arange(-ends, ends + 1)
    deltas = divergence(np.clip(points * interval, -end, end), end)
    deltas[0] = -math.expm1(-ends * interval)  # below -end it is 1 - e^x
    deltas = np.minimum.accumulate(deltas)
    steps, growth = np.diff(deltas), math.expm1(interval)
    masses = np.empty(len(points))
    masses[0] = 1.0 - deltas[0] + steps[0] / growth
    masses[1:-1] = (steps[1:] - steps[:-1] * math.exp(interval)) / growth
    masses[-1] = steps[-1] / math.expm1(-interval)
    return Loss(-ends, np.maximum(masses, 0.0), float(deltas[-1]))


def _laplace_divergence(x: Floats, epsilon: float) -> Floats:
    return -np.expm1((x - epsilon) / 2.0)


def _choice_divergence(x: Floats, bounded_range: float) -> Floats:
    """Of the worst mechanism whose log-ratio over its outcomes spans `bounded_range` = r.

    It is (e^(r/2) - e^(x/2))^2 / (e^r - 1) for |x| <= r: see
    `privacy.gaussian_dp.bounded_range_mu_squared`. Divided by e^r above and below, which no r
    overflows.
    """
    return np.expm1((x - bounded_range) / 2.0) ** 2 / -math.expm1(-bounded_range)


def _atoms(sigma: float, tail: float) -> int:
    """A discrete Gaussian is further from 0 than this with probability 2 `tail` at most.

    Source: Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), Corollary 17.
    """
    return math.ceil(sigma * math.sqrt(-2.0 * math.log(max(tail, _TAIL_MIN))))


def _discrete_gaussian(sigma: float, interval: float, tail: float) -> Loss:
    far = _atoms(sigma, tail)
    atoms = np.arange(far, -far - 1, -1, dtype=np.float64)
    weights = np.exp(-((atoms / sigma) ** 2) / 2.0)
    at = (1.0 - 2.0 * atoms) / (2.0 * sigma * sigma)
    cells = np.floor(at / interval).astype(np.int64)
    first = int(cells[0])
    share = np.clip(np.expm1(cells * interval - at) / math.expm1(-interval), 0.0, 1.0)
    masses = np.bincount(cells - first, weights * (1.0 - share), int(cells[-1]) - first + 2)
    masses[1:] += np.bincount(cells - first, weights * share, len(masses) - 1)
    return Loss(first, masses / weights.sum(), max(tail, _TAIL_MIN))
