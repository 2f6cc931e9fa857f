"""What the driver does outside the database, with a store of files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from coordinator.blobs import BlobStore
from coordinator.rounds import events as e
from coordinator.rounds.effects import Effects, fold
from coordinator.sessions import Sessions
from protos.content import digest_of
from protos.errors import NotFound
from tests.coordinator.playbook import Playbook, training


@dataclass
class Live:
    """As much of a job as is looked at."""

    phase: Any
    job_id: str = "job-1"


def cut_off(blobs: BlobStore, *nodes: str) -> Playbook:
    """A round of these nodes that has its updates, on the disk, and is about to be folded."""
    book = training(*nodes)
    for node in nodes:
        data = f"update of {node}".encode()
        blobs.keep_update(f"{node}1", digest_of(data), data)
        arrived = e.UpdateReceived(f"{node}1", digest_of(data), len(data), b"sig")
        book = Playbook((book >> arrived).phase, [], book.now_s)
    return book


def test_an_update_whose_file_is_gone_is_found_before_a_job_is_resumed(tmp_path: Path) -> None:
    """The fold names it; the resumption is told of it and of no other."""
    blobs = BlobStore(tmp_path)
    effects = Effects(blobs, Sessions(30.0, 10.0))
    book = cut_off(blobs, "a", "b", "c")
    live = cast(Any, Live(book.phase))
    assert effects.lost_updates(live) == ()
    gone = book.phase.round.attempt("b1")
    blobs.update("b1", gone.digest).unlink()
    assert effects.lost_updates(live) == ("b1",)
    live.phase = (book >> e.StepFailed("the disk")).phase
    assert effects.lost_updates(live) == ("b1",)
    live.phase = book.phase
    (tmp_path / "m0").write_bytes(b"")
    blobs.model = lambda _: tmp_path / "m0"  # type: ignore[method-assign]
    with pytest.raises(NotFound) as found:
        fold(live, live.phase, blobs)
    assert found.value.reason == "UPDATE_LOST"
