"""An agent at work whose coordinator comes back from a backup: the agent's whole session over real
gRPC, its worker trains nothing, and the coordinator's ledger is a real one."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from typer.testing import CliRunner

from coordinator.keyring import ledger_key
from coordinator.rpc import witness as witness_rpc
from coordinator.store import booking, checkpoints, epochs, ledger, people
from coordinator.store.database import Database
from feddp.cli.app import app
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.policy.orders import Order
from node_agent.status import status
from privacy.ledger import sign
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import witness_pb2_grpc
from tests.node_agent.agent_federation import (
    WAIT_S,
    FakeCoordinator,
    FakeWorker,
    RunningAgent,
    real_order,
)
from tests.node_agent.samples import NODE
from tests.node_agent.session.test_session_driver import entries, play, until

ACCOUNT = f"{NODE}/patients"


class Caller:
    """Who calls, as the gate would say."""

    node = NODE


class Restorable(FakeCoordinator):
    """Speaks as a test tells it to, and serves a real ledger."""

    def add_services(self, server: grpc.aio.Server) -> None:
        super().add_services(server)
        if not hasattr(self, "database"):
            self.open(Path(self.folder))
        service = witness_rpc.WitnessService(self.database, self.key)
        witness_pb2_grpc.add_WitnessServicer_to_server(service, server)

    folder = ""

    def open(self, folder: Path) -> None:
        """A ledger of one node, which the agent's folder must know."""
        self.database = Database(f"sqlite:///{folder / 'coordinator.db'}")
        self.database.migrate()
        self.key = ledger_key(folder)
        invitation = {"spiffe_id": "s", "now_s": 0.0, "expires_at_s": 1.0}
        self.database.write_now(lambda c: people.invite(c, NODE, "hpc", "s", **invitation))
        self.database.write_now(
            lambda c: ledger.open_account(c, ACCOUNT, NODE, "gdp", 0, 10.0, 1.0e-5)
        )

    def knows(self, folder: Folder) -> None:
        """The node's ledger key, of its enrolment."""
        public_key = load_identity(folder.identity).ledger_public_key
        self.database.write_now(
            lambda c: (
                c.exec_driver_sql("UPDATE nodes SET ledger_public_key = ?", (public_key,)) and None
            )
        )

    def restore(self, now_s: float) -> None:
        """Declare that what is here now is a backup."""
        self.database.write_now(
            lambda c: epochs.raise_epoch(c, self.key, now_s=now_s, backup_made_at_s=now_s - 50)
        )
        self.epochs = self.database.read_now(epochs.all_of)

    def chain(self) -> list[tuple[str, str]]:
        """Kind and attempt of each entry."""
        found = self.database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
        return [(one.statement.kind, one.statement.attempt_id) for one in found]


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Restorable]:
    """A coordinator with its folder."""
    monkeypatch.setattr(witness_rpc, "caller", Caller)
    (tmp_path / "coordinator").mkdir()
    return type("Placed", (Restorable,), {"folder": str(tmp_path / "coordinator")})


async def looked(folder: Folder) -> None:
    """The agent knows whose ledger it follows."""

    def known() -> bool:
        import sqlite3

        with contextlib.closing(sqlite3.connect(folder.state_db)) as opened:
            query = "SELECT 1 FROM meta WHERE key = 'coordinator_ledger_key'"
            return opened.execute(query).fetchone() is not None

    await until(known)


def test_an_order_of_before_is_posted_once_and_nobody_trains_it_again(
    tmp_path: Path, kind: type[Restorable]
) -> None:
    """The backup knows nothing of the attempt that trains: its worker is stopped, its post is
    handed in, and the next round of another job is worked at as ever."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, Restorable)
        coordinator.knows(folder)
        coordinator.orders = [real_order()]
        worker.script = ["hang"]
        async with RunningAgent(folder, worker):
            await asyncio.wait_for(worker.training.wait(), WAIT_S)
            await looked(folder)
            coordinator.restore(1000.0)
            coordinator.cut()
            # Sent again at the next session, as by a job that the backup holds as running.
            refused = await coordinator.heard("no_update")
            assert refused.attempt_id == "a1"
            await until(lambda: coordinator.database.read_now(epochs.unreconciled) == frozenset())
            assert coordinator.chain() == [("reserve", "a1"), ("post", "a1")]
            await until(lambda: status(folder.root)["coordinator_restored"]["to_hand_in"] == [])
            await until(lambda: worker.stops == 1)
            coordinator.orders = []
            hello = await coordinator.heard("hello")
            while hello.accounts[0].refuses:
                hello = await coordinator.heard("hello")
            assert hello.epoch_seen.number == 2
            other = real_order("a2", job_id="job-2")
            coordinator.send(work_order=other)
            await coordinator.until_submitted()
            assert [one.attempt_id for one in coordinator.submitted] == ["a2"]
        assert entries(folder)[:2] == [("reserve", "a1"), ("post", "a1")]
        found = status(folder.root)
        assert found["coordinator_restored"]["epoch"] == 2
        assert found["ledger"]["disputes"] == []
        ran = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)])
        assert "from a backup of" in ran.stdout
        assert "has handed in what it released since" in ran.stdout

    play(tmp_path, scene, kind)


def test_an_update_that_waits_for_its_tick_is_over_at_once(
    tmp_path: Path, kind: type[Restorable]
) -> None:
    """Nobody waits for it: it is posted, as it was, and its bytes stay in the hospital."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, Restorable)
        coordinator.knows(folder)
        policy = yaml.safe_load(folder.policy_yaml.read_text())
        folder.policy_yaml.write_text(yaml.safe_dump({**policy, "outcome_tick_s": 600.0}))
        coordinator.orders = [real_order(deadline_s=3600)]
        async with RunningAgent(folder, worker):
            await until(lambda: status(folder.root)["attempts"] == {"spooled": 1})
            await looked(folder)
            coordinator.orders = []
            coordinator.restore(1000.0)
            coordinator.cut()
            await until(lambda: status(folder.root)["attempts"] == {"closed": 1})
            await until(lambda: list((folder.spool / "updates").iterdir()) == [])
            await until(lambda: coordinator.chain() == [("reserve", "a1"), ("post", "a1")])
        assert coordinator.submitted == []

    play(tmp_path, scene, kind)


def test_what_was_reserved_and_never_came_is_void_and_refused_if_it_comes_after_all(
    tmp_path: Path, kind: type[Restorable]
) -> None:
    """The void is signed, so that its order must not be worked at any more."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, Restorable)
        coordinator.knows(folder)
        lost = real_order("lost", job_id="job-lost")
        statement = Order.from_wire(lost).statement(NODE, "reserve")
        coordinator.database.write_now(lambda c: booking.book(c, statement))
        coordinator.restore(1000.0)
        async with RunningAgent(folder, worker):
            await until(lambda: coordinator.database.read_now(epochs.unreconciled) == frozenset())
            assert coordinator.chain() == [("reserve", "lost"), ("void", "lost")]
            await until(lambda: status(folder.root)["coordinator_restored"]["to_hand_in"] == [])
            coordinator.send(work_order=lost)
            refused = await coordinator.heard("order_refused")
            assert refused.reason == "LEDGER_RECONCILING"
            void = statement.resolved("void")
            key = load_identity(folder.identity).ledger_key
            assert refused.void_signature == sign(key, void)
        assert worker.starts == 0

    play(tmp_path, scene, kind)


def test_an_older_copy_gets_no_session(tmp_path: Path, kind: type[Restorable]) -> None:
    """It is told why, and so is the hospital; its orders are not even judged."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, Restorable)
        coordinator.knows(folder)
        coordinator.restore(1000.0)
        async with RunningAgent(folder, worker):
            await until(lambda: status(folder.root)["coordinator_restored"] is not None)
            await until(lambda: status(folder.root)["coordinator_restored"]["to_hand_in"] == [])
        coordinator.epochs = []
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            await until(lambda: status(folder.root)["refused"] is not None)
        found = status(folder.root)
        assert found["refused"]["reason"] == "COORDINATOR_EPOCH_OLD"
        assert not found["connected"]
        assert entries(folder) == []
        assert worker.starts == 0
        ran = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)])
        assert ran.exit_code == 1
        assert "by this node" in ran.stdout
        assert "an older copy of it runs" in ran.stdout
        coordinator.epochs = coordinator.database.read_now(epochs.all_of)
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted()
        assert status(folder.root)["refused"] is None

    play(tmp_path, scene, kind)


def test_no_order_is_taken_before_everything_is_handed_in(
    tmp_path: Path, kind: type[Restorable]
) -> None:
    """The restored coordinator's order comes with its Welcome; it is refused, and nothing read."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, Restorable)
        coordinator.knows(folder)
        coordinator.orders = [real_order()]
        statement = Order.from_wire(real_order()).statement(NODE, "reserve")
        for one in (statement, statement.resolved("post")):
            coordinator.database.write_now(lambda c, one=one: booking.book(c, one))
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted()
            await looked(folder)
        coordinator.restore(1000.0)
        coordinator.orders = [real_order("early", job_id="job-2")]
        async with RunningAgent(folder, worker):
            refused = await coordinator.heard("order_refused")
            # An order that comes again after its refusal is one of an attempt that is closed.
            assert refused.attempt_id == "early"
            assert refused.reason in ("LEDGER_RECONCILING", "ATTEMPT_CLOSED")
            assert refused.void_signature
            await until(lambda: coordinator.database.read_now(epochs.unreconciled) == frozenset())
        assert coordinator.chain() == [("reserve", "a1"), ("post", "a1")]

    play(tmp_path, scene, kind)


def test_an_agent_that_has_met_its_coordinator_since_it_runs_takes_no_early_order_either(
    tmp_path: Path, kind: type[Restorable]
) -> None:
    """At its start it knew of none: its first look has told it whose ledger it follows, so that the
    next Welcome is held against that, and not the next look."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, Restorable)
        coordinator.knows(folder)
        statement = Order.from_wire(real_order()).statement(NODE, "reserve")
        for one in (statement, statement.resolved("post")):
            coordinator.database.write_now(lambda c, one=one: booking.book(c, one))
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted()
            await until(lambda: coordinator.database.read_now(checkpoints.countersigned) != [])
            coordinator.restore(1000.0)
            coordinator.orders = [real_order("early", job_id="job-2")]
            coordinator.cut()
            refused = await coordinator.heard("order_refused")
            assert refused.attempt_id == "early"
            await until(lambda: coordinator.database.read_now(epochs.unreconciled) == frozenset())
        assert worker.trained == ["a1"]

    play(tmp_path, scene, kind)


def test_a_hello_tells_an_older_copy_that_it_is_one(tmp_path: Path) -> None:
    """So that its operator sees it, too: see `coordinator.rpc.greeting`."""
    from privacy.epochs import sign_epoch
    from privacy.wire import epoch_to_wire

    folder = tmp_path / "c"
    folder.mkdir()
    coordinator = Restorable.__new__(Restorable)
    coordinator.open(folder)
    from structlog.testing import capture_logs

    from coordinator.rpc.greeting import greet

    later = sign_epoch(coordinator.key, None, None, (), restored_at_s=5, backup_made_at_s=1)
    hello = pb.Hello(epoch_seen=epoch_to_wire(later))

    def said() -> list[Any]:
        with capture_logs() as logs:
            coordinator.database.write_now(lambda c: greet(c, NODE, hello, 1.0))
        return [one["epoch_seen"] for one in logs if one["event"] == "older_copy_runs"]

    assert said() == [2]
    coordinator.restore(5.0)
    assert said() == []
    coordinator.database.close()
