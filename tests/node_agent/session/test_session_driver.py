"""The agent against a coordinator over real gRPC and mTLS, with a worker that trains nothing."""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner

from certs.authority import Authority
from feddp.cli.app import app
from node_agent.failures import kept
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.launchers.base import WorkerDied
from node_agent.launchers.local import LocalWorker
from node_agent.outcome_time import outcome_after_s
from node_agent.policy.orders import Order
from node_agent.state.state import State
from node_agent.status import status
from node_agent.tasks.registry import initial_model, installed
from privacy.heads import Head
from privacy.ledger import signature_ok
from protos.content import beside_of, digest_of
from protos.errors import NotAllowed, NotFound, TooLate
from protos.feddp.v1 import federation_pb2 as pb
from protos.status import DETAILS_KEY, details
from tests.node_agent.agent_federation import (
    MODEL_BYTES,
    TRUST_DOMAIN,
    UPDATE_BYTES,
    WAIT_S,
    FakeCoordinator,
    FakeWorker,
    RunningAgent,
    make_agent,
    real_order,
)
from tests.node_agent.samples import NO_DATA, NODE, POLICY, write_rules

DIGEST = digest_of(UPDATE_BYTES)
Scene = Callable[[FakeCoordinator, Folder, FakeWorker], Coroutine[Any, Any, None]]


def play(tmp_path: Path, scene: Scene, kind: type[FakeCoordinator] = FakeCoordinator) -> Folder:
    """Run a scene with a coordinator that listens; gives the agent's folder."""

    async def run() -> Folder:
        authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
        coordinator = kind(authority)
        await coordinator.start()
        folder = make_agent(tmp_path / "agent", authority, coordinator.port)
        try:
            await scene(coordinator, folder, FakeWorker())
        finally:
            await coordinator.stop()
        return folder

    return asyncio.run(run())


def entries(folder: Folder) -> list[tuple[str, str]]:
    """The node's own ledger: kind and attempt of each entry."""
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    try:
        found = [entry.statement for entry in state.ledger.entries()]
        return [(statement.kind, statement.attempt_id) for statement in found]
    finally:
        state.close()


async def until(claim: Callable[[], bool]) -> None:
    """Wait for a claim about another task to come true."""
    async with asyncio.timeout(WAIT_S):
        while not claim():  # noqa: ASYNC110 - the claims are of files and counters
            await asyncio.sleep(0.01)


async def until_closed(folder: Folder) -> None:
    """Wait until no attempt is open in the agent's database."""
    await until(lambda: not set(status(folder.root)["attempts"]) - {"closed", "refused"})


def signed(folder: Folder, order: pb.WorkOrder, kind: Any, signature: bytes) -> bool:
    """Whether the node signed this statement of the order."""
    public = load_identity(folder.identity).ledger_public_key
    return signature_ok(public, Order.from_wire(order).statement(NODE, kind), signature)


def test_a_round_from_hello_to_the_submitted_update(tmp_path: Path) -> None:
    """Hello, fetch, train, upload, submit; the ledger has one reserve and one post."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            hello = await coordinator.heard("hello")
            assert [one.name for one in hello.data_sets] == ["heart"]
            assert [one.filter for one in hello.accounts] == ["gdp"]
            assert len(hello.tasks) == len(hello.data_sets[0].tasks) == 3
            await coordinator.until_submitted()
            await until_closed(folder)
            coordinator.send(job_ended=pb.JobEnded(job_id="job-1"))
            await until(lambda: worker.stops == 1)
            await until(lambda: not list((folder.spool / "models").iterdir()))
        submitted = coordinator.submitted[0]
        assert submitted.digest == DIGEST
        assert signed(folder, real_order(), "post", submitted.post_signature)
        assert signed(folder, real_order(), "reserve", submitted.reserve_signature)
        assert bytes(coordinator.uploads[DIGEST]) == UPDATE_BYTES
        train = worker.requests[1]
        assert train["base_model_digest"] == digest_of(MODEL_BYTES)
        assert worker.trained == ["a1"]
        assert list((folder.spool / "updates").iterdir()) == []

    folder = play(tmp_path, scene)
    assert entries(folder) == [("reserve", "a1"), ("post", "a1")]


def test_why_no_worker_could_be_started_stays_in_the_hospital(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`feddp agent logs JOB` has the launcher's own sentence; the coordinator is not told it."""
    said = "sbatch failed: invalid partition specified: nope"

    async def refused(*_: Any, **__: Any) -> FakeWorker:
        raise OSError(said)

    monkeypatch.setattr(FakeWorker, "start", refused)

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            told = await coordinator.heard("order_refused")
            assert told.reason == "WORKER_FAILED"
            assert "sbatch" not in told.message
            await until(lambda: bool(kept(folder.logs)))

    (failure,) = kept(play(tmp_path, scene).logs)
    assert (failure.reason, failure.detail, failure.opened) == ("WORKER_FAILED", said, False)
    assert "feddp agent logs" not in failure.sentence + failure.remedy


def test_a_lost_answer_costs_one_more_call_and_no_charge(tmp_path: Path) -> None:
    """SubmitUpdate took effect and its answer got lost: the same bytes again, nothing retrained."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        coordinator.lose_answers = 1
        coordinator.cut_uploads = 1
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted(2)
            await until_closed(folder)
        first, second = coordinator.submitted
        assert first == second
        assert worker.trained == ["a1"]

    assert entries(play(tmp_path, scene)) == [("reserve", "a1"), ("post", "a1")]


@pytest.mark.parametrize("fault", ["die", "no_update", "lie", "overrun"])
def test_whatever_happens_after_the_opening_is_no_update_and_posted_whole(
    tmp_path: Path, fault: str
) -> None:
    """A dead worker, a worker's no and a worker's lie look alike outside, and cost alike; also in
    that none of them is there for the next attempt."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        worker.script = [fault]
        async with RunningAgent(folder, worker):
            empty = await coordinator.heard("no_update")
            assert signed(folder, real_order(), "post", empty.post_signature)
            assert empty.failure_class == ""  # nobody has allowed that it be told
            await until(lambda: worker.stops == 1)
            coordinator.send(attempt_closed=pb.AttemptClosed(attempt_id="a1", outcome="post"))
            await until_closed(folder)
            assert coordinator.submitted == []
            coordinator.send(work_order=real_order("a2", round=2))
            await coordinator.until_submitted()
        assert (worker.starts, worker.trained) == (2, ["a1", "a2"])

    taken = entries(play(tmp_path, scene))
    assert taken[:2] == [("reserve", "a1"), ("post", "a1")]


def test_how_long_a_worker_takes_to_end_delays_no_outcome(tmp_path: Path) -> None:
    """A cluster gives a machine back in its own time: training that takes too long is told at the
    moment of every other outcome, and nothing that comes of it later stays."""
    tick_s, ends_s = 1.0, 3.0

    class Slow(FakeWorker):
        async def request(self, message: dict[str, Any]) -> dict[str, Any]:
            try:
                return await super().request(message)
            except (asyncio.CancelledError, WorkerDied):
                await asyncio.sleep(ends_s)
                raise

        async def stop(self) -> None:
            await super().stop()
            await asyncio.sleep(ends_s)
            write_late(self.requests)

    def write_late(requests: list[dict[str, Any]]) -> None:
        for one in requests:
            if one["op"] == "train":
                Path(one["out"]).write_bytes(UPDATE_BYTES)

    async def scene(coordinator: FakeCoordinator, folder: Folder, _: FakeWorker) -> None:
        policy = yaml.safe_load(folder.policy_yaml.read_text())
        write_rules(folder.root, policy | {"outcome_tick_s": tick_s})
        coordinator.orders = [real_order()]
        worker = Slow(["overrun"])
        async with RunningAgent(folder, worker):
            await asyncio.wait_for(worker.training.wait(), WAIT_S)
            began_s = asyncio.get_running_loop().time()
            await coordinator.heard("no_update")
            assert asyncio.get_running_loop().time() - began_s < 2 * tick_s - 0.1
        assert list((folder.spool / "out").iterdir()) == []

    play(tmp_path, scene)


def test_an_agent_that_ends_while_the_data_is_open_never_trains_that_attempt_again(
    tmp_path: Path,
) -> None:
    """After the restart the same order gets "no update"; the next attempt is a new charge."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        worker.script = ["hang"]
        async with RunningAgent(folder, worker):
            await asyncio.wait_for(worker.training.wait(), WAIT_S)
        assert status(folder.root)["attempts"] == {"opened": 1}
        async with RunningAgent(folder, worker):
            await coordinator.heard("no_update")
            coordinator.send(work_order=real_order("a2"))
            await coordinator.until_submitted()
            await until(lambda: status(folder.root)["attempts"].get("closed") == 1)
        assert worker.trained == ["a1", "a2"]

    expected = [("reserve", "a1"), ("post", "a1"), ("reserve", "a2"), ("post", "a2")]
    assert entries(play(tmp_path, scene)) == expected


def test_an_agent_that_ends_on_an_error_waits_until_its_worker_is_gone(tmp_path: Path) -> None:
    """Its disk takes nothing any more: a worker that goes on would read records for nobody, beside
    the next agent's. Nor does status say for ever that it is connected."""

    class Slow(FakeWorker):
        gone = False

        async def stop(self) -> None:
            await super().stop()
            await asyncio.sleep(0.2)
            self.gone = True

    async def scene(coordinator: FakeCoordinator, folder: Folder, _: FakeWorker) -> None:
        worker = Slow()
        worker.checking = lambda: (folder.spool / "updates").rmdir()
        coordinator.orders = [real_order()]
        with pytest.raises(ExceptionGroup):
            async with RunningAgent(folder, worker) as agent:
                await until(agent.has_ended)
        assert worker.gone
        assert not status(folder.root)["connected"]

    play(tmp_path, scene)


def test_a_spooled_update_is_submitted_after_a_restart_without_training(tmp_path: Path) -> None:
    """The first process trained and could not hand in; the second hands in the same bytes."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        coordinator.lose_answers = 10**6
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted()
        assert status(folder.root)["attempts"] == {"spooled": 1}
        coordinator.lose_answers = 0
        count = len(coordinator.submitted)
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted(count + 1)
            await until_closed(folder)
        assert {one.digest for one in coordinator.submitted} == {DIGEST}
        assert worker.trained == ["a1"]

    assert entries(play(tmp_path, scene)) == [("reserve", "a1"), ("post", "a1")]


class Foretelling(FakeWorker):
    """Its outcome is due so long after the opening."""

    due_s = 0.0

    async def request(self, message: dict[str, Any]) -> dict[str, Any]:
        answer = await super().request(message)
        return {**answer, "rehearsal_s": self.due_s / 4} if message["op"] == "check" else answer


TAKEN_BACK = pytest.mark.parametrize("taken_back", [{"withdrawn": ["heart"]}, {"allow": []}])
"""The data set, or the task on it."""


@TAKEN_BACK
def test_an_update_that_the_steward_took_back_while_the_agent_was_off_never_leaves(
    tmp_path: Path, taken_back: dict[str, Any]
) -> None:
    """The next process has known no other rules, so that no change tells it to look."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        first = Foretelling()
        first.due_s = 3.0  # by which the agent is off
        async with RunningAgent(folder, first):
            await until(lambda: status(folder.root)["attempts"] == {"spooled": 1})
        rules = yaml.safe_load(folder.policy_yaml.read_text())
        folder.policy_yaml.write_text(yaml.safe_dump(rules | taken_back))
        async with RunningAgent(folder, worker):
            await coordinator.heard("no_update")
        assert coordinator.submitted == []
        assert coordinator.uploads == {}

    assert entries(play(tmp_path, scene)) == [("reserve", "a1"), ("post", "a1")]


@TAKEN_BACK
@pytest.mark.parametrize("script", ["hang", "update"])
def test_what_the_steward_takes_back_ends_at_once_whatever_it_is_at(
    tmp_path: Path, script: str, taken_back: dict[str, Any]
) -> None:
    """Training is stopped, and an update that waits is removed, long before the outcome is due."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, _: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        worker = Foretelling([script])
        worker.due_s = 40.0
        state = {"hang": "opened", "update": "spooled"}[script]
        async with RunningAgent(folder, worker):
            await until(lambda: status(folder.root)["attempts"] == {state: 1})
            rules = yaml.safe_load(folder.policy_yaml.read_text())
            folder.policy_yaml.write_text(yaml.safe_dump(rules | taken_back))
            if script == "hang":
                await until(lambda: status(folder.root)["attempts"] == {"no_update": 1})
                assert worker.stops == 1
            else:
                await until(lambda: not list((folder.spool / "updates").iterdir()))

    assert entries(play(tmp_path, scene)) == [("reserve", "a1"), ("post", "a1")]


def test_an_update_that_the_coordinator_refuses_is_not_told_as_acknowledged(
    tmp_path: Path,
) -> None:
    """Its round had closed: the hospital's outbox must not say that it counts."""

    class Late(FakeCoordinator):
        async def SubmitUpdate(self, request: Any, context: Any) -> Any:  # noqa: N802
            error = TooLate("ATTEMPT_CLOSED", "the round has closed")
            context.set_trailing_metadata(((DETAILS_KEY, details(error)),))
            await context.abort(grpc.StatusCode.ABORTED, error.message)

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            await until(lambda: status(folder.root)["attempts"] == {"closed": 1})

    folder = play(tmp_path, scene, Late)
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    row = state.attempts.find("a1")
    state.close()
    assert row is not None
    assert (row.state, row.outcome, row.reason) == ("closed", "post", "UPDATE_REJECTED")


def test_an_update_that_vanished_from_the_disk_is_no_update(tmp_path: Path) -> None:
    """It was charged; training again would be a second release under one charge."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        coordinator.lose_answers = 10**6
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted()
        (folder.spool / "updates" / DIGEST).unlink()
        async with RunningAgent(folder, worker):
            await coordinator.heard("no_update")
        assert worker.trained == ["a1"]

    assert entries(play(tmp_path, scene)) == [("reserve", "a1"), ("post", "a1")]


def test_a_refused_order_is_refused_again_after_a_restart(tmp_path: Path) -> None:
    """The same reason and the same signature; nothing is reserved and no worker starts."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        refused_order = real_order(release_noise_multiplier=0.1)
        coordinator.orders = [refused_order]
        answers = []
        for _ in range(2):
            async with RunningAgent(folder, worker):
                answers.append(await coordinator.heard("order_refused"))
        assert answers[0] == answers[1]
        assert answers[0].reason == "NOISE_TOO_LOW"
        assert signed(folder, refused_order, "void", answers[0].void_signature)
        assert worker.starts == 0

    assert entries(play(tmp_path, scene)) == []


@pytest.mark.parametrize("fault", ["BLOB_MISSING", "DIGEST_MISMATCH"])
def test_a_model_that_cannot_be_had_voids_the_reservation(tmp_path: Path, fault: str) -> None:
    """The data was not opened: withdrawn with a signed void. Whoever reads it is not sent to the
    network alone: a file of the coordinator that was damaged is one fault of all its nodes."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        coordinator.refuse_download = NotFound(fault, "there is no such blob")
        async with RunningAgent(folder, worker):
            refused = await coordinator.heard("order_refused")
            assert refused.reason == "MODEL_UNAVAILABLE"
            assert f"could not be fetched: {fault}." in refused.message
            assert "the disk of the coordinator's models" in refused.message
            assert signed(folder, real_order(), "void", refused.void_signature)

    assert entries(play(tmp_path, scene)) == [("reserve", "a1"), ("void", "a1")]


@pytest.mark.parametrize(
    ("rules", "reason"),
    [({"outcome_tick_s": 7.0}, "POLICY_CHANGED"), ({"withdrawn": ["heart"]}, "DATA_SET_WITHDRAWN")],
)
def test_rules_that_change_while_the_worker_gets_ready_keep_the_data_closed(
    tmp_path: Path, rules: dict[str, Any], reason: str
) -> None:
    """The terms of the admission are asked for once more with the opening: void, not opened."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        policy = yaml.safe_load(folder.policy_yaml.read_text())
        worker.checking = lambda: write_rules(folder.root, policy | rules)
        async with RunningAgent(folder, worker):
            refused = await coordinator.heard("order_refused")
            assert refused.reason == reason
            assert signed(folder, real_order(), "void", refused.void_signature)
        assert worker.trained == []

    assert entries(play(tmp_path, scene)) == [("reserve", "a1"), ("void", "a1")]


def test_an_attempt_that_is_closed_while_its_worker_gets_ready_leaves_no_room_taken(
    tmp_path: Path,
) -> None:
    """The check has taken room for an update that nobody makes."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        taken = beside_of(folder.spool / "out/a1.safetensors")

        def close() -> None:
            taken.write_bytes(b"room")
            with closing(sqlite3.connect(folder.state_db)) as database, database:
                database.execute("UPDATE attempts SET state = 'closed', outcome = 'post'")

        worker.checking = close
        async with RunningAgent(folder, worker):
            await until(lambda: worker.stops == 1)
            await until(lambda: not taken.exists())
        assert worker.trained == []

    play(tmp_path, scene)


def test_the_next_round_has_its_worker_and_its_model_already(tmp_path: Path) -> None:
    """One start and one download serve two rounds that begin from the same model."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted(1)
            coordinator.send(work_order=real_order("a2", round=2))
            await coordinator.until_submitted(2)
            await until_closed(folder)
        assert (worker.starts, coordinator.downloads) == (1, 1)
        assert [one["op"] for one in worker.requests] == [
            "prepare",
            "check",
            "train",
            "check",
            "train",
        ]

    play(tmp_path, scene)


def test_of_a_job_two_models_stay(tmp_path: Path) -> None:
    """The spool does not grow by a model a round."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        async with RunningAgent(folder, worker):
            await coordinator.heard("hello")
            digests = []
            for number in (1, 2, 3):
                coordinator.model = MODEL_BYTES + bytes([number])
                digests.append(digest_of(coordinator.model))
                sent = {
                    "base_model_digest": digests[-1],
                    "base_model_bytes": len(coordinator.model),
                }
                coordinator.send(work_order=real_order(f"a{number}", round=number, **sent))
                await coordinator.until_submitted(number)
            await until(
                lambda: {one.name for one in (folder.spool / "models").iterdir()} == {*digests[1:]}
            )

    play(tmp_path, scene)


def test_a_worker_is_prepared_anew_where_the_data_set_is_described_otherwise(
    tmp_path: Path,
) -> None:
    """One that was prepared by the files of before would read what the steward has taken out."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted(1)
            coordinator.orders = []
            declared = yaml.safe_load((folder.root / "datasets.yaml").read_text())
            declared["data_sets"][0]["columns"] = {"sex": "number"}
            (folder.root / "datasets.yaml").write_text(yaml.safe_dump(declared))
            await coordinator.heard("hello")  # the first one
            await coordinator.heard("hello")
            coordinator.send(work_order=real_order("a2", round=2))
            await coordinator.until_submitted(2)
            assert (worker.starts, worker.stops) == (2, 1)
        prepared = [one["data_set"] for one in worker.requests if one["op"] == "prepare"]
        assert [one["columns"] for one in prepared] == [{"age": "number"}, {"sex": "number"}]

    play(tmp_path, scene)


def test_closing_an_attempt_while_it_trains_kills_its_worker(tmp_path: Path) -> None:
    """The round went on without this node: posted, and nothing is handed in. Nor did anything fail:
    a hospital that reads "out of memory" would buy some."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        worker.script = ["hang"]
        async with RunningAgent(folder, worker):
            await asyncio.wait_for(worker.training.wait(), WAIT_S)
            coordinator.send(attempt_closed=pb.AttemptClosed(attempt_id="a1", outcome="post"))
            await until_closed(folder)
            await until(lambda: worker.stops == 1)
            coordinator.send(work_order=real_order("a2", round=2))
            await coordinator.until_submitted()
        assert worker.starts == 2

    with capture_logs() as logs:
        folder = play(tmp_path, scene)
    assert kept(folder.logs) == []
    said = [line["event"] for line in logs]
    assert "work_given_up" in said
    assert "worker_failed" not in said


def test_closing_an_attempt_ends_the_call_that_hands_it_in(tmp_path: Path) -> None:
    """The round went on without this node: nobody waits for what comes of it."""

    class Slow(FakeCoordinator):
        called: asyncio.Event
        ended: asyncio.Event

        async def start(self) -> None:
            self.called, self.ended = asyncio.Event(), asyncio.Event()
            await super().start()

        async def SubmitUpdate(self, request: Any, context: Any) -> Any:  # noqa: N802
            self.called.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, Slow)
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            await asyncio.wait_for(coordinator.called.wait(), WAIT_S)
            assert not coordinator.ended.is_set()
            coordinator.send(attempt_closed=pb.AttemptClosed(attempt_id="a1", outcome="post"))
            await asyncio.wait_for(coordinator.ended.wait(), WAIT_S)

    play(tmp_path, scene, Slow)


def test_closing_an_attempt_while_its_worker_gets_ready_is_no_failure(tmp_path: Path) -> None:
    """It is ended in the middle of its start, because nobody wants its work any more."""

    class SlowStart(FakeWorker):
        async def request(self, message: dict[str, Any]) -> dict[str, Any]:
            if message["op"] == "prepare" and self.starts == 1:
                self.training.set()
                await self.stopped.wait()
                raise WorkerDied("killed", -9)
            return await super().request(message)

    async def scene(coordinator: FakeCoordinator, folder: Folder, _: FakeWorker) -> None:
        worker = SlowStart()
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            await asyncio.wait_for(worker.training.wait(), WAIT_S)
            coordinator.send(attempt_closed=pb.AttemptClosed(attempt_id="a1", outcome="post"))
            await until_closed(folder)
            coordinator.send(work_order=real_order("a2", round=2))
            await coordinator.until_submitted()

    with capture_logs() as logs:
        folder = play(tmp_path, scene)
    assert kept(folder.logs) == []
    assert "worker_failed" not in [line["event"] for line in logs]


def test_records_are_not_opened_for_an_attempt_that_was_closed_meanwhile(tmp_path: Path) -> None:
    """Its worker has just got ready: nothing of it is booked as opened, so nothing may be read."""

    class Closed(FakeWorker):
        async def request(self, message: dict[str, Any]) -> dict[str, Any]:
            if message["op"] == "check" and not self.training.is_set():
                self.training.set()
                await self.stopped.wait()  # and is faster than its end
            return await super().request(message)

    worker = Closed()

    async def scene(coordinator: FakeCoordinator, folder: Folder, _: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            await asyncio.wait_for(worker.training.wait(), WAIT_S)
            coordinator.send(attempt_closed=pb.AttemptClosed(attempt_id="a1", outcome="post"))
            await until_closed(folder)
            coordinator.send(work_order=real_order("a2", round=2))
            await coordinator.until_submitted()

    play(tmp_path, scene)
    assert worker.trained == ["a2"]


def test_an_order_that_does_not_fit_its_deadline_is_refused_before_data_is_opened(
    tmp_path: Path,
) -> None:
    """By the rehearsal alone; nothing is charged."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        worker.script = ["hang"]  # its rehearsal takes 0.75 s, so that its outcome is due after 3
        coordinator.orders = [real_order(deadline_s=1)]
        async with RunningAgent(folder, worker):
            refused = await coordinator.heard("order_refused")
        assert refused.reason in ("STEPS_TOO_MANY", "TOO_SLOW")
        assert signed(folder, real_order(deadline_s=1), "void", refused.void_signature)
        assert worker.trained == []

    folder = play(tmp_path, scene)
    assert entries(folder) == [("reserve", "a1"), ("void", "a1")]


@pytest.mark.parametrize("script", ["update", "no_update", "hang"])
def test_nothing_that_a_coordinator_tries_tells_when_training_was_over(
    tmp_path: Path, script: str
) -> None:
    """Before the moment of the outcome a second order of the round is refused, trained or not; and
    an attempt that is closed keeps its place until then, and costs its worker."""
    tick_s = 3.0

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        policy = yaml.safe_load(folder.policy_yaml.read_text())
        write_rules(folder.root, policy | {"outcome_tick_s": tick_s})
        coordinator.orders = [real_order()]
        worker.script = [script]
        async with RunningAgent(folder, worker):
            await asyncio.wait_for(worker.training.wait(), WAIT_S)
            began_s = asyncio.get_running_loop().time()
            state = {"update": "spooled", "no_update": "no_update", "hang": "opened"}[script]
            await until(lambda: status(folder.root)["attempts"] == {state: 1})
            coordinator.send(work_order=real_order("a2"))
            refused = await coordinator.heard("order_refused")
            assert (refused.attempt_id, refused.reason) == ("a2", "ROUND_NOT_ADVANCING")
            coordinator.send(attempt_closed=pb.AttemptClosed(attempt_id="a1", outcome="post"))
            coordinator.send(work_order=real_order("a3", round=2))
            await until(lambda: worker.trained == ["a1", "a3"])
            assert asyncio.get_running_loop().time() - began_s >= tick_s - 0.1
            assert (worker.starts, worker.stops) == (2, 1)

    play(tmp_path, scene)


def test_the_agent_is_heard_while_its_worker_trains(tmp_path: Path) -> None:
    """Heartbeats go on, and the same order in the meantime gets the same acceptance."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        worker.script = ["hang"]
        async with RunningAgent(folder, worker):
            first = await coordinator.heard("order_accepted")
            await asyncio.wait_for(worker.training.wait(), WAIT_S)
            await coordinator.heard("heartbeat")
            await coordinator.heard("heartbeat")
            coordinator.send(work_order=real_order())
            assert await coordinator.heard("order_accepted") == first
            assert status(folder.root)["connected"]
        assert not status(folder.root)["connected"]

    play(tmp_path, scene)


def test_an_agent_outlives_its_coordinator(tmp_path: Path) -> None:
    """It starts before the coordinator does, and comes back when the coordinator does."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        await coordinator.stop()
        async with RunningAgent(folder, worker) as agent:
            await asyncio.sleep(0.3)
            assert not agent.has_ended()
            coordinator.orders = [real_order()]
            await coordinator.start()
            await coordinator.heard("hello")
            await coordinator.stop()
            await coordinator.start()
            hello = await coordinator.heard("hello")
            assert set(hello.open_attempts) <= {"a1"}

    play(tmp_path, scene)


def test_drain_brings_the_agent_back_with_a_new_hello(tmp_path: Path) -> None:
    """The coordinator asks it to reconnect; so does a change of the policy."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        async with RunningAgent(folder, worker):
            await coordinator.heard("hello")
            await coordinator.heard("heartbeat")
            coordinator.send(drain=pb.Drain())
            await coordinator.heard("hello")
            await coordinator.heard("heartbeat")
            write_rules(folder.root, {**POLICY, "allow": []})
            hello = await coordinator.heard("hello")
            assert list(hello.data_sets[0].tasks) == []

    play(tmp_path, scene)


def test_a_lower_limit_is_announced_and_kept_for_good(tmp_path: Path) -> None:
    """Writing a higher number back raises nothing; what the coordinator holds is noted, if it is
    a limit at all, and the ledger begins no higher. The highest limit of its chain is the
    guarantee, as a ledger that was restored may not know it."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        coordinator.limits = [
            pb.AccountLimit(account="patients", epsilon_limit=8.0, epsilon_limit_highest=12.0),
            pb.AccountLimit(account="others", epsilon_limit=float("nan")),
            pb.AccountLimit(account="x" * 64, epsilon_limit=1.0),
        ]

        def write(limit: float) -> None:
            rules = yaml.safe_load(folder.policy_yaml.read_text())
            rules["accounts"][0]["epsilon_limit"] = limit
            write_rules(folder.root, rules)

        async with RunningAgent(folder, worker):
            assert (await coordinator.heard("hello")).accounts[0].epsilon_limit == 10.0
            await coordinator.until_submitted()
            coordinator.orders = []
            for limit in (6.0, 9.0):
                await coordinator.heard("heartbeat")
                write(limit)
                assert (await coordinator.heard("hello")).accounts[0].epsilon_limit == 6.0
            await coordinator.heard("heartbeat")
        state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
        assert state.ledger.accounts()[0].epsilon_limit == 6.0
        said = [
            state.coordinator_limits.of(f"{NODE}/{x}") for x in ("patients", "others", "x" * 64)
        ]
        assert said == [8.0, None, None]
        state.close()
        (account,) = status(folder.root)["accounts"]
        assert (account["epsilon_limit"], account["epsilon_guarantee"]) == (6.0, 12.0)

    play(tmp_path, scene)


def test_a_dispute_is_announced_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    """So that nobody plans a round on an account whose every order is refused."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        account = f"{NODE}/patients"
        state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
        async with RunningAgent(folder, worker):
            assert (await coordinator.heard("hello")).accounts[0].refuses == ""
            await coordinator.heard("heartbeat")
            assert state.compare([Head(account, 3, "0" * 64)], frozenset(), 1.0)
            hello = await coordinator.heard("hello")
            assert hello.accounts[0].refuses == "LEDGER_DISPUTED"
            state.settle(account)
            assert (await coordinator.heard("hello")).accounts[0].refuses == ""
        state.close()

    play(tmp_path, scene)


def test_a_disabled_node_keeps_asking(tmp_path: Path) -> None:
    """PERMISSION_DENIED does not end the agent: an operator may enable it again."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.refuse_session = NotAllowed("NODE_DISABLED", "node alpha is disabled")
        async with RunningAgent(folder, worker) as agent:
            await asyncio.sleep(0.5)
            assert not agent.has_ended()
        assert coordinator.sessions == 0

    play(tmp_path, scene)


def test_status_says_why_the_coordinator_refuses_this_node(tmp_path: Path) -> None:
    """In its words, with exit code 1, until it gives a session again."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.refuse_session = NotAllowed("NODE_QUARANTINED", "node alpha is quarantined")
        async with RunningAgent(folder, worker):
            await until(lambda: status(folder.root)["refused"] is not None)
        found = status(folder.root)
        assert found["refused"]["reason"] == "NODE_QUARANTINED"
        assert not found["in_order"]
        ran = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)])
        assert ran.exit_code == 1
        assert "NODE_QUARANTINED: node alpha is quarantined" in ran.stdout
        coordinator.refuse_session = None
        async with RunningAgent(folder, worker):
            await until(lambda: status(folder.root)["refused"] is None)
        assert status(folder.root)["in_order"]

    play(tmp_path, scene)


def test_a_real_worker_process_trains_and_ends_with_its_job(tmp_path: Path) -> None:
    """The null task in a process of its own: no data, no charge, an update all the same."""
    config = {"parameters": 8}
    model = initial_model("null", config, 0)

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.model = model
        asked = real_order(
            **NO_DATA
            | {
                "task_hash": installed()["null"].content_hash,
                "task_config_json": json.dumps(config),
                "base_model_digest": digest_of(model),
                "base_model_bytes": len(model),
            }
        )
        coordinator.orders = [asked]
        async with RunningAgent(folder, LocalWorker):
            await coordinator.until_submitted()
            await until_closed(folder)
        update = coordinator.submitted[0].data  # small: it comes with its submission
        assert len(update) == len(model)
        account = status(folder.root)["accounts"][0]
        assert (account["epsilon_spent"], account["guarantee"]) == (0.0, True)

    assert entries(play(tmp_path, scene)) == [("reserve", "a1"), ("post", "a1")]


@pytest.mark.parametrize(
    ("tick_s", "rehearsal_s", "due_s"),
    [(0.5, 0.0, 0.5), (0.5, 0.124, 0.5), (0.5, 0.126, 1.0), (0.5, 10.0, 40.0), (0.0, 10.0, 0.0)],
)
def test_the_outcomes_moment_follows_from_public_facts_alone(
    tick_s: float, rehearsal_s: float, due_s: float
) -> None:
    """Four rehearsals, in whole ticks; where no data is read there is nothing to hide."""
    assert outcome_after_s(tick_s, rehearsal_s) == due_s
