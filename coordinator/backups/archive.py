"""The archive of a backup: written from its beginning to its end, in constant memory, hashed on the
way."""

import json
import os
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Self

from blake3 import blake3

from coordinator.backups.names import MANIFEST, digest_in
from protos.content import CHUNK_BYTES

Progress = Callable[[int, float], None]
"""(bytes written, share of all from 0 to 1); may begin anew."""


class Moved(Exception):
    """The coordinator has gone on: what the snapshot names is no longer all there."""


class Archive:
    """A tar that is written from its beginning to its end, and what is in it."""

    def __init__(self, file: Any, progress: Progress, expected_bytes: int) -> None:
        sink: Any = _Sink(file)
        self._sink = sink
        self._tar = tarfile.open(  # noqa: SIM115 - `__exit__` closes it
            fileobj=sink, mode="w|", bufsize=CHUNK_BYTES
        )
        self._progress, self._expected, self._bytes = progress, max(1, expected_bytes), 0
        self._files: dict[str, dict[str, int | str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the file; what tarfile holds of an archive that came to nothing is dropped."""
        self._sink.file = None
        self._tar.close()

    def add_bytes(self, name: str, data: bytes) -> None:
        """A small file."""
        self._add(name, BytesIO(data), len(data))

    def add_file(self, name: str, path: Path) -> bool:
        """A file of any size; False if it is no longer there.

        Raises:
            Moved: it has changed while it was read, so that the archive is of no use.
        """
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        with file:
            size = os.fstat(file.fileno()).st_size
            self._expected = max(self._expected, self._bytes + size)
            self._add(name, file, size)
        wanted = digest_in(name)
        if wanted and self._files[name]["digest"] != wanted:
            raise Moved
        return True

    def _add(self, name: str, file: IO[bytes], size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o600, int(time.time())
        hashing = _Hashing(file, self._count)
        try:
            self._tar.addfile(info, hashing)
        except OSError as error:
            if error.errno is None:  # tarfile's own: the file ended early
                raise Moved from None
            raise
        self._files[name] = {"bytes": size, "digest": hashing.hasher.hexdigest()}

    def _count(self, bytes_: int) -> None:
        self._bytes += bytes_
        self._progress(self._bytes, min(1.0, self._bytes / self._expected))

    def finish(self, missing: list[str]) -> int:
        """Write the manifest; the number of files before it."""
        number = len(self._files)
        self.add_bytes(MANIFEST, json_bytes({"files": dict(self._files), "missing": missing}))
        self._tar.close()
        return number


class _Sink:
    """Where tarfile writes: it tries once more, as it is forgotten, after we gave up."""

    def __init__(self, file: Any) -> None:
        self.file: Any = file

    def write(self, data: bytes) -> int:
        """Take bytes, or drop them."""
        return len(data) if self.file is None else self.file.write(data)


class _Hashing:
    """Reads a file and hashes what it has read."""

    def __init__(self, file: IO[bytes], count: Callable[[int], None]) -> None:
        self.hasher = blake3()
        self._file, self._count = file, count

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes."""
        data = self._file.read(size)
        self.hasher.update(data)
        self._count(len(data))
        return data


def json_bytes(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
