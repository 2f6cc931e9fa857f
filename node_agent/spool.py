"""DIR/spool: models that came in and updates that wait to go out, each named by its digest."""

import os
from collections.abc import Collection
from pathlib import Path

from protos.content import digest_of_file, is_digest, sync_directory
from protos.errors import invariant


class Spool:
    """Files under one folder; `.partial` marks what is not whole."""

    def __init__(self, root: Path) -> None:
        self._models = root / "models"
        self._updates = root / "updates"
        self._out = root / "out"
        for folder in (root, self._models, self._updates, self._out):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def model(self, digest: str) -> Path:
        """Where a whole model is, or will be."""
        return self._named(self._models, digest)

    def partial_model(self, digest: str) -> Path:
        """Where a model grows while it is fetched."""
        path = self.model(digest)
        return path.with_name(f"{path.name}.partial")

    def update(self, digest: str) -> Path:
        """Where a spooled update is."""
        return self._named(self._updates, digest)

    def out(self, attempt_id: str) -> Path:
        """Where a worker writes an attempt's update."""
        return self._out / f"{attempt_id}.safetensors"

    def keep_model(self, digest: str) -> bool:
        """Rename a fetched model to its name, durably; False, and gone, if its bytes are others."""
        partial = self.partial_model(digest)
        if digest_of_file(partial) != digest:
            partial.unlink()
            return False
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(self.model(digest))
        sync_directory(self._models)
        return True

    def keep_update(self, attempt_id: str, digest: str) -> bool:
        """Take over what a worker wrote (durably); False if it is not there or not those bytes."""
        out = self.out(attempt_id)
        if not is_digest(digest) or not out.is_file() or digest_of_file(out) != digest:
            out.unlink(missing_ok=True)
            return False
        out.replace(self.update(digest))
        sync_directory(self._updates)
        return True

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
                path.unlink(missing_ok=True)

    @staticmethod
    def _named(folder: Path, digest: str) -> Path:
        invariant(is_digest(digest), "a file in the spool is named by its digest")
        return folder / digest
