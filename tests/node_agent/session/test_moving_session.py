"""A renewed certificate takes the session over to a second connection, and nothing is lost or done
twice on the way: real gRPC and mTLS, a worker that trains nothing."""

import asyncio
import stat
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from typer.testing import CliRunner

from certs.authority import NODE_LIFETIME, Authority
from certs.enrolment import key_digest, new_key, public_key_of_csr
from certs.registry import superseded
from certs.spiffe import SpiffeId
from feddp.cli.app import app
from node_agent.connection.backoff import SLOW_S
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.session import link
from node_agent.status import status
from protos.errors import FeddpError, NotAllowed, Unavailable
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import renewal_pb2, renewal_pb2_grpc, witness_pb2, witness_pb2_grpc
from tests.node_agent.agent_federation import (
    TRUST_DOMAIN,
    WAIT_S,
    FakeCoordinator,
    FakeWorker,
    RunningAgent,
    _abort,
    make_agent,
    real_order,
)
from tests.node_agent.samples import NODE

DUE = timedelta(hours=160)


class RenewingCoordinator(FakeCoordinator, renewal_pb2_grpc.RenewalServicer):
    """Renews, and ends a node's older stream when a newer one says Hello, as the real one does.

    Attributes:
        may_renew: answers to Renew wait for it.
        may_welcome: so does the second session's Welcome, with the older stream ended before.
        may_upload: so do uploads.
        refusals: what Renew is refused with, one a call.
        refuse_second: so many sessions after the first are refused.
        refuse_submission: what the next call of SubmitUpdate is refused with.
        signs: the authority that certifies.
        behind: how far its clock is.
        peers: certificate behind each session and submission.
    """

    def __init__(self, authority: Authority) -> None:
        super().__init__(authority)
        self.may_renew, self.may_welcome, self.may_upload = (asyncio.Event() for _ in range(3))
        for one in (self.may_renew, self.may_welcome, self.may_upload):
            one.set()
        self.uploading = asyncio.Event()
        self.refusals: list[FeddpError] = []
        self.refuse_second = 0
        self.refuse_submission: FeddpError | None = None
        self.signs = authority
        self.name = SpiffeId(TRUST_DOMAIN, "node", NODE)
        self.lifetime, self.behind = NODE_LIFETIME, timedelta(0)
        self.swap_key = False
        self.csrs: list[bytes] = []
        self.peers: list[bytes] = []

    def add_services(self, server: grpc.aio.Server) -> None:
        super().add_services(server)
        renewal_pb2_grpc.add_RenewalServicer_to_server(self, server)

    async def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.csrs.append(request.csr)
        await self.may_renew.wait()
        if self.refusals:
            await _abort(context, self.refusals.pop(0))
        key = new_key().public_key() if self.swap_key else public_key_of_csr(request.csr)
        now = datetime.now(UTC) - self.behind
        issued = self.signs.issue(key, self.name, now=now, lifetime=self.lifetime)
        return renewal_pb2.RenewResponse(certificate_chain=issued.chain_pem, generation=2)

    async def greeted(self, number: int) -> None:
        if number > 1:
            for older in self.streams[: number - 1]:
                older.put_nowait(None)
            await self.may_welcome.wait()

    async def Session(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        if self.sessions and self.refuse_second:
            self.refuse_second -= 1
            await _abort(context, Unavailable("BUSY", "not now"))
        self.peers.append(_certificate(context))
        number = self.sessions + 1
        async for message in super().Session(request_iterator, context):
            yield message
        if number < self.sessions:
            await _abort(context, superseded(self.name))

    async def SubmitUpdate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.peers.append(_certificate(context))
        if self.refuse_submission is not None:
            refusal, self.refuse_submission = self.refuse_submission, None
            await _abort(context, refusal)
        return await super().SubmitUpdate(request, context)

    async def Upload(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        self.uploading.set()
        await self.may_upload.wait()
        return await super().Upload(request_iterator, context)


def _certificate(context: Any) -> bytes:
    (pem,) = context.auth_context()["x509_pem_cert"]
    return bytes(pem)


Scene = Callable[[RenewingCoordinator, Folder, FakeWorker], Coroutine[Any, Any, None]]


def play(
    tmp_path: Path, scene: Scene, kind: type[RenewingCoordinator] = RenewingCoordinator
) -> Folder:
    """Run a scene in which the agent's certificate is due when it starts; gives its folder."""

    async def run() -> Folder:
        authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
        coordinator = kind(authority)
        await coordinator.start()
        folder = make_agent(tmp_path / "agent", authority, coordinator.port, DUE)
        try:
            await scene(coordinator, folder, FakeWorker())
        finally:
            await coordinator.stop()
        return folder

    return asyncio.run(run())


async def until(claim: Callable[[], bool]) -> None:
    """Wait for a claim about another task to come true."""
    async with asyncio.timeout(WAIT_S):
        while not claim():  # noqa: ASYNC110 - the claims are of files and counters
            await asyncio.sleep(0.01)


async def until_closed(folder: Folder, attempts: int) -> None:
    await until(lambda: status(folder.root)["attempts"] == {"closed": attempts})


def test_a_due_certificate_is_renewed_at_the_start_and_used_at_once(tmp_path: Path) -> None:
    """A new key of mode 0600, a second connection with its certificate, one file of each kind."""

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        before = load_identity(folder.identity)
        said = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)]).stdout
        assert "renews itself" in said
        assert "due since" in said
        async with RunningAgent(folder, worker):
            await until(lambda: coordinator.sessions == 2)
            await until(lambda: status(folder.root)["connected"])
            after = load_identity(folder.identity)
        assert after.key != before.key
        assert after.expires_at > before.expires_at
        assert before.chain.startswith(coordinator.peers[0])
        assert after.chain.startswith(coordinator.peers[1])
        names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.identity.iterdir()}
        assert names.keys() == {"node.key", "node.crt", "bundle.pem", "ledger.key"}
        assert names["node.key"] == 0o600
        assert status(folder.root)["certificate_renews_at"] == after.renews_at.timestamp()
        said = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)]).stdout
        assert "while the agent runs" in said

    play(tmp_path, scene)


def test_the_coordinators_ledger_is_read_over_the_second_connection(tmp_path: Path) -> None:
    """The first one is shut: what is read there would be refused, for ever."""

    class Witnessed(RenewingCoordinator, witness_pb2_grpc.WitnessServicer):
        readers: list[bytes]

        def add_services(self, server: grpc.aio.Server) -> None:
            super().add_services(server)
            self.readers = []
            witness_pb2_grpc.add_WitnessServicer_to_server(self, server)

        async def ReadHeads(self, request: Any, context: Any) -> Any:  # noqa: N802
            self.readers.append(_certificate(context))
            return witness_pb2.ReadHeadsResponse()

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, Witnessed)
        async with RunningAgent(folder, worker):
            await until(lambda: coordinator.sessions == 2)
            await until(lambda: status(folder.root)["connected"])
            newer = load_identity(folder.identity).chain
            coordinator.readers.clear()
            coordinator.send(job_ended=pb.JobEnded(job_id="job-1"))
            await until(lambda: bool(coordinator.readers))
            assert newer.startswith(coordinator.readers[-1])

    play(tmp_path, scene, Witnessed)


def test_an_upload_under_way_ends_where_it_began_and_is_not_repeated(tmp_path: Path) -> None:
    """Its bytes go once, over the old connection; it is submitted over the new one."""

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.may_renew.clear()
        coordinator.may_upload.clear()
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            await asyncio.wait_for(coordinator.uploading.wait(), WAIT_S)
            coordinator.may_renew.set()
            await until(lambda: coordinator.sessions == 2)
            coordinator.may_upload.set()
            await coordinator.until_submitted()
            await until_closed(folder, 1)
            newer = load_identity(folder.identity).chain
        assert len(coordinator.submitted) == 1
        assert worker.trained == ["a1"]
        assert newer.startswith(coordinator.peers[-1])

    play(tmp_path, scene)


def test_a_call_that_the_renewal_overtook_is_made_again_at_once(tmp_path: Path) -> None:
    """It came over the old connection just after the new certificate was seen in use; a node that
    is shut out for good waits 30 s."""

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        coordinator.refuse_submission = superseded(coordinator.name)
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted()
            await until_closed(folder, 1)
        assert worker.trained == ["a1"]

    assert WAIT_S < SLOW_S
    play(tmp_path, scene)


def test_a_training_goes_on_while_the_session_moves(tmp_path: Path) -> None:
    """The worker is neither stopped nor started again, and its outcome goes over the new stream."""

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.may_renew.clear()
        coordinator.orders = [real_order()]
        worker.script = ["hang"]
        async with RunningAgent(folder, worker):
            await asyncio.wait_for(worker.training.wait(), WAIT_S)
            coordinator.may_renew.set()
            await until(lambda: coordinator.sessions == 2)
            assert worker.stops == 0
            empty = await coordinator.heard("no_update")
            coordinator.send(attempt_closed=pb.AttemptClosed(attempt_id="a1", outcome="post"))
            await until_closed(folder, 1)
        assert empty.attempt_id == "a1"
        assert worker.trained == ["a1"]
        assert worker.starts == 1

    play(tmp_path, scene)


def test_an_order_that_came_before_the_old_stream_ended_is_carried_out_once(
    tmp_path: Path,
) -> None:
    """It arrives on the old stream while the new one waits for its Welcome, and again on the new
    one."""

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.may_renew.clear()
        coordinator.may_welcome.clear()
        async with RunningAgent(folder, worker):
            await until(lambda: status(folder.root)["connected"])
            order = pb.CoordinatorMessage(work_order=real_order())
            coordinator.streams[0].put_nowait(order)
            coordinator.orders = [real_order()]
            coordinator.may_renew.set()
            await coordinator.until_submitted()
            coordinator.may_welcome.set()
            await until_closed(folder, 1)
            await coordinator.heard("heartbeat")
        assert worker.trained == ["a1"]
        assert len(coordinator.submitted) == 1
        assert coordinator.sessions == 2

    play(tmp_path, scene)


def test_a_second_stream_that_is_refused_leaves_the_first_as_it_is(tmp_path: Path) -> None:
    """Make before break: the first goes on until a later try is welcomed."""

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.refuse_second = 3
        with structlog.testing.capture_logs() as said:
            async with RunningAgent(folder, worker):
                await until(lambda: coordinator.refuse_second == 0)
                await coordinator.heard("heartbeat")
                await until(lambda: coordinator.sessions == 2)
                await until(lambda: "session_moved" in [one["event"] for one in said])
        events = [one["event"] for one in said]
        assert events.count("session_not_moved") == 3
        assert "session_ended" not in events
        assert events.count("connected") == 2

    play(tmp_path, scene)


def test_a_second_stream_that_is_never_welcomed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator had ended the first one already: the agent connects anew."""
    monkeypatch.setattr(link, "WELCOME_WAIT_S", 0.3)

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.may_welcome.clear()
        async with RunningAgent(folder, worker):
            await until(lambda: coordinator.sessions >= 3)
            coordinator.may_welcome.set()
            await until(lambda: status(folder.root)["connected"])

    play(tmp_path, scene)


def test_a_renewal_that_fails_says_what_to_do_and_keeps_its_key(tmp_path: Path) -> None:
    """An outage, then a refusal: each is said in its own words; the next try asks with the same
    key."""

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.refusals = [
            Unavailable("DRAINING", "stopping"),
            NotAllowed("NODE_DISABLED", "disabled"),
        ]
        with structlog.testing.capture_logs() as said:
            async with RunningAgent(folder, worker):
                await until(lambda: coordinator.sessions == 2)
        failed = [one for one in said if one["event"] == "certificate_renewal_failed"]
        assert [(one["reason"], one["log_level"]) for one in failed] == [
            ("DRAINING", "warning"),
            ("NODE_DISABLED", "error"),
        ]
        assert "check that the coordinator runs" in failed[0]["do"]
        assert "operator" in failed[1]["do"]
        assert sum(one["event"] == "certificate_renewed" for one in said) == 1
        assert len({key_digest(public_key_of_csr(one)) for one in coordinator.csrs}) == 1

    play(tmp_path, scene)


@pytest.mark.parametrize("fault", ["root", "key", "kind", "name", "ended"])
def test_an_answer_that_does_not_hold_changes_nothing(tmp_path: Path, fault: str) -> None:
    """Another root, key, kind or name, or ended already: the certificate in use stays."""

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        match fault:
            case "root":
                coordinator.signs = Authority.create(tmp_path / "other", TRUST_DOMAIN)
            case "key":
                coordinator.swap_key = True
            case "kind":
                coordinator.name = SpiffeId(TRUST_DOMAIN, "user", NODE)
            case "name":
                coordinator.name = SpiffeId(TRUST_DOMAIN, "node", "beta")
            case "ended":
                coordinator.behind = timedelta(days=8)
        before = (folder.identity / "node.crt").read_bytes()
        with structlog.testing.capture_logs() as said:
            async with RunningAgent(folder, worker):
                await until(lambda: len(coordinator.csrs) >= 2)
                await coordinator.heard("heartbeat")
        reasons = {one["reason"] for one in said if one["event"] == "certificate_renewal_failed"}
        assert reasons == {"RENEWAL_ANSWER_INVALID"}
        do = {one["do"] for one in said if one["event"] == "certificate_renewal_failed"}
        assert all(("chrony" in one) == (fault == "ended") for one in do)
        assert (folder.identity / "node.crt").read_bytes() == before
        assert coordinator.sessions == 1

    play(tmp_path, scene)


def test_clocks_that_differ_by_days_do_not_make_the_agent_ask_again_and_again(
    tmp_path: Path,
) -> None:
    """The new certificate looks due at once; the next renewal comes some hours later all the
    same."""

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.behind = timedelta(days=6)
        async with RunningAgent(folder, worker):
            await until(lambda: coordinator.sessions == 2)
            for _ in range(3):
                await coordinator.heard("heartbeat")
        identity = load_identity(folder.identity)
        assert identity.renews_at < datetime.now(UTC) < identity.expires_at
        assert len(coordinator.csrs) == 1

    play(tmp_path, scene)


def test_a_shorter_life_is_taken_as_the_coordinator_gives_it(tmp_path: Path) -> None:
    """Its operator has configured one, and the new certificate may end before the old one."""

    async def scene(coordinator: RenewingCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.lifetime = timedelta(hours=1)
        before = load_identity(folder.identity)
        async with RunningAgent(folder, worker):
            await until(lambda: coordinator.sessions == 2)
        assert load_identity(folder.identity).expires_at < before.expires_at

    play(tmp_path, scene)


def test_an_older_coordinator_cannot_renew_and_the_agent_says_so(tmp_path: Path) -> None:
    """It has no such rpc; the session goes on until the certificate ends."""

    async def run() -> list[Any]:
        authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
        coordinator = FakeCoordinator(authority)
        await coordinator.start()
        folder = make_agent(tmp_path / "agent", authority, coordinator.port, DUE)
        failed = "certificate_renewal_failed"
        try:
            with structlog.testing.capture_logs() as said:
                async with RunningAgent(folder, FakeWorker()):
                    await until(lambda: failed in [one["event"] for one in said])
                    await coordinator.heard("heartbeat")
        finally:
            await coordinator.stop()
        return [one["do"] for one in said if one["event"] == failed]

    assert "older version" in asyncio.run(run())[0]
