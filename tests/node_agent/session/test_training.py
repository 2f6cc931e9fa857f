"""What one attempt does with its worker, step by step: it trains nothing, and no time passes."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node_agent.failures import Failures, kept
from node_agent.launchers.base import Limits, WorkerDied
from node_agent.policy.admission import Terms
from node_agent.policy.judgement import Refusal
from node_agent.policy.working import WorkPolicy
from node_agent.session import events as e
from node_agent.session.traces import AttemptTraces
from node_agent.session.training import Training
from node_agent.state.spool import Spool
from protos.content import digest_of
from tests.node_agent.agent_federation import UPDATE_BYTES, FakeWorker
from tests.node_agent.samples import data_set, order

TICK_S = 4.0


class Scene:
    """A `Training` in a folder, whose ledger books whatever it is asked to.

    Attributes:
        now_s: its clock.
        wanted: whether an attempt is still to be worked at.
        opening: what happens while the opening is booked.
        heard: what it has dispatched.
        asked: how often the terms were asked for.
        booked: what booking an update gives: None where the attempt was closed meanwhile.
        others_have: whether another attempt has an update of the same bytes.
    """

    def __init__(self, folder: Path, worker: FakeWorker, tick_s: float = TICK_S) -> None:
        self.now_s, self.wanted = 1000.0, True
        self.opening: Callable[[], None] = lambda: None
        self.heard: list[e.Event] = []
        self.asked = 0
        self.booked: bytes | None = b"post"
        self.others_have = False
        self.spool = Spool(folder / "spool")
        self.terms = Terms(data_set(), tick_s, WorkPolicy())
        self.logs = folder / "logs"
        self.logs.mkdir()
        state = SimpleNamespace(
            open=self._open,
            spool=lambda *_: self.booked,
            lose=lambda *_: b"post",
            attempts=SimpleNamespace(others_have=lambda *_: self.others_have),
            notes=SimpleNamespace(keep=lambda *_: None),
        )
        self.training = Training(
            failures=Failures(self.logs),
            state=state,  # type: ignore[arg-type]
            ledger=SimpleNamespace(run=self._run),  # type: ignore[arg-type]
            admission=SimpleNamespace(terms=self._asked),  # type: ignore[arg-type]
            spool=self.spool,
            start_worker=worker.start,
            logs=self.logs,
            limits=Limits(),
            dispatch=self.heard.append,
            wanted=lambda _: self.wanted,
            clock=lambda: self.now_s,
            traces=AttemptTraces(),
        )

    def play(self, *attempt_ids: str) -> None:
        """Work at these attempts of one job, one after the other, and wait for what was ended."""

        async def all_of_them() -> None:
            for number, attempt_id in enumerate(attempt_ids, start=1):
                await self.training.run(order(attempt_id, round=number), float("inf"))
            await self.training.ended()

        asyncio.run(all_of_them())

    def _asked(self, _: Any) -> Terms:
        self.asked += 1
        return self.terms

    async def _run(self, call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    def _open(self, *_: Any) -> bool:
        self.opening()
        return True


def test_training_ends_before_the_outcome_is_due_however_long_the_opening_took_to_book(
    tmp_path: Path,
) -> None:
    """The moment counts from before the opening. Were training to count from after it, it could
    end later than that moment, and a later one would tell how long the data took."""

    class Brief(FakeWorker):
        async def request(self, message: dict[str, Any]) -> dict[str, Any]:
            if message["op"] == "train":
                await asyncio.sleep(0.05)
            return await super().request(message)

    worker = Brief()
    scene = Scene(tmp_path, worker)

    def slow_disk() -> None:
        scene.now_s += TICK_S

    scene.opening = slow_disk
    scene.play("a1")
    assert scene.heard == [
        e.DataOpened("a1", 1000.0, TICK_S),
        e.TrainingEnded("a1", "", b"post", ""),
    ]
    assert [(one.reason, one.detail) for one in kept(scene.logs)] == [("TOO_LONG", "limit 4 s")]
    assert worker.stops == 1


def test_what_a_worker_writes_while_it_is_ended_is_removed(tmp_path: Path) -> None:
    """It was too late, and nothing of it stays on the disk."""

    class Unhurried(FakeWorker):
        async def stop(self) -> None:
            if self.trained:
                scene.spool.out("a1").write_bytes(UPDATE_BYTES)
            await super().stop()

    worker = Unhurried(script=["overrun"])
    scene = Scene(tmp_path, worker, tick_s=0.05)
    scene.play("a1")
    assert [one.reason for one in kept(scene.logs)] == ["TOO_LONG"]
    assert worker.stops == 1
    assert not scene.spool.out("a1").exists()


def test_an_attempt_that_reads_no_records_takes_the_time_that_it_takes(tmp_path: Path) -> None:
    """Its outcome tells nothing of any, and waits for no moment."""

    class Slow(FakeWorker):
        async def request(self, message: dict[str, Any]) -> dict[str, Any]:
            scene.now_s += 100.0
            await asyncio.sleep(0.05)
            return await super().request(message)

    scene = Scene(tmp_path, Slow(), tick_s=0.0)
    scene.play("a1")
    assert scene.heard[-1] == e.TrainingEnded("a1", digest_of(UPDATE_BYTES), b"post", "")


@pytest.mark.parametrize(
    ("admitted", "later_s", "asked"), [("a1", 1.0, 1), ("a1", 1.5, 2), ("a2", 1.0, 2)]
)
def test_terms_of_the_admission_are_good_for_a_moment_and_for_that_attempt(
    tmp_path: Path, admitted: str, later_s: float, asked: int
) -> None:
    """They are asked for with the opening in any case."""
    scene = Scene(tmp_path, FakeWorker())
    scene.training.admitted(admitted, scene.terms)
    scene.now_s += later_s
    scene.play("a1")
    assert scene.asked == asked


class Mortal(FakeWorker):
    """Dies in so many checks after the first one."""

    deaths = 0
    checks = 0

    async def request(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["op"] == "check":
            self.checks += 1
            if 1 < self.checks <= 1 + self.deaths:
                raise WorkerDied("its allocation ends too soon")
        return await super().request(message)


def test_a_worker_that_was_kept_and_is_gone_by_the_next_round_is_replaced(tmp_path: Path) -> None:
    """It was killed while it waited, or a cluster gave it no more time: the data is not open, so
    that nothing is lost but its start."""
    worker = Mortal()
    worker.deaths = 1
    scene = Scene(tmp_path, worker)
    scene.play("a1", "a2")
    assert [type(one) for one in scene.heard] == [e.DataOpened, e.TrainingEnded] * 2
    assert (worker.starts, worker.stops, worker.trained) == (2, 1, ["a1", "a2"])
    assert kept(scene.logs) == []


def test_a_worker_that_hangs_before_the_data_is_open_is_ended_and_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else ended it while its round lacked that update: the node worked for no job."""
    monkeypatch.setattr("node_agent.session.training.REHEARSED_S_MIN", 0.05)
    monkeypatch.setattr("node_agent.session.training.REHEARSED_DEADLINES", 0)

    class Hanging(FakeWorker):
        async def request(self, message: dict[str, Any]) -> dict[str, Any]:
            if message["op"] == "check" and message["out"].endswith("a1.safetensors"):
                await asyncio.sleep(1e6)
            return await super().request(message)

    worker = Hanging()
    scene = Scene(tmp_path, worker)
    scene.play("a1", "a2")
    refused, *others = scene.heard
    assert isinstance(refused, e.WorkImpossible)
    assert refused.reason == "WORKER_FAILED"
    assert [type(one) for one in others] == [e.DataOpened, e.TrainingEnded]
    assert worker.stops == 1


def test_a_new_worker_that_dies_as_well_is_not_replaced(tmp_path: Path) -> None:
    """Refused, and the hospital is told why."""
    worker = Mortal()
    worker.deaths = 2
    scene = Scene(tmp_path, worker)
    scene.play("a1", "a2")
    refused = scene.heard[-1]
    assert isinstance(refused, e.WorkImpossible)
    assert (refused.attempt_id, refused.reason) == ("a2", "WORKER_FAILED")
    assert (worker.starts, worker.stops, worker.trained) == (2, 2, ["a1"])


@pytest.mark.parametrize("is_wanted", [True, False])
def test_no_worker_stays_of_an_attempt_that_ended_while_it_was_started(
    tmp_path: Path, is_wanted: bool
) -> None:
    """Whatever has ended the attempt found no worker yet. One of an attempt that does not fit its
    deadline stays for the order that comes again."""

    class Late(FakeWorker):
        async def start(self, *arguments: Any) -> FakeWorker:
            await super().start(*arguments)
            scene.wanted = is_wanted
            return self

        async def request(self, message: dict[str, Any]) -> dict[str, Any]:
            answer = await super().request(message)
            refusal = {"op": "refused", "reason": "MODEL_MISMATCH", "message": "-"}
            return refusal if message["op"] == "check" else answer

    worker = Late()
    scene = Scene(tmp_path, worker)
    scene.play("a1")
    assert [type(one) for one in scene.heard] == [e.WorkImpossible]
    assert worker.stops == (0 if is_wanted else 1)


def test_an_order_that_the_steward_no_longer_allows_starts_no_worker(tmp_path: Path) -> None:
    """It waited for its turn while the rules changed."""
    worker = FakeWorker()
    scene = Scene(tmp_path, worker)
    scene.terms = Refusal("DATA_SET_WITHDRAWN", "-")  # type: ignore[assignment]
    scene.play("a1")
    assert [one.reason for one in scene.heard if isinstance(one, e.WorkImpossible)] == [
        "DATA_SET_WITHDRAWN"
    ]
    assert worker.starts == 0


def test_a_worker_that_cannot_be_prepared_ends_and_says_why(tmp_path: Path) -> None:
    """It is told to the coordinator, and another one is not tried."""

    class Unprepared(FakeWorker):
        async def request(self, message: dict[str, Any]) -> dict[str, Any]:
            return {"op": "refused", "reason": "TASK_CONFIG_INVALID", "message": "-"}

    worker = Unprepared()
    scene = Scene(tmp_path, worker)
    scene.play("a1")
    assert [one.reason for one in scene.heard if isinstance(one, e.WorkImpossible)] == [
        "TASK_CONFIG_INVALID"
    ]
    assert (worker.starts, worker.stops) == (1, 1)


class Dying(FakeWorker):
    """Ends in an error while it trains."""

    def __init__(self, error: Exception, ended: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.error, self.ended = error, ended

    async def request(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["op"] == "train":
            self.ended()
            raise self.error
        return await super().request(message)


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WorkerDied("killed", -9), "OUT_OF_MEMORY"),
        (WorkerDied("ended", 1), "WORKER_DIED"),
        (WorkerDied("a job that is gone"), "WORKER_DIED"),
        (OSError("its pipe broke"), "WORKER_DIED"),
    ],
)
def test_how_a_worker_died_is_the_hospitals_and_the_coordinators_where_the_policy_shares_it(
    tmp_path: Path, error: Exception, reason: str, shares: bool
) -> None:
    """One that was killed had too little memory, as far as is known."""
    scene = Scene(tmp_path, Dying(error))
    scene.terms = replace(scene.terms, share_failure_class=shares)
    scene.play("a1")
    assert [(one.reason, one.detail) for one in kept(scene.logs)] == [(reason, str(error))]
    assert scene.heard[-1] == e.TrainingEnded("a1", "", b"post", reason if shares else "")


def test_a_worker_that_ended_with_its_attempt_is_no_failure(tmp_path: Path) -> None:
    """The coordinator had closed it, which has ended the worker."""

    def closed() -> None:
        scene.wanted = False

    scene = Scene(tmp_path, Dying(WorkerDied("killed", -9), closed))
    scene.terms = replace(scene.terms, share_failure_class=True)
    scene.play("a1")
    assert kept(scene.logs) == []
    assert scene.heard[-1] == e.TrainingEnded("a1", "", b"post", "")


def test_a_class_is_told_of_a_failure_alone(tmp_path: Path) -> None:
    """An update that is not what its worker says is one; an update is none."""
    worker = FakeWorker(script=["lie", "update"])
    scene = Scene(tmp_path, worker)
    scene.terms = replace(scene.terms, share_failure_class=True)
    scene.play("a1", "a2")
    lost, given = (one for one in scene.heard if isinstance(one, e.TrainingEnded))
    assert (lost.digest, lost.failure_class) == ("", "UPDATE_UNREADABLE")
    assert (given.digest, given.failure_class) == (digest_of(UPDATE_BYTES), "")
    assert [one.reason for one in kept(scene.logs)] == ["UPDATE_UNREADABLE"]


@pytest.mark.parametrize(
    ("booked", "others_have", "stays"),
    [(b"post", False, True), (None, False, False), (None, True, True)],
)
def test_an_update_of_an_attempt_that_was_closed_meanwhile_is_removed(
    tmp_path: Path, booked: bytes | None, others_have: bool, stays: bool
) -> None:
    """Nobody asks for it any more, but maybe for another attempt of the same bytes: they lie there
    once."""
    scene = Scene(tmp_path, FakeWorker())
    scene.booked, scene.others_have = booked, others_have
    scene.play("a1")
    assert scene.spool.update(digest_of(UPDATE_BYTES)).exists() is stays
    ended = [one for one in scene.heard if isinstance(one, e.TrainingEnded)]
    assert len(ended) == (0 if booked is None else 1)


@pytest.mark.parametrize("nonsense", ["many", None, -1, float("nan"), float("inf"), [1]])
@pytest.mark.parametrize(("op", "name"), [("check", "rehearsal_s"), ("train", "bytes")])
def test_a_worker_that_answers_no_number_ends_and_the_agent_goes_on(
    tmp_path: Path, op: str, name: str, nonsense: object
) -> None:
    """As one whose line cannot be read."""

    class Confused(FakeWorker):
        async def request(self, message: dict[str, Any]) -> dict[str, Any]:
            answer = await super().request(message)
            return {**answer, name: nonsense} if message["op"] == op else answer

    worker = Confused()
    scene = Scene(tmp_path, worker)
    scene.play("a1")
    said = scene.heard[-1]
    assert isinstance(said, e.WorkImpossible if op == "check" else e.TrainingEnded)
    assert [one.reason for one in kept(scene.logs)] == ([] if op == "check" else ["WORKER_DIED"])
    assert (worker.starts, worker.stops) == (1, 1)
