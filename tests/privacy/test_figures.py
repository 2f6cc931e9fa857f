"""Booked, fixed in advance and added up, side by side; and the order that is best for a plan."""

import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import epsilon_spent
from privacy.calibration import best_order, noise_multiplier_for
from privacy.figures import Figures, figures_of, own_epsilon
from privacy.filters import default_filter, make_filter
from privacy.releases import Release
from protos.errors import BudgetRefused, Malformed

DELTA = 1e-5
POISSON_PLAN = {Release("poisson_gaussian", 1.5, 1 / 13, 13): 100}


def gaussian_plan(epsilon: float, releases: int, steps: int) -> dict[Release, int]:
    account = make_filter("gdp", 0, epsilon, DELTA)
    sigma = noise_multiplier_for(account, account.limit_units, releases, steps, 1.0)
    return {Release("gaussian", sigma, 1.0, steps): releases}


def figures(plan: dict[Release, int], kind: str, order: int = 0) -> Figures:
    found = figures_of(plan, make_filter(kind, order, 100.0, DELTA))
    assert found is not None
    return found


@pytest.mark.parametrize("plan", [(1, 1), (4, 5), (20, 1), (100, 2)])
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_gdp_loses_nothing_of_a_full_batch_plan(epsilon: float, plan: tuple[int, int]) -> None:
    """Budget efficiency is at least 0.999: what is booked is what the plan is worth."""
    found = figures(gaussian_plan(epsilon, *plan), "gdp")
    assert found.efficiency is not None
    assert 0.999 <= found.efficiency <= 1 + 1e-6
    # dp-accounting says so too, but for its grid.
    pld = epsilon_spent(gaussian_plan(epsilon, *plan), DELTA)
    assert pld == pytest.approx(found.booked, rel=1e-3)


def test_the_best_order_of_a_sampled_plan_keeps_most_of_it() -> None:
    """100 rounds of 13 steps at (1.5, 1/13): order 3 and an efficiency of at least 0.92."""
    order = best_order(POISSON_PLAN, 12.0, DELTA)
    found = figures(POISSON_PLAN, "rdp", order)
    assert order == 3
    assert found.efficiency is not None
    assert 0.92 <= found.efficiency <= 1 + 1e-6
    assert found.fixed == pytest.approx(10.70, abs=0.01)
    assert found.booked == pytest.approx(11.55, abs=0.01)
    assert found.naive == pytest.approx(100 * own_epsilon(next(iter(POISSON_PLAN)), DELTA))
    assert found.booked_to_naive == pytest.approx(found.booked / found.naive)
    assert found.naive == pytest.approx(110.03, abs=0.05)


@settings(max_examples=12, deadline=None)
@given(st.randoms(use_true_random=False))
def test_no_account_is_more_efficient_than_one(g: random.Random) -> None:
    """Whatever is mixed: the filter books at least what dp-accounting finds, but for its grid."""
    plan = {
        Release("gaussian", g.uniform(6, 40), 1.0, g.randint(1, 9)): g.randint(1, 4),
        Release("laplace", g.uniform(6, 60), 1.0, g.randint(1, 5)): g.randint(1, 3),
        Release("exponential", g.uniform(9, 90), 1.0, g.randint(1, 5)): g.randint(1, 3),
    }
    kind, order = g.choice([("gdp", 0), ("rdp", 3), ("rdp", 8), ("rdp", 32)])
    if kind == "rdp":
        plan[Release("discrete_gaussian", g.uniform(4, 20), 1.0, g.randint(1, 4))] = 1
        plan[Release("poisson_gaussian", g.uniform(1.2, 3), g.uniform(0.01, 0.1), 20)] = 1
    plan = {one: plan[one] for one in g.sample(list(plan), g.randint(1, len(plan)))}
    found = figures(plan, kind, order)
    pld = epsilon_spent(plan, DELTA)
    assert pld is not None
    # The grid adds up to 1e-4 once and h^2/6 of variance for each step.
    assert pld <= found.booked * 1.001 + 2e-4
    assert found.efficiency is not None
    assert 0 < found.efficiency <= 1 + 1e-6
    assert found.fixed <= found.booked
    # Adding up is only ever worse than composing, but for the grid.
    assert found.fixed <= found.naive * 1.001 + 2e-4


def test_the_grid_does_not_make_an_account_more_efficient_than_one() -> None:
    """dp-accounting's figure of 200 tiny releases is above what is booked; the figure is not."""
    plan = {Release("gaussian", 1000.0, 1.0, 1): 200}
    pld, found = epsilon_spent(plan, DELTA), figures(plan, "gdp")
    assert pld is not None
    assert pld > found.booked * (1 + 1e-6)
    assert found.efficiency == 1.0


def test_adding_up_can_be_cheaper_than_a_filter() -> None:
    """One release in an rdp account costs its conversion too, and the figures hide nothing."""
    found = figures({Release("gaussian", 20.0, 1.0, 1): 1}, "rdp", 4)
    assert found.booked_to_naive is not None
    assert found.booked_to_naive > 10
    assert found.efficiency is not None
    assert found.efficiency < 0.1


def test_nothing_spent_has_no_efficiency_and_no_accounting_no_figures() -> None:
    """Zeros without a ratio, and no figure at all once something was released without noise."""
    idle, bare = Release("no_data", None, 1.0, 0), Release("none", None, 1.0, 5)
    for plan in ({}, {idle: 3}):
        found = figures(plan, "rdp", 4)
        assert found == Figures(0.0, 0.0, 0.0)
        assert (found.efficiency, found.booked_to_naive) == (None, None)
    account = make_filter("gdp", 0, 5.0, DELTA)
    assert figures_of([bare, Release("gaussian", 9.0, 1.0, 1)], account) is None


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace", "exponential", "discrete_gaussian"])
def test_a_release_of_its_own_is_its_own_sum(mechanism: str) -> None:
    """Naive is the sum of figures that each are what the accountant says of one release."""
    one = Release(mechanism, 7.0, 1.0, 3)  # type: ignore[arg-type]
    alone = epsilon_spent([one], DELTA)
    assert own_epsilon(one, DELTA) == pytest.approx(alone, rel=1e-4)
    assert figures({one: 6}, "rdp", 8).naive == pytest.approx(6 * own_epsilon(one, DELTA))


def test_ten_thousand_equal_entries_are_counted_within_a_second() -> None:
    """Equal releases are one group, in whatever order they stand in the chain."""
    kinds = [Release("gaussian", 400.0 + i, 1.0, 2) for i in range(3)]
    epsilon_spent(kinds, DELTA)  # imports the library
    began = time.process_time()
    found = figures_of([kinds[i % 3] for i in range(10_000)], make_filter("gdp", 0, 5.0, DELTA))
    assert found is not None
    assert found.efficiency is not None
    assert time.process_time() - began < 1.0


def test_the_best_order_books_the_least() -> None:
    """Against every order, for plans of each kind; a larger limit changes nothing."""
    plans = [
        POISSON_PLAN,
        {Release("gaussian", 9.0, 1.0, 5): 4},
        {Release("laplace", 20.0, 1.0, 1): 50, Release("discrete_gaussian", 30.0, 1.0, 5): 3},
        {Release("poisson_gaussian", 0.8, 0.005, 500): 4},
    ]
    for plan in plans:
        order = best_order(plan, 50.0, DELTA)
        booked = {
            each: figures_booked(plan, each) for each in range(2, 257) if abs(each - order) < 40
        }
        assert booked[order] == min(booked.values())
        assert best_order(plan, booked[order] * 1.0001, DELTA) == order


def figures_booked(plan: dict[Release, int], order: int) -> float:
    account = make_filter("rdp", order, 100.0, DELTA)
    return account.epsilon_of(sum(n * account.cost_units(one) for one, n in plan.items()))


def test_a_plan_above_its_limit_says_what_the_least_limit_is() -> None:
    """The sentence names the epsilon and the order; with that limit the plan fits."""
    with pytest.raises(BudgetRefused, match=r"epsilon 11\.56 .*order 3") as caught:
        best_order(POISSON_PLAN, 11.0, DELTA)
    assert caught.value.reason == "BUDGET_TOO_SMALL"
    assert best_order(POISSON_PLAN, 11.56, DELTA) == 3
    assert figures_booked(POISSON_PLAN, 3) <= 11.56


@pytest.mark.parametrize(
    ("limit", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (math.nan, 1e-5), (5.0, 1.0), (5.0, math.nan)]
)
def test_no_order_is_chosen_for_a_limit_that_is_none(limit: float, delta: float) -> None:
    """Refused by name, as everywhere."""
    with pytest.raises(Malformed) as caught:
        best_order(POISSON_PLAN, limit, delta)
    assert caught.value.reason == "FILTER_INVALID"
    with pytest.raises(Malformed):
        best_order([], 5.0, DELTA)


def noise_at(order: int, limit: float, rate: float, steps: int) -> float:
    account = make_filter("rdp", order, limit, DELTA)
    return noise_multiplier_for(account, account.limit_units, 1, steps, rate)


def noises(limit: float, rate: float, steps: int) -> dict[int, float]:
    """Order -> the noise with which a plan just fits a limit."""
    found = {}
    for order in range(2, 41):
        try:
            found[order] = noise_at(order, limit, rate, steps)
        except (Malformed, BudgetRefused):
            continue
    return found


@pytest.mark.parametrize(("share", "at_most"), [(1.0, 1.75), (1 / 2, 1.3), (1 / 3, 1.2)])
@pytest.mark.parametrize("limit", [2.0, 4.0, 8.0, 10.0])
@pytest.mark.parametrize("declared_n", [5000, 50_000])
def test_the_default_order_suits_jobs_that_nobody_knows_yet(
    limit: float, declared_n: int, share: float, at_most: float
) -> None:
    """So many times the least noise at most, for a job that may spend this share of the limit."""
    _, order = default_filter(declared_n, limit, DELTA, limit / 2)
    rate = 256 / declared_n
    for plan in [(rate, 20), (rate, 200), (rate, 2000), (1.0, 20), (1.0, 2000)]:
        needed = noises(limit * share, *plan)
        assert needed[order] <= at_most * min(needed.values())


def test_half_of_the_limit_would_leave_no_room_for_a_job_of_half() -> None:
    """Why the default starts at a quarter: order 3, at a limit of 10, asks for twice the noise of
    a job that may spend 5, and refuses one that may spend 3."""
    assert noises(5.0, 256 / 5000, 200)[3] > 2 * min(noises(5.0, 256 / 5000, 200).values())
    assert 3 not in noises(3.0, 256 / 5000, 200)


def test_an_order_for_one_plan_can_be_a_bad_one_for_another() -> None:
    """Why the default looks at no plan: the best for few sampled steps needs 1.9 times the noise
    for full batches."""
    sampled, full = noises(1.0, 256 / 50_000, 20), noises(1.0, 1.0, 20)
    order = min(sampled, key=lambda each: sampled[each])
    assert full[order] > 1.9 * min(full.values())
