"""Models and updates on disk: checked on arrival, written beside and renamed.

A model is named by its digest alone: whoever may read it names the same bytes. An update belongs
to one attempt and is named by attempt and digest, so that no node can hand in another's.
"""

import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Final

from coordinator.uploads import Appending, Uploads, room, staged_name
from protos.content import (
    INLINE_BYTES,
    digest_of,
    digest_of_file,
    is_digest,
    sync_directory,
    write_durable,
)
from protos.errors import Malformed, NotFound

INLINE_MODELS_MAX: Final = 8
"""Small models kept in memory: one for each job that is likely to run at once."""


class BlobStore:
    """One folder: models, `updates/`, and `partial/` for what is still arriving."""

    def __init__(self, folder: Path) -> None:
        self._models = folder
        self._updates = folder / "updates"
        self._partial = folder / "partial"
        for part in (self._models, self._updates, self._partial):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._uploads = Uploads(self._partial)
        self._inline: OrderedDict[str, bytes] = OrderedDict()

    def has_model(self, digest: str) -> bool:
        """Whether the whole model is here."""
        return is_digest(digest) and (self._models / digest).is_file()

    def model(self, digest: str) -> Path:
        """Where a model lies. Raises NotFound: BLOB_MISSING."""
        if not self.has_model(digest):
            raise NotFound("BLOB_MISSING", f"there is no model {digest[:12]}…; upload it first")
        return self._models / digest

    def inline_model(self, digest: str) -> bytes:
        """A model that is small enough to travel in an order, read once for all nodes; else b"".

        Raises NotFound: BLOB_MISSING.
        """
        if digest in self._inline:
            self._inline.move_to_end(digest)
            return self._inline[digest]
        path = self.model(digest)
        if path.stat().st_size > INLINE_BYTES:
            return b""
        data = self._inline[digest] = path.read_bytes()
        if len(self._inline) > INLINE_MODELS_MAX:
            self._inline.popitem(last=False)
        return data

    def open_model(self, digest: str, offset: int) -> tuple[int, int]:
        """(descriptor of a model, its bytes from `offset` on); the caller closes it.

        Raises:
            NotFound: BLOB_MISSING.
            Malformed: RANGE_INVALID.
        """
        descriptor = os.open(self.model(digest), os.O_RDONLY)
        left = os.fstat(descriptor).st_size - offset
        if left < 0:
            os.close(descriptor)
            raise Malformed("RANGE_INVALID", f"the model ends before byte {offset}")
        return descriptor, left

    def adopt_model(self, path: Path, digest: str = "") -> str:
        """Move a synced file of this process into the store and give its digest.

        Args:
            digest: if it was taken as the file was written.
        """
        digest = digest or digest_of_file(path)
        path.replace(self._models / digest)
        sync_directory(self._models)
        return digest

    def scratch(self, name: str) -> Path:
        """A path in the store's own file system for a model to be adopted later."""
        return self._partial / f"scratch.{name}"

    def has_room(self, size: int) -> bool:
        """Whether the disk takes so many bytes more."""
        return shutil.disk_usage(self._models).free > size

    def update(self, attempt_id: str, digest: str) -> Path:
        """Where an attempt's update lies. Raises NotFound: BLOB_MISSING."""
        path = self._updates / staged_name(attempt_id, digest)
        if not path.is_file():
            raise NotFound(
                "BLOB_MISSING", f"the update of attempt {attempt_id} was not uploaded whole"
            )
        return path

    def drop_update(self, attempt_id: str, digest: str) -> None:
        """Forget an update that is folded, or refused.

        A large one gives its room back when the next upload begins, or with `free_spent`.
        """
        path = self._updates / staged_name(attempt_id, digest)
        try:
            if path.stat().st_size > INLINE_BYTES:
                self._uploads.spend(path)
            else:
                path.unlink()
        except FileNotFoundError:
            return

    def free_spent(self) -> None:
        """Give back all room that was kept for the next upload."""
        self._uploads.free_spent()

    def drop_attempt(self, attempt_id: str) -> None:
        """Forget everything of an attempt that is over."""
        self._uploads.drop(attempt_id)
        for path in self._updates.glob(f"{attempt_id}.*"):
            path.unlink(missing_ok=True)

    def keep_update(self, attempt_id: str, digest: str, data: bytes) -> None:
        """Keep a small update, durably.

        Raises:
            Malformed: DIGEST_MISMATCH, DIGEST_INVALID.
            Unavailable: STORE_FULL.
        """
        path = self._updates / staged_name(attempt_id, digest)
        if digest_of(data) != digest:
            raise Malformed(
                "DIGEST_MISMATCH", "the bytes do not have the digest that was announced; send again"
            )
        with room():
            write_durable(path, data)

    def received(self, owner: str, digest: str) -> tuple[int, bool]:
        """(durable bytes of an upload, whether it is complete and checked)."""
        done = self._target(owner, digest)
        if done.is_file():
            return done.stat().st_size, True
        return self._uploads.durable(owner, digest), False

    def begin(self, owner: str, digest: str, offset: int) -> Appending:
        """Go on with an upload; see `Uploads.begin`."""
        return self._uploads.begin(owner, digest, offset)

    def finish(self, owner: str, digest: str) -> None:
        """Check a complete upload and give it its name, durably; see `Uploads.finish`."""
        target = self._target(owner, digest)
        self._uploads.finish(owner, digest, target)
        sync_directory(target.parent)

    def _target(self, owner: str, digest: str) -> Path:
        name = staged_name(owner, digest)
        return self._models / digest if owner.startswith("user.") else self._updates / name
