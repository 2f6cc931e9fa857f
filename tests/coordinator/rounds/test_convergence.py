"""When a job may say that its model has stopped moving: not because of noise, and not too late."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.rounds import convergence
from coordinator.rounds.convergence import (
    chance_norm,
    choose_window,
    drift,
    settled,
    size_of,
    step,
)
from coordinator.rounds.phases import Ended
from privacy.calibration import noise_multiplier_for
from privacy.filters import make_filter
from tests.coordinator.moving_job import MovingJob, Vector

THRESHOLD = 0.001
PATIENCE = 3
ROUNDS = 100
VALUES = 14


def rounds_until_settled(
    generator: np.random.Generator,
    noise_norm: float,
    values: int,
    signal: Callable[[int, float], float],
    threshold: float = THRESHOLD,
    sampling: float = 0.0,
    pulled: float | None = None,
) -> int | None:
    """The round at which one made-up job converges; None if it runs all of them.

    Args:
        sampling: what the choice of patients can make of a movement at most, over the noise.
        pulled: what it does make, all of it unless it is given.
        signal: (round, norm of the model) -> movement along one direction, the same each round.
    """
    model = np.zeros(values)
    models, noises, chances, streak = [model], [], [], 0
    whole = np.hypot(1.0, sampling if pulled is None else pulled)
    for number in range(1, ROUNDS + 1):
        model = model + generator.normal(0.0, whole * noise_norm / np.sqrt(values), values)
        model[-1] += signal(number, float(np.linalg.norm(model)))
        models.append(model)
        noises.append(noise_norm)
        norm = float(np.linalg.norm(model))
        size = size_of(norm, noises)
        last = float(np.linalg.norm(model - models[-2]))
        chances.append(chance_norm(noise_norm, sampling * noise_norm, last))
        window = choose_window(chances, PATIENCE, threshold, size)
        moved = float(np.linalg.norm(model - models[-1 - window.rounds]))
        own = step(last, chances[-1], size)
        still = settled(window, drift(moved, window.rounds, size), own, threshold)
        streak = streak + 1 if still else 0
        if streak >= PATIENCE:
            return number
    return None


@pytest.mark.parametrize("values", [1, 2, VALUES])
@pytest.mark.parametrize("noise_norm", [0.00005, 0.0004, 0.0008, 0.0012])
def test_noise_does_not_hide_that_a_model_still_moves(values: int, noise_norm: float) -> None:
    """Of 400 jobs that move by the threshold in each of 100 rounds, under noise of every size that
    can be resolved, none converges, or about 1 in 100 where the model is a single value: the rate
    that is stated. 12 of 400 are four deviations above it."""
    generator = np.random.default_rng(1)
    ended = [
        rounds_until_settled(
            generator, noise_norm, values, lambda _, norm: THRESHOLD * max(1.0, norm)
        )
        for _ in range(400)
    ]
    false = sum(one is not None for one in ended)
    assert false <= (12 if values == 1 else 0)


@pytest.mark.parametrize("noise_norm", [0.0, 0.0002, 0.0004, 0.0008, 0.0012])
@pytest.mark.parametrize("values", [VALUES, 1000])
def test_a_model_that_stands_still_is_told_once_noise_can_be_averaged_out(
    values: int, noise_norm: float
) -> None:
    """Nine jobs of ten converge by the time that half the rounds done make a window long enough,
    a few rounds of patience and a quarter more; the more noise, the later, before the last."""
    generator = np.random.default_rng(2)
    expected = told_by(noise_norm)
    ended = [rounds_until_settled(generator, noise_norm, values, lambda *_: 0.0) for _ in range(40)]
    assert sum(one is not None and one <= expected for one in ended) >= 36
    assert expected < ROUNDS


def told_by(chance: float) -> float:
    """The round by which a model that stands still is told."""
    long_enough = (chance / (THRESHOLD * convergence.CHANCE_SHARE_MAX)) ** 2
    return 2 * max(PATIENCE, long_enough) * 1.25 + PATIENCE


@pytest.mark.parametrize("values", [VALUES, 1000])
@pytest.mark.parametrize(("noise_norm", "sampling"), [(0.0002, 4.3), (0.0004, 2.0), (0.001, 0.5)])
def test_a_still_model_of_sampled_patients_is_told_like_one_of_so_much_noise(
    noise_norm: float, sampling: float, values: int
) -> None:
    """Who is in a step moves the model, too: as much of it as noise would, and no later."""
    generator = np.random.default_rng(5)
    expected = told_by(noise_norm * float(np.hypot(1.0, sampling)))
    ended = [
        rounds_until_settled(generator, noise_norm, values, lambda *_: 0.0, sampling=sampling)
        for _ in range(40)
    ]
    assert sum(one is not None and one <= expected for one in ended) >= 36
    assert expected < ROUNDS


def test_what_patients_could_have_moved_and_have_not_holds_no_job_up() -> None:
    """They pull at a fifth of the clipping bound only: such a job is told like one of the noise,
    and not by the bound, at which it would run all its rounds."""
    generator = np.random.default_rng(6)
    ended = [
        rounds_until_settled(generator, 0.0008, 1000, lambda *_: 0.0, sampling=4.3, pulled=0.2)
        for _ in range(40)
    ]
    assert sum(one is not None and one <= told_by(0.0008) for one in ended) >= 36
    assert told_by(0.0008 * 4.3) > ROUNDS


@pytest.mark.parametrize(("values", "ends_of_100"), [(1, 40), (2, 3), (3, 0), (VALUES, 0)])
@pytest.mark.parametrize("pulled", [0.5, 2.0, 4.3])
@pytest.mark.parametrize("noise_norm", [0.0002, 0.0004, 0.0008])
def test_the_choice_of_patients_does_not_hide_that_a_model_still_moves(
    noise_norm: float, pulled: float, values: int, ends_of_100: int
) -> None:
    """Of 100 jobs that move by the threshold in each of 100 rounds none converges from three values
    on; where the model is one or two it is no more than is stated."""
    generator = np.random.default_rng(7)
    ended = [
        rounds_until_settled(
            generator,
            noise_norm,
            values,
            lambda _, norm: THRESHOLD * max(1.0, norm),
            sampling=4.3,
            pulled=pulled,
        )
        for _ in range(100)
    ]
    assert sum(one is not None for one in ended) <= ends_of_100


def test_a_job_of_sampled_patients_that_stands_still_converges(tmp_path: Path) -> None:
    """Through the machine and real folds: half of each hospital's patients are in a step, which
    moves the model by 1.2 thousandths of its norm in a round, noise by a twentieth of one. It is
    told in the last third of 100 rounds, where noise and sampling allow it, and not by the noise
    alone, which would tell it in the sixth."""
    start, pure = np.ones(1000), {"noise_multiplier": 1.0, "seed": 0}
    unit = MovingJob(tmp_path / "unit", start=start, sample_rate=0.5, **pure)
    start *= unit.sampling_norm / (1.2 * THRESHOLD * np.linalg.norm(start))
    noise = 0.05 * THRESHOLD * float(np.linalg.norm(start)) / unit.noise_norm
    job = MovingJob(tmp_path, noise_multiplier=noise, start=start, seed=0, sample_rate=0.5)
    ended = job.run(pure_noise)
    assert ended.status == "converged"
    assert ROUNDS * 2 / 3 < len(ended.course.done) < ROUNDS
    last = ended.course.done[-1]
    assert last.noise_norm == pytest.approx(job.noise_norm)
    assert last.chance_norm == pytest.approx(job.sampling_norm, rel=0.1)


def demo_noise_multiplier(epsilon: float) -> float:
    """What 100 rounds of the default 5 steps need at delta 1e-5."""
    share = make_filter("gdp", 0, epsilon, 1e-5)
    return noise_multiplier_for(share, share.limit_units, ROUNDS, 5, 1.0)


def pure_noise(_round: int, model: Vector) -> Vector:
    """No signal at all."""
    return np.zeros_like(model)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 5.0])
def test_pure_noise_of_small_hospitals_never_converges(tmp_path: Path, epsilon: float) -> None:
    """Four hospitals of 100 records, the default step sizes, 100 rounds and 300 jobs: the noise is
    far above what can be resolved, so that none converges; in a job of real folds no round at all
    counts as settled, and its drift is what noise alone is said to make."""
    start = np.ones(VALUES)
    job = MovingJob(tmp_path, noise_multiplier=demo_noise_multiplier(epsilon), start=start, seed=0)
    noise_norm = job.noise_norm
    ended = job.run(pure_noise)
    assert (ended.status, len(ended.course.done)) == ("completed", ROUNDS)
    assert ended.course.settled_rounds == 0
    shares = [one.drift / one.drift_noise for one in ended.course.done[10:]]  # type: ignore[operator]
    assert 0.5 < np.mean(shares) < 1.5
    generator = np.random.default_rng(3)
    for _ in range(300):
        assert rounds_until_settled(generator, noise_norm, VALUES, lambda *_: 0.0) is None


def shrinking(number: int, model: Vector) -> Vector:
    """Movement of 0.3 in the first round, three quarters of it in the next, and so on."""
    return 0.3 * 0.75 ** (number - 1) * np.ones_like(model) / np.sqrt(model.size)


@pytest.mark.parametrize("noise_norm", [0.00001, 0.0005, 0.001])
def test_a_job_whose_updates_shrink_converges_well_before_its_last_round(
    tmp_path: Path, noise_norm: float
) -> None:
    """Through the machine and real folds: it ends as converged, after its movement has fallen below
    the threshold and in the first two thirds of the rounds, and says what noise would make."""
    ended = moving(tmp_path, noise_norm).run(shrinking)
    rounds = len(ended.course.done)
    assert ended.status == "converged"
    assert 0.3 * 0.75 ** (rounds - 1) < THRESHOLD
    assert rounds <= ROUNDS * 2 / 3
    last = ended.course.done[-1]
    assert last.drift is not None
    assert last.drift_noise is not None
    assert last.drift + convergence.CHANCE_DOUBT * last.drift_noise < THRESHOLD


def test_noise_is_that_of_the_rounds_in_the_window(tmp_path: Path) -> None:
    """Rounds that three of four nodes made have more noise: a window over them has their share,
    not that of the round that happens to be the newest."""

    def with_nodes(name: str, here: Callable[[int], str]) -> Ended:
        job = moving(tmp_path / name, 0.0005, rounds=9)
        return job.run(lambda _, model: np.full_like(model, 0.01), here=here)

    all_of_them = with_nodes("all", lambda _: "abcd").course.done[-1]
    once = with_nodes("once", lambda number: "abc" if number == 7 else "abcd").course.done[-1]
    assert all_of_them.drift_noise is not None
    assert once.drift_noise is not None
    # Four rounds: three of noise 1 and one of sqrt(4/3), instead of four of 1; the model's norm
    # differs by its noise only.
    expected = np.sqrt((3 + 4 / 3) / 4)
    assert once.drift_noise / all_of_them.drift_noise == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("noise_norm", "period"), [(0.001, 2), (0.0001, 3), (0.001, 26)])
def test_a_model_that_comes_back_has_not_stopped_moving(
    tmp_path: Path, noise_norm: float, period: int
) -> None:
    """Round and round, by a hundredth of its norm each time, as hospitals that take turns move it,
    and the window ends where it began: no job converges."""

    def around(number: int, model: Vector) -> Vector:
        angle = 2 * np.pi * number / period
        moved = np.zeros_like(model)
        moved[:2] = 0.01 * np.cos(angle), 0.01 * np.sin(angle)
        return moved

    ended = moving(tmp_path, noise_norm).run(around)
    assert (ended.status, len(ended.course.done)) == ("completed", ROUNDS)


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.2])
@pytest.mark.parametrize("noise_norm", [0.3, 3.0])
def test_a_model_that_noise_has_made_long_has_not_stopped_moving(
    noise_norm: float, threshold: float
) -> None:
    """Noise of a hundred rounds makes a model of ten times its norm, beside which each further
    round is small: even with a threshold of a fifth none of 40 jobs converges."""
    generator = np.random.default_rng(4)
    for _ in range(40):
        ended = rounds_until_settled(generator, noise_norm, VALUES, lambda *_: 0.0, threshold)
        assert ended is None


def moving(folder: Path, noise_norm: float, rounds: int = ROUNDS) -> MovingJob:
    """A job whose rounds have so much noise; the model's norm is 1 at the start."""
    start = np.ones(VALUES) / np.sqrt(VALUES)
    unit = MovingJob(folder / "unit", noise_multiplier=1.0, start=start, seed=0).noise_norm
    return MovingJob(folder, noise_multiplier=noise_norm / unit, start=start, seed=0, rounds=rounds)


def test_noise_that_cannot_be_resolved_never_settles_and_none_needs_patience_only() -> None:
    """Noise far above the threshold leaves no window; without noise three still rounds settle."""
    noisy = choose_window([0.13] * 10, PATIENCE, THRESHOLD, 1.0)
    assert not noisy.resolvable
    assert not settled(noisy, 0.0, 0.0, THRESHOLD)
    still = choose_window([0.0] * 10, PATIENCE, THRESHOLD, 1.0)
    assert (still.rounds, still.resolvable) == (3, True)
    assert settled(still, 0.0005, 0.0005, THRESHOLD)
    assert not settled(still, 0.0015, 0.0, THRESHOLD)
    assert not settled(still, 0.0, 0.0015, THRESHOLD)


def test_the_window_is_the_shortest_that_resolves_and_half_the_rounds_at_most() -> None:
    """Noise of 0.0008 a round is a fifth of the threshold over 16 rounds, given 32 were done."""
    window = choose_window([0.00079] * 32, PATIENCE, THRESHOLD, 1.0)
    assert (window.rounds, window.resolvable) == (16, True)
    assert not choose_window([0.00079] * 30, PATIENCE, THRESHOLD, 1.0).resolvable
    recent = choose_window([0.1] * 4 + [0.00001] * 28, PATIENCE, THRESHOLD, 1.0)
    assert (recent.rounds, recent.resolvable) == (3, True)


def test_unknown_noise_never_settles() -> None:
    """A task whose step size is unknown runs its planned rounds."""
    assert not choose_window([None] * 50, PATIENCE, THRESHOLD, 1.0).resolvable
    assert choose_window([None] * 50, PATIENCE, THRESHOLD, 1.0).chance_share is None
