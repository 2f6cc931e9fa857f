"""Moving blobs between a person's machine and the coordinator, in ranges that resume."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from protos import chunks
from protos.content import digest_of, digest_of_file, sync_directory
from protos.errors import Conflict, Malformed, NotFound
from protos.feddp.v1 import transfer_pb2 as transfer
from protos.feddp.v1.transfer_pb2_grpc import TransferStub
from protos.ranges import CALL_TIMEOUT_S, Pace

STALLED_MAX = 5
"""Calls in a row that may move nothing: on a slow link the ranges shrink first."""

Attempt = Callable[[Callable[[], int]], int]
"""Runs a call that may be sent again, and sends it again while the peer is away."""


def upload(stub: TransferStub, data: bytes, attempt: Attempt) -> str:
    """Upload an initial model, beginning where the coordinator's durable bytes end.

    Returns:
        The digest that names the blob.

    Raises:
        FeddpError: what the coordinator answered; Malformed DIGEST_MISMATCH among them.
    """
    digest, pace = digest_of(data), Pace()

    def one_range() -> int:
        # After a lost reply only the coordinator knows how much it has.
        request = transfer.UploadStatusRequest(digest=digest)
        status = stub.UploadStatus(request, timeout=CALL_TIMEOUT_S)
        # More than there are never become whole: it begins again.
        offset = status.durable_bytes if status.durable_bytes <= len(data) else 0
        # A complete blob may have been there before us.
        if status.complete:
            return len(data)
        # Also where every byte is there: a coordinator that died before it had checked them does
        # that when an upload, if only an empty one, goes on.
        zstd = transfer.COMPRESSION_ZSTD in status.accepted
        began_s = time.monotonic()
        messages = _requests(data, digest, offset, pace, zstd=zstd)
        answer = stub.Upload(messages, timeout=CALL_TIMEOUT_S)
        pace.moved(answer.durable_bytes - offset, time.monotonic() - began_s)
        return len(data) if answer.complete else min(answer.durable_bytes, len(data) - 1)

    _until(len(data), one_range, attempt, pace, "took")
    return digest


def _until(
    size: int, one_range: Callable[[], int], attempt: Attempt, pace: Pace, verb: str
) -> None:
    """Move ranges until `one_range` says that all `size` bytes are there."""
    done, stalled = -1, 0
    while done < size:
        now = attempt(one_range)
        stalled = stalled + 1 if now <= done or now == 0 < size else 0
        if stalled:
            pace.broke()
        if stalled == STALLED_MAX:
            raise Malformed(
                "TRANSFER_STALLED",
                f"the coordinator {verb} none of the bytes after {now} of {size}; look into its "
                "log for this transfer",
            )
        done = now


def _requests(
    data: bytes, digest: str, offset: int, pace: Pace, *, zstd: bool
) -> Iterator[transfer.UploadRequest]:
    header = transfer.UploadHeader(digest=digest, size=len(data), offset=offset)
    yield transfer.UploadRequest(header=header)
    end, step = min(len(data), offset + pace.range_bytes), pace.message_bytes
    for start in range(offset, end, step):
        chunk = chunks.pack(data[start : min(end, start + step)], zstd=zstd)
        yield transfer.UploadRequest(
            data=chunk.data, crc32c=chunk.crc32c, compression=chunk.compression
        )


def download(
    stub: TransferStub, digest: str, size: int, out: Path, attempt: Attempt, *, force: bool
) -> None:
    """Write a blob to `out`, whole and checked or not at all.

    What arrived before a fault stays beside `out` and is not fetched again.

    Raises:
        Conflict: FILE_EXISTS, without `force`, or it is a folder.
        NotFound: FOLDER_MISSING.
        Malformed: DIGEST_MISMATCH; the bytes beside `out` are gone then.
    """
    if out.is_dir():
        raise Conflict("FILE_EXISTS", f"{out} is a folder; name a file in it")
    if out.exists() and not force:
        raise Conflict("FILE_EXISTS", f"{out} exists; choose another name or give --force")
    if not out.parent.is_dir():
        raise NotFound("FOLDER_MISSING", f"{out.parent} is not a folder; make it first")
    beside = out.with_name(f".{out.name}.{digest[:16]}.partial")
    descriptor, pace = os.open(beside, os.O_RDWR | os.O_CREAT, 0o644), Pace()
    with os.fdopen(descriptor, "r+b") as file:
        file.seek(0, os.SEEK_END)

        def one_range() -> int:
            offset, began_s = file.tell(), time.monotonic()
            request = transfer.DownloadRequest(
                digest=digest, offset=offset, length=pace.range_bytes, accepted=chunks.ACCEPTED
            )
            for answer in stub.Download(request, timeout=CALL_TIMEOUT_S):
                file.write(chunks.unpack(answer))
            pace.moved(file.tell() - offset, time.monotonic() - began_s)
            return file.tell()

        if file.tell() < size:
            _until(size, one_range, attempt, pace, "gave")
        file.flush()
        os.fsync(file.fileno())
    if beside.stat().st_size != size or digest_of_file(beside) != digest:
        beside.unlink()
        raise Malformed(
            "DIGEST_MISMATCH",
            f"what arrived does not have the digest {digest}; nothing was written, try again",
        )
    beside.replace(out)
    sync_directory(out.parent)
