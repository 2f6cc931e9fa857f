"""Filters: costs rounded up, limits rounded down, epsilon never below the truth."""

import math
import random
from fractions import Fraction

import mpmath
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.filters import UNITS, conversion_cost, default_filter, make_filter
from privacy.gaussian_dp import delta_above, float_above, mills_ratio, sqrt_above
from privacy.releases import Release
from privacy.renyi import rdp_per_step, subsampled_rdp
from protos.errors import BudgetRefused, Malformed


def true_delta(epsilon: float, mu: float) -> mpmath.mpf:
    """The curve by its definition, in 60 digits."""
    with mpmath.workdps(60):
        e, m = mpmath.mpf(epsilon), mpmath.mpf(mu)
        return mpmath.ncdf(-e / m + m / 2) - mpmath.exp(e) * mpmath.ncdf(-e / m - m / 2)


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-4, 60.0), st.floats(1e-4, 12.0))
def test_curve_is_never_below_the_true_one(epsilon: float, mu: float) -> None:
    """The delta that we certify is at least the true one, and hardly more where it matters."""
    ours, truth = delta_above(epsilon, mu), true_delta(epsilon, mu)
    assert ours >= truth
    if truth > 1e-12:
        # Cancellation costs digits as mu falls; at 1e-4 six are left.
        assert ours <= truth * (1 + 1e-11 / mu + 1e-11)


@pytest.mark.parametrize("x", [0.0, 0.5, 3.0, 4.999, 5.0, 5.001, 12.0, 40.0, 1e4])
def test_mills_ratio_has_fourteen_digits(x: float) -> None:
    """Both branches agree with 60-digit arithmetic, also where they meet."""
    with mpmath.workdps(60):
        truth = mpmath.ncdf(-mpmath.mpf(x)) / mpmath.npdf(mpmath.mpf(x))
    assert mills_ratio(x) == pytest.approx(float(truth), rel=1e-14)


@settings(max_examples=300, deadline=None)
@given(st.fractions(min_value=Fraction(1, 10**12), max_value=10**18))
def test_exact_numbers_become_floats_that_are_not_below(value: Fraction) -> None:
    """A root or a sum that is shown as a float never loses its last part."""
    assert value <= Fraction(float_above(value)) <= value * (1 + Fraction(1, 2**51))
    root = Fraction(sqrt_above(value))
    assert value <= root**2 <= value * (1 + Fraction(1, 2**49))


@pytest.mark.parametrize(
    ("epsilon", "mu"), [(1.0, 0.2681), (5.0, 1.1212), (2.0, math.sqrt(20) / 8.9166)]
)
def test_gdp_limit_is_the_known_mu(epsilon: float, mu: float) -> None:
    """mu is .2681 for (1, 1e-5) and 1.1212 for (5, 1e-5)."""
    limit = make_filter("gdp", 0, epsilon, 1e-5).limit_units
    assert math.sqrt(limit / UNITS) == pytest.approx(mu, abs=5e-5)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-6, 1e-9, 1e-20])
@pytest.mark.parametrize("epsilon", [1e-3, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1e4])
def test_gdp_limit_is_safe_and_wastes_nothing(epsilon: float, delta: float) -> None:
    """The limit's true delta is at most the account's; a millionth more mu would pass it."""
    limit = make_filter("gdp", 0, epsilon, delta).limit_units
    with mpmath.workdps(60):
        mu = mpmath.sqrt(mpmath.mpf(limit) / UNITS)
        assert true_delta(epsilon, mu) <= delta
        more = mpmath.sqrt(mpmath.mpf(limit + 1) / UNITS) * (1 + mpmath.mpf(10) ** -6)
        assert true_delta(epsilon, more) > delta


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**15), st.sampled_from([1e-3, 1e-5, 1e-9]))
def test_gdp_epsilon_is_never_below_the_true_one(units: int, delta: float) -> None:
    """At the epsilon that is shown, the true delta of the spent units is within the account's."""
    epsilon = make_filter("gdp", 0, 1.0, delta).epsilon_of(units)
    with mpmath.workdps(60):
        mu = mpmath.sqrt(mpmath.mpf(units) / UNITS)
        assert true_delta(epsilon, mu) <= delta
        if epsilon > 1e-3:
            assert true_delta(epsilon * (1 - 1e-7), mu) > delta


@pytest.mark.parametrize("kind_order", [("gdp", 0), ("rdp", 6), ("rdp", 32)])
@settings(max_examples=60, deadline=None)
@given(limit=st.floats(2.5, 40.0), share=st.floats(0.0, 1.0))
def test_epsilon_within_the_limit_is_at_most_the_limit(
    kind_order: tuple[str, int], limit: float, share: float
) -> None:
    """What fits the limit never shows an epsilon above it, not even in the last digit."""
    one = make_filter(*kind_order, limit, 1e-5)
    spent = math.floor(one.limit_units * share)
    assert one.epsilon_of(spent) <= one.epsilon_of(one.limit_units) <= limit
    assert one.epsilon_of(one.limit_units) >= limit * (1 - 1e-6)
    assert one.epsilon_of(0) == 0.0


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-300, 1e300), st.integers(1, 2**32 - 1))
def test_gdp_cost_is_exact_and_rounded_up(noise_multiplier: float, steps: int) -> None:
    """The cost is the least integer that is not below steps / sigma^2, for every float."""
    cost = make_filter("gdp", 0, 1.0, 1e-5).cost_units(
        Release("gaussian", noise_multiplier, 1.0, steps)
    )
    exact = Fraction(steps) / Fraction(noise_multiplier) ** 2 * UNITS
    assert cost - 1 < exact <= cost


def test_gdp_refuses_sampled_releases() -> None:
    """There is no proven Gaussian bound for Poisson sampling, at any rate."""
    for rate in (0.01, 1.0):
        with pytest.raises(BudgetRefused) as caught:
            make_filter("gdp", 0, 1.0, 1e-5).cost_units(Release("poisson_gaussian", 9.0, rate, 1))
        assert caught.value.reason == "MECHANISM_NOT_COVERED"


@pytest.mark.parametrize("kind_order", [("gdp", 0), ("rdp", 4)])
def test_releases_without_data_or_accounting_cost_nothing(kind_order: tuple[str, int]) -> None:
    """Reading no record is free; a release without accounting has no cost, only a consequence."""
    one = make_filter(*kind_order, 5.0, 1e-5)
    assert one.cost_units(Release("no_data", None, 1.0, 0)) == 0
    assert one.cost_units(Release("none", None, 1.0, 5)) == 0


@pytest.mark.parametrize("seed", range(60))
def test_rdp_cost_agrees_with_dp_accounting(seed: int) -> None:
    """At integer orders the series equals Google's, rounded up."""
    g = random.Random(seed)
    order, steps = g.randint(2, 64), g.randint(1, 3000)
    rate = g.choice([1.0, g.uniform(0.001, 0.999)])
    noise_multiplier = g.uniform(0.3, 20.0)
    event = GaussianDpEvent(noise_multiplier)
    mechanism = "poisson_gaussian" if rate < 1 else "gaussian"
    accountant = RdpAccountant(orders=[order])
    accountant.compose(
        SelfComposedDpEvent(event if rate == 1 else PoissonSampledDpEvent(rate, event), steps)
    )
    theirs = float(accountant._rdp[0])
    cost = make_filter("rdp", order, 100.0, 1e-5).cost_units(
        Release(mechanism, noise_multiplier, rate, steps)
    )
    # Theirs takes the logarithm of a sum near 1: an absolute error of some 1e-15 a step.
    assert cost / UNITS == pytest.approx(theirs, rel=1e-9, abs=2e-14 * steps + 2 / UNITS)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-6, 0.999), st.floats(0.2, 100.0), st.integers(2, 128))
def test_subsampled_rdp_is_safe_at_any_size(rate: float, sigma: float, order: int) -> None:
    """Against 60 digits, the cost is never below and at most a hundred-billionth above."""
    with mpmath.workdps(60):
        q, s = mpmath.mpf(rate), mpmath.mpf(sigma)
        total = mpmath.fsum(
            mpmath.binomial(order, i)
            * (1 - q) ** (order - i)
            * q**i
            * mpmath.exp(mpmath.mpf(i * i - i) / (2 * s * s))
            for i in range(order + 1)
        )
        truth = mpmath.log(total) / (order - 1)
        assert subsampled_rdp(rate, sigma, order) == pytest.approx(float(truth), rel=1e-11)
        cost = make_filter("rdp", order, 100.0, 1e-5).cost_units(
            Release("poisson_gaussian", sigma, rate, 1)
        )
        assert truth * UNITS <= cost <= truth * UNITS * (1 + 3e-11) + 1


def test_tiny_noise_costs_more_than_any_limit() -> None:
    """Numbers that overflow a float are refused by size, not by a crash."""
    one = make_filter("rdp", 64, 1e4, 1e-5)
    for mechanism, rate in (("gaussian", 1.0), ("poisson_gaussian", 0.5)):
        assert one.cost_units(Release(mechanism, 1e-300, rate, 1)) > one.limit_units


@pytest.mark.parametrize(("order", "cost"), [(3, 4.80), (4, 3.09), (6, 1.76)])
def test_conversion_costs_are_the_published_ones(order: int, cost: float) -> None:
    """4.80, 3.09 and 1.76 at delta 1e-5; an account below its own is refused by name."""
    assert conversion_cost(order, 1e-5) == pytest.approx(cost, abs=0.005)
    with pytest.raises(Malformed, match=rf"{cost:.2f}|{cost + 0.01:.2f}") as caught:
        make_filter("rdp", order, cost - 0.01, 1e-5)
    assert caught.value.reason == "LIMIT_BELOW_CONVERSION_COST"
    assert make_filter("rdp", order, cost + 0.1, 1e-5).limit_units > 0


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 256), st.floats(1e-30, 0.5))
def test_conversion_cost_is_never_below_the_true_one(order: int, delta: float) -> None:
    """A limit that is a hair above the rounded cost would else admit more than it is worth."""
    with mpmath.workdps(60):
        logs = mpmath.log(mpmath.mpf(delta)) + mpmath.log(order)
        true = mpmath.log(1 - mpmath.mpf(1) / order) - logs / (order - 1)
        assert true <= conversion_cost(order, delta) <= true + 1e-12


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 48), st.floats(1e-6, 0.999), st.floats(0.3, 100.0))
def test_a_samples_divergence_is_never_below_the_true_one(
    order: int, rate: float, noise: float
) -> None:
    """The series is summed in floats, whose errors are covered."""
    found = rdp_per_step(Release("poisson_gaussian", noise, rate, 1), order)
    assert found is not None
    with mpmath.workdps(60):
        q, s = mpmath.mpf(rate), mpmath.mpf(noise)
        total = mpmath.fsum(
            mpmath.binomial(order, i)
            * (1 - q) ** (order - i)
            * q**i
            * mpmath.exp((i * i - i) / (2 * s * s))
            for i in range(order + 1)
        )
        true = mpmath.log(total) / (order - 1)
        assert true <= mpmath.mpf(found.numerator) / found.denominator <= true * (1 + 1e-9)


@pytest.mark.parametrize("order", [2, 3, 4, 6, 16, 64])
@pytest.mark.parametrize("rdp", [0.01, 0.3, 2.0, 15.0])
def test_rdp_epsilon_agrees_with_dp_accounting(order: int, rdp: float) -> None:
    """The improved conversion of Canonne, Kamath and Steinke, rounded up."""
    theirs, _ = compute_epsilon([order], [rdp], 1e-5)
    ours = make_filter("rdp", order, 100.0, 1e-5).epsilon_of(math.ceil(rdp * UNITS))
    assert ours == pytest.approx(theirs, abs=1e-10)
    assert ours >= theirs


@pytest.mark.parametrize(
    ("kind", "order", "epsilon", "delta"),
    [
        ("pld", 0, 1.0, 1e-5),
        ("gdp", 3, 1.0, 1e-5),
        ("rdp", 1, 9.0, 1e-5),
        ("rdp", 257, 9.0, 1e-5),
        ("rdp", 0, 9.0, 1e-5),
        ("rdp", True, 9.0, 1e-5),
        ("gdp", 0, 0.0, 1e-5),
        ("gdp", 0, -1.0, 1e-5),
        ("gdp", 0, math.nan, 1e-5),
        ("gdp", 0, math.inf, 1e-5),
        ("gdp", 0, 1.0, 0.0),
        ("gdp", 0, 1.0, 1.0),
        ("gdp", 0, 1.0, math.nan),
        ("gdp", 0, "1", 1e-5),
    ],
)
def test_nonsense_makes_no_filter(kind: str, order: int, epsilon: float, delta: float) -> None:
    """A budget that means nothing is refused when it is created."""
    with pytest.raises(Malformed) as caught:
        make_filter(kind, order, epsilon, delta)
    assert caught.value.reason == "FILTER_INVALID"


@pytest.mark.parametrize(
    ("n", "limit", "per_job", "expected"),
    [
        (999, 10.0, 5.0, ("gdp", 0)),
        (1000, 10.0, 5.0, ("rdp", 5)),
        (1000, 10.0, 2.0, ("rdp", 10)),
        (1000, 20.0, 20.0, ("rdp", 3)),
        (5000, 4.0, 4.0, ("rdp", 10)),
        (5000, 0.2, 0.2, ("rdp", 117)),
        (5000, 0.01, 0.01, ("gdp", 0)),
    ],
)
def test_default_filter_starts_at_a_quarter_of_the_limit(
    n: int, limit: float, per_job: float, expected: tuple[str, int]
) -> None:
    """Full batches under 1,000 records; else the smallest order whose cost is a quarter of the
    limit at most, and half of what one job may spend."""
    assert default_filter(n, limit, 1e-5, per_job) == expected
    assert make_filter(*expected, limit, 1e-5).epsilon_limit == limit
    if expected[1]:
        most = min(limit / 4, per_job / 2)
        assert conversion_cost(expected[1], 1e-5) <= most < conversion_cost(expected[1] - 1, 1e-5)
