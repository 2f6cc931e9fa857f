"""Averaging and checking models and updates."""

import itertools
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from coordinator import aggregation
from coordinator.blobs import BlobStore
from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import parse_job
from coordinator.rounds import averaging
from coordinator.rounds.events import Offer, UpdatesFolded
from coordinator.rounds.live import LiveJob, plan_of
from coordinator.rounds.phases import Aggregating, Attempt, AttemptState, Course, RoundRecord
from coordinator.store.jobs import JobRecord
from coordinator.tiles import FILES_OPEN_MAX
from protos.content import digest_of
from protos.encoding import write_update
from protos.errors import Malformed
from protos.tensors import HEADER_BYTES_MAX
from protos.updates import BLOCK_VALUES, UPDATE_DTYPES, UpdateDtype


def save(path: Path, **tensors: object) -> Path:
    save_file({name: np.asarray(v, dtype=np.float32) for name, v in tensors.items()}, path)
    return path


def norm_10(_values: int) -> float:
    return 10.0


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", w=[[1.0, 2.0]], b=[3.0])


def test_fold_adds_the_mean_weighted_by_public_sizes(tmp_path: Path, base: Path) -> None:
    """base + (1 * u1 + 3 * u2) / 4, tensor by tensor."""
    one = save(tmp_path / "1", w=[[4.0, 0.0]], b=[8.0])
    two = save(tmp_path / "2", w=[[0.0, 4.0]], b=[0.0])
    folded = aggregation.fold(base, [one, two], [1.0, 3.0], tmp_path / "out")
    assert folded.digest == digest_of((tmp_path / "out").read_bytes())
    model = load_file(tmp_path / "out")
    np.testing.assert_array_equal(model["w"], [[2.0, 5.0]])
    np.testing.assert_array_equal(model["b"], [5.0])


def test_mean_of_models_is_plain(tmp_path: Path, base: Path) -> None:
    """The answer is the unweighted mean of global models."""
    other = save(tmp_path / "o", w=[[3.0, 0.0]], b=[1.0])
    digest = aggregation.mean_of([base, other], tmp_path / "out")
    assert digest == digest_of((tmp_path / "out").read_bytes())
    np.testing.assert_array_equal(load_file(tmp_path / "out")["w"], [[2.0, 1.0]])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w": [[1.0, 2.0, 3.0]], "b": [0.0]}, "not those of the model"),
        ({"w": [[1.0, 2.0]], "b": [0.0], "x": [0.0]}, "not those of the model"),
        ({"x": [0.0]}, "not those of the model"),
        ({}, "not those of the model"),
        ({"w": [[float("nan"), 0.0]], "b": [0.0]}, "not finite"),
        ({"w": [[float("inf"), 0.0]], "b": [0.0]}, "not finite"),
        ({"w": [[100.0, 0.0]], "b": [0.0]}, "larger than"),
    ],
)
def test_a_wrong_update_is_refused_before_it_counts(
    tmp_path: Path, base: Path, tensors: dict[str, object], said: str
) -> None:
    """Shape, names, finite values and norm are checked; the message holds no value."""
    update = save(tmp_path / "u", **tensors)
    with pytest.raises(Malformed, match=said) as caught:
        aggregation.check_update(update, aggregation.shape_of(base), "float32", norm_10)
    assert caught.value.reason == "UPDATE_INVALID"
    assert "100" not in caught.value.message


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, base: Path, data: bytes) -> None:
    """Nothing received is interpreted as anything but tensors."""
    (tmp_path / "u").write_bytes(data)
    with pytest.raises(Malformed):
        aggregation.check_update(tmp_path / "u", aggregation.shape_of(base), "float32", norm_10)


def test_a_header_much_longer_than_the_models_is_not_parsed(tmp_path: Path, base: Path) -> None:
    """What a node can make the coordinator hold follows from the model."""
    update = {"w": np.zeros((1, 2), np.float32), "b": np.zeros(1, np.float32)}
    for count, said in ((60_000, None), (70_000, "header")):
        save_file(update, tmp_path / "u", {"note": "x" * count})
        with pytest.raises(Malformed, match=said) if said else nullcontext():
            aggregation.check_update(tmp_path / "u", aggregation.shape_of(base), "float32", norm_10)


def test_a_fold_takes_every_header_that_the_check_takes(tmp_path: Path) -> None:
    """An update of int8 names each tensor twice: its header may be longer than any model's. What
    was taken and could not be folded would be tried for ever."""
    tensors = {f"{number:05}.{'layer' * 20}": np.ones(1, np.float32) for number in range(7000)}
    base = save(tmp_path / "large", **tensors)
    write_update(tmp_path / "u", tensors, "int8")
    with (tmp_path / "u").open("rb") as file:
        assert int.from_bytes(file.read(8), "little") > HEADER_BYTES_MAX
    aggregation.check_update(tmp_path / "u", aggregation.shape_of(base), "int8", lambda _: 1e3)
    aggregation.fold(base, [tmp_path / "u"], [1.0], tmp_path / "out", "int8")
    assert load_file(tmp_path / "out")[next(iter(tensors))] == pytest.approx(2.0)


def test_other_precisions_are_refused(tmp_path: Path, base: Path) -> None:
    """float64 tensors of the right shape are not what was ordered."""
    save_file({"w": np.zeros((1, 2)), "b": np.zeros(1)}, tmp_path / "u")
    with pytest.raises(Malformed, match="F64"):
        aggregation.check_update(tmp_path / "u", aggregation.shape_of(base), "float32", norm_10)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_another_form_than_ordered_is_refused(
    tmp_path: Path, base: Path, dtype: UpdateDtype
) -> None:
    """Each form is taken where it was ordered and nowhere else."""
    deltas = {"w": np.float32([[1.0, 2.0]]), "b": np.float32([0.5])}
    write_update(tmp_path / "u", deltas, dtype)
    model = aggregation.shape_of(base)
    aggregation.check_update(tmp_path / "u", model, dtype, norm_10)
    for other in UPDATE_DTYPES:
        if other != dtype:
            with pytest.raises(Malformed) as caught:
                aggregation.check_update(tmp_path / "u", model, other, norm_10)
            assert caught.value.reason == "UPDATE_INVALID"


@pytest.mark.parametrize("scale", [np.nan, np.inf, 100.0])
def test_scales_count_like_values(tmp_path: Path, base: Path, scale: float) -> None:
    """An int8 update can be infinite or too large by its scales alone."""
    update = {
        "b.scale": np.float32([scale]),
        "b": np.int8([1]),
    }
    save_file(update, tmp_path / "u")
    said = "larger than" if scale == 100.0 else "not finite"
    with pytest.raises(Malformed, match=said):
        aggregation.check_update(tmp_path / "u", aggregation.shape_of(base), "int8", norm_10)


def test_an_update_may_hold_the_trained_tensors_alone(tmp_path: Path, base: Path) -> None:
    """What is left out is zero with the node's full weight: no node gets more than its share."""
    one = save(tmp_path / "1", b=[8.0])
    two = save(tmp_path / "2", w=[[4.0, 0.0]])
    asked: list[int] = []
    for update in (one, two):
        aggregation.check_update(
            update, aggregation.shape_of(base), "float32", lambda n: asked.append(n) or 10.0
        )
    assert asked == [1, 2]
    folded = aggregation.fold(base, [one, two], [1.0, 3.0], tmp_path / "out")
    model = load_file(tmp_path / "out")
    np.testing.assert_array_equal(model["w"], [[4.0, 2.0]])
    np.testing.assert_array_equal(model["b"], [5.0])
    assert folded.update_values == (1, 2)


def large(path: Path, seed: int, spread: int = 12) -> Path:
    """A model of 150,001 values in three tensors, over many orders of magnitude."""
    draw = np.random.default_rng(seed)

    def values(*shape: int) -> object:
        return draw.standard_normal(shape) * 10.0 ** draw.integers(-spread, spread, shape)

    return save(path, w=values(300, 499), b=values(301), c=values(1, 100, 2))


@pytest.mark.parametrize("dtype", UPDATE_DTYPES)
@pytest.mark.parametrize("count", [3, FILES_OPEN_MAX + 1])
def test_a_fold_is_the_float64_mean_of_what_was_sent(
    tmp_path: Path, dtype: UpdateDtype, count: int
) -> None:
    """Mixed magnitudes, many tiles, more files than are kept open: within the stated bound."""
    base = large(tmp_path / "base", 0)
    weights = [float(n + 1) for n in range(count)]
    expected = {n: v.astype(np.float64) for n, v in load_file(base).items()}
    sizes = {n: np.abs(v) for n, v in expected.items()}
    updates = []
    for number, weight in enumerate(weights):
        source = load_file(large(tmp_path / "source", number % 5 + 1))
        updates.append(tmp_path / f"{number}")
        write_update(updates[-1], source, dtype)
        for name, sent in as_sent(updates[-1], source, dtype).items():
            expected[name] = expected[name] + sent * (weight / sum(weights))
            sizes[name] = sizes[name] + np.abs(sent) * (weight / sum(weights))
    folded = aggregation.fold(base, updates, weights, tmp_path / "out", dtype)
    after, before = load_file(tmp_path / "out"), load_file(base)
    for name, exact in expected.items():
        error = np.abs(after[name].astype(np.float64) - exact)
        # Both sums have the stated error, and one is rounded to float32.
        bound = 2 * (count + 1) * 2.0**-52 * sizes[name] + np.abs(exact) * 2.0**-24
        assert (error <= bound).all()
    flat = np.concatenate([after[n].ravel() for n in after]).astype(np.float64)
    start = np.concatenate([before[n].ravel() for n in after]).astype(np.float64)
    assert folded.norm == pytest.approx(np.linalg.norm(flat), rel=1e-4)
    assert folded.moved == pytest.approx(np.linalg.norm(flat - start), rel=1e-4)
    assert aggregation.distance(base, tmp_path / "out") == (folded.moved, folded.norm)


def test_threads_do_not_change_a_bit_of_a_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model's tiles are folded by several threads, and written in their order."""
    base, updates = large(tmp_path / "base", 0), []
    for number in range(3):
        updates.append(tmp_path / f"{number}")
        write_update(updates[-1], load_file(large(tmp_path / "source", number + 1)), "float32")
    alone = aggregation.fold(base, updates, [1.0, 2.0, 3.0], tmp_path / "alone")
    monkeypatch.setattr(aggregation, "FOLD_ALONE_VALUES", 0)
    together = aggregation.fold(base, updates, [1.0, 2.0, 3.0], tmp_path / "together")
    assert together == alone
    assert (tmp_path / "together").read_bytes() == (tmp_path / "alone").read_bytes()


def as_sent(path: Path, source: dict[str, Any], dtype: UpdateDtype) -> dict[str, Any]:
    """The float64 values of an update's file, decoded by other means than the coordinator's."""
    if dtype == "bfloat16":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).double().numpy() for name in file.keys()}  # noqa: SIM118
    sent = load_file(path)
    if dtype == "float32":
        return {name: sent[name].astype(np.float64) for name in source}
    found = {}
    for name, values in source.items():
        scales = np.repeat(sent[f"{name}.scale"], BLOCK_VALUES)[: values.size]
        # The product of an int8 and its scale is rounded to float32 when it is decoded.
        found[name] = (sent[name].ravel() * scales).astype(np.float64).reshape(values.shape)
    return found


def test_the_norm_is_checked_to_a_part_in_four_thousand(tmp_path: Path) -> None:
    """What is just within the bound passes, and what is a thousandth above does not."""
    update = large(tmp_path / "u", 1, spread=2)
    norm = float(
        np.linalg.norm([np.linalg.norm(v.astype(float)) for v in load_file(update).values()])
    )
    model = aggregation.shape_of(update)
    aggregation.check_update(update, model, "float32", lambda _: norm)
    with pytest.raises(Malformed, match="larger"):
        aggregation.check_update(update, model, "float32", lambda _: norm * 0.999)


def test_finite_values_whose_squares_are_not_are_too_large(tmp_path: Path) -> None:
    """A float32's square can overflow; the message still says what is wrong."""
    update = save(tmp_path / "u", w=[1e30, 2.0])
    with pytest.raises(Malformed, match="larger"):
        aggregation.check_update(update, aggregation.shape_of(update), "float32", norm_10)


def test_an_initial_model_must_hold_finite_values(tmp_path: Path) -> None:
    """NaN beyond the first tile, and a model without values, are found at submission."""
    values = np.zeros(100_000, np.float32)
    aggregation.check_model(save(tmp_path / "m", w=values))
    values[-1] = np.nan
    for path in (save(tmp_path / "n", w=values), save(tmp_path / "e", w=[])):
        with pytest.raises(Malformed) as caught:
            aggregation.check_model(path)
        assert caught.value.reason == "MODEL_INVALID"


def test_a_model_whose_scales_would_have_the_name_of_another_tensor_is_refused(
    tmp_path: Path,
) -> None:
    """As int8 each hospital would train, be charged, and send what nobody can read."""
    values = np.ones(3, np.float32)
    path = save(tmp_path / "m", **{"w": values, "w.scale": values, "b.scale": values})
    for dtype in ("float32", "bfloat16"):
        aggregation.check_model(path, dtype)
    with pytest.raises(Malformed, match=r"tensor w\.scale has the name under which the scales"):
        aggregation.check_model(path, "int8")
    aggregation.check_model(save(tmp_path / "n", **{"b.scale": values}), "int8")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def test_the_order_of_arrival_does_not_change_a_bit_of_the_model(
    tmp_path: Path, blobs: BlobStore
) -> None:
    """Updates are added up in the order of their nodes, whoever was first; these four have another
    sum in another order."""
    four = (("a", 2.0**60), ("b", 1.0), ("c", -(2.0**60)), ("d", 2.0))
    attempts = [received(tmp_path, blobs, node, value) for node, value in four]
    models = {fold_job(tmp_path, blobs, order).digest for order in itertools.permutations(attempts)}
    assert len(models) == 1


def received(
    tmp_path: Path, blobs: BlobStore, node: str, value: float, declared_n: int = 100
) -> Attempt:
    """A node's update of one value, which lies in the store."""
    path = save(tmp_path / "u", w=[value])
    digest = digest_of(path.read_bytes())
    blobs.keep_update(node, digest, path.read_bytes())
    offer = Offer(node, f"{node}/p", declared_n, "gaussian", 9.0, 1.0)
    return Attempt(node, offer, 0.0, AttemptState.RECEIVED, digest=digest)


def fold_job(tmp_path: Path, blobs: BlobStore, attempts: Sequence[Attempt]) -> UpdatesFolded:
    """A job's first round, from a model of one value, 0."""
    initial = blobs.adopt_model(save(tmp_path / "base", w=[0.0]))
    job = parse_job(b"name: a\ntask: tabular-classifier\ndataset: d\n", CoordinatorConfig())
    record = JobRecord("j", "default", "a", "e", "r", b"", "", "0" * 64, "running", 0.0)
    course = Course(plan_of(job), initial, initial)
    phase = Aggregating(course, RoundRecord(1, 0.0, attempts=tuple(attempts)))
    return averaging.fold(LiveJob(record, job, phase, 0), phase, blobs)


def test_a_hospital_weighs_as_many_records_as_it_declares(tmp_path: Path, blobs: BlobStore) -> None:
    """Three times as many count three times as much."""
    small = received(tmp_path, blobs, "a", 0.0, 100)
    large = received(tmp_path, blobs, "b", 4.0, 300)
    model = load_file(blobs.model(fold_job(tmp_path, blobs, [small, large]).digest))
    assert model["w"].tolist() == [3.0]


@pytest.mark.parametrize(("models", "tail"), [("a", "a"), ("ab", "b"), ("abcde", "cde")])
def test_an_answer_is_made_of_the_last_half_of_the_rounds(models: str, tail: str) -> None:
    """The first ones are far from where the model ends; a middle one belongs to the last half."""
    assert averaging.tail_of(models) == tail


def test_memory_is_a_constant_whatever_the_model(tmp_path: Path) -> None:
    """Checking, folding and averaging models of 64 MB takes less than 8 MiB beside the imports."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from coordinator import aggregation
from protos.encoding import write_update
folder = Path(sys.argv[1])
write_update(folder / "s", {"w": np.ones(1000, np.float32)}, "int8")
aggregation.fold(folder / "small", [folder / "s"], [1.0], folder / "o", "int8")
aggregation.distance(folder / "small", folder / "small")
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = peak()
base, updates = folder / "base", [folder / f"{n}" for n in range(3)]
shape = aggregation.shape_of(base)
aggregation.check_model(base)
for update in updates:
    aggregation.check_update(update, shape, "float32", lambda _: 1e6)
aggregation.fold(base, updates, [1.0, 2.0, 3.0], folder / "o")
aggregation.mean_of([base, folder / "o"], folder / "p")
aggregation.distance(base, folder / "p")
print(peak() - begin)
"""
    values = np.ones(16_000_000, np.float32)
    for name in ("base", "0", "1", "2"):
        save(tmp_path / name, w=values)
    save(tmp_path / "small", w=np.ones(1000))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 8 << 10
