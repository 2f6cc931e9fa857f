"""The bounds that an audit may claim, valid and of known strength, and `make audit` itself."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from privacy.audit import one_run_epsilon, one_run_p_value, two_world_mu
from tests.audit.__main__ import main
from tests.audit.one_run import CASES, planned_guesses


def test_without_delta_the_p_value_is_the_binomial_tail() -> None:
    """Guesses are right with probability e^eps / (1 + e^eps) at most."""
    for epsilon in (0.0, 1.0, 3.0):
        right = math.exp(epsilon) / (1 + math.exp(epsilon))
        wanted = sum(math.comb(50, k) * right**k * (1 - right) ** (50 - k) for k in range(40, 51))
        assert one_run_p_value(100, 50, 40, epsilon, 0.0) == pytest.approx(wanted, rel=1e-9)


def test_delta_adds_its_worst_case_term() -> None:
    """2 m delta times the steepest part of the distribution below v, as in the paper's theorem."""
    masses = [stats.binom.pmf(k, 20, 0.5) for k in range(21)]
    steepest = max(sum(masses[15 - i : 15]) / i for i in range(1, 16))
    wanted = sum(masses[15:]) + 2 * 100 * 1e-3 * steepest
    assert one_run_p_value(100, 20, 15, 0.0, 1e-3) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_bound_holds_for_the_worst_mechanism_as_often_as_it_says(epsilon: float) -> None:
    """Randomised response with that epsilon is refuted in 5 % of runs at most; bounds come near."""
    generator = np.random.default_rng(1)
    right = 1 / (1 + math.exp(-epsilon))
    counts = generator.binomial(1000, right, size=2000)
    found = {v: one_run_epsilon(1000, 1000, int(v), 0.0, 0.95) for v in set(counts.tolist())}
    bounds = np.array([found[v] for v in counts.tolist()])
    assert np.mean(bounds > epsilon) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert np.median(bounds) > 0.7 * epsilon


def test_guesses_no_better_than_coins_show_nothing() -> None:
    """Half of them right is no attack, and impossible counts are refused."""
    assert one_run_epsilon(1000, 200, 100, 1e-5, 0.95) == 0.0
    with pytest.raises(ValueError, match="correct"):
        one_run_p_value(10, 11, 3, 1.0, 0.0)


def test_two_worlds_bound_stays_below_the_truth_and_comes_near() -> None:
    """For N(0, 1) against N(mu, 1) at the middle threshold, 99.9 % of the time."""
    generator = np.random.default_rng(2)
    mu, over, near = 1.0, 0, []
    for _ in range(300):
        without = (generator.normal(0, 1, 500) > mu / 2).tolist()
        within = (generator.normal(mu, 1, 500) > mu / 2).tolist()
        near.append(two_world_mu(without, within, 0.999))
        over += near[-1] > mu
    assert over <= 3
    assert float(np.median(near)) > 0.6
    assert two_world_mu([True] * 50, [True] * 50, 0.95) == 0.0


@pytest.mark.parametrize(("bug", "code"), [(None, 0), ("no-noise", 1), ("no-clipping", 1)])
def test_the_audit_tells_right_training_from_wrong(
    bug: str | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `make audit` writes: a bound below each claim, and above it with a bug planted."""
    out = tmp_path / "build" / "audit.json"
    plant = ["--plant", bug] if bug else []
    monkeypatch.setattr("sys.argv", ["audit", "--out", str(out), *plant])
    assert main() == code
    found = json.loads(out.read_text())
    assert [one["case"] for one in found] == [case.name for case in CASES]
    for one in found:
        assert one["planted"] == bug
        assert one["canaries"] == 1000
        assert one["confidence"] == 0.95
        assert one["seconds"] > 0
        assert one["guesses"] == planned_guesses(
            next(case for case in CASES if case.name == one["case"]).mu
        )
        assert (one["epsilon_lower_bound"] > one["epsilon_claimed"]) == (bug is not None)
