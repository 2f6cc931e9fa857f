"""Which files have the digests in their names: each is read once, and after each change."""

from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from protos.content import digest_of_file
from protos.errors import NotFound

log = structlog.get_logger(__name__)

COMPARED_MAX: Final = 4096
"""Files that are not read again to compare them with their digests."""


class Compared:
    """What this process has compared, by name: size and time of a file that had its digest."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def is_known(self, path: Path) -> bool:
        """Whether a file has its digest, as far as can be told without reading it.

        Raises:
            FileNotFoundError.
        """
        return self._files.get(path.name) == _seen(path)

    def has_digest(self, path: Path, digest: str) -> bool:
        """Whether a file has its digest; it is read if it must be. Raises FileNotFoundError."""
        if self.is_known(path):
            return True
        if digest_of_file(path) != digest:
            log.error(
                "file_damaged",
                file=path.name,
                do="look at the disk of storage.blob_dir: it gave other bytes than were written",
            )
            return False
        self.note(path)
        return True

    def note(self, path: Path) -> None:
        """Remember that a file has just been compared with its digest."""
        with suppress(FileNotFoundError):  # its round closed meanwhile
            self._files[path.name] = _seen(path)
        if len(self._files) > COMPARED_MAX:
            self._files.popitem(last=False)

    def forget(self, name: str) -> None:
        """Of a file that goes."""
        self._files.pop(name, None)


def model_damaged(digest: str = "") -> NotFound:
    """What to raise where the disk gives something else than was kept, or nothing."""
    named = f" {digest[:12]}…" if digest else ""
    return NotFound(
        "MODEL_DAMAGED",
        f"the file of a model{named} that the job stands on is damaged on the coordinator's disk "
        "or gone from it; look at the disk, put the file back from a backup, then `feddp job "
        "resume`",
    )


def _seen(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
