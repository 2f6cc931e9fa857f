"""`feddp coordinator restore`: a whole coordinator from a backup, into a place that has nothing.

The backup is read twice: first all of it is checked, and nothing is written; then its files are
written where they belong, and last the database appears there, in one step. Until then a mark lies
in the folder (`marker`): nobody serves from there, and another restore begins anew.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.backups.archive import Progress
from coordinator.backups.check import Checked, check
from coordinator.backups.extract import extract
from coordinator.config.config import load_config
from coordinator.installation import CONFIG_FILE
from coordinator.keyring import ledger_public_key
from coordinator.replicas.shared_blobs import SharedBlobs
from coordinator.restoring import marker, revocations
from coordinator.restoring.database import fill
from coordinator.restoring.marker import Mark
from coordinator.restoring.restored import Changes
from coordinator.restoring.target import Target, target_of
from coordinator.store import pauses
from coordinator.store.database import Database, newest_revision
from coordinator.store.standings import NOBODY, Carried
from protos.content import write_durable
from protos.errors import Malformed

CHECK_SHARE: Final = 0.45
FILES_SHARE: Final = 0.35
PROBLEMS_TOLD_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done, or with a dry run would be.

    Attributes:
        checked: what the backup holds.
        keys: whether the keys came from it.
        blobs: models and updates.
        revocations: certificates that the backup did not know to be revoked.
        nodes: that stood otherwise when the installation was lost, and do so again.
        changes: None for a dry run, and for one that only had to be finished.
        epoch: the coordinator's from now on; 0 as above.
        finished: the restore before this one was whole, but for its mark.
    """

    folder: Path
    checked: Checked
    database: str
    keys: bool
    blobs: int = 0
    revocations: int = 0
    nodes: Carried = NOBODY
    changes: Changes | None = None
    epoch: int = 0
    profile: Path | None = None
    finished: bool = False


def restore(
    file: Path,
    folder: Path,
    *,
    password: bytes | None = None,
    revoked: Sequence[Path] | None,
    database_url: str = "",
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
) -> Restored:
    """Restore `file` to `folder`, or leave it as it was.

    Args:
        revoked: files of revocations; None for a restore that knowingly has none.
        database_url: another database than the one that the backup's configuration names.

    Raises:
        NotFound: FILE_MISSING, PASSWORD_MISSING, KEYS_MISSING, AUTHORITY_MISSING.
        Conflict: RESTORE_TARGET_NOT_EMPTY, RESTORE_OTHER_INSTALLATION, RESTORE_RUNS.
        Malformed: BACKUP_INVALID, BACKUP_DAMAGED, BACKUP_CHANGED, SEAL_BROKEN, CONFIG_INVALID,
            REVOCATIONS_INVALID, REVOCATIONS_OTHER, USAGE, DATABASE_UNUSABLE, DATABASE_NEWER.
        WrongPhase: RESTORE_UNFINISHED, for a dry run.
        Unavailable: DATABASE_UNREACHABLE, STORE_UNREACHABLE.
    """
    folder = folder.absolute()
    # 1. The backup is sound, all of it.
    found = check(file, password, lambda count, share: progress(count, share * CHECK_SHARE))
    _refuse_damaged(file, found)
    # 2. So are the revocations, and they are this installation's.
    ledger = bytes.fromhex(str(found.format.get("ledger_public_key", "")))
    known = revocations.read(revoked or (), ledger, found.trust_domain)
    if dry_run:
        if marker.left(folder) is not None:
            marker.refuse_unfinished(folder / CONFIG_FILE)
        target = target_of(folder, found, database_url, os.environ)
        kind, count = _kind(target), len(known.revocations)
        return Restored(folder, found, kind, target.with_keys, revocations=count)
    is_new = not folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with marker.only_one(folder):
            # 3. What a restore that was killed has left is finished, or taken away.
            if (left := marker.left(folder)) is not None:
                if (whole := _whole(folder, left, found)) is not None:
                    marker.take_away(folder)
                    return whole
                marker.clear(left.made)
                marker.take_away(folder)
            # 4. Nothing is there that would be written over.
            target = target_of(folder, found, database_url, os.environ)
            mark = Mark(time.time(), target.made(found))
            marker.put(folder, mark)
            # 5. Its files, then its tables; or nothing of it.
            with contextlib.ExitStack() as undo:
                undo.callback(marker.take_away, folder)
                undo.callback(marker.clear, mark.made)
                restored = _write(file, password, found, target, known, mark, progress)
                undo.pop_all()
            marker.clear(target.working())
            marker.take_away(folder)
            return restored
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which it refuses where something is in it


def _refuse_damaged(file: Path, found: Checked) -> None:
    if not found.problems:
        return
    told = found.problems[:PROBLEMS_TOLD_MAX]
    more = len(found.problems) - len(told)
    raise Malformed(
        "BACKUP_DAMAGED",
        f"{file} is not sound, and nothing was written: {'; '.join(told)}"
        f"{f'; and {more} more' if more else ''}. Take an older backup",
    )


def _kind(target: Target) -> str:
    return "PostgreSQL" if target.database_file is None else str(target.database_file)


def _whole(folder: Path, mark: Mark, found: Checked) -> Restored | None:
    """The restore that left this mark, if its database was committed before it was killed."""
    path = folder / CONFIG_FILE
    if not path.exists():
        return None
    config = load_config(path, os.environ)
    target = Target(folder, config, None, with_keys=False, with_profile=False)
    if target.database_file is not None and not target.database_file.exists():
        return None
    database = Database(config.storage.database_url)
    try:
        if database.revision() != newest_revision():
            return None
        if not database.read_now(lambda inside: pauses.began_at(inside, mark.at_s)):
            return None
    finally:
        database.close()
    marker.clear(target.working())
    return Restored(folder, found, _kind(target), keys=False, finished=True)


def _write(
    file: Path,
    password: bytes | None,
    found: Checked,
    target: Target,
    known: revocations.Kept,
    mark: Mark,
    progress: Progress,
) -> Restored:
    storage = target.config.storage
    shared = SharedBlobs(storage.blob_url, storage.blob_endpoint) if storage.blob_url else None
    try:
        blobs = extract(
            *(file, password, found, target.places(), shared),
            lambda count, share: progress(count, CHECK_SHARE + share * FILES_SHARE),
        )
    finally:
        if shared is not None:
            shared.close()
    there = ledger_public_key(storage.pki_dir).hex()
    if target.with_keys and there != found.format.get("ledger_public_key"):
        raise Malformed("BACKUP_DAMAGED", f"{file}: its ledger key is not the one that it names")
    if target.config_text is not None:
        write_durable(target.folder / CONFIG_FILE, target.config_text)
    done = CHECK_SHARE + FILES_SHARE

    def told(count: int) -> None:
        progress(count, min(1.0, done + (1 - done) * count / max(1, 2 * found.entries)))

    filled = fill(target, found.made_at_s, known, mark.at_s, told)
    return Restored(
        target.folder,
        found,
        _kind(target),
        target.with_keys,
        blobs,
        filled.revoked,
        filled.nodes,
        filled.changes,
        filled.epoch,
        filled.profile,
    )
