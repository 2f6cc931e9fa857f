"""What both ends of a floor do that keeps what it moves: files, digests, and a sync of each that
must not be lost."""

import os
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
from blake3 import blake3

from benchmarks.floor_messages import CHUNK_BYTES, chunk_sizes, random_bytes
from benchmarks.fold_floor import TILE_VALUES
from protos.content import write_all


def write_pieces(path: Path, pieces: Iterable[bytes], *, synced: bool) -> int:
    """Bytes that were written and digested, one piece after the other."""
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        hasher, size = blake3(), 0
        for data in pieces:
            write_all(descriptor, data, size)
            hasher.update(data)
            size += len(data)
        hasher.hexdigest()
        if synced:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return size


def read_pieces(path: Path) -> Iterator[bytes]:
    """A file as messages."""
    with path.open("rb", buffering=0) as file:
        while data := file.read(CHUNK_BYTES):
            yield data


def write_update(path: Path, message_bytes: int) -> None:
    """What a worker leaves: an update on disk, digested and synced."""
    chunk = random_bytes(min(CHUNK_BYTES, message_bytes))
    write_pieces(path, (chunk[:size] for size in chunk_sizes(message_bytes)), synced=True)


class KeptModel:
    """The server's model and the updates of the round under way, in one folder."""

    def __init__(self, folder: Path, message_bytes: int) -> None:
        self._folder = folder
        self._path = folder / "model"
        self._path.write_bytes(bytes(message_bytes))
        self._numbers = count()
        self._updates: list[Path] = []

    def pieces(self) -> Iterator[bytes]:
        """The model."""
        return read_pieces(self._path)

    def keep(self, pieces: Iterable[bytes]) -> int:
        """Keep one update, which may be acknowledged afterwards."""
        path = self._folder / f"update-{next(self._numbers)}"
        size = write_pieces(path, pieces, synced=True)
        self._updates.append(path)
        return size

    def average(self) -> None:
        """Fold the updates into the next model; all values are looked at, nothing is checked."""
        updates, self._updates = self._updates, []
        weight = np.float32(1 / len(updates))
        files = [path.open("rb", buffering=0) for path in (self._path, *updates)]
        beside = self._path.with_suffix(".next")

        def tiles() -> Iterator[bytes]:
            while data := files[0].read(4 * TILE_VALUES):
                total = np.frombuffer(data, np.float32).copy()
                for file in files[1:]:
                    tile = np.frombuffer(file.read(len(data)), np.float32)
                    total += weight * tile
                yield total.tobytes()

        with np.errstate(all="ignore"):
            write_pieces(beside, tiles(), synced=True)
        beside.replace(self._path)
        for file in files:
            file.close()
        for path in updates:
            path.unlink()
