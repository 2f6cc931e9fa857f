"""Where a backup is restored to: a folder that has nothing, or the same installation's keys.

Nothing that exists is written over: whatever is in the way is named, and nothing was changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from sqlalchemy import Connection, inspect, select

from certs.profile_folder import BUNDLE, CHAIN, DESCRIPTION, KEY, NEXT_KEY
from coordinator.backups.check import Checked
from coordinator.backups.extract import Places
from coordinator.config.config import CoordinatorConfig, config_from
from coordinator.config.strict_yaml import read_mapping
from coordinator.installation import CONFIG_FILE
from coordinator.keyring import ledger_public_key
from coordinator.restoring.marker import FILE, LOCK
from coordinator.store.database import Database, tables_fault
from coordinator.store.diagnosis import sqlite_file
from coordinator.store.engines import is_sqlite
from coordinator.store.schema import metadata
from protos.content import beside_of
from protos.errors import Conflict, Malformed, NotFound

URL_VARIABLE: Final = "FEDDP_STORAGE__DATABASE_URL"
WORK: Final = ".restore.db"
"""The backup's tables while they are read; in the installation's folder."""

PROFILE: Final = "operator"
PROFILE_FILES: Final = (KEY, NEXT_KEY, CHAIN, BUNDLE, DESCRIPTION)


@dataclass(frozen=True, slots=True)
class Target:
    """A place that can be restored to.

    Attributes:
        config_text: what becomes coordinator.yaml; None where there is one already.
        with_keys: the keys come from the backup; else those that are there are used.
        with_profile: an operator's profile is made.
    """

    folder: Path
    config: CoordinatorConfig
    config_text: bytes | None
    with_keys: bool
    with_profile: bool

    @property
    def database_file(self) -> Path | None:
        """The SQLite file; None for PostgreSQL."""
        url = self.config.storage.database_url
        return sqlite_file(url) if is_sqlite(url) else None

    @property
    def work(self) -> Path:
        """Where the backup's tables lie meanwhile."""
        return self.folder / WORK

    def working(self) -> list[Path]:
        """What is of no use after it."""
        return _with_journals(self.work)

    @property
    def growing(self) -> Path | None:
        """The SQLite database until it is whole."""
        return beside_of(self.database_file) if self.database_file is not None else None

    def made(self, found: Checked) -> tuple[Path, ...]:
        """All that a restore makes here: files, then the folders that they lie in, inmost first."""
        places = self.places()
        files = [path for name in found.contents if (path := places.of(name)) is not None]
        files += self.working()
        if self.database_file is not None and self.growing is not None:
            files += [*_with_journals(self.growing), *_with_journals(self.database_file)]
        if self.config_text is not None:
            files.append(self.folder / CONFIG_FILE)
        if self.with_profile:
            files += [self.folder / PROFILE / name for name in PROFILE_FILES]
        roots = {places.blobs, *([places.pki] if places.pki else [])}
        folders = roots | {
            parent
            for path in files
            for parent in path.parents
            if any(root in parent.parents for root in roots)
        }
        if self.with_profile:
            folders.add(self.folder / PROFILE)
        return (*files, *sorted(folders, key=lambda one: -len(one.parts)))

    def places(self) -> Places:
        """Where the backup's files go."""
        storage = self.config.storage
        return Places(self.work, storage.blob_dir, storage.pki_dir if self.with_keys else None)


def target_of(
    folder: Path, found: Checked, database_url: str, environ: Mapping[str, str]
) -> Target:
    """Whether a backup can be restored to `folder`; changes nothing.

    Raises:
        Conflict: RESTORE_TARGET_NOT_EMPTY, RESTORE_OTHER_INSTALLATION.
        NotFound: KEYS_MISSING.
        Malformed: CONFIG_INVALID, USAGE, DATABASE_URL_INVALID, DATABASE_NEWER,
            DATABASE_DRIVER_MISSING.
        Unavailable: DATABASE_UNREACHABLE.
    """
    path, text = folder / CONFIG_FILE, None
    if database_url and environ.get(URL_VARIABLE, database_url) != database_url:
        raise Malformed("USAGE", f"--database-url and ${URL_VARIABLE} differ; give one of them")
    if path.exists():
        if database_url:
            raise Malformed(
                "USAGE", f"{path} is there and says which database; change it there instead"
            )
        config = config_from(path.read_bytes(), path, environ)
    else:
        text = _with_url(found.config, database_url) if database_url else found.config
        config = config_from(text, path, environ)
    with_keys = _keys(config.storage.pki_dir, found)
    _refuse_files(config.storage.blob_dir)
    target = Target(folder, config, text, with_keys, not (folder / PROFILE).exists())
    if target.database_file is None:
        _refuse_rows(config.storage.database_url)
    elif target.database_file.exists():
        raise _not_empty(target.database_file, "a database is there")
    if text is not None:
        _refuse_strangers(target, found)
    return target


def _with_url(text: bytes, url: str) -> bytes:
    """The configuration with another database; its comments are lost."""
    settings: dict[str, Any] = read_mapping(
        text, reason="CONFIG_INVALID", where="the backup's coordinator.yaml", bytes_max=1 << 20
    )
    settings["storage"] = {**(settings.get("storage") or {}), "database_url": url}
    head = "# Restored from a backup to another database; see config/full.yaml for every key.\n"
    return (head + yaml.safe_dump(settings, sort_keys=False)).encode()


def _keys(pki: Path, found: Checked) -> bool:
    """Whether the keys come from the backup."""
    there = ledger_public_key(pki).hex()
    wanted = str(found.format.get("ledger_public_key", ""))
    if there:
        if wanted and there != wanted:
            raise Conflict(
                "RESTORE_OTHER_INSTALLATION",
                f"the ledger key in {pki} is not that of the installation that the backup was "
                "made of: nodes would take it for another coordinator. Nothing was changed; give "
                "its own keys, or a backup with keys and an empty folder",
            )
        return False
    if pki.exists() and any(pki.iterdir()):
        raise _not_empty(pki, "it holds files, and not the ledger key of an installation")
    if not found.format.get("keys"):
        raise NotFound(
            "KEYS_MISSING",
            f"the backup holds no keys, and {pki} holds none: put the folder of the same "
            "installation's keys there, or give a backup that was made with --keys. Without them "
            "no node would know this coordinator",
        )
    return True


def _refuse_files(blobs: Path) -> None:
    if next((one for one in blobs.rglob("*") if one.is_file()), None) is not None:
        raise _not_empty(blobs, "it holds models, updates or other files")


def _refuse_strangers(target: Target, found: Checked) -> None:
    """A new installation goes into a folder that has nothing but what it can use."""
    folder = target.folder
    known = {folder / FILE, folder / LOCK, target.config.storage.pki_dir, *target.made(found)}
    known |= {target.config.storage.revocations_file, folder / PROFILE}
    for one in sorted(folder.iterdir()) if folder.is_dir() else ():
        if one.match(f".{FILE}.*.partial"):
            continue  # of one that was killed before it had begun
        if one not in known and not any(one in path.parents for path in known):
            raise _not_empty(one, "the folder is not empty")


def _refuse_rows(url: str) -> None:
    database = Database(url)
    try:
        database.read_now(refuse_rows)
    finally:
        database.close()


def refuse_rows(connection: Connection) -> None:
    """Raise unless the database is empty, or has our tables without a row.

    Raises:
        Conflict: RESTORE_TARGET_NOT_EMPTY.
        Malformed: DATABASE_NEWER, TABLES_MISSING.
    """
    there = set(inspect(connection).get_table_names()) - {"alembic_version"}
    for name in sorted(there):
        table = metadata.tables.get(name)
        if table is None or connection.execute(select(1).select_from(table).limit(1)).first():
            raise Conflict(
                "RESTORE_TARGET_NOT_EMPTY",
                f"the PostgreSQL database has a table {name} with rows or of somebody else's, and "
                "nothing was changed: give an empty database (`createdb NAME`), and keep the old "
                "one until the new one serves",
            )
    if there and (unusable := tables_fault(connection)) is not None:
        raise unusable


def _not_empty(path: Path, why: str) -> Conflict:
    return Conflict(
        "RESTORE_TARGET_NOT_EMPTY",
        f"{path}: {why}. Nothing that exists is written over, and nothing was changed: restore to "
        "a new folder, or move this away and keep it until the restored coordinator serves",
    )


def _with_journals(file: Path) -> list[Path]:
    return [file, *(file.with_name(file.name + end) for end in ("-wal", "-shm", "-journal"))]
