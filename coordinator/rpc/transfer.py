"""Transfer: bytes of models and updates.

A call ends by itself after `CALL_S_MAX`, and bytes are held by a bounded number of calls at once:
the others wait for their turn in order of arrival, and gRPC's flow control holds their senders.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from coordinator.blobs import BlobStore
from coordinator.observing.metrics import Metrics
from coordinator.observing.round_traces import RoundTraces
from coordinator.rounds.averaging import whole_model
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Attempt, AttemptState, RoundRecord, Training
from coordinator.rpc.gate import Context, caller, traceparent
from coordinator.rpc.turns import Incoming, Turns, TurnsOfEach, busy
from coordinator.store import jobs as job_store
from coordinator.store.database import Database
from coordinator.uploads import Appending
from protos import chunks, tracing
from protos.content import CHUNK_BYTES, RANGE_BYTES, is_digest, read_cached
from protos.errors import (
    Conflict,
    FeddpError,
    Malformed,
    NotAllowed,
    NotFound,
    TooLate,
    Unavailable,
)
from protos.feddp.v1 import transfer_pb2 as pb
from protos.feddp.v1 import transfer_pb2_grpc as pb_grpc
from protos.frames import Frame
from protos.overlap import Overlap

UPDATE_BYTES_SLACK = 64 << 10
"""A safetensors header may differ in its padding and metadata from the model's."""

CALL_S_MAX = 9.0
"""A call answers by then with what it has done; a proxy would cut it at 15 s."""

STUCK_S = 1.0
"""After its end a download that nobody reads is cancelled."""

UPLOADS_MAX = 4
DOWNLOADS_MAX = 4
"""Calls that hold bytes at once, each a few MiB of gRPC's and of ours: a message of a chunk exists
up to four times while it is taken off the wire."""

CALLS_EACH = 2
"""Of these, and of calls that wait for them, as many in each direction are one caller's: a node of
two jobs moves both, and none that opens hundreds keeps the others out or fills the memory."""

UPLOAD_AHEAD = 1
"""Messages of an upload that wait while the one before is written: more gain nothing and are held
by every connection."""

DISK_THREADS = 4

COMING_RETRY_S = 0.5
"""Until it is asked again for a model that is on its way from the shared store."""

Message = pb.UploadRequest | Frame

_T = TypeVar("_T")

Taken = Callable[[LiveJob, Attempt, str], Coroutine[Any, Any, None]]
"""Does what is to be done with an attempt's update of this digest; raises nothing."""


@dataclass(frozen=True, slots=True)
class Receiving:
    """One upload call: whose it is, what it announced, and when it must answer."""

    owner: str
    header: pb.UploadHeader
    messages: Incoming[Message]
    context: Context


class Jobs(Protocol):
    """The jobs that run and their attempts: what who leads has in memory, or what another replica
    reads from the journal."""

    traces: RoundTraces

    async def catch_up(self) -> None:
        """Know every step that was committed before this call."""

    def running(self) -> list[LiveJob]:
        """Jobs that have not ended."""
        ...

    async def find(self, attempt_id: str, node: str) -> tuple[LiveJob, RoundRecord, Attempt]:
        """An attempt of this node. Raises NotFound: ATTEMPT_UNKNOWN."""
        ...


@dataclass(slots=True)
class TransferService(pb_grpc.TransferServicer):
    """Serves nodes and engineers.

    Attributes:
        rounds: replaced once, when this replica begins to lead.
        taken: told of each update that is whole; None where this replica leads.
    """

    database: Database
    blobs: BlobStore
    rounds: Jobs
    metrics: Metrics
    model_bytes_max: int
    taken: Taken | None = None
    _uploads: Turns = field(default_factory=lambda: Turns(UPLOADS_MAX))
    _downloads: Turns = field(default_factory=lambda: Turns(DOWNLOADS_MAX))
    _uploads_each: TurnsOfEach = field(default_factory=lambda: TurnsOfEach(CALLS_EACH))
    _downloads_each: TurnsOfEach = field(default_factory=lambda: TurnsOfEach(CALLS_EACH))
    _disk: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(DISK_THREADS, "transfer")
    )
    _storing: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    _telling: set[asyncio.Task[None]] = field(default_factory=set)
    _coming: dict[str, asyncio.Future[None]] = field(default_factory=dict)

    # Downloads

    async def Download(  # type: ignore[override] # a chunk stands in for its message
        self, request: pb.DownloadRequest, context: Context
    ) -> AsyncIterator[chunks.Chunk]:
        """See transfer.proto."""
        ends_s = _now_s() + CALL_S_MAX
        await context.send_initial_metadata(())
        await self._may_read(request.digest)
        zstd = pb.COMPRESSION_ZSTD in request.accepted
        if not self.blobs.has_model(request.digest):
            await self._at_hand(request.digest, ends_s)
        async with (
            self._downloads_each.of(_name()).turn(context),
            self._downloads.turn(context, ends_s + STUCK_S),
        ):
            descriptor, left = self.blobs.open_model(request.digest, request.offset)
            try:
                offset = request.offset
                end = offset + min(left, request.length or RANGE_BYTES, RANGE_BYTES)
                while offset < end and _now_s() < ends_s:
                    length = min(CHUNK_BYTES, end - offset)
                    data = read_cached(descriptor, offset, length)
                    if data is None or (zstd and chunks.pays(data)):
                        chunk = await self._in_thread(_read, descriptor, offset, length, zstd)
                    else:
                        chunk = chunks.pack(data, zstd=False)
                    offset += length
                    self.metrics.transferred("sent", len(chunk.data))
                    yield chunk
                if offset == request.offset < end:
                    # An answer without bytes would say that the model is shorter than ordered.
                    raise busy()
            finally:
                os.close(descriptor)

    async def _at_hand(self, digest: str, ends_s: float) -> None:
        """Have a model fetched from the shared store, once for all who ask for it.

        Raises:
            Unavailable: MODEL_COMING, this call would have no time left; STORE_UNREACHABLE.
        """
        coming = self._coming.get(digest)
        if coming is None:
            loop = asyncio.get_running_loop()
            coming = loop.run_in_executor(self._disk, self.blobs.at_hand, [digest])
            self._coming[digest] = coming
            coming.add_done_callback(lambda done: self._came(digest, done))
        await asyncio.wait({coming}, timeout=max(0.0, ends_s - CALL_S_MAX / 2 - _now_s()))
        if not coming.done():
            raise Unavailable(
                "MODEL_COMING",
                "this replica is fetching the model from the shared store; ask again",
                retry_after_s=COMING_RETRY_S,
            )
        coming.result()

    def _came(self, digest: str, done: asyncio.Future[None]) -> None:
        """Whoever still waits is told of a fault; where nobody does, the next call fetches anew."""
        del self._coming[digest]
        if not done.cancelled():
            done.exception()

    async def _may_read(self, digest: str) -> None:
        who = caller()
        if who.node:
            await self.rounds.catch_up()
            allowed = self._is_ordered(who.node, digest)
        else:
            models = await self.database.read(job_store.models_of)
            allowed = any(m.digest == digest and who.sees(m.project) for m in models)
        if not allowed:
            raise NotAllowed("NOT_ALLOWED", f"{who.name} may not read model {digest[:12]}…")

    def _is_ordered(self, node: str, digest: str) -> bool:
        """Whether the node has an order that starts from this model."""
        return any(
            isinstance(live.phase, Training)
            and live.phase.course.model == digest
            and any(a.node == node for a in live.phase.round.attempts)
            for live in self.rounds.running()
        )

    # Uploads

    async def Upload(
        self, request_iterator: AsyncIterator[Message], context: Context
    ) -> pb.UploadResponse:
        """See transfer.proto."""
        messages = Incoming(request_iterator, _now_s() + CALL_S_MAX)
        await context.send_initial_metadata(())
        # Before anything is read: what a call that waits has sent stays with its sender.
        async with self._uploads_each.of(_name()).turn(context):
            return await self._uploaded(messages, context)

    async def _uploaded(self, messages: Incoming[Message], context: Context) -> pb.UploadResponse:
        first = await messages.next()
        if not isinstance(first, pb.UploadRequest) or not first.HasField("header"):
            raise Malformed("HEADER_EXPECTED", "an upload begins with its header")
        header = first.header
        owner, received = await self._owner(header)
        if received:
            return _answer(header.size, complete=True)
        # Calls of one upload one after the other: a retry may meet the call that it replaces.
        async with self._storing.setdefault(owner, asyncio.Lock()):
            durable, complete = await self._in_thread(self.blobs.received, owner, header.digest)
            if not complete:
                await self._in_thread(self._only_one, header)
                receiving = Receiving(owner, header, messages, context)
                with await self._traced(header.attempt_id, context):
                    try:
                        durable, complete = await self._receive(receiving, first)
                    except BaseException:
                        with suppress(FeddpError):  # what ended the call is told
                            await self._still_open(header)
                        raise
                    await self._still_open(header)
                    if complete and header.attempt_id:
                        await self._tell_taken(header, messages.ends_s)
        return _answer(durable, complete=complete)

    def _only_one(self, header: pb.UploadHeader) -> None:
        """Raises Conflict: UPDATE_CONFLICT."""
        if header.attempt_id and self.blobs.has_update_beside(header.attempt_id, header.digest):
            raise Conflict(
                "UPDATE_CONFLICT", f"attempt {header.attempt_id} has another update already"
            )

    async def _still_open(self, header: pb.UploadHeader) -> None:
        """Whoever closed the attempt has dropped what there was of it then; this came later, the
        whole of it or a part, and nobody would come for it again.

        Raises:
            TooLate: ATTEMPT_CLOSED.
        """
        if not header.attempt_id:
            return
        try:
            await self._owner(header)
        except TooLate:
            await self._in_thread(self.blobs.drop_update, header.attempt_id, header.digest)
            await self._in_thread(self.blobs.drop_upload, header.attempt_id, header.digest)
            raise

    async def _tell_taken(self, header: pb.UploadHeader, ends_s: float) -> None:
        """What goes on for longer than the call may last goes on after it."""
        if self.taken is None:
            return
        live, _, attempt = await self.rounds.find(header.attempt_id, caller().node)
        telling = asyncio.create_task(self.taken(live, attempt, header.digest))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)
        await asyncio.wait({telling}, timeout=max(0.0, ends_s - _now_s()))

    async def _traced(
        self, attempt_id: str, context: Context
    ) -> AbstractContextManager[tracing.Place | None]:
        """The span of one range of an update; of a job's first model none."""
        node = caller().node
        if not attempt_id or not node or not tracing.is_on():
            return nullcontext()
        live, record, _ = await self.rounds.find(attempt_id, node)
        said = traceparent(context)
        return self.rounds.traces.serving("receive", live, record.number, attempt_id, node, said)

    async def _receive(self, receiving: Receiving, first: Message) -> tuple[int, bool]:
        """(durable bytes, whether they are all and right) after the messages of one call."""
        header, messages = receiving.header, receiving.messages
        if header.offset > header.size:
            raise Malformed(
                "OFFSET_MISMATCH",
                "an upload cannot go on behind its end; if more bytes have come than it has, begin "
                "it again at byte 0",
            )
        if header.offset == 0:
            await self._in_thread(
                self.blobs.drop_longer, receiving.owner, header.digest, header.size
            )
        async with self._uploads.turn(receiving.context):
            appending = await self._in_thread(
                self.blobs.begin, receiving.owner, header.digest, header.offset
            )
            end = min(header.size, header.offset + RANGE_BYTES)
            taking: Overlap[Message] = Overlap(
                lambda batch: self._in_thread(self._take, appending, end, batch), UPLOAD_AHEAD
            )
            try:
                message: Message | None = first
                while message is not None:
                    await taking.put(message)
                    message = await messages.next()
                await taking.drain()
                return await self._in_thread(self._keep, appending, receiving)
            except asyncio.CancelledError:
                # The sender is gone; what it has sent counts, so that nobody sends it again.
                await taking.drain()
                await self._in_thread(appending.keep)
                raise
            finally:
                await taking.stop()
                await self._in_thread(appending.close)

    def _take(self, appending: Appending, end: int, messages: list[Message]) -> None:
        for message in messages:
            data = chunks.unpack(message)
            if appending.end + len(data) > end:
                raise Malformed(
                    "TOO_LARGE",
                    f"a call carries at most {RANGE_BYTES} bytes, and an upload no more than it "
                    "announced",
                )
            appending.write(data)
            self.metrics.transferred("received", len(data))

    def _keep(self, appending: Appending, receiving: Receiving) -> tuple[int, bool]:
        durable = appending.keep()
        complete = durable == receiving.header.size
        if complete:
            self.blobs.finish(receiving.owner, receiving.header.digest)
        return durable, complete

    async def UploadStatus(
        self, request: pb.UploadStatusRequest, context: Context
    ) -> pb.UploadResponse:
        """See transfer.proto."""
        header = pb.UploadHeader(attempt_id=request.attempt_id, digest=request.digest)
        owner, received = await self._owner(header)
        if received:
            return _answer(0, complete=True)
        durable, complete = await self._in_thread(self.blobs.received, owner, request.digest)
        return _answer(durable, complete=complete)

    async def _owner(self, header: pb.UploadHeader) -> tuple[str, bool]:
        """(whose upload this is, whether it was handed in already); raises if it may not be."""
        who = caller()
        if not is_digest(header.digest):
            raise Malformed("DIGEST_INVALID", "a digest is 64 hexadecimal characters, lower case")
        if not header.attempt_id:
            if who.node:
                raise NotAllowed("NOT_ALLOWED", "a node uploads updates of its attempts only")
            if header.size > self.model_bytes_max:
                raise Malformed(
                    "TOO_LARGE",
                    f"a model has at most {self.model_bytes_max} bytes here "
                    "(storage.model_bytes_max)",
                )
            return f"user.{who.name}", False
        live, _, attempt = await self.rounds.find(header.attempt_id, who.node)
        if not attempt.is_open:
            if attempt.state is AttemptState.RECEIVED and attempt.digest == header.digest:
                # Its bytes may be folded and gone; nobody needs them again.
                return attempt.attempt_id, True
            raise TooLate("ATTEMPT_CLOSED", f"attempt {attempt.attempt_id} is closed; it is booked")
        if header.size > await self._update_bytes_max(live):
            raise Malformed("TOO_LARGE", "the update is larger than the model that it belongs to")
        return attempt.attempt_id, False

    async def _update_bytes_max(self, live: LiveJob) -> int:
        initial = live.phase.course.initial
        if self.blobs.is_known_whole(initial):
            return self.blobs.model_bytes(initial) + UPDATE_BYTES_SLACK
        return await self._in_thread(self._model_bytes, live) + UPDATE_BYTES_SLACK

    def _model_bytes(self, live: LiveJob) -> int:
        """Size of the job's models; the shared store is asked for it, and not for a whole model."""
        initial = live.phase.course.initial
        if self.blobs.is_shared and not self.blobs.has_model(initial):
            with suppress(NotFound):
                return self.blobs.model_bytes(initial)
        return self.blobs.model_bytes(whole_model(live, self.blobs))

    async def _in_thread(self, work: Callable[..., _T], *args: object) -> _T:
        """Run in a thread of ours; a caller that is cancelled still waits for its end."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._disk, work, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            future.exception()  # nobody is left to be told
            raise


def _read(descriptor: int, offset: int, length: int, zstd: bool) -> chunks.Chunk:
    return chunks.pack(os.pread(descriptor, length, offset), zstd=zstd)


def _answer(durable: int, *, complete: bool) -> pb.UploadResponse:
    return pb.UploadResponse(durable_bytes=durable, complete=complete, accepted=chunks.ACCEPTED)


def _name() -> str:
    """Of who calls; a person and a node may have the same."""
    who = caller()
    return f"node {who.node}" if who.node else f"user {who.name}"


def _now_s() -> float:
    return asyncio.get_running_loop().time()
