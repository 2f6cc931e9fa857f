"""Bytes between the spool and the coordinator: bounded ranges, resumed where they stopped."""

import asyncio
import errno
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import grpc
import structlog

from node_agent.connection.backoff import Backoff
from node_agent.connection.bandwidth import Throttle
from node_agent.connection.transfer_ways import Way, Ways
from node_agent.state.spool import Growing, Spool
from protos import chunks, tracing
from protos.content import INLINE_BYTES, read_cached
from protos.errors import FeddpError, Malformed, Unavailable
from protos.feddp.v1 import (
    federation_pb2,
    federation_pb2_grpc,
    transfer_pb2,
)
from protos.frames import Frame
from protos.overlap import Overlap
from protos.ranges import CALL_TIMEOUT_S, RANGE_BYTES_MIN, Pace
from protos.status import from_rpc

log = structlog.get_logger(__name__)

DAMAGED_MAX: Final = 3
"""Times that a whole blob may turn out to be damaged before it is given up."""

SUBMIT_TIMEOUT_S: Final = 60.0
"""The coordinator checks the update's values before it answers."""

DOWNLOAD_AHEAD: Final = 1
"""Messages of a download that wait while those before them are written."""

OFFERED_MAX: Final = 16
"""Small models that came with orders and wait for their fetch; 128 KiB each at most."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Transfers:
    """Fetches models and hands in updates; retries by itself until it works or never can."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        spool: Spool,
        sleep: Callable[[float], Awaitable[None]],
        throttle: Throttle | None = None,
        ways: Ways | None = None,
    ) -> None:
        self._ways = ways or Ways(channel)
        self._federation = federation_pb2_grpc.FederationStub(channel)
        self._spool = spool
        self._sleep = sleep
        self._throttle = throttle or Throttle()
        self._down, self._up = Pace(), Pace()
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._offered: OrderedDict[str, bytes] = OrderedDict()
        self._submitted: set[str] = set()

    def use(self, channel: grpc.aio.Channel) -> None:
        """Make the next calls over this connection; those under way end where they began."""
        self._ways.use(channel)
        self._federation = federation_pb2_grpc.FederationStub(channel)

    def told(self, address: str) -> None:
        """Where the coordinator says that bytes may go, too; see `Ways`."""
        self._ways.told(address)

    def offer(self, digest: str, data: bytes) -> None:
        """Hold a small model that came with an order, until the order is judged and asks for it.

        Nothing is written for an order that is refused.
        """
        if 0 < len(data) <= INLINE_BYTES:
            self._offered[digest] = data
            self._offered.move_to_end(digest)
        while len(self._offered) > OFFERED_MAX:
            self._offered.popitem(last=False)

    # Models

    async def fetch(self, digest: str, size: int) -> None:
        """Bring a model of `size` bytes into the spool; one that is there is not fetched.

        Raises:
            FeddpError: the coordinator will not give it.
            Malformed: DIGEST_MISMATCH, what came again and again is not what was named.
        """
        # Two jobs may start from the same model; the second finds what the first has fetched.
        async with self._fetching.setdefault(digest, asyncio.Lock()):
            offered = self._offered.pop(digest, None)
            if offered is not None and await self._keep_offered(digest, offered):
                return
            if await asyncio.to_thread(self._spool.has_model, digest):
                return
            for _ in range(DAMAGED_MAX):
                growing = await self._begun(digest, size)
                with growing:
                    await self._fetch_ranges(growing)
                if await asyncio.to_thread(self._spool.keep_model, growing):
                    return
                log.warning("model_digest_mismatch", digest=digest)
        raise Malformed("DIGEST_MISMATCH", f"The bytes of model {digest} do not match its name.")

    async def _keep_offered(self, digest: str, data: bytes) -> bool:
        backoff = Backoff()
        while True:
            try:
                # Few bytes that are not synced: here, as a thread would cost more than the write.
                kept = self._spool.put_model(digest, data)
            except OSError as error:
                await self._wait(error, backoff, "spool")
                continue
            if not kept:
                log.warning("model_digest_mismatch", digest=digest)
            return kept

    async def _fetch_ranges(self, growing: Growing) -> None:
        backoff, asks_leader = Backoff(), False
        while growing.offset < growing.size:
            way = self._ways.session if asks_leader else await self._ways.choose()
            before = growing.offset
            least = min(RANGE_BYTES_MIN, self._down.range_bytes)
            wanted = min(self._down.range_bytes, growing.size - before)
            length = await self._throttle.admit(wanted, least)
            began_s = time.monotonic()
            try:
                await self._fetch_range(way, growing, length)
            except (grpc.RpcError, Unavailable, OSError) as error:
                if self._ways.failed(way, error):
                    asks_leader = not self._ways.is_resting
                    continue
                if growing.offset == before:
                    self._down.broke()
                await self._wait(error, backoff, "download", digest=growing.digest)
            else:
                if growing.offset == before:
                    if self._ways.stuck(way):
                        continue
                    raise Malformed(
                        "MODEL_SHORT", f"Model {growing.digest} is shorter than ordered."
                    )
                self._down.moved(growing.offset - before, time.monotonic() - began_s)
                self._ways.worked(way)
                backoff.reset()

    async def _fetch_range(self, way: Way, growing: Growing, length: int) -> None:
        """One call; what came before it breaks off stays."""
        end = growing.offset + length
        request = transfer_pb2.DownloadRequest(
            digest=growing.digest, offset=growing.offset, length=length, accepted=chunks.ACCEPTED
        )
        call = way.calls.Download(request, timeout=CALL_TIMEOUT_S, metadata=tracing.metadata())
        taking: Overlap[transfer_pb2.DownloadResponse | Frame] = Overlap(
            lambda batch: asyncio.to_thread(_take, growing, batch, end), DOWNLOAD_AHEAD
        )
        try:
            try:
                async for message in call:
                    await taking.put(message)
            finally:
                await taking.drain()
        finally:
            await taking.stop()
            call.cancel()

    # Updates

    async def hand_in(
        self, attempt_id: str, digest: str, signature: bytes, accepted: bytes = b""
    ) -> None:
        """Submit a spooled update, with its bytes or after an upload; again, it costs nothing.

        Args:
            signature: over the post statement.
            accepted: over the reserve statement.

        Raises:
            FeddpError: the coordinator will never take it.
        """
        backoff = Backoff()
        path = self._spool.update(digest)
        size, data = _size_and_small(path)
        request = federation_pb2.SubmitUpdateRequest(
            attempt_id=attempt_id,
            digest=digest,
            post_signature=signature,
            reserve_signature=accepted,
        )
        if attempt_id not in self._submitted:
            # Once in the life of this process; a retry asks first whether the bytes are there.
            if size <= INLINE_BYTES:
                request.data = data
            else:
                await self._upload(attempt_id, digest, path, size, backoff)
        self._submitted.add(attempt_id)
        try:
            while not await self._submit(request, backoff):
                await self._upload(attempt_id, digest, path, size, backoff)
        except FeddpError:
            self._submitted.discard(attempt_id)
            raise
        self._submitted.discard(attempt_id)

    async def _submit(self, request: federation_pb2.SubmitUpdateRequest, backoff: Backoff) -> bool:
        """Whether it is in; False if the coordinator has not got the bytes."""
        damaged = 0
        while True:
            try:
                await self._federation.SubmitUpdate(
                    request, timeout=SUBMIT_TIMEOUT_S, metadata=tracing.metadata()
                )
            except grpc.RpcError as error:
                request.ClearField("data")
                reason = from_rpc(error).reason
                damaged += reason == "DIGEST_MISMATCH"
                if reason == "BLOB_MISSING":
                    # After an upload that was finished these are bytes that the coordinator lost.
                    await self._sleep(backoff.next_s())
                    return False
                if reason == "DIGEST_MISMATCH" and damaged < DAMAGED_MAX:
                    continue
                await self._wait(error, backoff, "submit_update", attempt_id=request.attempt_id)
            else:
                return True

    async def _upload(
        self, attempt_id: str, digest: str, path: Path, size: int, backoff: Backoff
    ) -> None:
        status = transfer_pb2.UploadStatusRequest(attempt_id=attempt_id, digest=digest)
        mismatches, asks_leader = 0, False
        while True:
            way = self._ways.session if asks_leader else await self._ways.choose()
            try:
                answer = await way.calls.UploadStatus(status, timeout=CALL_TIMEOUT_S)
                while not answer.complete:
                    # More than there are never become whole: it begins again.
                    before = answer.durable_bytes if answer.durable_bytes <= size else 0
                    header = transfer_pb2.UploadHeader(
                        attempt_id=attempt_id, digest=digest, size=size, offset=before
                    )
                    zstd = transfer_pb2.COMPRESSION_ZSTD in answer.accepted
                    answer = await self._upload_range(way, path, header, zstd=zstd)
                    if answer.complete or answer.durable_bytes > before:
                        self._ways.worked(way)
                        backoff.reset()
                    else:
                        self._up.broke()
                        await self._sleep(backoff.next_s())
            except grpc.RpcError as error:
                reason = from_rpc(error).reason
                mismatches += reason == "DIGEST_MISMATCH"
                # The coordinator dropped bytes that were damaged on the way or on its disk.
                damaged = reason == "DIGEST_MISMATCH" and mismatches < DAMAGED_MAX
                if reason == "OFFSET_MISMATCH" and self._ways.stuck(way):
                    continue  # another replica answered than the one that has the beginning
                if reason == "OFFSET_MISMATCH" or damaged:
                    await self._sleep(backoff.next_s())
                    continue
                if self._ways.failed(way, error):
                    asks_leader = not self._ways.is_resting
                    continue
                self._up.broke()
                await self._wait(error, backoff, "upload", attempt_id=attempt_id)
            else:
                return

    async def _upload_range(
        self, way: Way, path: Path, header: transfer_pb2.UploadHeader, *, zstd: bool
    ) -> transfer_pb2.UploadResponse:
        wanted = min(self._up.range_bytes, header.size - header.offset)
        length = await self._throttle.admit(wanted, min(RANGE_BYTES_MIN, self._up.range_bytes))
        began_s = time.monotonic()
        faults: list[OSError] = []
        messages = _messages(path, header, length, self._up.message_bytes, zstd=zstd, faults=faults)
        answer: transfer_pb2.UploadResponse
        try:
            answer = await way.calls.Upload(
                messages, timeout=CALL_TIMEOUT_S, metadata=tracing.metadata()
            )
        except asyncio.CancelledError:
            # What is raised while it makes messages gRPC tells as a call that was cancelled.
            if faults:
                raise faults[0] from None
            raise
        if answer.durable_bytes > header.offset:
            self._up.moved(answer.durable_bytes - header.offset, time.monotonic() - began_s)
        return answer

    async def _wait(self, error: Exception, backoff: Backoff, what: str, **fields: str) -> None:
        """Wait before the next try, or raise if there is none."""
        delay_s: float | None
        if isinstance(error, grpc.RpcError):
            found = from_rpc(error)
            delay_s, code = backoff.after(error), found.reason
            if delay_s is None:
                raise found from None
        elif isinstance(error, OSError):
            delay_s, code = _room_in_s(error, backoff), "SPOOL_FULL"
        else:
            delay_s, code = backoff.next_s(), "CHECKSUM_MISMATCH"
        log.warning("transfer_retried", what=what, reason=code, delay_s=round(delay_s, 2), **fields)
        await self._sleep(delay_s)

    async def _begun(self, digest: str, size: int) -> Growing:
        """A model's partial file; waits while the disk is full."""
        backoff = Backoff()
        while True:
            try:
                return await asyncio.to_thread(self._spool.growing, digest, size)
            except OSError as error:
                await self._wait(error, backoff, "spool")


async def _messages(
    path: Path,
    header: transfer_pb2.UploadHeader,
    length: int,
    message_bytes: int,
    *,
    zstd: bool,
    faults: list[OSError],
) -> AsyncIterator[transfer_pb2.UploadRequest | chunks.Chunk]:
    """One range of a file. The header goes alone: no bytes are on the way before they are due.

    Args:
        faults: gets the error of a file that is gone or cannot be read.
    """
    yield transfer_pb2.UploadRequest(header=header)
    try:
        descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY)
    except OSError as error:
        faults.append(error)
        raise
    try:
        offset, end = header.offset, header.offset + length
        while offset < end:
            piece = min(message_bytes, end - offset)
            data = read_cached(descriptor, offset, piece)
            if data is None or (zstd and chunks.pays(data)):
                chunk = await asyncio.to_thread(_read, descriptor, piece, offset, zstd)
            else:
                chunk = chunks.pack(data, zstd=False)
            if not chunk.data:
                return
            yield chunk
            offset += piece
    except OSError as error:
        faults.append(error)
        raise
    finally:
        os.close(descriptor)


def _read(descriptor: int, length: int, offset: int, zstd: bool) -> chunks.Chunk:
    return chunks.pack(os.pread(descriptor, length, offset), zstd=zstd)


def _take(
    growing: Growing, messages: list[transfer_pb2.DownloadResponse | Frame], end: int
) -> None:
    for message in messages:
        data = chunks.unpack(message)
        if growing.offset + len(data) > end:
            raise Malformed("MODEL_LONG", f"Model {growing.digest} is longer than ordered.")
        growing.write(data)


def _room_in_s(error: OSError, backoff: Backoff) -> float:
    """When to look for room again; a disk that fails otherwise is not waited for."""
    if error.errno not in _FULL:
        raise error
    log.error("spool_full", do="free room on the disk of the agent's folder; the transfer goes on")
    return backoff.next_s()


def _size_and_small(path: Path) -> tuple[int, bytes]:
    """A file's size, and its bytes if they are few."""
    size = path.stat().st_size
    return size, path.read_bytes() if size <= INLINE_BYTES else b""
