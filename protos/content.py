"""Content addressing as both ends of the wire do it: digests, chunk size and durable writes."""

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

CHUNK_BYTES = 1 << 20
"""Most data bytes in one message."""

RANGE_BYTES = 16 << 20
"""Most bytes that one upload or download call moves."""

INLINE_BYTES = 128 << 10
"""A model or an update up to this size travels inside its order or its submission."""

DIGEST_LENGTH = 64
"""Hexadecimal characters of a digest."""

_DIGEST = re.compile(rf"[0-9a-f]{{{DIGEST_LENGTH}}}")


def digest_of(data: bytes) -> str:
    """BLAKE3 of `data`, hexadecimal."""
    return blake3(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """BLAKE3 of a file's bytes, hexadecimal, in constant memory."""
    with path.open("rb", buffering=0) as file:
        return hashed(file.fileno(), os.fstat(file.fileno()).st_size).hexdigest()


def hashed(descriptor: int, size: int) -> blake3:
    """A BLAKE3 hasher that has seen the first `size` bytes of a file.

    Plain reads of a chunk: pages of a memory map would count as this process's own memory.
    """
    hasher, offset = blake3(), 0
    view = memoryview(bytearray(min(size, CHUNK_BYTES)))
    while offset < size:
        got = os.preadv(descriptor, [view[: size - offset]], offset)
        if got == 0:
            break
        hasher.update(view[:got])
        offset += got
    return hasher


def read_cached(descriptor: int, offset: int, length: int) -> bytes | None:
    """Bytes that the kernel has in memory; None if they would have to be waited for.

    What was just written, or is read by every node, is nearly always there, and a thread would cost
    more than the read.
    """
    buffer = bytearray(length)
    try:
        got = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError:
        return None
    return bytes(buffer) if got == length else None


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def is_digest(text: str) -> bool:
    """Whether `text` has the form of a digest; anything else must never become a file name."""
    return _DIGEST.fullmatch(text) is not None


def beside_of(path: Path) -> Path:
    """Where a file with one writer grows until it is whole."""
    return path.with_name(f".{path.name}.partial")


def sync_directory(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """A full disk names no file by itself; this one is put into the error."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_durable(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write beside `path`, sync, rename over it, sync the folder: whole or not at all.

    Two threads may write the same name at once: each has a file of its own until it is whole.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    with contextlib.ExitStack() as undo, naming(path):
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        undo.callback(beside.unlink, missing_ok=True)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        undo.pop_all()
    beside.replace(path)
    sync_directory(path.parent)
