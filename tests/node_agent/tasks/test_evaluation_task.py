"""The evaluation of a model at a node: what it counts, how much a patient moves that, its noise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from node_agent.data.datasets import DataSetSpec
from node_agent.data.records import Records
from node_agent.tasks import evaluation_config, registry
from node_agent.tasks.evaluation import UNITS_PER_PATIENT, EvaluationProgram, counts, noised
from node_agent.tasks.evaluation_config import RATES, EvaluationConfig
from node_agent.tasks.no_update import NoUpdate
from node_agent.tasks.program import Order
from node_agent.tasks.tabular_forward import predict
from privacy.releases import Release
from protos.errors import Malformed

CONFIG: dict[str, Any] = {
    "model": "logistic",
    "features": [{"column": "x", "center": 0.0, "scale": 1.0}],
    "evaluates": "job-1",
}
WEIGHTS = {
    "linear.weight": np.array([[1.0]], np.float32),
    "linear.bias": np.array([0.0], np.float32),
}
ROWS = """patient,x,label
a,1,1
b,2,1
c,-1,0
d,1,0
e,-2,1
f,1,1
f,-1,1
"""
NO_NOISE = Release("none", None, 1.0, 1)


def program(folder: Path, rows: str = ROWS, **config: Any) -> EvaluationProgram:
    """The program on these rows; positive means x above 0."""
    source = folder / "rows.csv"
    source.write_text(rows)
    data_set = DataSetSpec.model_validate(
        {
            "name": "d",
            "source": source,
            "patient": "patient",
            "label": "label",
            "declared_n": 10,
            "version": 1,
            "columns": {"x": "number"},
        }
    )
    return EvaluationProgram(EvaluationConfig.model_validate({**CONFIG, **config}), data_set)


def order(release: Release = NO_NOISE) -> Order:
    return Order(release, declared_n=10, max_grad_norm=1.0, proximal_mu=0.0)


def test_patients_of_each_kind_are_counted_over_the_declared_size(tmp_path: Path) -> None:
    """Two ill are found, one healthy one is not, one healthy is, one ill is not; the sixth patient
    has a row of each and counts by halves. The divisor is what the steward declared."""
    update = program(tmp_path).update(WEIGHTS, order())
    assert set(update) == {RATES}
    assert update[RATES] * 10 == pytest.approx([2.5, 1.0, 1.0, 1.5])


def test_one_patient_moves_the_counts_by_at_most_one() -> None:
    """Leave out each patient of a hundred with one to nine rows: the counts move by an L2 norm of
    at most 1, and by exactly 1 where all of a patient's rows are of one kind."""
    generator = np.random.default_rng(0)
    patients = np.sort(np.concatenate([np.arange(100), generator.integers(0, 100, 300)]))
    probabilities = generator.uniform(size=400)
    labels = generator.integers(0, 2, 400).astype(np.float32)
    one_kind = patients < 5
    probabilities[one_kind], labels[one_kind] = 0.9, 1.0
    features = np.zeros((400, 1), np.float32)
    everybody = counts(probabilities, Records(features, labels, patients))
    assert everybody.dtype == np.int64
    assert everybody.sum() / UNITS_PER_PATIENT == pytest.approx(100, abs=1e-3)
    moves = []
    for left_out in range(100):
        kept = patients != left_out
        _, again = np.unique(patients[kept], return_inverse=True)
        without = counts(probabilities[kept], Records(features[kept], labels[kept], again))
        moves.append(int(((everybody - without) ** 2).sum()))
    assert max(moves) <= UNITS_PER_PATIENT**2
    assert moves[:5] == [UNITS_PER_PATIENT**2] * 5


@pytest.mark.parametrize(("features", "hidden"), [(64, ()), (33, ()), (13, (8,)), (5, (7, 3))])
def test_what_is_predicted_of_a_row_is_its_own_to_the_last_bit(
    features: int, hidden: tuple[int, ...]
) -> None:
    """Alone, in any order and among any others, by a model whose outputs are rounding errors: else
    whoever chooses it could have one patient change others' counts."""
    generator = np.random.default_rng(2)
    for _ in range(20):
        model, width = {}, features
        for index, units in enumerate(hidden):
            shape = (units, width)
            wild = generator.standard_normal(shape) * 10 ** (6 * generator.random(shape))
            model[f"hidden.{index}.weight"] = wild.astype(np.float32)
            model[f"hidden.{index}.bias"] = generator.standard_normal(units).astype(np.float32)
            width = units
        last = generator.standard_normal(width) * 10 ** (22 * generator.random(width) + 14)
        order, half = generator.permutation(width), width // 2
        last[order[half : 2 * half]] = -last[order[:half]]
        model["linear.weight"] = last[None].astype(np.float32)
        model["linear.bias"] = np.zeros(1, np.float32)
        rows = np.full((int(generator.integers(50, 200)), features), 3, np.float32)
        rows[::5] = generator.uniform(-3, 3, rows[::5].shape).astype(np.float32)
        found = predict(model, rows)
        shuffled = generator.permutation(len(rows))
        assert np.array_equal(predict(model, rows[shuffled]), found[shuffled])
        assert np.array_equal([predict(model, one[None])[0] for one in rows], found)


def test_counts_do_not_depend_on_the_order_of_rows_and_noise_has_their_unit() -> None:
    """Thirds add up to the same in any order, and no bit of what is noised lies below the noise."""
    generator = np.random.default_rng(1)
    patients = np.repeat(np.arange(50), 3)
    probabilities = generator.uniform(size=150)
    labels = generator.integers(0, 2, 150).astype(np.float32)
    features = np.zeros((150, 1), np.float32)
    total = counts(probabilities, Records(features, labels, patients))
    for _ in range(5):
        order = generator.permutation(150)
        again = Records(features[order], labels[order], patients[order])
        assert (counts(probabilities[order], again) == total).all()
    drawn = np.array([noised(total.astype(np.float64), 0.3) for _ in range(20)])
    assert (drawn == np.rint(drawn)).all()
    assert len({tuple(one) for one in drawn}) == 20


@pytest.mark.parametrize("noise_multiplier", [1e6, 1e12, 1e15, 1e100])
def test_noise_of_any_size_hides_the_counts(noise_multiplier: float) -> None:
    """What a coordinator may order is bounded from below alone; no draw ends at the same value."""
    drawn = np.array([noised(np.zeros(4), noise_multiplier) for _ in range(200)])
    assert len(set(drawn.ravel())) == 800
    spread = drawn.std() / (noise_multiplier * UNITS_PER_PATIENT)
    assert abs(spread - 1) < 5 / 1600**0.5


def test_the_noise_is_the_ordered_multiple_of_what_one_patient_adds(tmp_path: Path) -> None:
    """2,000 releases: on each count a mean of the truth and a deviation of the multiplier, within
    five of their own deviations; no two counts' noise is the same."""
    one = program(tmp_path)
    release = Release("gaussian", 3.0, 1.0, 1)
    drawn = np.array([one.update(WEIGHTS, order(release))[RATES] * 10 for _ in range(2000)])
    assert np.abs(drawn.mean(axis=0) - [2.5, 1.0, 1.0, 1.5]).max() < 5 * 3.0 / 2000**0.5
    assert np.abs(drawn.std(axis=0) - 3.0).max() < 5 * 3.0 / 4000**0.5
    correlation = np.corrcoef(drawn.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / 2000**0.5


@pytest.mark.parametrize(
    "release", [Release("gaussian", 1.0, 1.0, 5), Release("poisson_gaussian", 1.0, 0.5, 1)]
)
def test_what_is_booked_as_more_or_less_than_one_release_is_not_made(
    tmp_path: Path, release: Release
) -> None:
    """Noise once, booked for five steps or for a sample, would be a wrong entry in the ledger."""
    with pytest.raises(NoUpdate, match="one release"):
        program(tmp_path).update(WEIGHTS, order(release))


def test_several_steps_are_refused_before_the_data_is_open(tmp_path: Path) -> None:
    """Nothing of the real file is read to know it."""
    one = program(tmp_path)
    (tmp_path / "rows.csv").unlink()
    assert one.rehearsal_s(50, 1) > 0
    one.check(order(Release("gaussian", noise_multiplier=1.0, sample_rate=1.0, steps=1)))
    with pytest.raises(NoUpdate, match="one release"):
        one.check(order(Release("gaussian", noise_multiplier=1.0, sample_rate=1.0, steps=5)))


def test_an_evaluation_starts_from_the_model_that_it_evaluates() -> None:
    """Its tensors with their values, and zeros for the rates; the worker expects just these."""
    config = EvaluationConfig.model_validate(CONFIG)
    start = load(evaluation_config.first_model(config, save(WEIGHTS)))
    assert {name: value.shape for name, value in start.items()} == registry.model_shapes(
        registry.EVALUATION, config
    )
    assert start["linear.weight"] == WEIGHTS["linear.weight"]
    assert not start[RATES].any()


@pytest.mark.parametrize(
    "model",
    [
        save({**WEIGHTS, "hidden.0.bias": np.zeros(1, np.float32)}),
        save({**WEIGHTS, "linear.weight": np.zeros((1, 2), np.float32)}),
        save({**WEIGHTS, "linear.bias": np.zeros(1, np.float64)}),
        save({"linear.weight": WEIGHTS["linear.weight"]}),
        b"no tensors",
    ],
)
def test_another_model_than_described_is_refused(model: bytes) -> None:
    """More tensors, fewer, other shapes or types, or none at all."""
    config = EvaluationConfig.model_validate(CONFIG)
    with pytest.raises(Malformed, match="job-1") as caught:
        evaluation_config.first_model(config, model)
    assert caught.value.reason == "MODEL_MISMATCH"
