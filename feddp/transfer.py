"""Moving blobs between a person's machine and the coordinator, in ranges that resume."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from protos.content import CHUNK_BYTES, RANGE_BYTES, digest_of, digest_of_file, sync_directory
from protos.errors import Conflict, Malformed, NotFound
from protos.feddp.v1 import transfer_pb2 as transfer
from protos.feddp.v1.transfer_pb2_grpc import TransferStub

RANGE_TIMEOUT_S = 60.0

T = TypeVar("T")


class Attempt(Protocol):
    """Runs a call that may be sent again, and sends it again while the peer is away."""

    def __call__(self, call: Callable[[], T], /) -> T:
        """What the call answered."""


def upload(stub: TransferStub, data: bytes, attempt: Attempt) -> str:
    """Upload an initial model, beginning where the coordinator's durable bytes end.

    Returns:
        The digest that names the blob.

    Raises:
        FeddpError: what the coordinator answered; Malformed DIGEST_MISMATCH among them.
    """
    digest = digest_of(data)

    def one_range() -> transfer.UploadResponse:
        # After a lost reply only the coordinator knows how much it has.
        request = transfer.UploadStatusRequest(digest=digest)
        answer = stub.UploadStatus(request, timeout=RANGE_TIMEOUT_S)
        if not answer.complete:
            # Also where every byte is there: a coordinator that died before it had checked them
            # does that when an upload, if only an empty one, goes on.
            requests = _requests(data, digest, answer.durable_bytes)
            answer = stub.Upload(requests, timeout=RANGE_TIMEOUT_S)
        return answer

    done = -1
    while not (answer := attempt(one_range)).complete:
        if answer.durable_bytes <= done:
            raise Malformed(
                "UPLOAD_STALLED",
                f"the coordinator took none of the bytes after {done} of {len(data)}; look into "
                "its log for this upload",
            )
        done = answer.durable_bytes
    return digest


def _requests(data: bytes, digest: str, offset: int) -> Iterator[transfer.UploadRequest]:
    header = transfer.UploadHeader(digest=digest, size=len(data), offset=offset)
    end = min(len(data), offset + RANGE_BYTES)
    yield transfer.UploadRequest(header=header, data=data[offset : min(end, offset + CHUNK_BYTES)])
    for start in range(offset + CHUNK_BYTES, end, CHUNK_BYTES):
        yield transfer.UploadRequest(data=data[start : min(end, start + CHUNK_BYTES)])


def download(
    stub: TransferStub, digest: str, size: int, out: Path, attempt: Attempt, *, force: bool
) -> None:
    """Write a blob to `out`, whole and checked or not at all.

    What arrived before a fault stays beside `out` and is not fetched again.

    Raises:
        Conflict: FILE_EXISTS, without `force`.
        NotFound: FOLDER_MISSING.
        Malformed: DIGEST_MISMATCH; the bytes beside `out` are gone then.
    """
    if out.exists() and not force:
        raise Conflict("FILE_EXISTS", f"{out} exists; choose another name or give --force")
    if not out.parent.is_dir():
        raise NotFound("FOLDER_MISSING", f"{out.parent} is not a folder; make it first")
    beside = out.with_name(f".{out.name}.{digest[:16]}.partial")
    descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "r+b") as file:
        file.seek(0, os.SEEK_END)

        def one_range() -> int:
            request = transfer.DownloadRequest(
                digest=digest, offset=file.tell(), length=RANGE_BYTES
            )
            for answer in stub.Download(request, timeout=RANGE_TIMEOUT_S):
                file.write(answer.data)
            return file.tell()

        while (had := file.tell()) < size:
            if attempt(one_range) == had:
                break
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
