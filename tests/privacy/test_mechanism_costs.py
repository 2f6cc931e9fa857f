"""What each mechanism costs: never less than it is worth by its definition, and sums are exact."""

import math
import random
import time
from dataclasses import replace
from fractions import Fraction
from typing import get_args

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_samples import statement

from privacy.accounting import epsilon_spent
from privacy.figures import figures_of
from privacy.filters import UNITS, Filter, make_filter
from privacy.gaussian_dp import bounded_range_mu_squared, pure_mu_squared
from privacy.ledger import Balance
from privacy.releases import MECHANISMS, UNNOISED, Mechanism, Release
from privacy.renyi import laplace_rdp, rdp_per_step
from protos.errors import BudgetRefused

DELTA = 1e-5
GDP = make_filter("gdp", 0, 5.0, DELTA)
RDP = make_filter("rdp", 4, 5.0, DELTA)


def gdp_delta(x: mpmath.mpf, mu: mpmath.mpf) -> mpmath.mpf:
    """The hockey-stick divergence of mu-GDP at e^x, by its definition."""
    return mpmath.ncdf(-x / mu + mu / 2) - mpmath.exp(x) * mpmath.ncdf(-x / mu - mu / 2)


def two_outcomes(x: float, high: float, low: float) -> float:
    """The divergence at e^x of two outcomes with log-ratios `high` > 0 > `low`."""
    p = (1 - math.exp(-low)) / (math.exp(-high) - math.exp(-low))
    return max(0.0, p * (1 - math.exp(x - high))) + max(0.0, (1 - p) * (1 - math.exp(x - low)))


@settings(max_examples=150, deadline=None)
@given(st.floats(1e-9, 2000.0))
def test_pure_dp_costs_the_mu_of_its_fixed_point(epsilon: float) -> None:
    """At least 2 Phi^-1(e^epsilon / (1 + e^epsilon)), and hardly more in any range that is used."""
    with mpmath.workdps(60):
        found = mpmath.sqrt(mpmath.mpf(pure_mu_squared(Fraction(epsilon)).numerator)) / mpmath.sqrt(
            mpmath.mpf(pure_mu_squared(Fraction(epsilon)).denominator)
        )
        tail = 1 / (1 + mpmath.exp(mpmath.mpf(epsilon)))
        assert mpmath.ncdf(-found / 2) <= tail
        if epsilon < 600:
            assert mpmath.ncdf(-found * (1 - mpmath.mpf(10) ** -8) / 2) > tail


@pytest.mark.parametrize("epsilon", [1e-6, 0.01, 0.3, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("kind", ["pure", "bounded_range"])
def test_the_gaussian_curve_lies_above_the_mechanisms(kind: str, epsilon: float) -> None:
    """At every x mu-GDP allows at least what the worst mechanism does; a hundredth less mu not."""
    squared = (pure_mu_squared if kind == "pure" else bounded_range_mu_squared)(Fraction(epsilon))
    with mpmath.workdps(40):
        e, mu = mpmath.mpf(epsilon), mpmath.sqrt(mpmath.mpf(float(squared)))
        for step in range(-200, 201):
            x = e * step / 200
            if kind == "pure":
                worst = (mpmath.exp(e) - mpmath.exp(x)) / (mpmath.exp(e) + 1)
            else:
                root = mpmath.exp(e / 2) - mpmath.exp(x / 2)
                worst = root**2 / (mpmath.exp(e) - 1)
            assert gdp_delta(x, mu) >= worst * (1 - mpmath.mpf(10) ** -12)
        at_zero = mpmath.tanh(e / 2 if kind == "pure" else e / 4)
        assert gdp_delta(mpmath.mpf(0), mu * mpmath.mpf("0.99")) < at_zero


@settings(max_examples=200, deadline=None)
@given(st.floats(0.05, 8.0), st.floats(-1.0, 1.0), st.integers(0, 2**32))
def test_no_exponential_mechanism_passes_the_bounded_range_curve(
    bounded_range: float, share: float, seed: int
) -> None:
    """Random scores that one patient moves by the sensitivity: never easier to tell than booked."""
    g = random.Random(seed)
    noise = 2.0 / bounded_range
    scores = [g.uniform(-5, 5) for _ in range(g.randint(2, 6))]
    moved = [score + g.choice([-1.0, 1.0, g.uniform(-1, 1)]) for score in scores]
    p, q = ([math.exp(s / noise) for s in each] for each in (scores, moved))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    x = share * bounded_range
    found = sum(max(0.0, a - math.exp(x) * b) for a, b in zip(p, q, strict=True))
    root = math.exp(bounded_range / 2) - math.exp(x / 2)
    assert found <= root**2 / math.expm1(bounded_range) + 1e-12
    for order in (2, 5, 32):
        mean = sum(a * (a / b) ** (order - 1) for a, b in zip(p, q, strict=True))
        one = make_filter("rdp", order, 100.0, DELTA)
        cost = one.cost_units(Release("exponential", noise, 1.0, 1))
        assert math.log(mean) / (order - 1) <= cost / UNITS + 1e-9


def test_the_bounded_range_curve_is_reached_by_two_outcomes() -> None:
    """So that what is booked for a choice is no more than its worst case."""
    for r in (0.1, 1.0, 4.0):
        for x in (-0.5 * r, 0.0, 0.7 * r):
            t = (x + r) / 2
            root = math.exp(r / 2) - math.exp(x / 2)
            assert two_outcomes(x, t, t - r) == pytest.approx(root**2 / math.expm1(r), rel=1e-9)


@pytest.mark.parametrize("order", [2, 3, 7, 32, 128])
@pytest.mark.parametrize("noise", [0.02, 0.5, 1.5, 20.0, 3000.0])
def test_laplace_divergence_is_the_integral(noise: float, order: int) -> None:
    """Against the integral of p^order q^(1 - order), in 40 digits: never below, 1e-12 above."""
    with mpmath.workdps(40):
        b, a = mpmath.mpf(noise), mpmath.mpf(order)

        def term(y: mpmath.mpf) -> mpmath.mpf:
            return mpmath.exp((-a * abs(y) - (1 - a) * abs(y - 1)) / b) / (2 * b)

        # Outside 0 to 1 the ratio is constant.
        middle = mpmath.quad(term, [0, mpmath.mpf(1) / 2, 1])
        sides = mpmath.exp((a - 1) / b) / 2 + mpmath.exp(-a / b) / 2
        truth = mpmath.log(middle + sides) / (a - 1)
        found = laplace_rdp(noise, order)
        exact = mpmath.mpf(found.numerator) / mpmath.mpf(found.denominator)
        assert truth * (1 - mpmath.mpf(10) ** -30) <= exact <= truth * (1 + mpmath.mpf(10) ** -12)


@pytest.mark.parametrize("noise", [1e-300, 9e-5, 1.1e-4, 9e11, 1.1e12, 1e300])
def test_laplace_divergence_has_no_gap_where_its_formula_changes(noise: float) -> None:
    """Never above the pure epsilon, never above order epsilon^2 / 2, and at least 0.99 of one."""
    epsilon = 1 / Fraction(noise)
    least = min(epsilon, 4 * epsilon**2 / 2)
    assert Fraction(99, 100) * least <= laplace_rdp(noise, 4) <= least * (1 + Fraction(1, 10**15))


@pytest.mark.parametrize("order", [2, 3, 16])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 40.0])
def test_discrete_gaussian_divergence_is_the_sum_over_its_atoms(sigma: float, order: int) -> None:
    """order / (2 sigma^2) is exact at whole orders, for a count that moves by one."""
    with mpmath.workdps(40):
        s, far = mpmath.mpf(sigma), math.ceil(40 * sigma) + order + 40
        weights = {x: mpmath.exp(-x * x / (2 * s * s)) for x in range(-far, far + 1)}
        total = mpmath.fsum(weights.values())
        mean = mpmath.fsum(
            mpmath.exp((-order * x * x - (1 - order) * (x - 1) ** 2) / (2 * s * s))
            for x in range(-far, far + 1)
        )
        truth = mpmath.log(mean / total) / (order - 1)
    one = make_filter("rdp", order, 1000.0, DELTA)
    cost = one.cost_units(Release("discrete_gaussian", sigma, 1.0, 1))
    assert cost / UNITS == pytest.approx(float(truth), rel=1e-11, abs=2 / UNITS)


def test_a_noised_count_is_not_gaussian_dp() -> None:
    """Its total variation at sigma 1 is above that of 1-GDP, so gdp refuses it by name."""
    weights = [math.exp(-x * x / 2) for x in range(-60, 61)]
    assert max(weights) / sum(weights) > 0.3989 > float(gdp_delta(mpmath.mpf(0), mpmath.mpf(1)))
    with pytest.raises(BudgetRefused, match="discrete_gaussian") as caught:
        GDP.cost_units(Release("discrete_gaussian", 100.0, 1.0, 1))
    assert caught.value.reason == "MECHANISM_NOT_COVERED"


def of(mechanism: Mechanism) -> Release:
    """One release by each mechanism."""
    return Release(
        mechanism,
        None if mechanism in UNNOISED else 8.0,
        0.5 if mechanism == "poisson_gaussian" else 1.0,
        0 if mechanism == "no_data" else 3,
    )


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("filter_", [GDP, RDP], ids=["gdp", "rdp"])
def test_every_mechanism_is_counted_or_refused(filter_: Filter, mechanism: Mechanism) -> None:
    """Noise is never free: only reading nothing costs nothing, and "none" ends the guarantee."""
    refused = {"gdp": {"poisson_gaussian", "discrete_gaussian"}, "rdp": set()}[filter_.kind]
    if mechanism in refused:
        with pytest.raises(BudgetRefused):
            filter_.cost_units(of(mechanism))
    else:
        assert (filter_.cost_units(of(mechanism)) == 0) == (mechanism in UNNOISED)
    spent = epsilon_spent([of(mechanism)], DELTA)
    assert spent is None if mechanism == "none" else (spent == 0) == (mechanism == "no_data")
    assert set(get_args(Mechanism)) == set(MECHANISMS)


def test_a_mechanism_that_is_in_no_table_is_refused_everywhere() -> None:
    """An event of a later version, or one that got past its check, is never counted as nothing."""
    for noise in (8.0, None):
        strange = of("gaussian")
        object.__setattr__(strange, "mechanism", "telepathy")
        object.__setattr__(strange, "noise_multiplier", noise)
        for filter_ in (GDP, RDP):
            for count in (
                filter_.cost_units,
                lambda one: epsilon_spent([of("gaussian"), one], DELTA),
                lambda one: figures_of([one], filter_),  # noqa: B023
            ):
                with pytest.raises(BudgetRefused, match="telepathy") as caught:
                    count(strange)
                assert caught.value.reason == "MECHANISM_NOT_COVERED"


RELEASES = st.builds(
    Release,
    st.sampled_from(["gaussian", "laplace", "exponential"]),
    st.floats(1.0, 1e6),
    st.just(1.0),
    st.integers(1, 50),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(RELEASES, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_sums_have_no_order_and_no_grouping(releases: list[Release], g: random.Random) -> None:
    """Reserved and posted in any order, with any open at once, an account holds the same units."""
    for filter_ in (make_filter("gdp", 0, 1e4, DELTA), make_filter("rdp", 7, 1e4, DELTA)):
        found = set()
        for _ in range(3):
            order = list(enumerate(releases))
            g.shuffle(order)
            balance = Balance(filter_)
            open_: list[str] = []
            for number, one in order:
                made = statement(
                    f"t{number}",
                    mechanism=one.mechanism,
                    noise_multiplier=one.noise_multiplier,
                    steps=one.steps,
                )
                balance = balance.reserve(made)
                open_.append(made.attempt_id)
                while open_ and g.random() < 0.5:
                    balance = balance.post(open_.pop(g.randrange(len(open_))))
            for attempt in open_:
                balance = balance.post(attempt)
            found.add(balance.posted_units)
        cut = g.randint(0, len(releases))
        parts = (releases[:cut], releases[cut:])
        found.add(sum(sum(filter_.cost_units(one) for one in part) for part in parts))
        assert len(found) == 1
        # Splitting a release never makes it cheaper, and costs less than a unit for each step.
        for one in releases:
            whole, step = filter_.cost_units(one), filter_.cost_units(replace(one, steps=1))
            assert whole <= one.steps * step < whole + one.steps


@pytest.mark.parametrize("filter_", [GDP, make_filter("rdp", 64, 5.0, DELTA)], ids=["gdp", "rdp"])
def test_admission_is_fast_behind_ten_thousand_entries(filter_: Filter) -> None:
    """Cost and balance of one more reservation, each with new parameters: far below 5 ms."""
    past = frozenset(f"old{number}" for number in range(10_000))
    balance = Balance(filter_, posted_units=10, posted=past)
    mechanisms: list[Mechanism] = ["gaussian", "laplace", "exponential"]
    if filter_.kind == "rdp":
        mechanisms += ["poisson_gaussian", "discrete_gaussian"]
    took = []
    for number in range(20 * len(mechanisms)):
        mechanism = mechanisms[number % len(mechanisms)]
        rate = 0.01 if mechanism == "poisson_gaussian" else 1.0
        one = statement(
            f"t{number}", mechanism=mechanism, noise_multiplier=900.0 + number, sample_rate=rate
        )
        began = time.process_time()
        balance.reserve(one)
        took.append(time.process_time() - began)
    assert sorted(took)[len(took) * 9 // 10] < 0.002


@pytest.mark.parametrize("order", [2, 3, 6, 64])
@pytest.mark.parametrize(
    ("noise", "sample_rate", "steps"),
    [
        (1.0, 1e-170, 2**32 - 1),
        (1e162, 0.5, 2**32 - 1),
        (1e160, 1e-3, 1),
        (1e308, 0.5, 10**6),
        (1e99, 1e-300, 1),
    ],
)
def test_noise_never_costs_nothing(
    noise: float, sample_rate: float, steps: int, order: int
) -> None:
    """Where a float holds no such small divergence, a unit is booked: a release that costs 0 would
    be admitted for ever, also on an account that is spent."""
    release = Release("poisson_gaussian", noise, sample_rate, steps)
    per_step = rdp_per_step(release, order)
    assert per_step is not None
    assert per_step > 0
    budget = make_filter("rdp", order, 40.0, 1e-5)
    assert budget.cost_units(release) >= 1
    assert epsilon_spent([replace(release, steps=min(steps, 10))], 1e-5) is not None
