"""Figures of an evaluation with the noise's standard error, and figures on public rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

from feddp import public_rows
from feddp.cli.job_text import evaluation_facts
from feddp.evaluation import evaluation, read_rates
from feddp.report import render
from node_agent.tasks.evaluation_config import RATES
from protos.errors import Malformed
from protos.feddp.v1.jobs_pb2 import Job, Participation, Round

SIZES = (200, 100, 50)
NOISES = (4.0, 2.0, 6.0)


def job() -> Job:
    """An evaluation of three hospitals; a fourth had no update, and a first try is not counted."""
    parts = [
        Participation(outcome="update", declared_n=size, noise_multipliers=[99.0, noise])
        for size, noise in zip(SIZES, NOISES, strict=True)
    ]
    parts.append(Participation(outcome="no_update", declared_n=70, noise_multipliers=[1.0]))
    return Job(name="e", task="tabular-evaluation", rounds=[Round(participation=parts)])


def test_the_standard_errors_are_those_of_simulated_noise() -> None:
    """Noise the counts 20,000 times as the hospitals do and average as the coordinator does: each
    figure spreads about its true value by the standard error that is told."""
    truth = np.array([120.0, 40.0, 130.0, 60.0])
    generator = np.random.default_rng(0)
    total = sum(SIZES)
    figures: dict[str, list[float]] = {"accuracy": [], "sensitivity": [], "specificity": []}
    for _ in range(20_000):
        noise = sum(generator.normal(0.0, one, 4) for one in NOISES)
        found = evaluation(job(), "m", ((truth + noise) / total).tolist())
        for name, figure in found.figures().items():
            assert figure is not None
            figures[name].append(figure.value)
    told = evaluation(job(), "m", (truth / total).tolist())
    assert (told.hospitals, told.declared_n) == (3, 350)
    expected = {"accuracy": 250 / 350, "sensitivity": 120 / 180, "specificity": 130 / 170}
    for name, figure in told.figures().items():
        assert figure is not None
        assert figure.value == pytest.approx(expected[name])
        assert np.mean(figures[name]) == pytest.approx(expected[name], abs=0.002)
        assert np.std(figures[name]) == pytest.approx(figure.standard_error, rel=0.03)


def test_a_share_of_what_noise_hides_is_not_told() -> None:
    """Three healthy patients under noise of deviation 7: no specificity is made of them."""
    found = evaluation(job(), "m", (0.5, 0.005, 0.004, 0.1))
    assert found.specificity is None
    assert found.sensitivity is not None
    assert ("specificity", "hidden by the noise") in evaluation_facts(found)
    page = render(job(), metrics=None, accounts=None, spec=b"", evaluation=found)
    assert "Figures at the hospitals" in page
    assert "hidden by the noise" in page
    assert f"{found.accuracy.standard_error:.3f}" in page


def test_the_rates_are_read_from_the_jobs_answer(tmp_path: Path) -> None:
    """Beside the model's own tensors; an answer without them is refused."""
    path = tmp_path / "m"
    weights = {"linear.bias": np.zeros(1, np.float32)}
    save_file({**weights, RATES: np.array([0.5, 0.25, 0.125, 0.0], np.float32)}, path)
    assert read_rates(path) == (0.5, 0.25, 0.125, 0.0)
    save_file(weights, path)
    with pytest.raises(Malformed, match="does not hold"):
        read_rates(path)


def test_auc_agrees_with_scikit_learn_also_with_ties() -> None:
    """Probabilities on a coarse grid, so that most pairs tie."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 500).astype(float)
    guesses = np.round(generator.uniform(size=500) + 0.2 * labels, 1)
    assert public_rows.auc(guesses, labels) == pytest.approx(roc_auc_score(labels, guesses))
    assert public_rows.auc(guesses, np.ones(500)) is None


CONFIG: dict[str, Any] = {
    "model": "logistic",
    "learning_rate": 1.0,
    "features": [
        {"column": "age", "center": 50.0, "scale": 10.0},
        {"column": "sex", "category": "Male", "center": 0.5, "scale": 0.5},
    ],
}


def public(tmp_path: Path, rows: str) -> dict[str, int | float | None]:
    """Figures of a model that says ill from age 50 on, on these rows."""
    model, data = tmp_path / "m", tmp_path / "rows.csv"
    save_file(
        {
            "linear.weight": np.array([[1.0, 0.0]], np.float32),
            "linear.bias": np.zeros(1, np.float32),
        },
        model,
    )
    data.write_text(rows)
    return public_rows.evaluate(model, CONFIG, data, "ill")


def test_public_rows_are_read_scaled_and_judged(tmp_path: Path) -> None:
    """Three of four are right; a row without an age is left out; an unused column does not
    matter."""
    rows = "ill,age,sex,note\n1,60,Male,\n0,40,Male,a\n1,40,Female,b\n0,30,Male,\n1,NA,Male,\n"
    found = public(tmp_path, rows)
    assert (found["rows"], found["rows_left_out"], found["accuracy"]) == (4, 1, 0.75)
    guesses = 1 / (1 + np.exp(-np.array([1.0, -1.0, -1.0, -2.0])))
    assert found["brier"] == pytest.approx(np.mean((guesses - [1, 0, 1, 0]) ** 2))
    assert found["auc"] == pytest.approx(0.875)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("ill,age\n1,60\n", "no column 'sex'"),
        ("ill,age,sex\n2,60,Male\n", "label other than 0 and 1"),
        ("ill,age,sex\n1,60,Male\n1,old,Male\n", "'age', row 2"),
        ("ill,age,sex\n1,,Male\n", "no row"),
        ("", "no column 'ill'"),
    ],
)
def test_public_rows_that_do_not_read_are_refused_with_their_place(
    tmp_path: Path, rows: str, said: str
) -> None:
    """The first fault is told, with its column and row."""
    with pytest.raises(Malformed, match=said) as caught:
        public(tmp_path, rows)
    assert caught.value.reason == "PUBLIC_ROWS_INVALID"
