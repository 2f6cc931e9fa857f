"""The running epsilon of any ledger: in bounded work, an upper bound, the same on every machine."""

import math
import random
import time

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant

from privacy.accounting import epsilon_spent
from privacy.composition import composed_epsilon
from privacy.figures import figures_of, own_epsilon
from privacy.filters import make_filter
from privacy.kinds import coarser_and_coarser, fewer_releases, merged, rounded_down, rounded_up
from privacy.releases import STEPS_MAX, Mechanism, Release
from privacy.renyi import rdp_per_step

DELTA = 1e-5
SECONDS_MAX = 20.0
"""Of CPU time, for what takes one or two: machines differ, and minutes are the fault."""


def poisson(noise: float, rate: float, steps: int) -> Release:
    return Release("poisson_gaussian", noise, rate, steps)


def distinct(count: int) -> dict[Release, int]:
    """Noise that differs in every release, as after many jobs."""
    return {poisson(1.0 + i / 1000, 0.01, 10): 1 for i in range(count)}


def wild(count: int, noise: tuple[float, float], rate: tuple[float, float]) -> dict[Release, int]:
    g = random.Random(3)
    return {
        poisson(
            10 ** g.uniform(*noise), 10 ** g.uniform(*rate), math.ceil(10 ** g.uniform(0, 9.6))
        ): g.randint(1, 10)
        for _ in range(count)
    }


def alike(mechanism: Mechanism, low: float, high: float) -> dict[Release, int]:
    g = random.Random(4)
    return {Release(mechanism, g.uniform(low, high), 1.0, 3): 1 for _ in range(60)}


HURTFUL = {
    "a hundred": distinct(100),
    "ten thousand": distinct(10_000),
    "hardly any noise": {poisson(0.05 + i / 1000, 1e-4, 1): 1 for i in range(50)},
    "every step there is": {poisson(10.0, 1e-6, STEPS_MAX): 10**6},
    "least rate": {poisson(1.0, 5e-324, STEPS_MAX): 1},
    "all over": wild(3000, (-300, 300), (-300, 0)),
    "over what costs": wild(1000, (-0.5, 4), (-9, -3)),
    "rare and dear": {poisson(0.3 + i / 500, 1e-5, 1): 1 for i in range(200)},
    "laplace": alike("laplace", 0.001, 0.01),
    "exponential": alike("exponential", 0.01, 50.0),
    "counts": alike("discrete_gaussian", 0.2, 9000.0),
}


@pytest.mark.parametrize("name", HURTFUL)
def test_no_ledger_takes_long(name: str) -> None:
    """Whatever was posted, by whoever wished that nobody can count it: the figures are there."""
    own_epsilon.cache_clear()
    began = time.process_time()
    found = figures_of(HURTFUL[name], make_filter("rdp", 8, 100.0, DELTA))
    assert time.process_time() - began < SECONDS_MAX
    assert found is not None
    assert 0 < found.running < math.inf


@pytest.mark.parametrize(
    ("releases", "before"),
    [
        (distinct(5), 0.57908),
        (distinct(20), 0.89035),
        ({poisson(0.05, 0.01, 1): 1}, 256.28),
        ({poisson(10.0, 0.001, 10**6): 1}, 0.37143),
        ({poisson(1.5, 1 / 13, 13): 100}, 10.701),
        ({poisson(0.8, 0.01, 90): 3, Release("laplace", 30.0, 1.0, 4): 2}, 1.9882),
    ],
)
def test_exports_of_before_verify(releases: dict[Release, int], before: float) -> None:
    """What dp-accounting's own composition gave when exports were made, within 1e-4 of it."""
    assert epsilon_spent(releases, DELTA) == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("delta", [1e-10, 1e-5, 0.01])
def test_different_releases_agree_with_dp_accounting(delta: float) -> None:
    """A dozen kinds at once: within 0.1 % of the library's answer, and not below it."""
    g = random.Random(11)
    releases = [
        poisson(g.uniform(0.8, 9.0), 10 ** g.uniform(-3, -0.5), g.choice([1, 10, 200]))
        for _ in range(11)
    ]
    releases.append(Release("gaussian", 9.0, 1.0, 5))
    accountant = PLDAccountant()
    for one in releases:
        event: dp.DpEvent = dp.GaussianDpEvent(one.noise_multiplier or 0.0)
        if one.sample_rate < 1:
            event = dp.PoissonSampledDpEvent(one.sample_rate, event)
        accountant.compose(dp.SelfComposedDpEvent(event, one.steps))
    theirs = accountant.get_epsilon(delta)
    found = epsilon_spent(releases, delta)
    assert found is not None
    assert theirs * (1 - 2e-5) <= found <= theirs * 1.001


def test_a_hundred_kinds_lie_between_a_hundred_of_the_least_and_of_the_largest_noise() -> None:
    """All a hundred are composed, and none is left out or counted twice."""
    found = epsilon_spent(distinct(100), DELTA)
    least = epsilon_spent({poisson(1.0, 0.01, 10): 100}, DELTA)
    largest = epsilon_spent({poisson(1.099, 0.01, 10): 100}, DELTA)
    middle = epsilon_spent({poisson(1.049, 0.01, 10): 100}, DELTA)
    assert found is not None
    assert middle is not None
    assert largest is not None
    assert least is not None
    assert largest < found < least
    assert found == pytest.approx(middle, rel=0.005)


@pytest.mark.parametrize(
    ("work_max", "most"), [(2**18, 3.0), (2**20, 2.0), (2**22, 1.2), (2**24, 1.01)]
)
def test_less_work_gives_no_lower_figure(work_max: int, most: float) -> None:
    """A wider grid, fewer kinds, or Renyi divergences in the end: never below what all the work
    gives."""
    used = {poisson(0.7 + i / 50, 0.002 + i / 5000, 20): 1 for i in range(60)}
    tight = epsilon_spent(used, DELTA, 2**40)
    rough = epsilon_spent(used, DELTA, work_max)
    assert tight is not None
    assert rough is not None
    assert tight <= rough <= most * tight


def test_more_kinds_than_are_told_apart_cost_no_less() -> None:
    """Here by some 1 % more than the same kinds composed without a limit."""
    used = {poisson(1.0 + i / 500, 0.01, 10): 1 for i in range(1000)}
    steps = merged(used)
    renyi = {
        order: sum(n * float(rdp_per_step(one, order) or 0) for one, n in steps.items())
        for order in (2, 4, 8, 16, 32)
    }
    tight = composed_epsilon(steps, renyi, DELTA, 1e-4, 2**40)
    found = epsilon_spent(used, DELTA)
    assert tight is not None
    assert found is not None
    assert tight <= found <= 1.02 * tight


def test_very_many_tiny_steps_are_reported_by_the_better_bound() -> None:
    """10^9 steps: each adds to a grid of 1e-4, and Renyi divergences have none."""
    used = {poisson(10.0, 1e-4, 10**9): 1}
    exact = epsilon_spent({poisson(10.0, 1e-3, 10**7): 1}, DELTA)
    found = epsilon_spent(used, DELTA)
    assert found is not None
    # Its sum's variance is that of a hundredth as many steps with ten times the rate.
    assert exact is not None
    assert exact < found < 1.1 * exact


def test_the_order_of_the_ledger_does_not_matter_at_all() -> None:
    """The same figure to the last bit: verification compares it on other machines."""
    used = list(distinct(30)) + list(alike("laplace", 9.0, 90.0))
    shuffled = used.copy()
    random.Random(2).shuffle(shuffled)
    assert epsilon_spent(used, DELTA) == epsilon_spent(shuffled, DELTA)


def test_fewer_kinds_have_less_noise_and_larger_samples() -> None:
    """Each stage costs no less than the one before, and the last has few kinds."""
    g = random.Random(5)
    mechanisms: list[Mechanism] = ["poisson_gaussian", "laplace", "discrete_gaussian"]
    used = {}
    for mechanism in mechanisms * 300:
        rate = 10 ** g.uniform(-300, 0) if mechanism == "poisson_gaussian" else 1.0
        used[Release(mechanism, 10 ** g.uniform(-300, 300), rate, 7)] = 2
    stages = list(coarser_and_coarser(merged(used)))
    assert len(stages[-1]) < 40 < len(stages[0])
    for order in (2, 8):
        costs = [
            sum(n * (rdp_per_step(one, order) or 0) for one, n in stage.items()) for stage in stages
        ]
        assert costs == sorted(costs)
    assert {sum(stage.values()) for stage in stages} == {2 * 7 * 900}
    fewer = fewer_releases(used, 64)
    assert len(fewer) <= 64
    assert sum(fewer.values()) == 2 * 900


def test_numbers_keep_the_digits_they_are_told_to_keep() -> None:
    """Never past the number itself, and what was rounded stays as it is."""
    g = random.Random(6)
    for bits in (10, 3, 1, 0, -1, -4):
        for _ in range(500):
            value = 10 ** g.uniform(-30, 30)
            up, down = rounded_up(value, bits), rounded_down(value, bits)
            assert down <= value <= up
            assert up / down <= (1 + 2.0**-bits) if bits > 0 else up / down <= 2.0 ** (2**-bits)
            assert rounded_up(up, bits) == up
            assert rounded_down(down, bits) == down
