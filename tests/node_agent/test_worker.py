"""The worker's answers: what trains, what is refused, and that all failures look the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save, save_file
from safetensors.torch import load_file as torch_load_file

from node_agent.data.datasets import DataSetSpec
from node_agent.data.records import DataProblem, read_records
from node_agent.tasks import registry, tabular
from node_agent.tasks.made_up import Size, listed_s, made_up
from node_agent.tasks.tabular_config import Feature
from node_agent.worker import Worker, _class_of
from protos.content import digest_of_file
from protos.failures import AFTER_OPENING
from protos.updates import UpdateDtype

CONFIG: dict[str, Any] = {
    "model": "logistic",
    "learning_rate": 2.0,
    "features": [{"column": "age", "center": 50.0, "scale": 10.0}],
}
GAUSSIAN = {"mechanism": "gaussian", "noise_multiplier": 2.0, "sample_rate": 1.0, "steps": 3}
PLAIN = {"mechanism": "none", "noise_multiplier": None, "sample_rate": 1.0, "steps": 3}
NO_DATA = {"mechanism": "no_data", "noise_multiplier": None, "sample_rate": 1.0, "steps": 0}


HEADER = "patient_id,age,disease\n"


class Bench:
    """A worker, the files around it and good requests to change one thing in."""

    def __init__(
        self,
        folder: Path,
        task: str = "tabular-classifier",
        config: dict[str, Any] | None = None,
    ) -> None:
        self.worker = Worker()
        self.source = folder / "train.csv"
        self.source.write_text("patient_id,age,disease\na,60,1\nb,40,0\nc,70,1\n")
        self.out = folder / "out.safetensors"
        self.base = folder / "base.safetensors"
        self.task = task
        self.config = config or (CONFIG if task == "tabular-classifier" else {"parameters": 100})
        self.base.write_bytes(registry.initial_model(task, self.config, 0))
        self.attempts = 0

    def declared(self, declared_n: int = 10) -> dict[str, Any]:
        """The data set's declaration."""
        spec = DataSetSpec.model_validate(
            {
                "name": "d",
                "source": str(self.source),
                "patient": "patient_id",
                "label": "disease",
                "declared_n": declared_n,
                "version": 1,
                "columns": {"age": "number"},
            }
        )
        return spec.model_dump(mode="json")

    def prepare(self, **change: Any) -> dict[str, Any]:
        """Answer to a good prepare with `change`."""
        request = {
            "op": "prepare",
            "job_id": "j",
            "task": self.task,
            "task_hash": registry.installed()[self.task].content_hash,
            "task_config": self.config,
            "data_set": self.declared(),
            "declared_n": 10,
        }
        return self.worker.handle(json.dumps({**request, **change}).encode())

    def asked(self) -> dict[str, Any]:
        """What is asked in a check and in a train."""
        return {
            "base_model": str(self.base),
            "base_model_digest": digest_of_file(self.base),
            "out": str(self.out),
            "release": GAUSSIAN if self.task == "tabular-classifier" else NO_DATA,
            "declared_n": 10,
            "max_grad_norm": 0.1,
            "proximal_mu": 0.1,
        }

    def train(self, **change: Any) -> dict[str, Any]:
        """Answer to a good train, a new attempt each time, with `change`."""
        self.attempts += 1
        attempt = {"attempt_id": f"attempt-{self.attempts}", "round": self.attempts}
        request = {"op": "train", **attempt, **self.asked(), **change}
        return self.worker.handle(json.dumps(request).encode())

    def check(self, **change: Any) -> dict[str, Any]:
        """Answer to a look before the data is open, with `change`."""
        request = {"op": "check", **self.asked(), **change}
        return self.worker.handle(json.dumps(request).encode())

    def no_update(self, **change: Any) -> str:
        """The hospital's detail of a train that must give no update and no file."""
        answer = self.train(**change)
        assert set(answer) == {"op", "attempt_id", "class", "detail"}
        assert answer["op"] == "no_update"
        assert not self.out.exists()
        return str(answer["detail"])


def decoded(path: Path, dtype: UpdateDtype) -> dict[str, Any]:
    """The float32 values of a narrow update, as the safetensors package reads it."""
    if dtype == "bfloat16":
        return {n: v.float().numpy() for n, v in torch_load_file(path).items()}
    found = load_file(path)
    return {n: found[n] * found[f"{n}.scale"] for n in found if not n.endswith(".scale")}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A worker prepared for the tabular task."""
    bench = Bench(tmp_path)
    assert bench.prepare() == {"op": "prepared"}
    return bench


def test_rehearsal_takes_its_time_from_the_declared_size_and_opens_no_data(tmp_path: Path) -> None:
    """More records take longer, in proportion where they are many; of the real file only the header
    is there."""
    seconds = []
    for declared_n in (10, 2_000_000):
        (tmp_path / str(declared_n)).mkdir()
        one = Bench(tmp_path / str(declared_n))
        one.source.write_text(HEADER)
        assert one.prepare(declared_n=declared_n, data_set=one.declared(declared_n)) == {
            "op": "prepared"
        }
        seconds.append(one.check(declared_n=declared_n)["rehearsal_s"])
    assert 0 < 5 * seconds[0] < seconds[1]


def test_a_rehearsal_has_a_patient_with_as_many_rows_as_count(tmp_path: Path) -> None:
    """Else one patient of many visits would take training past its time, and be seen by that."""
    data_set = DataSetSpec.model_validate(Bench(tmp_path).declared())
    size = Size.of(data_set, 30)
    made = made_up(tmp_path / "made-up.csv", data_set, size)
    patients = read_records(made, [Feature(column="age", center=0.0, scale=1.0)]).patients
    assert np.bincount(patients).tolist() == [1000] + [1] * 29
    assert size.share == 1
    large = Size.of(data_set, 1_000_000)
    assert large.patients + large.of_one - 1 == 20_000
    assert large.share == pytest.approx(1_000_999 / 20_000)
    many = Size.of(data_set.model_copy(update={"rows_per_patient_max": 1_000_000}), 10)
    assert (many.patients, many.of_one) == (2, 19_999)


def test_a_rehearsal_asks_for_consent_and_reads_as_long_a_list(tmp_path: Path) -> None:
    """Else reading takes several times what was rehearsed, and every attempt is charged and gives
    no update. Of the list's length it tells the power of two alone."""
    bench = Bench(tmp_path)
    listed = tmp_path / "opt-out.txt"
    declared = {
        **bench.declared(),
        "consent": {"column": "agreed", "values": ["ja", "yes"]},
        "opt_out": str(listed),
    }
    data_set = DataSetSpec.model_validate(declared)
    made = made_up(tmp_path / "made-up.csv", data_set, Size(10, 2, 1.0))
    assert (made.consent, made.opt_out) == (data_set.consent, None)
    records = read_records(made, [Feature(column="age", center=0.0, scale=1.0)])
    assert (len(records.patients), records.remark) == (11, "")
    for length, expected in ((0, 1 << 16), (100_000, 1 << 17), (1 << 20, 1 << 20)):
        listed.write_text("x" * length)
        assert listed_s(tmp_path / "made-up.txt", data_set) > 0
        assert 0 <= expected - (tmp_path / "made-up.txt").stat().st_size < 16
    listed.unlink()
    assert listed_s(tmp_path / "made-up.txt", data_set) == 0, "its absence is told elsewhere"


@pytest.mark.parametrize("fault", ["digest", "shape", "nan", "bytes"])
def test_model_that_does_not_fit_is_told_before_the_data_is_open(bench: Bench, fault: str) -> None:
    """The reservation can then be voided: no record was read, and the answer says why."""
    assert bench.check()["op"] == "checked"
    bench.source.write_text(HEADER)
    if fault == "digest":
        answer = bench.check(base_model_digest="0" * 64)
    else:
        weight = np.full((1, 2 if fault == "shape" else 1), np.nan if fault == "nan" else 0.0)
        tensors = {
            "linear.weight": weight.astype(np.float32),
            "linear.bias": np.zeros(1, np.float32),
        }
        bench.base.write_bytes(b"none" if fault == "bytes" else save(tensors))
        answer = bench.check()
    assert (answer["op"], answer["reason"]) == ("refused", "MODEL_INVALID")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("age,disease", "SCHEMA_MISMATCH"),
        ("patient_id,age", "SCHEMA_MISMATCH"),
        ("patient_id,disease", "SCHEMA_MISMATCH"),
        ("patient_id,age,age,disease", "SCHEMA_MISMATCH"),
        ("", "SCHEMA_MISMATCH"),
        (None, "SOURCE_MISSING"),
    ],
)
def test_wrong_column_is_told_before_the_data_is_open(
    bench: Bench, header: str | None, reason: str
) -> None:
    """The reservation can then be voided; which column it is stays in the hospital."""
    if header is None:
        bench.source.unlink()
    else:
        bench.source.write_text(f"{header}\na,60,1\n")
    answer = bench.check()
    assert (answer["op"], answer["reason"]) == ("refused", reason)
    assert not any(name in answer["message"] for name in ("patient_id", "age,", str(bench.source)))


def test_rows_do_not_decide_whether_an_attempt_is_refused(bench: Bench) -> None:
    """Whatever stands below the header, bytes that are no text included, the check is passed."""
    for rows in (b"", b"a,60\n", b'a,"60\n', b"\xff\xfe\0,1\n"):
        bench.source.write_bytes(HEADER.encode() + rows)
        assert bench.check()["op"] == "checked"


def test_update_is_a_float32_delta_of_the_models_shape(bench: Bench) -> None:
    """Trained minus base, same names and shapes, with the digest and size that were answered."""
    answer = bench.train()
    assert answer == {
        "op": "trained",
        "attempt_id": "attempt-1",
        "digest": digest_of_file(bench.out),
        "bytes": bench.out.stat().st_size,
        "remark": "",
    }
    delta = load_file(bench.out)
    assert {n: v.shape for n, v in delta.items()} == {"linear.weight": (1, 1), "linear.bias": (1,)}
    assert all(v.dtype == np.float32 and v.any() for v in delta.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_update_has_the_form_that_was_ordered(bench: Bench, dtype: UpdateDtype) -> None:
    """Without noise the delta is the same each time, so that the rounded one can be compared."""
    bench.train(release=PLAIN)
    exact = load_file(bench.out)
    answer = bench.train(release=PLAIN, update_dtype=dtype)
    assert answer["digest"] == digest_of_file(bench.out)
    update = decoded(bench.out, dtype)
    assert {n: v.shape for n, v in update.items()} == {n: v.shape for n, v in exact.items()}
    for name, delta in exact.items():
        assert np.abs(update[name] - delta).max() <= np.abs(delta).max() / 127 * 1.001
    assert bench.train(update_dtype="float16")["reason"] == "REQUEST_MALFORMED"


def test_base_model_is_read_once_a_round(bench: Bench) -> None:
    """What a check read is trained from; the next attempt reads its own."""
    digest, data = digest_of_file(bench.base), bench.base.read_bytes()
    assert bench.check()["op"] == "checked"
    bench.base.write_bytes(b"gone")
    assert bench.train(base_model_digest=digest)["op"] == "trained"
    bench.out.unlink()
    assert "cannot be read" in bench.no_update(base_model_digest=digest)
    bench.base.write_bytes(data)
    assert bench.check()["op"] == "checked"
    assert "digest" in bench.no_update(base_model_digest="0" * 64)


def test_base_model_of_any_alignment_is_trained(bench: Bench) -> None:
    """A header of odd length is allowed; the values are read aligned all the same."""
    data = bench.base.read_bytes()
    length = int.from_bytes(data[:8], "little")
    odd = (length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :]
    bench.base.write_bytes(odd)
    assert bench.train()["op"] == "trained"


def test_delta_starts_from_the_base_model(bench: Bench) -> None:
    """Without noise one step of known gradients gives the delta by hand, from a non-zero base."""
    save_file({"linear.weight": np.float32([[100]]), "linear.bias": np.float32([0])}, bench.base)
    bench.train(release={**PLAIN, "steps": 1})
    # Every record is right beyond doubt at this weight, so that no gradient is left.
    assert np.allclose(load_file(bench.out)["linear.weight"], 0, atol=1e-6)
    save_file({"linear.weight": np.float32([[-100]]), "linear.bias": np.float32([0])}, bench.base)
    bench.train(release={**PLAIN, "steps": 1})
    # Gradients (-1,-1), (-1,1), (-2,-1) over (weight, bias), each clipped to 0.1; over n = 10.
    weight = 2.0 * 0.1 * (2 / 2**0.5 + 2 / 5**0.5) / 10
    assert np.allclose(load_file(bench.out)["linear.weight"], weight, atol=1e-5)


def test_proximal_term_of_the_order_pulls_back_to_the_base(bench: Bench) -> None:
    """Where the gradient is constant, two steps with mu move (2 - lr * mu) / 2 as far."""
    save_file({"linear.weight": np.float32([[-100]]), "linear.bias": np.float32([0])}, bench.base)
    moved = {}
    for mu in (0.0, 0.1):
        bench.train(release={**PLAIN, "steps": 2}, proximal_mu=mu)
        moved[mu] = load_file(bench.out)["linear.weight"].item()
    assert moved[0.1] / moved[0.0] == pytest.approx((2 - 2.0 * 0.1) / 2, abs=1e-3)


def test_noise_is_fresh_in_each_attempt(bench: Bench) -> None:
    """Two attempts at the same work release different updates."""
    assert bench.train()["digest"] != bench.train()["digest"]
    first = bench.train(release=PLAIN)
    assert first["digest"] == bench.train(release=PLAIN)["digest"]


def test_data_is_read_at_the_first_training_and_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepare works without the file; a file that is gone is not trained on from memory."""
    bench = Bench(tmp_path)
    away = bench.source.rename(tmp_path / "away.csv")
    assert bench.prepare() == {"op": "prepared"}
    assert "does not exist" in bench.no_update()
    away.rename(bench.source)
    readings: list[object] = []

    def counted(*arguments: Any) -> Any:
        readings.append(arguments)
        return read_records(*arguments)

    monkeypatch.setattr(tabular, "read_records", counted)
    for expected in (1, 1, 2):
        assert bench.train()["op"] == "trained"
        assert len(readings) == expected
        if len(readings) == 1 and bench.attempts == 3:
            bench.source.write_text(HEADER + "a,61,1\n")
    bench.source.unlink()
    bench.out.unlink()
    assert "does not exist" in bench.no_update()


@pytest.mark.parametrize(
    "hers",
    [
        b"",
        b"x,s3cret,0\n",
        b"x,inf,0\n",
        b"x,60,2\n",
        b"x,60,s3cret\n",
        b"x,60\n",
        b"x,60,1,1,1\n",
        b"x,\xff\xfe,1\n",
        b"\xff\xfe\0,60,1\n",
        b'x,"60,1',
        b"x,6\r0,1\n",
        b'x,"' + b"1" * 3_000_000 + b'",1\n',
        b"x,60,1\n" * 1200,
    ],
    ids=lambda rows: repr(rows[:12]),
)
@pytest.mark.parametrize("others", [b"", b"a,60,1\nb,40,0\n"], ids=["alone", "beside-others"])
def test_no_record_of_a_patient_decides_whether_there_is_an_update(
    bench: Bench, others: bytes, hers: bytes
) -> None:
    """No epsilon pays for that answer: with her, without her, and with nobody at all it is the
    same. What the hospital is told names no value."""
    bench.source.write_bytes(HEADER.encode() + others + hers)
    answer = bench.train()
    assert answer["op"] == "trained"
    assert bench.out.exists()
    assert "s3cret" not in answer["remark"]
    assert bench.train()["op"] == "trained"


def test_what_is_left_out_is_told_to_the_hospital(bench: Bench) -> None:
    """As long as it is so: the next reading says anew."""
    assert bench.train()["remark"] == ""
    other = Bench(bench.source.parent)
    other.source.write_text("patient_id,age,disease\na,60,1\nb,s3cret,0\n")
    assert other.prepare() == {"op": "prepared"}
    remark = "column 'age' is not a number in 1 row, first in row 2"
    assert [other.train()["remark"] for _ in range(2)] == [remark] * 2


@pytest.mark.parametrize("error", [ValueError("s3cret"), MemoryError("s3cret"), KeyError("s3cret")])
def test_any_failure_in_training_becomes_no_update(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever training raises, the answer has the same form and none of the error's text."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tabular, "train", fail)
    detail = bench.no_update()
    assert type(error).__name__ in detail
    assert "s3cret" not in detail


def test_update_that_is_not_finite_is_no_update(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that overflowed are not released."""

    def overflow(model: Any, *_: object) -> None:
        model.linear.weight.data.fill_(float("inf"))

    monkeypatch.setattr(tabular, "train", overflow)
    assert "not finite" in bench.no_update()
    assert not list(bench.out.parent.glob(".*"))


def test_same_attempt_does_not_run_twice(bench: Bench) -> None:
    """A second run of an attempt would be a second release under one charge."""
    bench.train(attempt_id="a")
    bench.out.unlink()
    assert "before" in bench.no_update(attempt_id="a")


@pytest.mark.parametrize(
    "tensors",
    [
        {"linear.weight": np.zeros((1, 1), np.float32)},
        {"linear.weight": np.zeros((1, 2), np.float32), "linear.bias": np.zeros(1, np.float32)},
        {"linear.weight": np.zeros((1, 1)), "linear.bias": np.zeros(1, np.float32)},
        {"linear.weight": np.float32([[np.nan]]), "linear.bias": np.zeros(1, np.float32)},
        {
            "linear.weight": np.zeros((1, 1), np.float32),
            "linear.bias": np.zeros(1, np.float32),
            "more": np.zeros(1, np.float32),
        },
    ],
)
def test_base_model_that_is_not_the_tasks_is_no_update(
    bench: Bench, tensors: dict[str, Any]
) -> None:
    """Missing, extra, misshapen, double-precision and NaN tensors are not trained."""
    save_file(tensors, bench.base)
    assert "base model" in bench.no_update()


def test_base_model_with_other_bytes_is_no_update(bench: Bench) -> None:
    """Digest, presence and form of the base model's file are checked."""
    assert "digest" in bench.no_update(base_model_digest="0" * 64)
    assert "cannot be read" in bench.no_update(base_model=str(bench.base.with_name("no")))
    bench.base.write_bytes(b"no safetensors")
    assert "cannot be read" in bench.no_update()


@pytest.mark.parametrize(
    "change",
    [
        {"declared_n": 11},
        {"max_grad_norm": 0.0},
        {"release": NO_DATA},
        {"release": {**GAUSSIAN, "mechanism": "laplace"}},
        {"release": {**GAUSSIAN, "noise_multiplier": None}},
        {"release": {**GAUSSIAN, "noise_multiplier": 0.0}},
        {"release": {**GAUSSIAN, "steps": 0}},
        {"release": {**GAUSSIAN, "noise_multiplier": 1e7}},
        {"max_grad_norm": 1e-31},
        {"max_grad_norm": 1e31},
    ],
)
def test_an_order_that_cannot_be_carried_out_is_refused_before_the_data_is_open(
    bench: Bench, change: dict[str, Any]
) -> None:
    """Another declared size, no clipping bound, impossible releases: it costs nothing. Asked for
    all the same, it does not open the data either."""
    answer = bench.check(**change)
    assert answer["op"] == "refused"
    assert answer["reason"] in ("TRAINING_INVALID", "RELEASE_INVALID")
    bench.source.unlink()
    assert "does not exist" not in bench.no_update(**change)


def test_installation_that_cannot_train_refuses_before_the_data_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepare rehearses a step on a made-up row: a broken library costs no budget."""

    def broken(*_: object) -> None:
        raise ImportError("s3cret")

    monkeypatch.setattr(tabular, "train", broken)
    answer = Bench(tmp_path).prepare()
    assert (answer["op"], answer["reason"]) == ("refused", "TASK_UNAVAILABLE")
    assert "s3cret" not in answer["message"]


def test_train_before_prepare_is_no_update(tmp_path: Path) -> None:
    """A worker that was not prepared has nothing to train."""
    assert "not prepared" in Bench(tmp_path).no_update()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task": "nonsense"}, "TASK_UNKNOWN"),
        ({"task_hash": "0" * 64}, "TASK_HASH"),
        ({"task_config": {**CONFIG, "model": "forest"}}, "TASK_CONFIG_INVALID"),
        (
            {"task_config": {**CONFIG, "features": [{**CONFIG["features"][0], "column": "x"}]}},
            "TASK_CONFIG_INVALID",
        ),
        ({"declared_n": 11}, "DECLARED_N"),
        ({"data_set": {}}, "REQUEST_MALFORMED"),
        ({"op": "eval"}, "REQUEST_MALFORMED"),
    ],
)
def test_prepare_refuses_with_a_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    """What can be told before the data is open is told by a stable reason."""
    bench = Bench(tmp_path)
    answer = bench.prepare(**change)
    assert (answer["op"], answer["reason"]) == ("refused", reason)
    assert bench.prepare() == {"op": "prepared"}


def test_worker_serves_one_job(bench: Bench) -> None:
    """The same prepare again is harmless; another job is refused, as the data is in memory."""
    assert bench.prepare() == {"op": "prepared"}
    assert bench.prepare(job_id="other")["reason"] == "WORKER_TAKEN"


def test_null_task_opens_no_data_and_answers_fresh_bytes(tmp_path: Path) -> None:
    """The null task trains without the file, never the same update twice, and only as no_data."""
    bench = Bench(tmp_path, "null")
    bench.source.unlink()
    assert bench.prepare() == {"op": "prepared"}
    first = bench.train(max_grad_norm=0.0)
    assert first["op"] == "trained"
    assert load_file(bench.out)["parameters"].shape == (100,)
    assert bench.train(max_grad_norm=0.0)["digest"] != first["digest"]
    bench.out.unlink()
    assert "cannot release" in bench.no_update(release=GAUSSIAN)


def test_null_updates_of_many_pieces_differ_in_every_piece(tmp_path: Path) -> None:
    """Values are copied for speed, yet no two attempts share a MiB, and all look like noise."""
    bench = Bench(tmp_path, "null", {"parameters": 600_000})
    assert bench.prepare() == {"op": "prepared"}
    updates = []
    for _ in range(2):
        assert bench.train(max_grad_norm=0.0)["op"] == "trained"
        updates.append(load_file(bench.out)["parameters"])
    assert (updates[0] != updates[1]).mean() > 0.999
    assert all(update.std() == pytest.approx(1e-3, rel=0.01) for update in updates)


def test_frozen_tensors_are_not_sent(tmp_path: Path) -> None:
    """The base model has them and the update has not."""
    bench = Bench(tmp_path, "null", {"parameters": 100, "frozen": 5000})
    assert load_file(bench.base)["frozen"].shape == (5000,)
    assert bench.prepare() == {"op": "prepared"}
    assert bench.check()["op"] == "checked"
    answer = bench.train(max_grad_norm=0.0)
    assert set(load_file(bench.out)) == {"parameters"}
    assert answer["bytes"] < 600


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "OUT_OF_MEMORY"),
        (torch.OutOfMemoryError("17 GiB"), "OUT_OF_MEMORY"),
        (DataProblem("column 'age', row 2 of x is no number"), "DATA_PROBLEM"),
        (ValueError("s3cret"), "TASK_FAILED"),
    ],
)
def test_the_kind_of_a_failure_is_told_to_the_agent(error: Exception, kind: str) -> None:
    """One of a few words, for which there is a sentence and a remedy."""
    assert _class_of(error) == kind
    assert kind in AFTER_OPENING
