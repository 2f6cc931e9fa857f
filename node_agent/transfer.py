"""Bytes between the spool and the coordinator: bounded ranges, resumed where they stopped."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import grpc
import structlog

from node_agent.backoff import Backoff
from node_agent.spool import Spool
from protos.content import CHUNK_BYTES, RANGE_BYTES
from protos.errors import Malformed
from protos.feddp.v1 import (
    federation_pb2,
    federation_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from protos.status import from_rpc

log = structlog.get_logger(__name__)

CALL_TIMEOUT_S: Final = 120.0
"""For one range on a slow link; what arrived by then is not sent again."""

DAMAGED_MAX: Final = 3
"""Uploads of the same bytes that may arrive damaged."""

_Answer = TypeVar("_Answer")


class Transfers:
    """Fetches models and hands in updates; retries by itself until it works or never can."""

    def __init__(
        self, channel: grpc.aio.Channel, spool: Spool, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._transfer = transfer_pb2_grpc.TransferStub(channel)
        self._federation = federation_pb2_grpc.FederationStub(channel)
        self._spool = spool
        self._sleep = sleep
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def fetch(self, digest: str, size: int) -> None:
        """Bring a model of `size` bytes into the spool; one that is there is not fetched.

        Raises:
            FeddpError: the coordinator will not give it.
            Malformed: DIGEST_MISMATCH, what came twice is not what was named.
        """
        # Two jobs may start from the same model; the second finds what the first has fetched.
        async with self._fetching.setdefault(digest, asyncio.Lock()):
            if await asyncio.to_thread(self._spool.model(digest).exists):
                return
            for _ in range(2):
                await self._fetch_ranges(digest, size)
                if await asyncio.to_thread(self._spool.keep_model, digest):
                    return
                log.warning("model_digest_mismatch", digest=digest)
        raise Malformed("DIGEST_MISMATCH", f"The bytes of model {digest} do not match its name.")

    async def hand_in(self, attempt_id: str, digest: str, signature: bytes) -> None:
        """Upload a spooled update and submit it; doing it again costs nothing.

        Raises:
            FeddpError: the coordinator will never take it.
        """
        backoff = Backoff()
        path = self._spool.update(digest)
        size = (await asyncio.to_thread(path.stat)).st_size
        request = federation_pb2.SubmitUpdateRequest(
            attempt_id=attempt_id, digest=digest, post_signature=signature
        )
        while True:
            await self._upload(attempt_id, digest, path, size, backoff)
            try:
                await self._federation.SubmitUpdate(request, timeout=CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                # The upload was finished, so missing bytes are bytes that the coordinator lost.
                if from_rpc(error).reason == "BLOB_MISSING":
                    await self._sleep(backoff.next_s())
                    continue
                await self._wait(error, backoff, "submit_update", attempt_id=attempt_id)
            else:
                return

    async def _fetch_ranges(self, digest: str, size: int) -> None:
        backoff = Backoff()
        partial = self._spool.partial_model(digest)
        descriptor = await asyncio.to_thread(os.open, partial, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            offset = (await asyncio.to_thread(os.fstat, descriptor)).st_size
            if offset > size:
                await asyncio.to_thread(os.ftruncate, descriptor, 0)
                offset = 0
            while offset < size:
                length = min(RANGE_BYTES, size - offset)
                request = transfer_pb2.DownloadRequest(digest=digest, offset=offset, length=length)
                try:
                    got = await self._fetch_range(request, descriptor)
                except grpc.RpcError as error:
                    await self._wait(error, backoff, "download", digest=digest)
                    got = (await asyncio.to_thread(os.fstat, descriptor)).st_size - offset
                else:
                    if got == 0:
                        raise Malformed("MODEL_SHORT", f"Model {digest} is shorter than ordered.")
                    backoff.reset()
                offset += got
        finally:
            await asyncio.to_thread(os.close, descriptor)

    async def _fetch_range(self, request: transfer_pb2.DownloadRequest, descriptor: int) -> int:
        """Bytes that were written; never more than asked for."""
        got = 0
        async for message in self._transfer.Download(request, timeout=CALL_TIMEOUT_S):
            data = message.data
            if got + len(data) > request.length:
                raise Malformed("MODEL_LONG", f"Model {request.digest} is longer than ordered.")
            await asyncio.to_thread(_write_all, descriptor, data, request.offset + got)
            got += len(data)
        return got

    async def _upload(
        self, attempt_id: str, digest: str, path: Path, size: int, backoff: Backoff
    ) -> None:
        status = transfer_pb2.UploadStatusRequest(attempt_id=attempt_id, digest=digest)
        ask = self._transfer.UploadStatus
        mismatches = 0
        while True:
            try:
                answer = await ask(status, timeout=CALL_TIMEOUT_S)
                while not answer.complete:
                    before = answer.durable_bytes
                    header = transfer_pb2.UploadHeader(
                        attempt_id=attempt_id, digest=digest, size=size, offset=before
                    )
                    answer = await self._transfer.Upload(
                        _range(path, header), timeout=CALL_TIMEOUT_S
                    )
                    if not answer.complete and answer.durable_bytes <= before:
                        await self._sleep(backoff.next_s())
            except grpc.RpcError as error:
                reason = from_rpc(error).reason
                mismatches += reason == "DIGEST_MISMATCH"
                # The coordinator dropped bytes that were damaged on the way or on its disk.
                damaged = reason == "DIGEST_MISMATCH" and mismatches < DAMAGED_MAX
                if reason == "OFFSET_MISMATCH" or damaged:
                    await self._sleep(backoff.next_s())
                    continue
                await self._wait(error, backoff, "upload", attempt_id=attempt_id)
            else:
                return

    async def _wait(self, error: grpc.RpcError, backoff: Backoff, what: str, **fields: str) -> None:
        """Wait before the next try, or raise what the coordinator said if there is none."""
        delay_s = backoff.after(error)
        if delay_s is None:
            raise from_rpc(error) from None
        log.info(
            "transfer_retried",
            what=what,
            code=error.code().name,
            delay_s=round(delay_s, 2),
            **fields,
        )
        await self._sleep(delay_s)


async def _range(
    path: Path, header: transfer_pb2.UploadHeader
) -> AsyncIterator[transfer_pb2.UploadRequest]:
    """One range of a file as messages; the header rides on the first."""
    descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY)
    try:
        offset, end = header.offset, min(header.size, header.offset + RANGE_BYTES)
        data = await asyncio.to_thread(os.pread, descriptor, min(CHUNK_BYTES, end - offset), offset)
        yield transfer_pb2.UploadRequest(header=header, data=data)
        offset += len(data)
        while data and offset < end:
            data = await asyncio.to_thread(
                os.pread, descriptor, min(CHUNK_BYTES, end - offset), offset
            )
            yield transfer_pb2.UploadRequest(data=data)
            offset += len(data)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
