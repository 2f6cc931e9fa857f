"""Checks of the real training path, each of which raises an alarm when the path is not private.

A check looks at spooled bytes only, so that a fault anywhere before them shows. Those that draw
noise draw it from the operating system, as a hospital does, and raise a false alarm with a
probability below `FALSE_ALARM` for each statistic. A check's seed is that of the initial weights,
where a model has any; its noise and samples are new each time.
"""

import math
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privacy.audit import two_world_mu
from privacy.releases import Release
from tests.audit.hospital import CLIP, LEARNING_RATE, Hospital, Row

FALSE_ALARM: Final = 1e-7

SINGLE_PRECISION: Final = 1e-6
"""Weights are stored in single precision; steps here are below 1."""


FEWEST_PAIRS: Final = 20
"""Of values, by which their correlation is judged: products of two normal draws have long tails."""


class Alarm(AssertionError):
    """The training path does not do what is booked."""


def _alarm_if(wrong: bool, what: str) -> None:
    if wrong:
        raise Alarm(what)


def _bare(steps: int) -> Release:
    """Clipped and not noised: what noise is added to."""
    return Release("none", None, 1.0, steps)


def _crowd(features: int) -> list[Row]:
    """Twelve patients who pull one way, one of them with 40 rows, and one who pulls back."""
    rows = [Row(f"p{number}", 1, {0: 3.0, 1: 0.1 * number}) for number in range(12)]
    rows += [Row("p3", 1, dict.fromkeys(range(features), 3.0)) for _ in range(39)]
    return [*rows, Row("contrary", 0, {0: 3.0}), Row("small", 1, {2: 0.001})]


def check_sensitivity(folder: Path, seed: int = 0) -> None:
    """Removing any one patient moves a step by at most lr * C / declared n; sigma is 0."""
    features, patients = 4, 14
    rows = _crowd(features)
    bound = LEARNING_RATE * CLIP / patients + SINGLE_PRECISION
    for hidden in ((), (5,)):
        whole, *others = (
            Hospital(
                folder / f"{len(hidden)}-{left_out}",
                [row for row in rows if row.patient != left_out],
                features=features,
                declared_n=patients,
                hidden=hidden,
                seed=seed,
            ).attempt(_bare(1))
            for left_out in (None, "p0", "p3", "contrary", "small")
        )
        moved = max(float(np.linalg.norm(whole - other)) for other in others)
        _alarm_if(moved > bound, f"one patient moves a step by {moved / bound:.2f} of the bound")
        _alarm_if(moved < 0.5 * bound, "no patient comes near the bound: the check sees nothing")


def _cancelling(terms: int, quiet: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """A model whose every output is the rounding error of terms up to 1e37; beside them are
    weights of 0, on which a step is seen."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(terms) * 10 ** (22 * generator.random(terms) + 14)
    order, half = generator.permutation(terms), terms // 2
    values[order[half : 2 * half]] = -values[order[:half]]
    return {
        "linear.weight": np.append(values, np.zeros(quiet))[None].astype(np.float32),
        "linear.bias": np.zeros(1, np.float32),
    }


def check_neighbours(folder: Path, seed: int = 0) -> None:
    """No round's model makes one patient change another's part of a step, which moves by at most
    lr * C / declared n. Sigma is 0."""
    terms, quiet, patients = 64, 192, 28
    bound = LEARNING_RATE * CLIP / patients + SINGLE_PRECISION
    rows = [Row(f"p{n}", n % 2, dict.fromkeys(range(terms + quiet), 3.0)) for n in range(patients)]
    for model in range(6):
        weights = _cancelling(terms, quiet, 100 * seed + model)
        whole, first, last = (
            Hospital(
                folder / f"{model}-{begin}-{end}",
                rows[begin:end],
                features=terms + quiet,
                declared_n=patients,
                weights=weights,
            ).attempt(_bare(1))[terms:]
            for begin, end in ((0, patients), (1, patients), (0, patients - 1))
        )
        moved = max(float(np.linalg.norm(whole - other)) for other in (first, last))
        _alarm_if(moved > bound, f"one patient moves others: {moved / bound:.2f} of the bound")


def _neutral(patients: int) -> list[Row]:
    """Patients whose two rows cancel at the start, so that a first step is noise alone."""
    return [Row(f"p{n}", label, {n: 1.0}) for n in range(patients) for label in (0, 1)]


def _unit_noise(folder: Path, release: Release, attempts: int, seed: int) -> NDArray[np.float64]:
    """(attempts, D) spooled updates of neutral patients over the deviation that is booked."""
    # Many pull the bias back from where the noise of a step has moved it; one hardly does.
    patients = 20 if release.steps == 1 else 1
    hospital = Hospital(folder, _neutral(patients), features=60, declared_n=20, seed=seed)
    std = LEARNING_RATE * CLIP * (release.noise_multiplier or 0.0) / (release.sample_rate * 20)
    std *= math.sqrt(release.steps)
    return np.stack([hospital.attempt(release) for _ in range(attempts)]) / std


def check_noise_law(folder: Path, seed: int = 0) -> None:
    """Spooled noise is normal, of the booked deviation on every value and in every step, whoever
    is in it, and new in each step, attempt and hospital."""
    for release in (
        Release("gaussian", 1.3, 1.0, 1),
        # Its samples are empty every third time.
        Release("poisson_gaussian", 0.8, 0.05, 1),
        Release("gaussian", 1.3, 1.0, 3),
    ):
        one, two = (
            _unit_noise(folder / f"{release.mechanism}-{release.steps}-{side}", release, 60, seed)
            for side in "ab"
        )
        for unit in (one, two):
            _deviates_as_booked(unit, "")
            _alarm_if(stats.kstest(unit.ravel(), "norm").pvalue < FALSE_ALARM, "noise not normal")
            for lag in range(1, unit.shape[1] - FEWEST_PAIRS):
                _uncorrelated(unit[:, :-lag], unit[:, lag:], f"values {lag} apart")
            _uncorrelated(unit[:-1], unit[1:], "two attempts")
        _uncorrelated(one, two, "two hospitals")
        for value, draws in enumerate(np.concatenate([one, two]).T):
            _deviates_as_booked(draws, f" on value {value}")


def _deviates_as_booked(unit: NDArray[np.float64], where: str) -> None:
    tail = float(stats.chi2(unit.size).cdf(float(np.sum(unit**2))))
    _alarm_if(tail < FALSE_ALARM / 2, f"less noise is released than is booked{where}")
    _alarm_if(tail > 1 - FALSE_ALARM / 2, f"more noise is released than is booked{where}")


def _uncorrelated(a: NDArray[np.float64], b: NDArray[np.float64], what: str) -> None:
    limit = float(stats.norm.isf(FALSE_ALARM / 2)) / math.sqrt(a.size)
    _alarm_if(abs(float(np.mean(a * b))) > 1.1 * limit, f"the noise of {what} is correlated")


def check_sampling_law(folder: Path, seed: int = 0) -> None:
    """Each patient is in each step by itself with the booked probability."""
    patients, rate, attempts = 40, 0.3, 150
    rows = [Row(f"p{n}", n % 2, {n: 3.0}) for n in range(patients)]
    hospital = Hospital(folder, rows, features=patients, declared_n=patients, seed=seed)
    release = Release("poisson_gaussian", 0.005, rate, 2)
    # Each patient alone moves its own weight by this for each step that it was in.
    step = LEARNING_RATE * CLIP * 3 / math.sqrt(10) / (rate * patients)
    updates = np.stack([hospital.attempt(release)[:patients] for _ in range(attempts)])
    times = np.rint(np.abs(updates) / step).astype(int)
    _alarm_if(bool(np.any(times > 2)), "a patient was in more steps than there were")
    drawn = int(times.sum())
    expected = stats.binomtest(drawn, 2 * times.size, rate).pvalue
    _alarm_if(expected < FALSE_ALARM, "patients are not drawn at the booked rate")
    each = times.sum(axis=1)
    mean, variance = 2 * patients * rate, 2 * patients * rate * (1 - rate)
    spread = float(stats.chi2(attempts).cdf(float(np.sum((each - mean) ** 2)) / variance))
    _alarm_if(
        min(spread, 1 - spread) < FALSE_ALARM, "the number of patients in a step is not binomial"
    )
    both = stats.binomtest(int(np.sum(times == 2)), times.size, rate**2).pvalue
    _alarm_if(both < FALSE_ALARM, "who is in one step depends on who was in the other")


def check_proximal(folder: Path, seed: int = 0) -> None:
    """The second step differs by exactly lr * mu * (w1 - w0), beyond clipping."""
    rows, mu = _crowd(4), 0.7
    hospital = Hospital(folder, rows, features=4, declared_n=14, seed=seed)
    first, plain = hospital.attempt(_bare(1)), hospital.attempt(_bare(2))
    found = plain - hospital.attempt(_bare(2), mu)
    wanted = LEARNING_RATE * mu * first
    off = float(np.abs(found - wanted).max())
    _alarm_if(off > SINGLE_PRECISION, f"the proximal term is off by {off:.2g}")


def check_two_worlds(folder: Path, seed: int = 0) -> None:
    """With one patient and without: told apart no better than the booked noise allows."""
    runs, steps, mu = 300, 2, 1.0
    release = Release("gaussian", math.sqrt(steps) / mu, 1.0, steps)
    rows = _crowd(8)
    canary = Row("canary", 0, {5: 3.0, 6: -3.0})
    # The direction that the canary pulls to, and half of what it can move along it.
    direction = np.array([0, 0, 0, 0, 0, -3, 3, 0, -1]) / math.sqrt(19)
    worlds = [
        Hospital(folder / name, world, features=8, declared_n=15, seed=seed)
        for name, world in (("without", rows), ("with", [*rows, canary]))
    ]
    quiet = [float(world.attempt(_bare(steps)) @ direction) for world in worlds]
    threshold = (quiet[0] + quiet[1]) / 2
    said = [
        [bool(world.attempt(release) @ direction > threshold) for _ in range(runs)]
        for world in worlds
    ]
    found = two_world_mu(said[0], said[1], 1 - FALSE_ALARM)
    _alarm_if(found > mu, f"the worlds are told apart as if mu were {found:.2f}, booked is {mu}")


CHEAP: Final = (check_sensitivity, check_neighbours, check_sampling_law, check_proximal)
"""Some 0.5 s for all four; the others take 3 and 1 s."""

CHECKS: Final = (
    check_sensitivity,
    check_neighbours,
    check_noise_law,
    check_sampling_law,
    check_proximal,
    check_two_worlds,
)
