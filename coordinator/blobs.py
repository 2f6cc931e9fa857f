"""Models and updates on disk: checked on arrival, written beside and renamed.

A model is named by its digest alone: whoever may read it names the same bytes. An update belongs
to one attempt and is named by attempt and digest, so that no node can hand in another's.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from protos.content import CHUNK_BYTES, digest_of_file, is_digest, sync_directory
from protos.errors import Malformed, NotFound, Unavailable


class BlobStore:
    """One folder: models, `updates/`, and `partial/` for what is still arriving."""

    def __init__(self, folder: Path) -> None:
        self._models = folder
        self._updates = folder / "updates"
        self._partial = folder / "partial"
        for part in (self._models, self._updates, self._partial):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)

    def has_model(self, digest: str) -> bool:
        """Whether the whole model is here."""
        return is_digest(digest) and (self._models / digest).is_file()

    def model(self, digest: str) -> Path:
        """Where a model lies. Raises NotFound: BLOB_MISSING."""
        if not self.has_model(digest):
            raise NotFound("BLOB_MISSING", f"there is no model {digest[:12]}…; upload it first")
        return self._models / digest

    def adopt_model(self, path: Path) -> str:
        """Move a synced file of this process into the store and give its digest."""
        digest = digest_of_file(path)
        path.replace(self._models / digest)
        sync_directory(self._models)
        return digest

    def scratch(self, name: str) -> Path:
        """A path in the store's own file system for a model to be adopted later."""
        return self._partial / f"scratch.{name}"

    def update(self, attempt_id: str, digest: str) -> Path:
        """Where an attempt's update lies. Raises NotFound: BLOB_MISSING."""
        path = self._updates / _staged_name(attempt_id, digest)
        if not path.is_file():
            raise NotFound(
                "BLOB_MISSING", f"the update of attempt {attempt_id} was not uploaded whole"
            )
        return path

    def drop_update(self, attempt_id: str, digest: str) -> None:
        """Forget an update that is folded, or refused."""
        (self._updates / _staged_name(attempt_id, digest)).unlink(missing_ok=True)

    def drop_attempt(self, attempt_id: str) -> None:
        """Forget everything of an attempt that is over."""
        for folder in (self._partial, self._updates):
            for path in folder.glob(f"{attempt_id}.*"):
                path.unlink(missing_ok=True)

    def read(self, digest: str, offset: int, length: int) -> Iterator[bytes]:
        """A range of a model in pieces of at most CHUNK_BYTES.

        Raises:
            NotFound: BLOB_MISSING.
            Malformed: RANGE_INVALID.
        """
        path = self.model(digest)
        if offset > path.stat().st_size:
            raise Malformed("RANGE_INVALID", f"the model ends before byte {offset}")
        with path.open("rb") as file:
            file.seek(offset)
            while length > 0 and (piece := file.read(min(CHUNK_BYTES, length))):
                length -= len(piece)
                yield piece

    def received(self, owner: str, digest: str) -> tuple[int, bool]:
        """(durable bytes of an upload, whether it is complete and checked)."""
        name = _staged_name(owner, digest)
        done = self._models / digest if owner.startswith("user.") else self._updates / name
        if done.is_file():
            return done.stat().st_size, True
        partial = self._partial / name
        return (partial.stat().st_size if partial.exists() else 0), False

    def stage(self, owner: str, digest: str, offset: int, pieces: Sequence[bytes]) -> int:
        """Append pieces to an upload, sync, and give its durable size.

        Raises:
            Malformed: OFFSET_MISMATCH, the pieces do not begin where the durable bytes end.
            Unavailable: STORE_FULL, the disk takes no more; nothing of this call is counted.
        """
        path = self._partial / _staged_name(owner, digest)
        for other in self._partial.glob(f"{owner}.*"):
            if other != path:
                other.unlink(missing_ok=True)  # one upload at a time for each owner
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", 0) as file:
            held = file.seek(0, os.SEEK_END)
            if held != offset:
                raise Malformed(
                    "OFFSET_MISMATCH",
                    f"the upload goes on at byte {held}, not {offset}; ask UploadStatus",
                )
            try:
                for piece in pieces:
                    file.write(piece)
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(held)
                raise Unavailable(
                    "STORE_FULL",
                    "the coordinator's disk takes no more; free room there and the upload goes on",
                ) from error
            return file.tell()

    def finish_model(self, owner: str, digest: str) -> None:
        """Check a complete upload of a model and give it its name. Raises as `finish_update`."""
        self._checked(owner, digest).replace(self._models / digest)
        sync_directory(self._models)

    def finish_update(self, attempt_id: str, digest: str) -> None:
        """Check a complete upload of an update and give it its name.

        Raises:
            Malformed: DIGEST_MISMATCH; the upload is dropped and may begin again.
        """
        path = self._checked(attempt_id, digest)
        path.replace(self._updates / path.name)
        sync_directory(self._updates)

    def _checked(self, owner: str, digest: str) -> Path:
        path = self._partial / _staged_name(owner, digest)
        if digest_of_file(path) != digest:
            path.unlink()
            raise Malformed(
                "DIGEST_MISMATCH", "the bytes do not have the digest that was announced; send again"
            )
        return path


def _staged_name(owner: str, digest: str) -> str:
    if not is_digest(digest):
        raise Malformed("DIGEST_INVALID", "a digest is 64 hexadecimal characters, lower case")
    return f"{owner}.{digest}"
