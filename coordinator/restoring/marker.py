"""The mark of a restore that is under way: while it lies in a folder, nobody serves from there.

It names what the restore makes, so that the next one can take that away, and nothing else.
"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.alone import alone
from coordinator.config.sections import Storage
from coordinator.store.diagnosis import sqlite_file
from coordinator.store.engines import is_sqlite
from protos.content import sync_directory, write_durable
from protos.errors import Malformed, WrongPhase

FILE: Final = "restore-unfinished.json"
LOCK: Final = ".restore.lock"
PARTIAL: Final = ".partial"
"""How the name of a file ends that grows beside its own, see `protos.content`."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a restore has begun.

    Attributes:
        at_s: its moment; the pause that it writes into the database has the same.
        made: files that were not there before it began, then the folders that they lie in.
    """

    at_s: float
    made: tuple[Path, ...]


def refuse_unfinished(config_path: Path, storage: Storage | None = None) -> None:
    """Raise if a restore of this installation was cut off.

    Args:
        storage: what the configuration says, if it could be read: where that lies elsewhere, in a
            ConfigMap say, the mark lies in the folder of what it names.

    Raises:
        WrongPhase: RESTORE_UNFINISHED.
    """
    places = [config_path.absolute().parent]
    if storage is not None:
        places += [storage.pki_dir.parent, storage.blob_dir.parent]
        if is_sqlite(storage.database_url):
            places.append(sqlite_file(storage.database_url).parent)
    for folder in places:
        if (folder / FILE).exists():
            raise WrongPhase(
                "RESTORE_UNFINISHED",
                f"a restore into {folder} is under way or was cut off, and what lies there is a "
                "part; run `feddp coordinator restore` into it again, which begins anew",
            )


def left(folder: Path) -> Mark | None:
    """What a restore that was killed has left; None for nothing.

    Raises:
        Malformed: RESTORE_MARK_INVALID.
    """
    try:
        told = json.loads((folder / FILE).read_bytes())
        return Mark(float(told["at"]), tuple(Path(one) for one in told["made"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise Malformed(
            "RESTORE_MARK_INVALID",
            f"{folder / FILE} cannot be read, so that nobody can tell what a restore has left in "
            "this folder: choose another one",
        ) from None


def put(folder: Path, mark: Mark) -> None:
    """Begin: from now on nobody serves from the folder."""
    told = {"at": mark.at_s, "made": [str(one) for one in mark.made]}
    write_durable(folder / FILE, json.dumps(told, indent=1).encode())


def take_away(folder: Path) -> None:
    """Be done: what lies in the folder is whole, or nothing of the restore is left."""
    (folder / FILE).unlink(missing_ok=True)
    sync_directory(folder)


def clear(made: Sequence[Path]) -> None:
    """Remove what a restore has made, as far as it has come, and nothing else: a folder that holds
    something of somebody else's stays."""
    names: dict[Path, set[str]] = defaultdict(set)
    for path in made:
        names[path.parent].add(path.name)
    for folder, known in names.items():
        for growing in folder.glob(f".*{PARTIAL}"):
            name = growing.name[1 : -len(PARTIAL)]
            if name in known or name.rpartition(".")[0] in known:
                growing.unlink()
    for path in made:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder against another restore.

    Raises:
        Conflict: RESTORE_RUNS.
    """
    text = f"another restore into {folder} is under way; wait for it"
    with alone(folder / LOCK, "RESTORE_RUNS", text):
        try:
            yield
        finally:
            # While it is held: whoever comes later makes one of their own.
            (folder / LOCK).unlink(missing_ok=True)
