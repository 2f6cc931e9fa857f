"""A coordinator and a worker for tests of the agent: real gRPC and real mTLS, made-up answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import yaml

from certs.authority import NODE_LIFETIME, Authority
from certs.credentials import server_credentials
from certs.enrolment import load_ledger_key, new_key, new_ledger_key, private_pem, save_private_key
from certs.spiffe import SpiffeId
from node_agent.agent import serve
from node_agent.folder.config import Folder, load_config
from node_agent.folder.installation import locked
from node_agent.joining.identity import load_identity
from node_agent.launchers.base import Limits, WorkerDied
from node_agent.launchers.local import LocalWorker
from node_agent.state.state import State
from node_agent.tasks.registry import installed
from privacy.epochs import Epoch
from privacy.wire import epoch_to_wire
from protos.content import digest_of
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import federation_pb2_grpc, transfer_pb2, transfer_pb2_grpc
from protos.status import DETAILS_KEY, details
from tests.node_agent.samples import NODE, POLICY, TASK, work_order, write_rules

TRUST_DOMAIN = "hospitals.example"
WAIT_S = 20.0
MODEL_BYTES = b"model of the round" * 1000
UPDATE_BYTES = b"noised delta" * 200_000
"""More than two messages."""


def machine_certificate(authority: Authority) -> tuple[bytes, bytes]:
    """Chain and key, PEM, of a coordinator on this machine."""
    key = new_key()
    issued = authority.issue(
        key.public_key(),
        SpiffeId(authority.trust_domain, "coordinator"),
        now=datetime.now(UTC),
        lifetime=NODE_LIFETIME,
        ip_addresses=["127.0.0.1"],
    )
    return issued.chain_pem, private_pem(key)


def make_agent(
    path: Path, authority: Authority, port: int, age: timedelta = timedelta(0)
) -> Folder:
    """The folder of an agent that joined so long ago, its policy allowing the real tabular task."""
    folder = Folder(path)
    folder.identity.mkdir(parents=True)
    key = new_key()
    issued = authority.issue(
        key.public_key(),
        SpiffeId(authority.trust_domain, "node", NODE),
        now=datetime.now(UTC) - age,
        lifetime=NODE_LIFETIME,
    )
    save_private_key(folder.identity / "node.key", key)
    save_private_key(folder.identity / "ledger.key", new_ledger_key())
    (folder.identity / "node.crt").write_bytes(issued.chain_pem)
    (folder.identity / "bundle.pem").write_bytes(authority.trust_bundle)
    config = {
        "coordinator": f"127.0.0.1:{port}",
        "trust_domain": authority.trust_domain,
        "node": NODE,
        "node_class": "edge",
    }
    folder.agent_yaml.write_text(yaml.safe_dump(config))
    tasks = [f"{info.name}@{info.content_hash}" for info in installed().values()]
    allow = [{"data_set": "heart", "tasks": tasks}]
    write_rules(path, {**POLICY, "allow": allow, "outcome_tick_s": 0.05})
    State(folder.state_db, NODE, load_ledger_key(folder.identity / "ledger.key")).close()
    return folder


def real_order(attempt_id: str = "a1", **changes: Any) -> pb.WorkOrder:
    """An order for the installed tabular task on the coordinator's model."""
    fields = {
        "task_hash": installed()[TASK].content_hash,
        "base_model_digest": digest_of(MODEL_BYTES),
        "base_model_bytes": len(MODEL_BYTES),
    }
    return work_order(attempt_id, **{**fields, **changes})


@dataclass
class FakeWorker:
    """Trains nothing. `script` says, per training, what happens: update, no_update, lie, die, hang
    (as the rehearsal foretold) or overrun (longer than the rehearsal took)."""

    script: list[str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    starts: int = 0
    stops: int = 0
    training: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    checking: Callable[[], None] = lambda: None

    async def start(self, job_id: str, log_path: Path, limits: Limits = Limits()) -> "FakeWorker":  # noqa: B008
        """A launcher."""
        self.starts += 1
        self.stopped = asyncio.Event()
        return self

    async def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """One request."""
        self.requests.append(message)
        if message["op"] == "prepare":
            return {"op": "prepared"}
        if message["op"] == "check":
            self.checking()
            hangs = self.script[:1] == ["hang"]
            return {"op": "checked", "rehearsal_s": 0.75 if hangs else 0.0}
        self.training.set()
        match self.script.pop(0) if self.script else "update":
            case "update":
                _write(message["out"], UPDATE_BYTES)
                digest, size = digest_of(UPDATE_BYTES), len(UPDATE_BYTES)
                return {
                    "op": "trained",
                    "attempt_id": message["attempt_id"],
                    "digest": digest,
                    "bytes": size,
                }
            case "no_update":
                return {"op": "no_update", "attempt_id": message["attempt_id"], "detail": "-"}
            case "lie":
                _write(message["out"], b"other")
                return {"op": "trained", "digest": digest_of(UPDATE_BYTES), "bytes": 1}
            case "hang" | "overrun":
                await self.stopped.wait()
        raise WorkerDied("killed", -9)

    async def stop(self) -> None:
        """Kill it."""
        self.stops += 1
        self.stopped.set()

    @property
    def trained(self) -> list[str]:
        """Attempts that were trained, in order."""
        return [one["attempt_id"] for one in self.requests if one["op"] == "train"]


class FakeCoordinator(federation_pb2_grpc.FederationServicer, transfer_pb2_grpc.TransferServicer):
    """Says what a test tells it to; keeps what the agent says.

    Attributes:
        model: what Download gives.
        orders: sent after each Welcome.
        closed: what the next Welcomes say is closed.
        limits: what they say the accounts are held to.
        epochs: when they say that it was restored.
        lose_answers: so many answers to SubmitUpdate get lost after they took effect.
        cut_uploads: so many uploads break after their first message.
        heartbeat_s: what the agent is asked for.
    """

    heartbeat_s = 1

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.model = MODEL_BYTES
        self.orders: list[pb.WorkOrder] = []
        self.closed: list[pb.AttemptClosed] = []
        self.limits: list[pb.AccountLimit] = []
        self.epochs: list[Epoch] = []
        self.refuse_session: FeddpError | None = None
        self.refuse_download: FeddpError | None = None
        self.lose_answers = 0
        self.cut_uploads = 0
        self.submitted: list[pb.SubmitUpdateRequest] = []
        self.uploads: dict[str, bytearray] = {}
        self.downloads = 0
        self.sessions = 0
        self.port = 0
        self._said: asyncio.Queue[pb.AgentMessage] = asyncio.Queue()
        self._to_agent: asyncio.Queue[pb.CoordinatorMessage | None] = asyncio.Queue()
        self.streams: list[asyncio.Queue[pb.CoordinatorMessage | None]] = []
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen on a free port, or on the one that it had before."""
        chain, key = machine_certificate(self.authority)
        self._server = grpc.aio.server()
        self.add_services(self._server)
        credentials = server_credentials(chain, key, self.authority.trust_bundle)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    def add_services(self, server: grpc.aio.Server) -> None:
        """What it serves."""
        federation_pb2_grpc.add_FederationServicer_to_server(self, server)
        transfer_pb2_grpc.add_TransferServicer_to_server(self, server)

    async def greeted(self, number: int) -> None:
        """The `number`-th session has said Hello; its Welcome follows."""

    async def stop(self) -> None:
        """Drop every connection."""
        if self._server is not None:
            await self._server.stop(None)

    def send(self, **message: Any) -> None:
        """Say something on the open stream."""
        self._to_agent.put_nowait(pb.CoordinatorMessage(**message))

    def cut(self) -> None:
        """End the open stream."""
        self._to_agent.put_nowait(None)

    async def heard(self, kind: str) -> Any:
        """The next message of a kind; others, before it, are dropped."""
        async with asyncio.timeout(WAIT_S):
            while True:
                message = await self._said.get()
                if message.WhichOneof("message") == kind:
                    return getattr(message, kind)

    async def until_submitted(self, count: int = 1) -> None:
        """Wait for so many calls of SubmitUpdate."""
        async with asyncio.timeout(WAIT_S):
            while len(self.submitted) < count:
                self._changed.clear()
                await self._changed.wait()

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        if self.refuse_session is not None:
            await _abort(context, self.refuse_session)
        self.sessions += 1
        number = self.sessions
        queue: asyncio.Queue[pb.CoordinatorMessage | None] = asyncio.Queue()
        self._to_agent = queue
        self.streams.append(queue)

        async def read() -> None:
            async for message in request_iterator:
                self._said.put_nowait(message)
                if message.WhichOneof("message") == "hello":
                    await self.greeted(number)
                    welcome = pb.Welcome(
                        heartbeat_interval_s=self.heartbeat_s,
                        closed=self.closed,
                        limits=self.limits,
                        epochs=map(epoch_to_wire, self.epochs),
                    )
                    queue.put_nowait(pb.CoordinatorMessage(welcome=welcome))
                    for order in self.orders:
                        queue.put_nowait(pb.CoordinatorMessage(work_order=order))
            queue.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (message := await queue.get()) is not None:
                yield message
        finally:
            reader.cancel()

    async def SubmitUpdate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.submitted.append(request)
        self._changed.set()
        if self.lose_answers:
            self.lose_answers -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer got lost")
        return pb.SubmitUpdateResponse()

    async def Download(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.downloads += 1
        if self.refuse_download is not None:
            await _abort(context, self.refuse_download)
        yield transfer_pb2.DownloadResponse(data=self.model[request.offset :][: request.length])

    async def Upload(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        header = transfer_pb2.UploadHeader()
        async for message in request_iterator:
            if message.HasField("header"):
                header = message.header
                blob = self.uploads.setdefault(header.digest, bytearray())
                if header.offset != len(blob):
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "offset")
            blob += message.data
            if self.cut_uploads:
                self.cut_uploads -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        return self._status(header.digest)

    async def UploadStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._status(request.digest)

    def _status(self, digest: str) -> Any:
        blob = bytes(self.uploads.get(digest, b""))
        return transfer_pb2.UploadResponse(
            durable_bytes=len(blob), complete=digest_of(blob) == digest
        )


def _write(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


async def _abort(context: Any, error: FeddpError) -> None:
    context.set_trailing_metadata(((DETAILS_KEY, details(error)),))
    await context.abort(grpc.StatusCode[error.code], error.message)


class RunningAgent:
    """An agent in this process; leaving the block stops it as SIGTERM would."""

    def __init__(self, folder: Folder, worker: "FakeWorker | type[LocalWorker]") -> None:
        self._folder = folder
        self._worker = worker
        self._stop = asyncio.Event()
        self._lock = contextlib.ExitStack()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "RunningAgent":
        folder = self._folder
        config, identity = load_config(folder), load_identity(folder.identity)
        self._lock.enter_context(locked(folder))
        self._task = asyncio.create_task(
            serve(folder, config, identity, self._worker.start, self._stop)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._stop.set()
        with self._lock:
            async with asyncio.timeout(WAIT_S):
                await self._task

    def has_ended(self) -> bool:
        """Whether the agent gave up by itself."""
        return self._task is not None and self._task.done()
