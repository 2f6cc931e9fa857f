"""Privacy loss distributions of the mechanisms, built from dp-accounting's.

Each is that of a pair of distributions which no neighbouring pair of data sets can be told apart
better than, so composing them is an upper bound also for mechanisms that are chosen adaptively
one after the other, as long as their parameters were fixed beforehand. Imports numpy: not for an
idle agent.
"""

import math
from typing import Any, Final

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld

from privacy.filters import not_covered
from privacy.releases import Release

NOISE_MAX: Final = 1.0e6
"""More noise is counted as this much, which costs no less: dp-accounting's arithmetic ends there.
It is what a job may ask for at most."""


def identity(interval: float) -> Any:
    """The loss of nothing, on a grid of width `interval`."""
    return pld.identity(value_discretization_interval=interval)


def loss_of(release: Release, interval: float) -> tuple[Any, int]:
    """A privacy loss distribution on a grid of width `interval`, and how often it counts.

    Raises:
        BudgetRefused: MECHANISM_NOT_COVERED.
    """
    noise, steps = min(release.noise_multiplier or 0.0, NOISE_MAX), release.steps
    match release.mechanism:
        case "gaussian" | "poisson_gaussian" if release.sample_rate == 1.0:
            # As in dp-accounting's PLDAccountant: full-batch steps are one Gaussian, less noisy.
            one = pld.from_gaussian_mechanism(
                noise / math.sqrt(steps), value_discretization_interval=interval
            )
            return one, 1
        case "poisson_gaussian":
            one = pld.from_gaussian_mechanism(
                noise, value_discretization_interval=interval, sampling_prob=release.sample_rate
            )
        case "laplace":
            one = pld.from_laplace_mechanism(noise, value_discretization_interval=interval)
        case "discrete_gaussian":
            one = pld.from_discrete_gaussian_mechanism(
                noise, value_discretization_interval=interval, use_connect_dots=True
            )
        case "exponential":
            one = bounded_range_loss(2.0 / noise, interval)
        case _:
            raise not_covered("reported", release)
    return one, steps


def bounded_range_loss(bounded_range: float, interval: float) -> Any:
    """Loss of the worst mechanism whose log-ratio over its outcomes spans `bounded_range` = r.

    Its hockey-stick divergence at e^x is (e^(r/2) - e^(x/2))^2 / (e^r - 1) for |x| <= r: see
    `privacy.gaussian_dp.bounded_range_mu_squared`. Below -r it is 1 - e^x, above r it is 0.
    """
    ends = math.ceil(bounded_range / interval)
    points = np.arange(-ends, ends + 1)
    x = np.clip(points * interval, -bounded_range, bounded_range)
    # Divided by e^r above and below, which no r overflows.
    root = -np.expm1((x - bounded_range) / 2.0)
    deltas = root**2 / -math.expm1(-bounded_range)
    deltas[0] = -math.expm1(-ends * interval)
    return pld.PrivacyLossDistribution(
        pld_pmf.create_pmf_pessimistic_connect_dots(interval, points, deltas)
    )
