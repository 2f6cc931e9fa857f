"""`feddp coordinator backup --out-dir`: a folder with the newest sound backups, for a schedule.

    feddp-20260131T020000Z.backup             sound, and all that its tables name is in it
    feddp-20260131T020000Z.incomplete.backup  sound, and something was missing at the coordinator

Each is read back before it gets its name, so that whatever carries one was sound when it was
written; only then are older ones removed. One that is not complete removes none that is: a
coordinator that has lost its models does not push the last good backup out.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from coordinator.alone import alone
from coordinator.backups.archive import Progress
from coordinator.backups.backup import Backup, backup
from coordinator.backups.check import Checked, check
from protos.content import beside_of, sync_directory
from protos.errors import Conflict, Malformed, NotFound, WrongPhase

KEEP_MAX: Final = 10_000
TOLD_MAX: Final = 5
LOCK: Final = ".feddp-backup.lock"

INCOMPLETE: Final = ".incomplete.backup"
_NAME: Final = re.compile(r"feddp-[0-9]{8}T[0-9]{6}Z(\.incomplete)?\.backup")
"""In the order of their time; nothing else in the folder is touched."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What was written, and what the folder then holds.

    Attributes:
        removed: names of backups that were older than those to be kept.
        kept: backups that are there now, the new one included.
    """

    backup: Backup
    checked: Checked
    removed: tuple[str, ...]
    kept: int


def backup_into(
    config_path: Path,
    folder: Path,
    *,
    keep: int,
    now_s: float,
    keys: bool = False,
    password: bytes | None = None,
    progress: Progress = lambda *_: None,
) -> Kept:
    """Write a backup into `folder`, read all of it back, and remove the oldest beyond `keep`.

    Args:
        keep: how many stay, the new one included. An incomplete one counts, and removes, incomplete
            ones alone.
        now_s: the time that names the new one. A clock that was set back gives it an older name
            than others have; it stays all the same.

    Raises:
        Malformed: KEEP_INVALID; and what `backup` and `check` raise.
        NotFound: FOLDER_MISSING.
        Conflict: BACKUP_RUNS, FILE_EXISTS.
        WrongPhase: BACKUP_UNSOUND; nothing was kept of it, and nothing was removed.
    """
    if not 1 <= keep <= KEEP_MAX:
        raise Malformed("KEEP_INVALID", f"--keep is a number from 1 to {KEEP_MAX}")
    folder = folder.absolute()
    if not folder.is_dir():
        raise NotFound("FOLDER_MISSING", f"{folder} is not a folder; make it first")
    found: list[Checked] = []

    def accept(path: Path) -> None:
        checked = check(path, password, progress)
        if checked.problems:
            raise _unsound(checked)
        found.append(checked)

    stem = f"feddp-{datetime.fromtimestamp(now_s, UTC):%Y%m%dT%H%M%SZ}"
    out, whole = folder / f"{stem}{INCOMPLETE}", folder / f"{stem}.backup"
    running = f"another backup is being written into {folder}; wait for it"
    with alone(folder / LOCK, "BACKUP_RUNS", running):
        if whole.exists() or whole.is_symlink():
            raise Conflict("FILE_EXISTS", f"{whole} exists and is not written over")
        for left in _names(folder, partial=True):
            left.unlink()
        made = backup(
            config_path, out, keys=keys, password=password, progress=progress, accept=accept
        )
        if not made.missing:
            # The name without the mark comes last: a crash before leaves it with too humble a one.
            made = replace(made, file=out.replace(whole))
        older = [
            one
            for one in _names(folder)
            if one != made.file and (not made.missing or one.name.endswith(INCOMPLETE))
        ]
        removed = older[: max(0, len(older) - (keep - 1))]
        for one in removed:
            one.unlink()
        sync_directory(folder)
        kept = len(_names(folder))
    return Kept(made, found[-1], tuple(one.name for one in removed), kept)


def _names(folder: Path, *, partial: bool = False) -> list[Path]:
    """The backups of a folder, the oldest first; or what one that was killed left of itself."""

    def own(path: Path) -> bool:
        whole = path.name
        if partial:
            whole = path.name.removeprefix(".").removesuffix(".partial")
            if path != beside_of(path.with_name(whole)):
                return False
        return _NAME.fullmatch(whole) is not None and path.is_file() and not path.is_symlink()

    return sorted(path for path in folder.iterdir() if own(path))


def _unsound(checked: Checked) -> WrongPhase:
    count = len(checked.problems)
    more = f"; and {count - TOLD_MAX} more" if count > TOLD_MAX else ""
    return WrongPhase(
        "BACKUP_UNSOUND",
        "what was written is not sound and was not kept, and no older backup was removed: "
        f"{'; '.join(checked.problems[:TOLD_MAX])}{more}. Run `feddp coordinator check` and `feddp "
        "budget verify`; `--out FILE` writes one at any rate",
    )
