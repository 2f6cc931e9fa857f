"""Is there room on the coordinator's disks?"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from coordinator.config.sections import Storage
from coordinator.store.diagnosis import sqlite_file
from coordinator.store.engines import is_sqlite

Found = tuple[Literal["warning", "error"], str, str]
"""Level, key, text."""

FULL_BYTES: Final = 16 << 20
"""Less is nothing: SQLite's journal alone grows to a few MiB."""

SHARE_MIN: Final = 0.1
_PAGE: Final = "docs/runbooks/DiskFilling.md"


def room_found(storage: Storage, blob_dir: Path) -> Iterator[Found]:
    """What is short.

    Args:
        blob_dir: of `storage.blob_dir` what exists.
    """
    yield from _of("warning", "storage.blob_dir", blob_dir, "no update is taken")
    if is_sqlite(storage.database_url):
        folder = sqlite_file(storage.database_url).parent
        yield from _of("error", "storage.database_url", folder, "nothing is booked")


def _of(level: Literal["warning", "error"], key: str, folder: Path, then: str) -> Iterator[Found]:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return  # that it is not there is told where it is looked for
    if usage.free < FULL_BYTES:
        yield level, key, f"the disk of {folder} is full: {then} ({_PAGE})"
    elif usage.free < SHARE_MIN * usage.total:
        left = f"{usage.free / 2**30:.1f} GiB of {usage.total / 2**30:.1f} GiB"
        yield "warning", key, f"{left} are left on the disk of {folder} ({_PAGE})"
