"""Models and updates on disk: checked on arrival, written beside and renamed.

A model is named by its digest alone: whoever may read it names the same bytes. An update belongs
to one attempt and is named by attempt and digest, so that no node can hand in another's.
"""

import itertools
import os
import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from coordinator.compared import Compared, model_damaged
from coordinator.replicas.shared_blobs import SharedBlobs
from coordinator.uploads import Appending, Uploads, room, staged_name
from protos.content import (
    DIGEST_LENGTH,
    INLINE_BYTES,
    digest_of,
    digest_of_file,
    is_digest,
    sync_directory,
    write_durable,
)
from protos.errors import Malformed, NotFound, Unavailable

INLINE_MODELS_MAX: Final = 8
"""Small models kept in memory: one for each job that is likely to run at once."""

SIZES_MAX: Final = 1024
"""Models of the shared store whose size is known without asking it; it never changes."""

UPDATES: Final = "updates"
_SCRATCH: Final = "scratch."


class BlobStore:
    """One folder: models, `updates/`, and `partial/` for what is still arriving.

    Args:
        shared: where every whole file goes, too, before it counts; what is not in the folder is
            fetched from there. Methods that may do either are for a thread; see `at_hand`.
    """

    def __init__(self, folder: Path, shared: SharedBlobs | None = None) -> None:
        self._shared = shared
        self._models = folder
        self._updates = folder / UPDATES
        self._partial = folder / "partial"
        for part in (self._models, self._updates, self._partial):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._uploads = Uploads(self._partial)
        self._inline: OrderedDict[str, bytes] = OrderedDict()
        self._scratches = itertools.count()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._compared = Compared()

    @property
    def fault(self) -> str:
        """Why the shared store cannot be used; empty if it can, and without one."""
        away = self._shared.away if self._shared is not None else None
        return away.sentence if away is not None else ""

    @property
    def is_shared(self) -> bool:
        """Whether other replicas keep files that are not in the folder."""
        return self._shared is not None

    def shared_bytes(self, attempt_id: str, digest: str) -> int | None:
        """Size of an attempt's update in the shared store; None if it is not there."""
        name = _shared_name(self._updates / staged_name(attempt_id, digest))
        return None if self._shared is None else self._shared.size(name)

    def has_model(self, digest: str) -> bool:
        """Whether the whole model is in the folder."""
        return is_digest(digest) and (self._models / digest).is_file()

    def is_gone(self, digest: str) -> bool:
        """Whether a model lies nowhere. What the shared store has is not asked for."""
        return self._shared is None and not self.has_model(digest)

    def at_hand(self, digests: Iterable[str]) -> None:
        """Fetch models that are not in the folder, if another replica has kept them. Slow."""
        for digest in digests:
            if self._shared is not None and is_digest(digest):
                with suppress(NotFound):
                    self._fetch(self._models / digest)

    def model(self, digest: str) -> Path:
        """Where a model lies. Raises NotFound: BLOB_MISSING."""
        self.at_hand([digest])
        if not self.has_model(digest):
            raise NotFound("BLOB_MISSING", f"there is no model {digest[:12]}…; upload it first")
        return self._models / digest

    def model_bytes(self, digest: str) -> int:
        """Size of a model, which need not be in the folder. Raises NotFound: BLOB_MISSING."""
        if self._shared is None or self.has_model(digest):
            return self.model(digest).stat().st_size
        if digest not in self._sizes:
            size = self._shared.size(digest)
            self._sizes[digest] = self.model(digest).stat().st_size if size is None else size
            if len(self._sizes) > SIZES_MAX:
                self._sizes.popitem(last=False)
        return self._sizes[digest]

    def inline_model(self, digest: str) -> bytes:
        """A model that is small enough to travel in an order, read once for all nodes; else b"".

        Raises NotFound: BLOB_MISSING.
        """
        if digest in self._inline:
            self._inline.move_to_end(digest)
            return self._inline[digest]
        if self.model_bytes(digest) > INLINE_BYTES:
            return b""
        data = self.model(digest).read_bytes()
        if digest_of(data) != digest:
            return b""  # damaged on the disk; it may be put back
        self._inline[digest] = data
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
        self._share(self._models / digest, path)
        path.replace(self._models / digest)
        sync_directory(self._models)
        self._compared.note(self._models / digest)
        return digest

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A path in the store's own file system for a model to be adopted; nobody else's, and what
        is left there in the end is removed: on a full disk others may need the room."""
        path = self._partial / f"{_SCRATCH}{name}.{os.getpid()}-{next(self._scratches)}"
        try:
            yield path
        except OSError:
            self.free_spent()
            raise
        finally:
            path.unlink(missing_ok=True)

    def has_room(self, size: int) -> bool:
        """Whether the disk takes so many bytes more."""
        return self.disk()[0] > size

    def disk(self) -> tuple[int, int]:
        """Bytes that are free on the folder's disk, and its size."""
        usage = shutil.disk_usage(self._models)
        return usage.free, usage.total

    def update(self, attempt_id: str, digest: str) -> Path:
        """Where an attempt's update lies, with the bytes that were taken: a file that this process
        has not compared with its digest, or that has changed since, is read once more.

        Raises:
            NotFound: BLOB_MISSING, also for one that was damaged, which goes.
        """
        path = self._updates / staged_name(attempt_id, digest)
        for _ in range(2):  # one that was damaged may be whole in the shared store
            with suppress(NotFound):
                self._fetch(path)
            if self._is_whole(path, digest):
                return path
        raise NotFound("BLOB_MISSING", f"the update of attempt {attempt_id} was not uploaded whole")

    def is_known_whole(self, digest: str) -> bool:
        """Whether a model is in the folder with its digest, as far as can be told unread."""
        with suppress(FileNotFoundError):
            return self._compared.is_known(self._models / digest)
        return False

    def check_models(self, digests: Iterable[str]) -> None:
        """Compare the files of models with their digests, as `update` does. For a thread.

        Raises:
            NotFound: MODEL_DAMAGED, also for one that is gone.
        """
        for digest in digests:
            try:
                is_whole = self._compared.has_digest(self.model(digest), digest)
            except (NotFound, FileNotFoundError):
                is_whole = False
            if not is_whole:
                raise model_damaged(digest)

    def _is_whole(self, path: Path, digest: str) -> bool:
        try:
            if self._compared.has_digest(path, digest):
                return True
        except FileNotFoundError:
            return False
        self._compared.forget(path.name)
        path.unlink(missing_ok=True)
        return False

    def drop_update(self, attempt_id: str, digest: str) -> None:
        """Forget an update that is folded, or refused.

        A large one gives its room back when the next upload begins, when the disk is full, or with
        `free_spent`.
        """
        path = self._updates / staged_name(attempt_id, digest)
        self._compared.forget(path.name)
        if self._shared is not None:
            self._shared.drop(_shared_name(path))
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
        if self._shared is not None:
            self._shared.drop_folder(f"{UPDATES}/{attempt_id}")
        for path in self._updates.glob(f"{attempt_id}.*"):
            self._compared.forget(path.name)
            path.unlink(missing_ok=True)

    def attempts_kept(self) -> list[str]:
        """Attempts of which anything is in the folder: a whole update, or one that arrives."""
        found = {path.name.rpartition(".") for path in self._updates.iterdir()}
        found |= {path.name.rpartition(".") for path in self._partial.iterdir()}
        return sorted(
            {owner for owner, _, digest in found if is_digest(digest) and "." not in owner}
        )

    def drop_scratch(self) -> None:
        """Remove what a process before this one had begun to fold. Before this one begins."""
        for path in self._partial.glob(f"{_SCRATCH}*"):
            path.unlink(missing_ok=True)

    def keep_update(self, attempt_id: str, digest: str, data: bytes) -> None:
        """Keep a small update, durably.

        Raises:
            Malformed: DIGEST_MISMATCH, DIGEST_INVALID.
            Unavailable: STORE_FULL, STORE_UNREACHABLE.
        """
        path = self._updates / staged_name(attempt_id, digest)
        if digest_of(data) != digest:
            raise Malformed(
                "DIGEST_MISMATCH", "the bytes do not have the digest that was announced; send again"
            )
        if self._shared is not None:
            self._shared.put_bytes(_shared_name(path), data)
        with room(self._uploads.free_spent):
            write_durable(path, data)
        self._compared.note(path)

    def received(self, owner: str, digest: str) -> tuple[int, bool]:
        """(durable bytes of an upload, whether it is complete and checked)."""
        done = self._target(owner, digest)
        if done.is_file():
            return done.stat().st_size, True
        if self._shared is not None:
            # Another replica may have taken it, and then could not say so.
            kept = self._shared.size(_shared_name(done))
            if kept is not None:
                return kept, True
        return self._uploads.durable(owner, digest), False

    def has_update_beside(self, attempt_id: str, digest: str) -> bool:
        """Whether the folder has a whole update of an attempt that is not this one."""
        kept = {path.name for path in self._updates.glob(f"{attempt_id}.*")}
        return bool(kept - {staged_name(attempt_id, digest)})

    def drop_upload(self, owner: str, digest: str) -> None:
        """Forget what has come of one upload that is not whole."""
        self._uploads.drop_one(owner, digest)

    def drop_longer(self, owner: str, digest: str, size: int) -> None:
        """Forget an upload of which more has come than its size."""
        self._uploads.drop_longer(owner, digest, size)

    def begin(self, owner: str, digest: str, offset: int) -> Appending:
        """Go on with an upload; see `Uploads.begin`."""
        return self._uploads.begin(owner, digest, offset)

    def finish(self, owner: str, digest: str) -> None:
        """Check a complete upload and give it its name, durably; see `Uploads.finish`."""
        target = self._target(owner, digest)
        self._uploads.finish(owner, digest, target, lambda staged: self._share(target, staged))
        sync_directory(target.parent)
        self._compared.note(target)

    def keep_attempts(self, attempts: Collection[str]) -> None:
        """For a replica that does not lead: drop what has come, whole or in part, for others."""
        if self._shared is None:
            return
        for path in self._updates.iterdir():
            if path.name.rpartition(".")[0] not in attempts:
                self._compared.forget(path.name)
                path.unlink(missing_ok=True)
        for path in self._partial.iterdir():
            owner, _, digest = path.name.rpartition(".")
            if is_digest(digest) and not owner.startswith("user.") and owner not in attempts:
                self._uploads.drop(owner)

    def models_beside(self, models: Collection[str]) -> list[str]:
        """Digests of the models in the folder that are not among these."""
        return [
            path.name
            for path in self._models.iterdir()
            if is_digest(path.name) and path.name not in models
        ]

    def drop_copy(self, digest: str) -> bool:
        """Drop a model from the folder, if the shared store has it; whether it has."""
        path = self._models / digest
        with suppress(FileNotFoundError):
            size = path.stat().st_size
            if self._shared is None or self._shared.size(digest) != size:
                return False
            path.unlink()
        return True

    def close(self) -> None:
        """Finish what is being dropped."""
        if self._shared is not None:
            self._shared.close()

    def _share(self, target: Path, path: Path) -> None:
        """Keep what will lie at `target`, and lies at `path`, where every replica finds it."""
        if self._shared is not None:
            self._shared.put(_shared_name(target), path)

    def _fetch(self, target: Path) -> None:
        if self._shared is not None and not target.is_file():
            try:
                self._shared.fetch(_shared_name(target), target.name[-DIGEST_LENGTH:], target)
                self._compared.note(target)
            except Unavailable:
                self.free_spent()  # the disk may be full
                raise

    def _target(self, owner: str, digest: str) -> Path:
        name = staged_name(owner, digest)
        return self._models / digest if owner.startswith("user.") else self._updates / name


def _shared_name(path: Path) -> str:
    """`DIGEST` of a model, `updates/ATTEMPT/DIGEST` of an update, from its place in the folder."""
    attempt_id, _, digest = path.name.rpartition(".")
    return f"{UPDATES}/{attempt_id}/{digest}" if attempt_id else digest
