"""What the driver does outside the database, with a store of files."""

import asyncio
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.blobs import BlobStore
from coordinator.rounds import averaging
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds.averaging import fold
from coordinator.rounds.effects import Effects
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Aggregating
from coordinator.sessions import Sessions
from protos.content import digest_of
from protos.errors import NotFound
from tests.coordinator.playbook import PLAN, Playbook, training, update

ONE_ROUND = replace(PLAN, rounds_planned=1)


@dataclass
class Live:
    """As much of a job as is looked at."""

    phase: Any
    job_id: str = "job-1"
    job: Any = field(default_factory=lambda: SimpleNamespace(update_dtype="float32"))


def without_looks(blobs: BlobStore) -> BlobStore:
    """One that takes every model for whole: their digests here are invented."""
    blobs.check_models = lambda _: None  # type: ignore[method-assign]
    return blobs


def cut_off(blobs: BlobStore, *nodes: str) -> Playbook:
    """A round of these nodes that has its updates, on the disk, and is about to be folded."""
    book = training(*nodes)
    for node in nodes:
        data = f"update of {node}".encode()
        blobs.keep_update(f"{node}1", digest_of(data), data)
        arrived = e.UpdateReceived(f"{node}1", digest_of(data), len(data), b"sig")
        book = Playbook((book >> arrived).phase, [], book.now_s)
    return book


@pytest.mark.parametrize("is_damaged", [False, True])
def test_an_update_whose_file_is_gone_is_found_before_a_job_is_resumed(
    tmp_path: Path, is_damaged: bool
) -> None:
    """The fold names it; the resumption is told of it and of no other."""
    blobs = BlobStore(tmp_path)
    effects = Effects(blobs, Sessions(30.0, 10.0))
    book = cut_off(blobs, "a", "b", "c")
    live = cast(Any, Live(book.phase))
    assert effects.lost_updates(live) == ()
    gone = book.phase.round.attempt("b1")
    if is_damaged:
        blobs.update("b1", gone.digest).write_bytes(b"update of c")
    else:
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


@pytest.mark.parametrize("is_looked_at", [False, True])
def test_a_model_that_was_damaged_on_the_disk_is_named_and_not_tried_for_ever(
    tmp_path: Path, is_looked_at: bool
) -> None:
    """Neither by the round that starts from it nor by the answer that is made of it; nor is what
    the disk gives in its place averaged, or put away: whoever looks may need it."""
    blobs = BlobStore(tmp_path) if is_looked_at else without_looks(BlobStore(tmp_path))
    effects = Effects(blobs, Sessions(30.0, 10.0))
    live = cast(Any, Live(cut_off(blobs, "a", "b", "c").phase))
    (tmp_path / "m0").write_bytes(b"half a mod")
    blobs.model = lambda _: tmp_path / "m0"  # type: ignore[method-assign]
    for work in (effects.run(live, c.FoldUpdates(1)), effects._answered(live, ["m"] * 4)):
        with pytest.raises(NotFound) as found:
            asyncio.run(cast(Any, work))
        assert found.value.reason == "MODEL_DAMAGED"
    assert (tmp_path / "m0").exists()


def test_a_closed_attempts_node_is_told_and_its_file_is_gone(tmp_path: Path) -> None:
    """Nor is an order sent again for one that is closed, however late it is asked for."""
    blobs, sessions = BlobStore(tmp_path), Sessions(30.0, 10.0)
    said: list[tuple[str, Any]] = []
    sessions.send = lambda *one: said.append(one)  # type: ignore[method-assign, assignment]
    effects = Effects(blobs, sessions)
    blobs.keep_update("a1", digest_of(b"x"), b"x")
    book = training("a", "b", "c") >> e.NoUpdateReceived("a1", b"sig")
    job = LiveJob(cast(Any, None), cast(Any, None), book.phase, 1)
    asyncio.run(effects.run(job, c.SendOrder("a1")))
    assert said == []
    asyncio.run(effects.run(job, c.NotifyClosed("a1", "a", "post")))
    ((node, message),) = said
    assert (node, message.attempt_closed.outcome) == ("a", "post")
    assert blobs.attempts_kept() == []


def test_the_model_of_the_last_round_is_part_of_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is published with the answer, and so not among the rounds that are done yet."""
    asked: list[list[str]] = []

    def write_answer(_live: Any, digests: list[str], blobs: BlobStore) -> str:
        asked.append(digests)
        return blobs.adopt_model(model)

    monkeypatch.setattr(averaging, "write_answer", write_answer)
    model = tmp_path / "model"
    model.write_bytes(b"a model")
    book = cut_off(BlobStore(tmp_path), "a", "b", "c")
    last = e.UpdatesFolded(1, "m1", 400, 0.1, 0.01, False)
    phase = replace(book.phase, course=replace(book.phase.course, plan=ONE_ROUND))
    phase = (Playbook(phase, [], book.now_s) >> last).phase
    effects = Effects(without_looks(BlobStore(tmp_path)), Sessions(30.0, 10.0))
    asyncio.run(effects.run(cast(Any, Live(phase)), c.PublishLast(1, "m1", 400)))
    assert asked == [["m1"]]


def test_only_the_updates_of_the_round_that_is_done_are_forgotten(tmp_path: Path) -> None:
    """Also where it is done late, when further rounds are done."""
    blobs = BlobStore(tmp_path)
    book = cut_off(blobs, "a", "b", "c")
    book = book >> e.UpdatesFolded(1, "m1", 400, 0.1, 0.01, False)
    phase = (Playbook(book.phase, [], book.now_s) >> e.ModelPublished(1, None)).phase
    second = replace(phase.course.done[0], number=2, attempts=())
    phase = replace(phase, course=replace(phase.course, done=(*phase.course.done, second)))
    blobs.keep_update("other", digest_of(b"x"), b"x")
    live = cast(Any, Live(phase))
    asyncio.run(Effects(blobs, Sessions(30.0, 10.0)).run(live, c.ForgetUpdates(1)))
    assert blobs.attempts_kept() == ["other"]


def test_what_is_still_to_be_used_of_an_update_follows_from_the_journal(tmp_path: Path) -> None:
    """An open attempt's, one that is to be folded, and what a failed job may go on with."""

    def needed(phase: Any) -> bool:
        return LiveJob(cast(Any, None), cast(Any, None), phase, 1).needs_update("a1")

    assert needed(training("a", "b", "c").phase)
    book = cut_off(BlobStore(tmp_path), "a", "b", "c")
    assert isinstance(book.phase, Aggregating)
    assert needed(book.phase)
    assert needed((book >> e.StepFailed("the disk")).phase)
    assert not needed((book >> e.CancelRequested("me")).phase)
    folded = book >> e.UpdatesFolded(1, "m1", 400, 0.1, 0.01, False)
    assert needed(folded.phase)
    assert not needed((folded >> e.ModelPublished(1, None)).phase)
    late = training("a", "b", "c", "d")
    for node in "bcd":
        late = Playbook((late >> update(f"{node}1")).phase, [], late.now_s)
    assert needed(late.phase)
    assert not needed((late >> e.DeadlinePassed(1)).phase)


def test_the_end_of_a_job_that_was_resumed_since_takes_nothing_from_it(tmp_path: Path) -> None:
    """A failed job holds its updates; a late end of it does not drop them when it goes on."""
    blobs = BlobStore(tmp_path)
    sessions = Sessions(30.0, 10.0)
    session = sessions.open("a")
    book = cut_off(blobs, "a", "b", "c") >> e.StepFailed("the disk")
    live = LiveJob(cast(Any, Live(None)), cast(Any, None), book.phase, 1)
    asyncio.run(Effects(blobs, sessions).run(live, c.EndJob()))
    assert blobs.attempts_kept() == ["a1", "b1", "c1"]
    assert session._messages.qsize() == 1
    live.phase = (book >> e.ResumeRequested("me")).phase
    asyncio.run(Effects(blobs, sessions).run(live, c.EndJob()))
    assert blobs.attempts_kept() == ["a1", "b1", "c1"]
    assert session._messages.qsize() == 1
    cancelled = cut_off(blobs, "a", "b", "c") >> e.CancelRequested("me")
    live.phase = cancelled.phase
    asyncio.run(Effects(blobs, sessions).run(live, c.EndJob()))
    assert blobs.attempts_kept() == []


def test_attempts_are_known_by_their_files(tmp_path: Path) -> None:
    """Whole or on their way; the models that people upload are none of them."""
    blobs = BlobStore(tmp_path)
    blobs.keep_update("a1", digest_of(b"x"), b"x")
    for owner in ("b1", "user.anna"):
        with closing(blobs.begin(owner, digest_of(b"yy"), 0)) as appending:
            appending.write(b"y")
            appending.keep()
    with blobs.scratch("job-1.3") as scratch:
        scratch.write_bytes(b"half")
        assert blobs.attempts_kept() == ["a1", "b1"]
        blobs.drop_scratch()
        assert not scratch.exists()
    assert blobs.attempts_kept() == ["a1", "b1"]


@pytest.mark.parametrize("size", [0, 7])
def test_a_model_that_another_replica_names_and_that_is_not_there_whole_is_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Absent, or of another size: the leader averages, and takes its own."""
    blobs = without_looks(BlobStore(tmp_path))
    with blobs.scratch("m") as model:
        model.write_bytes(b"a model")
        digest = blobs.adopt_model(model) if size else "9" * 64
    named = e.UpdatesFolded(1, digest, size + 1, None, None, False)
    own = replace(named, digest="8" * 64)
    asked: list[str] = []

    class Elsewhere:
        async def average(self, live: Any, phase: Any) -> e.UpdatesFolded:
            asked.append("average")
            return named

    monkeypatch.setattr(averaging, "fold", lambda *_: own)
    effects = Effects(blobs, Sessions(30.0, 10.0), elsewhere=cast(Any, Elsewhere()))
    book = cut_off(blobs, "a", "b", "c")
    live = cast(Any, Live(book.phase))
    assert asyncio.run(effects._averaged(live, book.phase)) == own
    assert asked == ["average"]


def test_a_fold_that_comes_too_late_for_its_updates_fails_no_job(tmp_path: Path) -> None:
    """The commit of the fold before was not heard of, so that it is done again; meanwhile the
    journal tells that the round is over, and its updates are forgotten."""
    blobs = without_looks(BlobStore(tmp_path))
    (tmp_path / "m0").write_bytes(b"")
    blobs.model = lambda _: tmp_path / "m0"  # type: ignore[method-assign]
    book = cut_off(blobs, "a", "b", "c")
    live = cast(Any, Live(book.phase))

    class Nobody:
        goes_on = False

        async def average(self, live: Any, phase: Any) -> None:
            for attempt in phase.round.received:
                blobs.drop_update(attempt.attempt_id, attempt.digest)
            if self.goes_on:
                live.phase = (book >> e.UpdatesFolded(1, "9" * 64, 1, None, None, False)).phase

    nobody = Nobody()
    effects = Effects(blobs, Sessions(30.0, 10.0), elsewhere=cast(Any, nobody))
    again = c.FoldUpdates(book.phase.round.number)
    with pytest.raises(NotFound) as found:
        asyncio.run(effects.run(live, again))
    assert found.value.reason == "UPDATE_LOST", "the round waits for it"
    nobody.goes_on = True
    assert asyncio.run(effects.run(live, again)) is None
