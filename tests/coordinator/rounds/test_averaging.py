"""An update is checked against the job's model, one of whose files the disk may have damaged."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import save

from coordinator import compared
from coordinator.blobs import BlobStore
from coordinator.rounds import averaging, bounds
from protos.content import digest_of, digest_of_file
from protos.encoding import write_update
from protos.errors import Unavailable
from tests.coordinator.playbook import training

FIRST = save({"x": np.zeros(4, np.float32)})
NEWEST = save({"x": np.ones(4, np.float32)})
DAMAGES = {"gone": None, "short": FIRST[:40], "another name": FIRST.replace(b'"x"', b'"y"')}


class Bench:
    """A job whose rounds began with FIRST and are at NEWEST, and an update of a node."""

    def __init__(self, folder: Path) -> None:
        self.blobs = BlobStore(folder / "blobs")
        self.models = [self._model(folder, data) for data in (FIRST, NEWEST)]
        first, newest = (path.name for path in self.models)
        course = SimpleNamespace(initial=first, model=newest)
        job = SimpleNamespace(update_dtype="float32")
        self.live = cast(Any, SimpleNamespace(phase=SimpleNamespace(course=course), job=job))
        self.update = folder / "update"
        write_update(self.update, {"x": np.full(4, 0.5, np.float32)}, "float32")

    def _model(self, folder: Path, data: bytes) -> Path:
        (folder / "model").write_bytes(data)
        return self.blobs.model(self.blobs.adopt_model(folder / "model"))

    def check(self) -> None:
        """Check the update."""
        attempt = training("a", "b", "c").phase.round.attempts[0]
        averaging.check_update(self.live, attempt, self.update, self.blobs)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Where an update may be of any length."""
    monkeypatch.setattr(averaging, "round_order", lambda _live: None)
    monkeypatch.setattr(bounds, "update_norm_max", lambda *_: 10.0)
    return Bench(tmp_path)


def spoil(path: Path, data: bytes | None) -> None:
    """What the disk does to a file; None removes it."""
    path.unlink()
    if data is not None:
        path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_update_is_not_refused_because_the_jobs_first_model_is_damaged(
    bench: Bench, damage: str
) -> None:
    """It was charged and thrown away, and its node trained again, once a round, for as long as the
    account could pay."""
    spoil(bench.models[0], DAMAGES[damage])
    bench.check()


def test_a_damaged_model_is_not_read_again_for_each_update(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each range of each upload asks: a model of a gigabyte would be read for every one, and the
    log would fill."""
    read = []
    monkeypatch.setattr(
        compared, "digest_of_file", lambda path: read.append(path.name) or digest_of_file(path)
    )
    spoil(bench.models[0], FIRST[:40])
    for _ in range(3):
        bench.check()
    assert read == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_no_whole_model_an_update_waits_at_its_node(bench: Bench, damage: str) -> None:
    """Until one of them is put back; nothing is wrong with the update."""
    for path in bench.models:
        spoil(path, DAMAGES[damage])
    with pytest.raises(Unavailable) as found:
        bench.check()
    assert (found.value.reason, found.value.retryable) == ("MODEL_DAMAGED", True)
    bench.models[1].write_bytes(NEWEST)
    bench.check()


def test_a_model_that_is_put_back_is_told_of_as_it_is(bench: Bench) -> None:
    """Neither its size nor its bytes are remembered from when it was damaged: an order would name
    what no node can fetch, until the coordinator was started again."""
    blobs, digest = bench.blobs, digest_of(FIRST)
    spoil(bench.models[0], FIRST[:40])
    assert (blobs.model_bytes(digest), blobs.inline_model(digest)) == (40, b"")
    bench.models[0].write_bytes(FIRST)
    assert (blobs.model_bytes(digest), blobs.inline_model(digest)) == (len(FIRST), FIRST)
