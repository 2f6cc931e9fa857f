"""The reported epsilon agrees with dp-accounting, Opacus's PRV and closed forms."""

import math
import random
from functools import lru_cache

import dp_accounting as dp
import mpmath
import pytest
from dp_accounting.pld import PLDAccountant
from other_accountants import prv_epsilon

from privacy.accounting import epsilon_spent
from privacy.releases import Mechanism, Release

DELTA = 1e-5
EPS_ERROR = 0.01


def one(mechanism: Mechanism, noise: float, steps: int = 1, rate: float = 1.0) -> Release:
    return Release(mechanism, noise, rate, steps)


TABLE = [
    (one("gaussian", 1.5), 2.753, 2.764),
    (one("gaussian", 16.684, 20), 1.000, 1.010),
    (one("poisson_gaussian", 1.5, 130, 1 / 13), 3.030, 3.041),
    (one("poisson_gaussian", 1.0, 10_000, 0.01), 6.188, 6.198),
    (one("poisson_gaussian", 0.6, 100, 0.1), 20.574, 20.585),
]
"""Release, dp-accounting's PLD and Opacus's PRV, as they were measured before this was written."""

MIXED = [
    [one("gaussian", 9.0, 5), one("laplace", 12.0, 8), one("exponential", 30.0, 20)],
    [one("poisson_gaussian", 1.1, 60, 0.05), one("discrete_gaussian", 6.0, 4)],
    [one("laplace", 2.0), one("laplace", 15.0, 40), one("gaussian", 5.0)],
    [one("exponential", 4.0, 3), one("discrete_gaussian", 0.9), one("gaussian", 20.0, 10)],
    [
        one("gaussian", 12.0, 20),
        one("poisson_gaussian", 0.9, 100, 0.02),
        one("laplace", 20.0, 5),
        one("discrete_gaussian", 11.5, 6),
        one("exponential", 25.0, 9),
    ],
]
ALONE = [
    one("laplace", 0.5),
    one("laplace", 10.0, 100),
    one("exponential", 1.0),
    one("exponential", 20.0, 100),
    one("discrete_gaussian", 0.7, 2),
    one("discrete_gaussian", 10.0, 20),
]


@lru_cache
def ours(*releases: Release) -> float:
    found = epsilon_spent(releases, DELTA)
    assert found is not None
    return found


@pytest.mark.parametrize(("release", "pld", "_prv"), TABLE)
def test_the_table_is_dp_accountings(release: Release, pld: float, _prv: float) -> None:
    """Each row agrees with what the library answers today, and with what was written down."""
    event: dp.DpEvent = dp.GaussianDpEvent(release.noise_multiplier or 0.0)
    if release.sample_rate < 1:
        event = dp.PoissonSampledDpEvent(release.sample_rate, event)
    theirs = PLDAccountant().compose(dp.SelfComposedDpEvent(event, release.steps))
    assert ours(release) == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-3)
    assert ours(release) == pytest.approx(pld, abs=1e-3)


@pytest.mark.parametrize(("release", "_pld", "prv"), TABLE)
def test_the_table_is_opacus_prvs(release: Release, _pld: float, prv: float) -> None:
    """PRV's estimate is within its stated error of ours, and its upper end is the one on record."""
    low, estimate, high = prv_epsilon([release], DELTA, ours(release) + 12, EPS_ERROR)
    assert estimate == pytest.approx(ours(release), abs=EPS_ERROR)
    assert low <= ours(release) * (1 + 1e-4)
    assert high == pytest.approx(prv, abs=2e-3)


@pytest.mark.parametrize("releases", [*MIXED, *([each] for each in ALONE)])
def test_every_mechanism_agrees_with_losses_composed_elsewhere(releases: list[Release]) -> None:
    """Losses derived from the noise's distribution and convolved by Opacus: within its error."""
    found = ours(*releases)
    low, estimate, high = prv_epsilon(releases, DELTA, found + 12, EPS_ERROR)
    assert estimate == pytest.approx(found, abs=EPS_ERROR)
    assert low <= found <= high


@pytest.mark.parametrize("noise", [0.3, 1.0, 8.0, 60.0])
def test_one_laplace_release_has_a_closed_form(noise: float) -> None:
    """delta = 1 - e^((epsilon - 1/noise) / 2)."""
    exact = max(0.0, 1 / noise + 2 * math.log1p(-DELTA))
    # The library rounds the loss up to its grid, of width 1e-4.
    assert exact * (1 - 1e-9) <= ours(one("laplace", noise)) <= exact * 1.001 + 1e-4


@pytest.mark.parametrize("noise", [0.3, 1.0, 8.0, 60.0])
def test_one_choice_has_a_closed_form(noise: float) -> None:
    """delta = (e^(r/2) - e^(epsilon/2))^2 / (e^r - 1), the worst of all two-outcome mechanisms."""
    r = 2 / noise
    exact = 2 * math.log(math.exp(r / 2) - math.sqrt(DELTA * math.expm1(r)))
    assert exact * (1 - 1e-9) <= ours(one("exponential", noise)) <= exact * 1.001 + 1e-4


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("sigma", [0.8, 3.0])
def test_noised_counts_agree_with_the_sum_over_their_atoms(sigma: float, steps: int) -> None:
    """The atoms of the composed loss, in 40 digits: the true delta is just within the account's."""
    # The loss of all steps depends only on the sum of the draws, whose weights convolve.
    far = math.ceil(14 * sigma)
    with mpmath.workdps(40):
        single = [mpmath.exp(-mpmath.mpf(x * x) / (2 * sigma**2)) for x in range(-far, far + 1)]
        weights = [mpmath.mpf(1)]
        for _ in range(steps):
            longer = [mpmath.mpf(0)] * (len(weights) + 2 * far)
            for i, a in enumerate(weights):
                for j, b in enumerate(single):
                    longer[i + j] += a * b
            weights = longer
        total = mpmath.fsum(weights)

        def true_delta(epsilon: float) -> mpmath.mpf:
            losses = (
                (steps - 2 * (i - steps * far)) / (2 * mpmath.mpf(sigma) ** 2)
                for i in range(len(weights))
            )
            return mpmath.fsum(
                w / total * (1 - mpmath.exp(epsilon - loss))
                for w, loss in zip(weights, losses, strict=True)
                if loss > epsilon
            )

        found = ours(one("discrete_gaussian", sigma, steps))
        assert true_delta(found) <= DELTA < true_delta(found * 0.999)


@pytest.mark.parametrize("seed", range(2))
def test_equal_entries_in_any_order_give_one_figure(seed: int) -> None:
    """Mixed mechanisms, shuffled and counted: the same figure in all but its last digit."""
    g = random.Random(seed)
    used = [release for release in MIXED[4] for _ in range(g.randint(1, 3))]
    g.shuffle(used)
    counted = {release: used.count(release) for release in set(used)}
    found = epsilon_spent(counted, DELTA)
    assert epsilon_spent(used, DELTA) == pytest.approx(found, rel=2e-5)


def test_a_discrete_gaussian_too_fine_to_list_is_bounded_all_the_same() -> None:
    """Millions of atoms are not listed; the Renyi bound is above what a finer sigma would give."""
    coarse, fine = one("discrete_gaussian", 10_000.0, 100), one("discrete_gaussian", 10_001.0, 100)
    exact = one("gaussian", 10_001.0, 100)
    assert ours(exact) < ours(fine)
    assert 0 < ours(coarse) < ours(fine) < 0.05
