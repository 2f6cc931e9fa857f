"""Transfer: bytes of models and updates."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from coordinator.blobs import BlobStore
from coordinator.metrics import Metrics
from coordinator.rounds.driver import Rounds
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Training
from coordinator.rpc.gate import Context, caller
from coordinator.store import jobs as job_store
from coordinator.store.database import Database
from protos.content import CHUNK_BYTES, RANGE_BYTES, is_digest
from protos.errors import Malformed, NotAllowed, TooLate, Unavailable
from protos.feddp.v1 import transfer_pb2 as pb
from protos.feddp.v1 import transfer_pb2_grpc as pb_grpc

UPDATE_BYTES_SLACK = 64 << 10
"""A safetensors header may differ in its padding and metadata from the model's."""

CALL_S_MAX = 60.0
"""A peer that neither sends nor reads gives its place to another."""

TRANSFERS_MAX = 16
"""Calls that hold bytes at once; the others wait, and gRPC's flow control holds their senders."""


@dataclass(slots=True)
class TransferService(pb_grpc.TransferServicer):
    """Serves nodes and engineers."""

    database: Database
    blobs: BlobStore
    rounds: Rounds
    metrics: Metrics
    model_bytes_max: int
    slots: asyncio.Semaphore
    _storing: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    async def Download(
        self, request: pb.DownloadRequest, context: Context
    ) -> AsyncIterator[pb.DownloadResponse]:
        """See transfer.proto."""
        await self._may_read(request.digest)
        length = min(request.length or RANGE_BYTES, RANGE_BYTES)
        async with self.slots, asyncio.timeout(CALL_S_MAX):
            pieces = self.blobs.read(request.digest, request.offset, length)
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                self.metrics.transferred("sent", len(piece))
                yield pb.DownloadResponse(data=piece)

    async def _may_read(self, digest: str) -> None:
        who = caller()
        if who.node:
            allowed = await self._is_ordered(who.node, digest)
        else:
            models = await self.database.read(job_store.models_of)
            allowed = any(m.digest == digest and m.project == who.project for m in models)
        if not allowed:
            raise NotAllowed("NOT_ALLOWED", f"{who.name} may not read model {digest[:12]}…")

    async def _is_ordered(self, node: str, digest: str) -> bool:
        """Whether the node has an order that starts from this model."""
        for live in self.rounds.running():
            phase = live.phase
            if not isinstance(phase, Training) or phase.course.model != digest:
                continue
            # Several jobs may start from the same model; any one of them that ordered it will do.
            if any(a.node == node for a in phase.round.attempts):
                return True
        return False

    async def Upload(
        self, request_iterator: AsyncIterator[pb.UploadRequest], context: Context
    ) -> pb.UploadResponse:
        """See transfer.proto."""
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("header"):
            raise Malformed("HEADER_EXPECTED", "an upload begins with its header")
        header = first.header
        owner = await self._owner(header)
        async with self.slots:
            try:
                async with asyncio.timeout(CALL_S_MAX):
                    pieces = await self._pieces(first, request_iterator, header)
            except TimeoutError:
                raise Unavailable(
                    "TRANSFER_STALLED", f"no more bytes came within {CALL_S_MAX:.0f} s; go on"
                ) from None
            async with self._storing.setdefault(owner, asyncio.Lock()):
                _, complete = self.blobs.received(owner, header.digest)
                if not complete:
                    await asyncio.to_thread(self._store, owner, header, pieces)
        return self._status(owner, header.digest)

    def _store(self, owner: str, header: pb.UploadHeader, pieces: list[bytes]) -> None:
        durable = self.blobs.stage(owner, header.digest, header.offset, pieces)
        if durable == header.size:
            if header.attempt_id:
                self.blobs.finish_update(owner, header.digest)
            else:
                self.blobs.finish_model(owner, header.digest)

    async def _pieces(
        self,
        first: pb.UploadRequest,
        rest: AsyncIterator[pb.UploadRequest],
        header: pb.UploadHeader,
    ) -> list[bytes]:
        """The data of one call: bounded by what was announced and by RANGE_BYTES."""
        room = min(header.size - header.offset, RANGE_BYTES)
        pieces: list[bytes] = []
        message: pb.UploadRequest | None = first
        while message is not None:
            room -= len(message.data)
            if len(message.data) > CHUNK_BYTES or room < 0:
                raise Malformed(
                    "TOO_LARGE",
                    f"a message carries at most {CHUNK_BYTES} bytes, a call {RANGE_BYTES}, and an "
                    "upload no more than it announced",
                )
            if message.data:
                pieces.append(message.data)
                self.metrics.transferred("received", len(message.data))
            message = await anext(aiter(rest), None)
        return pieces

    async def UploadStatus(
        self, request: pb.UploadStatusRequest, context: Context
    ) -> pb.UploadResponse:
        """See transfer.proto."""
        header = pb.UploadHeader(attempt_id=request.attempt_id, digest=request.digest)
        return self._status(await self._owner(header), request.digest)

    def _status(self, owner: str, digest: str) -> pb.UploadResponse:
        durable, complete = self.blobs.received(owner, digest)
        return pb.UploadResponse(durable_bytes=durable, complete=complete)

    async def _owner(self, header: pb.UploadHeader) -> str:
        """Whose upload this is, and whether it may be."""
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
            return f"user.{who.name}"
        live, _, attempt = await self.rounds.find(header.attempt_id, who.node)
        if not attempt.is_open and attempt.digest != header.digest:
            raise TooLate("ATTEMPT_CLOSED", f"attempt {attempt.attempt_id} is closed; it is booked")
        if header.size > self._update_bytes_max(live):
            raise Malformed("TOO_LARGE", "the update is larger than the model that it belongs to")
        return attempt.attempt_id

    def _update_bytes_max(self, live: LiveJob) -> int:
        return self.blobs.model(live.phase.course.initial).stat().st_size + UPDATE_BYTES_SLACK
