"""DIR/spool: models that came in and updates that wait to go out, each named by its digest."""

import os
from collections.abc import Collection
from pathlib import Path

from blake3 import blake3

from protos.content import (
    beside_of,
    digest_of,
    digest_of_file,
    hashed,
    is_digest,
    sync_directory,
    write_all,
)
from protos.errors import invariant


class Spool:
    """Files under one folder; `.partial` marks what is not whole.

    Models are not synced: they can be fetched again, and one that an earlier process has left is
    checked before it is believed. Updates are: they can never be made again.
    """

    def __init__(self, root: Path) -> None:
        self._models = root / "models"
        self._updates = root / "updates"
        self._out = root / "out"
        self._checked: set[str] = set()
        for folder in (root, self._models, self._updates, self._out):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def model(self, digest: str) -> Path:
        """Where a whole model is, or will be."""
        return self._named(self._models, digest)

    def partial_model(self, digest: str) -> Path:
        """Where a model grows while it is fetched."""
        path = self.model(digest)
        return path.with_name(f"{path.name}.partial")

    def has_model(self, digest: str) -> bool:
        """Whether the whole model is here, with the right bytes."""
        path = self.model(digest)
        if not path.is_file():
            return False
        if digest not in self._checked:
            if digest_of_file(path) != digest:
                path.unlink()
                return False
            self._checked.add(digest)
        return True

    def put_model(self, digest: str, data: bytes) -> bool:
        """Keep a model that came whole, if it is not here; False if its bytes are others."""
        if digest_of(data) != digest:
            return False
        if self.has_model(digest):
            return True
        with self.growing(digest, len(data)) as growing:
            growing.restart()
            growing.write(data)
        return self.keep_model(growing)

    def growing(self, digest: str, size: int) -> "Growing":
        """Go on with a model of `size` bytes where its partial file ends."""
        return Growing(self.partial_model(digest), digest, size)

    def keep_model(self, growing: "Growing") -> bool:
        """Rename a fetched model to its name; False, and gone, if its bytes are others."""
        partial = self.partial_model(growing.digest)
        if not growing.is_right():
            partial.unlink(missing_ok=True)
            return False
        partial.replace(self.model(growing.digest))
        self._checked.add(growing.digest)
        return True

    def update(self, digest: str) -> Path:
        """Where a spooled update is."""
        return self._named(self._updates, digest)

    def out(self, attempt_id: str) -> Path:
        """Where a worker writes an attempt's update."""
        return self._out / f"{attempt_id}.safetensors"

    def keep_update(self, attempt_id: str, digest: str, size: int) -> bool:
        """Take over what a worker wrote; False if it is not there or not as long.

        The worker has synced it, and taken its digest as it wrote. It is not read once more: the
        coordinator compares the digest when the bytes have arrived.
        """
        out = self.out(attempt_id)
        if not is_digest(digest) or not out.is_file() or out.stat().st_size != size:
            self.drop_out(attempt_id)
            return False
        out.replace(self.update(digest))
        sync_directory(self._updates)
        return True

    def drop_out(self, attempt_id: str) -> None:
        """Remove what a worker wrote for an attempt, and the room that it took."""
        out = self.out(attempt_id)
        for path in (out, beside_of(out)):
            path.unlink(missing_ok=True)

    def drop_update(self, digest: str) -> None:
        """Remove an update that is no longer needed."""
        self.update(digest).unlink(missing_ok=True)

    def keep_only(self, models: Collection[str], updates: Collection[str]) -> None:
        """Remove every file that belongs to none of these digests."""
        self.keep_models(models)
        for path in self._updates.iterdir():
            if path.name not in updates:
                path.unlink(missing_ok=True)
        for path in self._out.iterdir():
            path.unlink(missing_ok=True)

    def keep_models(self, models: Collection[str]) -> None:
        """Remove every model but these."""
        for path in self._models.iterdir():
            if path.name.removesuffix(".partial") not in models:
                self._checked.discard(path.name)
                path.unlink(missing_ok=True)

    @staticmethod
    def _named(folder: Path, digest: str) -> Path:
        invariant(is_digest(digest), "a file in the spool is named by its digest")
        return folder / digest


class Growing:
    """A model that is being fetched: its partial file, and the digest of what is in it."""

    def __init__(self, path: Path, digest: str, size: int) -> None:
        self.digest = digest
        self.size = size
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.offset = os.fstat(self._descriptor).st_size
        self._hasher = hashed(self._descriptor, self.offset)
        if self.offset > size:
            self.restart()

    def restart(self) -> None:
        """Begin at the first byte."""
        os.ftruncate(self._descriptor, 0)
        self.offset, self._hasher = 0, blake3()

    def write(self, data: bytes) -> None:
        """Add bytes; OSError, and nothing is added, when the disk takes no more."""
        try:
            write_all(self._descriptor, data, self.offset)
        except OSError:
            os.ftruncate(self._descriptor, self.offset)
            raise
        self._hasher.update(data)
        self.offset += len(data)

    def is_right(self) -> bool:
        """Whether it is whole and has the digest that it was named by."""
        return self.offset == self.size and self._hasher.hexdigest() == self.digest

    def __enter__(self) -> "Growing":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
