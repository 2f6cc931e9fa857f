"""A second way to compose: Opacus's PRV machinery, fed with losses that are derived here."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from opacus.accountants.analysis.prv import (
    Domain,
    PoissonSubsampledGaussianPRV,
    TruncatedPrivacyRandomVariable,
    compose_heterogeneous,
    discretize,
)

from privacy.releases import Release

Floats = NDArray[np.float64]


class LaplaceLoss:
    """log p/q at a draw of p, where p is Laplace noise at 0 and q the same moved by 1."""

    def __init__(self, noise: float) -> None:
        self.epsilon = 1.0 / noise

    def cdf(self, t: Any) -> Floats:
        e = self.epsilon
        between = np.exp(-(e - np.clip(t, -e, e)) / 2.0) / 2.0
        return np.where(t < -e, 0.0, np.where(t < e, between, 1.0))


class ChoiceLoss:
    """log p/q at a draw of p: a logistic variable at r = 2/noise, and one at 0."""

    def __init__(self, noise: float) -> None:
        self.r = 2.0 / noise

    def cdf(self, t: Any) -> Floats:
        # Loss t is at the y with (1 + e^-y) / (1 + e^(r-y)) = k; p draws at most y so often.
        k = np.exp((np.clip(t, -self.r, self.r) - self.r) / 2.0)
        with np.errstate(divide="ignore"):
            u = (1.0 - k) / np.maximum(k * math.exp(self.r) - 1.0, 0.0)
            below = 1.0 / (1.0 + u * math.exp(self.r))
        return np.where(t < -self.r, 0.0, np.where(t < self.r, below, 1.0))


class CountLoss:
    """log p/q at a draw of p: whole numbers with weight exp(-x^2 / (2 sigma^2)), moved by 1."""

    def __init__(self, sigma: float) -> None:
        self.sigma, self.far = sigma, math.ceil(40 * sigma)
        weights = np.exp(-(np.arange(-self.far, self.far + 1) ** 2.0) / (2 * sigma**2))
        self.from_above = np.append(np.cumsum(weights[::-1])[::-1] / weights.sum(), 0.0)

    def cdf(self, t: Any) -> Floats:
        # The loss (1 - 2x) / (2 sigma^2) is at most t from this x on.
        x = np.ceil((1.0 - 2.0 * self.sigma**2 * np.asarray(t, dtype=float)) / 2.0)
        return self.from_above[np.clip(x + self.far, 0, 2 * self.far + 1).astype(int)]


def _loss(release: Release) -> Any:
    noise = release.noise_multiplier or 0.0
    match release.mechanism:
        case "gaussian" | "poisson_gaussian":
            return PoissonSubsampledGaussianPRV(release.sample_rate, noise)
        case "laplace":
            return LaplaceLoss(noise)
        case "exponential":
            return ChoiceLoss(noise)
        case "discrete_gaussian":
            return CountLoss(noise)
        case _:
            raise AssertionError(release.mechanism)


def prv_epsilon(
    releases: list[Release], delta: float, reach: float, eps_error: float = 0.01
) -> tuple[float, float, float]:
    """Lower end, estimate and upper end of epsilon.

    Args:
        reach: losses beyond it are left out; a few more than the epsilon that is expected.
    """
    delta_error = delta / 1000
    steps = [one.steps for one in releases]
    mesh = eps_error / math.sqrt(sum(steps) * math.log(12 / delta_error) / 2)
    domain = Domain.create_aligned(-reach, reach, mesh)
    with np.errstate(all="ignore"):
        losses = [
            discretize(
                TruncatedPrivacyRandomVariable(_loss(one), domain.t_min, domain.t_max), domain
            )
            for one in releases
        ]
    composed = compose_heterogeneous(dprvs=losses, num_self_compositions=steps)
    return composed.compute_epsilon(delta, delta_error, eps_error)
