"""One process at a time, also of several machines that share a disk, by a lock on a file."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from protos.errors import Conflict


@contextlib.contextmanager
def alone(lock: Path, reason: str, message: str) -> Iterator[None]:
    """Hold the lock; the kernel lets go of it when the process ends, however it ends.

    Raises:
        Conflict: `reason` with `message`, another process holds it.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(reason, message) from None
        yield
    finally:
        os.close(descriptor)
