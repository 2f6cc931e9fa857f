"""Uploads under way: files that grow, each with the digest of what is durable in it.

What counts is what was synced. The hasher of an upload is kept beside its file and has seen
exactly the durable bytes, so that the end of an upload reads nothing again; after a restart it is
built from the file once.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from blake3 import blake3

from protos.content import hashed, is_digest, write_all
from protos.errors import Malformed, TooLate, Unavailable

log = structlog.get_logger(__name__)

PER_USER_MAX: Final = 4
"""Models that one person may upload side by side; the one that waited longest goes."""

FULL_RETRY_S: Final = 2.0
COMPLAIN_S: Final = 30.0

SPENT_MAX: Final = 8
"""Files that nobody needs, kept until uploads begin or the disk is full: as many as there may be at
once."""

_SPENT: Final = "spent."


@dataclass(slots=True)
class Staged:
    """One upload: its file, the bytes that count, and the hasher that has seen them, if built."""

    path: Path
    durable: int
    hasher: blake3 | None = None


class Uploads:
    """Every upload under way, in one folder. The calls of one upload must not overlap."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staged: dict[str, Staged] = {}
        self._lock = threading.Lock()
        """Guards the dictionary; it keeps the order in which uploads were last gone on with."""
        self.free_spent()

    def durable(self, owner: str, digest: str) -> int:
        """Bytes that count, from the start."""
        return self._known(staged_name(owner, digest)).durable

    def begin(self, owner: str, digest: str, offset: int) -> "Appending":
        """Go on with an upload.

        Raises:
            Malformed: OFFSET_MISMATCH, the durable bytes do not end at `offset`.
            Unavailable: STORE_FULL.
        """
        name = staged_name(owner, digest)
        staged = self._known(name)
        if staged.durable != offset:
            raise Malformed(
                "OFFSET_MISMATCH",
                f"the upload goes on at byte {staged.durable}, not {offset}; ask UploadStatus",
            )
        self._make_room(owner, name)
        if offset == 0:
            self.free_spent(1)
        with self._lock:
            self._staged.pop(name, None)
            self._staged[name] = staged
        return Appending(staged, self.free_spent)

    def finish(self, owner: str, digest: str, target: Path, keep: Callable[[Path], None]) -> None:
        """Give a complete upload its name, which its folder must still be synced for.

        Args:
            keep: done with the right file before it counts; should it fail, the upload stands
                where it stood, and its sender tries again.

        Raises:
            Malformed: DIGEST_MISMATCH; the upload is dropped and may begin again.
            TooLate: UPLOAD_DROPPED, it was forgotten meanwhile.
        """
        name = staged_name(owner, digest)
        staged = self._known(name)
        hasher = staged.hasher
        right = hasher is not None and hasher.hexdigest() == digest
        try:
            if right:
                keep(staged.path)
            with self._lock:
                self._staged.pop(name, None)
            if not right:
                staged.path.unlink()
                raise Malformed(
                    "DIGEST_MISMATCH",
                    "the bytes do not have the digest that was announced; send again",
                )
            staged.path.replace(target)
        except FileNotFoundError:
            raise TooLate(
                "UPLOAD_DROPPED", "the upload was dropped while it ran; ask UploadStatus"
            ) from None

    def drop(self, owner: str) -> None:
        """Forget every upload of an owner."""
        self._drop(lambda name: name.startswith(f"{owner}."))
        for path in self._folder.glob(f"{owner}.*"):
            path.unlink(missing_ok=True)

    def drop_longer(self, owner: str, digest: str, size: int) -> None:
        """Forget an upload of more than `size` bytes: it would never be whole."""
        if self._known(staged_name(owner, digest)).durable > size:
            self.drop_one(owner, digest)

    def drop_one(self, owner: str, digest: str) -> None:
        """Forget one upload."""
        name = staged_name(owner, digest)
        self._drop(lambda one: one == name)
        (self._folder / name).unlink(missing_ok=True)

    def spend(self, path: Path) -> None:
        """Take a file that nobody needs; it is removed when a new upload begins.

        Its pages are then used again at once. Given back earlier they may go from a virtual machine
        to its host, and a page that must be asked for costs ten times what it costs to write it.
        """
        path.replace(self._folder / f"{_SPENT}{path.name}")
        for one in sorted(self._folder.glob(f"{_SPENT}*"))[SPENT_MAX:]:
            one.unlink(missing_ok=True)

    def free_spent(self, most: int | None = None) -> None:
        """Remove files that nobody needs: all of them, or so many."""
        for path in list(self._folder.glob(f"{_SPENT}*"))[:most]:
            path.unlink(missing_ok=True)

    def _drop(self, which: Callable[[str], bool]) -> None:
        with self._lock:
            for name in [name for name in self._staged if which(name)]:
                del self._staged[name]

    def _known(self, name: str) -> Staged:
        with self._lock:
            staged = self._staged.get(name)
        return staged or self._found(name)

    def _found(self, name: str) -> Staged:
        """What a process before this one has left counts once it is synced."""
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return Staged(path, 0, blake3())
        try:
            os.fsync(descriptor)
            staged = Staged(path, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        with self._lock:
            return self._staged.setdefault(name, staged)

    def _make_room(self, owner: str, name: str) -> None:
        """An attempt has one update; a person has a few models."""
        most = PER_USER_MAX if owner.startswith("user.") else 1
        others = {path.name for path in self._folder.glob(f"{owner}.*")} - {name}
        with self._lock:
            recent = [other for other in self._staged if other in others]
        # Those that this process has not heard of waited longest.
        by_age = [*sorted(others - set(recent)), *recent]
        for other in by_age[: max(0, len(by_age) - most + 1)]:
            self._drop(lambda one, gone=other: one == gone)  # type: ignore[misc]
            (self._folder / other).unlink(missing_ok=True)


class Appending:
    """What one call adds to an upload. Nothing counts before `keep`; else it is as before."""

    def __init__(self, staged: Staged, free: Callable[[], None]) -> None:
        self._staged = staged
        self._free = free
        self._end = staged.durable
        with room(free):
            self._descriptor = os.open(staged.path, os.O_RDWR | os.O_CREAT, 0o600)
        if staged.hasher is None:
            staged.hasher = hashed(self._descriptor, staged.durable)
        self._hasher = staged.hasher.copy()

    @property
    def end(self) -> int:
        """Where the next byte goes."""
        return self._end

    def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            Unavailable: STORE_FULL.
        """
        with room(self._free):
            write_all(self._descriptor, data, self._end)
        self._hasher.update(data)
        self._end += len(data)

    def keep(self) -> int:
        """Sync what was added, and count it: the durable size.

        Raises:
            Unavailable: STORE_FULL; nothing that was added counts.
        """
        if self._end > self._staged.durable:
            with room(self._free):
                os.fsync(self._descriptor)
            self._staged.durable, self._staged.hasher = self._end, self._hasher
        return self._staged.durable

    def close(self) -> None:
        """Let go of the file; bytes that do not count are cut off."""
        try:
            os.ftruncate(self._descriptor, self._staged.durable)
        finally:
            os.close(self._descriptor)


@contextmanager
def room(free: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A disk that takes no more is waited for: it is no error of the upload.

    Args:
        free: gives back what nobody needs, for the next try.

    Raises:
        Unavailable: STORE_FULL.
    """
    try:
        yield
    except OSError as error:
        free()
        _complain()
        raise Unavailable(
            "STORE_FULL",
            "the coordinator's disk takes no more; free room there and the upload goes on",
            retry_after_s=FULL_RETRY_S,
        ) from error


def _complain() -> None:
    """Say it once in a while: every node tries again every few seconds."""
    now_s = time.monotonic()
    if now_s - _complained_at_s[0] >= COMPLAIN_S:
        _complained_at_s[0] = now_s
        log.error("store_full", do="free room on the disk under storage.blob_dir; uploads go on")


_complained_at_s = [-math.inf]


def staged_name(owner: str, digest: str) -> str:
    """The file of an upload. Raises Malformed: DIGEST_INVALID."""
    if not is_digest(digest):
        raise Malformed("DIGEST_INVALID", "a digest is 64 hexadecimal characters, lower case")
    return f"{owner}.{digest}"
