"""Plans keep their target, and the reported epsilon agrees with independent accountants."""

import itertools
import random
from decimal import Decimal

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant, RDPAccountant

from privacy.accounting import epsilon_spent, round_up
from privacy.calibration import GRID, noise_multiplier_for, units_for
from privacy.filters import make_filter
from privacy.releases import Release
from protos.errors import BudgetRefused, Malformed

DELTA = 1e-5


def gaussian(noise_multiplier: float, steps: int = 1) -> Release:
    return Release("gaussian", noise_multiplier, 1.0, steps)


def poisson(noise_multiplier: float, rate: float, steps: int) -> Release:
    return Release("poisson_gaussian", noise_multiplier, rate, steps)


def recomputed(releases: list[Release], delta: float = DELTA) -> float:
    """What an outsider gets from the ledger: one event for each entry, library defaults."""
    accountant = PLDAccountant()
    for one in releases:
        event: dp.DpEvent = dp.GaussianDpEvent(one.noise_multiplier or 0.0)
        if one.mechanism == "poisson_gaussian":
            event = dp.PoissonSampledDpEvent(one.sample_rate, event)
        accountant.compose(dp.SelfComposedDpEvent(event, one.steps))
    return float(accountant.get_epsilon(delta))


def planned(epsilon: float, releases: int, steps: int, delta: float = DELTA) -> list[Release]:
    account = make_filter("gdp", 0, epsilon, delta)
    sigma = noise_multiplier_for(account, account.limit_units, releases, steps, 1.0)
    return [gaussian(sigma, steps)] * releases


@pytest.mark.parametrize(("epsilon", "sigma"), [(1.0, 16.684), (2.0, 8.9166)])
def test_twenty_full_batch_steps_need_the_known_noise(epsilon: float, sigma: float) -> None:
    """sigma is sqrt(20) / mu: 16.684 at epsilon 1 and 8.9166 at epsilon 2."""
    found = planned(epsilon, 4, 5)[0].noise_multiplier
    assert found == pytest.approx(sigma, abs=1.5e-4)


@pytest.mark.parametrize("plan", [(1, 1), (4, 5), (20, 1)])
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0])
def test_a_used_up_plan_reports_at_most_its_target(epsilon: float, plan: tuple[int, int]) -> None:
    """Target 2.0 is shown as at most 2.0, never 2.0001, and wastes less than 0.02 % of it."""
    account = make_filter("gdp", 0, epsilon, DELTA)
    used = planned(epsilon, *plan)
    booked = epsilon_spent(used, DELTA)
    assert booked is not None
    assert booked <= epsilon
    spent = sum(account.cost_units(one) for one in used)
    assert spent <= account.limit_units
    assert account.epsilon_of(spent) >= epsilon * (1 - 2e-4)


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 1.0])
def test_a_hundred_releases_report_at_most_their_target(epsilon: float) -> None:
    """Each ledger entry adds to the accountant's discretisation; the slack grows with them."""
    booked = epsilon_spent(planned(epsilon, 100, 1), DELTA)
    assert booked is not None
    assert epsilon * 0.999 < booked <= epsilon


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9])
def test_targets_hold_at_other_deltas(delta: float) -> None:
    """The slack does not depend on delta."""
    for epsilon in (0.1, 2.0):
        booked = epsilon_spent(planned(epsilon, 10, 2, delta), delta)
        assert booked is not None
        assert epsilon * 0.999 < booked <= epsilon


def test_noise_multiplier_is_the_smallest_on_the_grid() -> None:
    """A millionth less noise would not fit."""
    for kind, order, rate in (("gdp", 0, 1.0), ("rdp", 8, 1.0), ("rdp", 8, 0.05)):
        account = make_filter(kind, order, 4.0, DELTA)
        sigma = noise_multiplier_for(account, account.limit_units, 7, 13, rate)
        assert sigma == round(sigma * GRID) / GRID
        less = round(sigma * GRID - 1) / GRID
        mechanism = "gaussian" if rate == 1 else "poisson_gaussian"
        costs = [7 * account.cost_units(Release(mechanism, s, rate, 13)) for s in (sigma, less)]
        allowed = account.limit_units - (7 * 1750 + account.limit_units // 10**8 + 1) * (order == 0)
        assert costs[0] <= allowed < costs[1]


def test_a_plan_that_no_noise_can_fit_is_refused() -> None:
    """An empty account and nonsense give an error, not a number."""
    account = make_filter("gdp", 0, 1.0, DELTA)
    for units in (0, -5, 1000):
        with pytest.raises(BudgetRefused) as caught:
            noise_multiplier_for(account, units, 4, 5, 1.0)
        assert caught.value.reason == "BUDGET_TOO_SMALL"
    sampled = make_filter("rdp", 4, 5.0, DELTA)
    for filter_, left, rate, least in (
        (account, 1000, 1.0, r"at the least.*worth"),
        (sampled, 0, 0.5, r"takes epsilon 3\.1 at the least, .* worth 0:"),
    ):
        with pytest.raises(BudgetRefused, match=least):
            noise_multiplier_for(filter_, left, 4, 5, rate)
    for releases, steps, rate in ((0, 5, 1.0), (1, 0, 1.0), (1, 5, 0.0), (1, 5, 2.0)):
        with pytest.raises(Malformed):
            noise_multiplier_for(account, account.limit_units, releases, steps, rate)
    with pytest.raises(BudgetRefused) as caught:
        noise_multiplier_for(account, account.limit_units, 1, 5, 0.5)
    assert caught.value.reason == "MECHANISM_NOT_COVERED"


def test_units_of_a_guarantee_are_the_filters_limit() -> None:
    """One function for accounts and for jobs."""
    assert units_for("gdp", 0, 1.0, DELTA) == make_filter("gdp", 0, 1.0, DELTA).limit_units


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0])
def test_booked_epsilon_agrees_with_pld_over_the_entries(epsilon: float) -> None:
    """At most 0.1 % above what an outsider recomputes, and below it by no more than the width of
    the outsider's grid makes at the smallest epsilon: ours is exact."""
    # A long plan at a large epsilon takes the outsider's accountant seconds, and adds nothing.
    for releases, steps in ((4, 5), (20 if epsilon <= 2 else 6, 1), (1, 20)):
        used = planned(epsilon, releases, steps)
        booked, theirs = epsilon_spent(used, DELTA), recomputed(used)
        assert booked is not None
        assert theirs * (1 - 1e-4) <= booked <= theirs * 1.001


@pytest.mark.parametrize("seed", range(12))
def test_mixed_entries_agree_with_pld_in_any_order(seed: int) -> None:
    """Grouping equal entries changes neither the figure nor which side it is on."""
    g = random.Random(seed)
    kinds = [gaussian(g.uniform(6, 40), g.randint(1, 9)) for _ in range(3)]
    used = [g.choice(kinds) for _ in range(g.randint(1, 8))]
    if seed % 3 == 0:
        used += [poisson(g.uniform(0.8, 2), g.uniform(0.01, 0.2), g.randint(1, 50))] * 2
    booked, theirs = epsilon_spent(used, DELTA), recomputed(used)
    assert booked is not None
    assert theirs * (1 - 1e-4) <= booked <= theirs * 1.001
    assert epsilon_spent(reversed(used), DELTA) == pytest.approx(booked, rel=2e-5)


@pytest.mark.parametrize(
    ("releases", "exact", "prv", "rdp"),
    [
        ([gaussian(1.5)], 2.753, 2.764, 2.985),
        ([gaussian(16.684, 20)], 1.000, 1.010, 1.093),
        ([poisson(1.5, 1 / 13, 130)], 3.030, 3.041, 3.362),
        ([poisson(1.0, 0.01, 10000)], 6.188, 6.198, 6.713),
        ([poisson(1.5, 1 / 13, 13)] * 100, 10.70, None, 11.55),
    ],
)
def test_opacus_agrees(
    releases: list[Release], exact: float, prv: float | None, rdp: float
) -> None:
    """PRV is within its own stated error of 0.01 above ours; RDP is an upper bound."""
    booked = epsilon_spent(releases, DELTA)
    assert booked == pytest.approx(exact, rel=2e-4)
    history = [
        (one.noise_multiplier, one.sample_rate, one.steps * len(releases)) for one in releases[:1]
    ]
    theirs_rdp = RDPAccountant()
    theirs_rdp.history = list(history)
    assert booked < theirs_rdp.get_epsilon(DELTA) == pytest.approx(rdp, rel=1e-3)
    if prv is not None:
        theirs_prv = PRVAccountant()
        theirs_prv.history = list(history)
        found = theirs_prv.get_epsilon(DELTA, eps_error=0.01)
        # PRV gives its upper end: the truth lies up to twice the stated error below it.
        assert booked - 1e-4 * booked <= found <= booked + 0.021
        assert found == pytest.approx(prv, abs=2e-3)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_booked_epsilon_agrees_with_the_closed_form(epsilon: float) -> None:
    """Full batches have an exact answer: never below it, and at most 0.02 % above."""
    account = make_filter("gdp", 0, epsilon, DELTA)
    used = planned(epsilon, 4, 5)
    exact = account.epsilon_of(sum(account.cost_units(one) for one in used))
    booked = epsilon_spent(used, DELTA)
    assert booked is not None
    assert exact * (1 - 1e-9) <= booked <= exact * 1.0002


def test_the_filter_is_never_below_the_accountant_for_sampled_plans() -> None:
    """One Renyi order is an upper bound, and the efficiencies at 100 rounds are the known ones."""
    used = [poisson(1.5, 1 / 13, 13)] * 100
    booked = epsilon_spent(used, DELTA)
    assert booked is not None
    for order, efficiency in ((3, 0.926), (4, 0.852), (6, 0.602)):
        account = make_filter("rdp", order, 100.0, DELTA)
        bound = account.epsilon_of(sum(account.cost_units(one) for one in used))
        assert booked / bound == pytest.approx(efficiency, abs=2e-3)


def test_nothing_released_is_zero_and_no_accounting_is_none() -> None:
    """Reading no data spends nothing; a release without accounting leaves no figure at all."""
    idle = Release("no_data", None, 1.0, 0)
    bare = Release("none", None, 1.0, 5)
    assert epsilon_spent([], DELTA) == 0.0
    assert epsilon_spent([idle, idle], DELTA) == 0.0
    for order in itertools.permutations([idle, bare, gaussian(5.0)]):
        assert epsilon_spent(order, DELTA) is None


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, float("nan")])
def test_a_delta_that_means_nothing_is_refused(delta: float) -> None:
    """Also when there is nothing to count."""
    with pytest.raises(Malformed):
        epsilon_spent([], delta)


def test_extreme_releases_end_quickly_above_the_truth() -> None:
    """Hardly any noise, hardly any delta: an upper bound, not a crash or a huge grid."""
    assert epsilon_spent([gaussian(1e-8)], DELTA) == float("inf")
    assert (epsilon_spent([poisson(1e-8, 0.1, 5)], DELTA) or 0.0) > 1e9
    assert (epsilon_spent([gaussian(0.05)], DELTA) or 0.0) == pytest.approx(285.1, rel=1e-2)
    small = make_filter("gdp", 0, 3.0, 1e-20)
    sigma = noise_multiplier_for(small, small.limit_units, 1, 1, 1.0)
    assert epsilon_spent([gaussian(sigma)], 1e-20) == 3.0


def test_rounding_up_is_never_below_and_keeps_round_figures() -> None:
    """2.0 stays 2.0; one ulp more becomes 2.0001."""
    g = random.Random(5)
    for _ in range(2000):
        value = 10 ** g.uniform(-6, 4)
        assert Decimal(value) <= Decimal(repr(round_up(value))) <= Decimal(value * 1.00011)
    assert round_up(2.0) == 2.0
    assert round_up(2.0000000001) == 2.0001
    assert round_up(0.0) == 0.0
