"""`feddp coordinator backup`: a whole coordinator in one file, made while it serves.

The tables are read at one moment; then follow the models and updates that they name, each checked
against its digest as it is copied. An update that a round has folded meanwhile is gone, and its
tables are old: then all of it begins anew. What was written before a failure is removed.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from certs.sealing import Sealer
from coordinator.alone import alone
from coordinator.backups.archive import Archive, Moved, Progress, json_bytes
from coordinator.backups.names import (
    CONFIG,
    DATABASE,
    FORMAT,
    FORMAT_FILE,
    KIND,
    PKI,
    UPDATES,
    digest_in,
    named_blobs,
)
from coordinator.backups.snapshots import snapshot
from coordinator.blobs import UPDATES as UPDATES_FOLDER
from coordinator.config.config import CoordinatorConfig, load_config
from coordinator.keyring import check_ledger_key, ledger_public_key
from coordinator.replicas.shared_blobs import SharedBlobs
from coordinator.store import backups, epochs
from coordinator.store.database import Database, newest_revision
from coordinator.store.diagnosis import fault
from protos.content import beside_of, digest_of_file, naming, sync_directory
from protos.errors import Conflict, FeddpError, Malformed, NotFound, Unavailable

TRIES_MAX: Final = 3
PASSWORD_BYTES_MIN: Final = 12
PASSWORD_BYTES_MAX: Final = 4096
SCRATCH: Final = ".backup"


@dataclass(frozen=True, slots=True)
class Backup:
    """What was written.

    Attributes:
        missing: what the tables name and was not found, or is damaged, where it should lie.
        recorded: whether the database now knows of it; tables of an older version cannot, and one
            in which a model is missing does not count as made.
    """

    file: Path
    made_at_s: float
    bytes: int
    files: int
    sealed: bool
    keys: bool
    missing: tuple[str, ...]
    recorded: bool


def read_password(path: Path) -> bytes:
    """The password that a file holds, without the end of its line.

    Raises:
        NotFound: PASSWORD_MISSING.
        Malformed: PASSWORD_WEAK.
    """
    try:
        with path.open("rb") as file:
            password = file.read(PASSWORD_BYTES_MAX + 2).rstrip(b"\r\n")
    except OSError as error:
        raise NotFound(
            "PASSWORD_MISSING", f"{path}: the password cannot be read ({error.strerror})"
        ) from None
    if not PASSWORD_BYTES_MIN <= len(password) <= PASSWORD_BYTES_MAX:
        raise Malformed(
            "PASSWORD_WEAK",
            f"the password in {path} has {PASSWORD_BYTES_MIN} bytes or more, and at most "
            f"{PASSWORD_BYTES_MAX}; make one: openssl rand -base64 32",
        )
    return password


def backup(
    config_path: Path,
    out: Path,
    *,
    keys: bool = False,
    password: bytes | None = None,
    progress: Progress = lambda *_: None,
    accept: Callable[[Path], None] = lambda _: None,
) -> Backup:
    """Write a backup to `out`; beside it first, then renamed, whole or not at all.

    Args:
        keys: put the installation's keys and certificates in.
        password: seals the file.
        accept: looks at the whole file before it gets its name; what it raises leaves nothing.

    Raises:
        Conflict: FILE_EXISTS, BACKUP_RUNS.
        NotFound: FOLDER_MISSING, DATABASE_MISSING.
            LEDGER_KEY_MISSING.
        Malformed: CONFIG_INVALID, PASSWORD_REQUIRED, LEDGER_KEY_CHANGED.
        Unavailable: BACKUP_OVERTAKEN, BACKUP_NOT_RECORDED, DATABASE_UNREACHABLE,
            STORE_UNREACHABLE.
    """
    config = load_config(config_path, os.environ)
    if password is None and keys:
        raise Malformed(
            "PASSWORD_REQUIRED", "a backup with keys is always sealed: give --password-file FILE"
        )
    if password is None and _tells_password(config_path, config):
        raise Malformed(
            "PASSWORD_REQUIRED",
            f"{config_path} holds the database's password, and goes into the backup: give "
            "--password-file FILE, or keep that password in FEDDP_STORAGE__DATABASE_URL",
        )
    out = out.absolute()
    if not out.parent.is_dir():
        raise NotFound("FOLDER_MISSING", f"{out.parent} is not a folder; make it first")
    if text := fault(config.storage.database_url):
        raise NotFound("DATABASE_MISSING", text)
    beside = beside_of(out)
    with _only_one(config.storage.blob_dir) as scratch, contextlib.ExitStack() as undo:
        _refuse_existing(out)
        undo.callback(beside.unlink, missing_ok=True)
        writing = _Writing(config_path, config, scratch, keys, password, progress)
        for last in (*[False] * (TRIES_MAX - 1), True):
            try:
                made_at_s, files, missing = writing.write(beside, at_any_rate=last)
                break
            except Moved:
                continue
        else:
            raise Unavailable(
                "BACKUP_OVERTAKEN",
                f"{TRIES_MAX} times something changed while it was read, and nothing was written; "
                "try again, or after `feddp coordinator pause`",
            )
        accept(beside)
        size = beside.stat().st_size
        _refuse_existing(out)
        beside.replace(out)
        sync_directory(out.parent)
        undo.pop_all()
    url = config.storage.database_url
    # Else the alert on old backups would be silent while none has the models any more. An update
    # that a busy job folded meanwhile is worked at again after a restore.
    lacks_models = any(not name.startswith(UPDATES) for name in missing)
    recorded = not lacks_models and _record(url, made_at_s, size, keys=keys)
    return Backup(out, made_at_s, size, files, password is not None, keys, tuple(missing), recorded)


@dataclass(frozen=True, slots=True)
class _Writing:
    """One backup while it is written."""

    config_path: Path
    config: CoordinatorConfig
    scratch: Path
    keys: bool
    password: bytes | None
    progress: Progress

    def write(self, beside: Path, *, at_any_rate: bool) -> tuple[float, int, list[str]]:
        """(when its tables were read, files in it, names that are missing).

        Raises:
            Moved: an update is no longer there, and it is not wanted at any rate.
        """
        copy, made_at_s = self.scratch / DATABASE, time.time()
        for old in self.scratch.glob(f"{DATABASE}*"):
            old.unlink()
        snapshot(self.config.storage.database_url, copy)
        database = Database(f"sqlite:///{copy}")
        try:
            updates, models = database.read_now(named_blobs)
            if self.keys:
                # Else it would push out, in time, the last backup that has the key.
                signed = database.read_now(epochs.signed_last)
                check_ledger_key(self.config.storage.pki_dir, signed)
        finally:
            database.close()
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with naming(beside), os.fdopen(descriptor, "wb") as file, self._shared() as shared:
            sealer = Sealer(file, self.password) if self.password is not None else None
            with Archive(sealer or file, self.progress, copy.stat().st_size) as archive:
                archive.add_bytes(FORMAT_FILE, self._format(made_at_s))
                # Updates first, as they are what a round forgets.
                missing: list[str] = []
                for name in [*updates, *models]:
                    found = self._found(name, shared)
                    if found is None or not archive.add_file(name, found):
                        if name.startswith(UPDATES) and not at_any_rate:
                            raise Moved
                        missing.append(name)
                    if found is not None and found.parent == self.scratch:
                        found.unlink()
                archive.add_bytes(CONFIG, self.config_path.read_bytes())
                archive.add_file(DATABASE, copy)
                for path in self._key_files():
                    archive.add_bytes(
                        PKI + path.relative_to(self.config.storage.pki_dir).as_posix(),
                        path.read_bytes(),
                    )
                files = archive.finish(missing)
            if sealer is not None:
                sealer.finish()
            file.flush()
            os.fsync(file.fileno())
        return made_at_s, files, missing

    def _format(self, made_at_s: float) -> bytes:
        storage = self.config.storage
        return json_bytes(
            {
                "kind": KIND,
                "format": FORMAT,
                "made_at": made_at_s,
                "feddp": version("feddp"),
                "database": make_url(storage.database_url).get_backend_name(),
                "ledger_public_key": ledger_public_key(storage.pki_dir).hex(),
                "keys": self.keys,
            }
        )

    @contextlib.contextmanager
    def _shared(self) -> Iterator[SharedBlobs | None]:
        storage = self.config.storage
        shared = SharedBlobs(storage.blob_url, storage.blob_endpoint) if storage.blob_url else None
        try:
            yield shared
        finally:
            if shared is not None:
                shared.close()

    def _found(self, name: str, shared: SharedBlobs | None) -> Path | None:
        """A sound model or update; fetched into the scratch folder if it lies elsewhere."""
        digest, file = digest_in(name), name.rpartition("/")[2]
        folder = self.config.storage.blob_dir
        path = folder / UPDATES_FOLDER / file if name.startswith(UPDATES) else folder / file
        with contextlib.suppress(FileNotFoundError):
            if digest_of_file(path) == digest:
                return path
        if shared is None:
            return None
        stored = f"{UPDATES}{file.removesuffix('.' + digest)}/{digest}"
        target = self.scratch / file
        with contextlib.suppress(NotFound):
            shared.fetch(stored if name.startswith(UPDATES) else file, digest, target)
            return target
        return None

    def _key_files(self) -> list[Path]:
        if not self.keys:
            return []
        pki = self.config.storage.pki_dir
        # A mounted Secret has each file once more, below a hidden folder.
        return [
            path
            for path in sorted(pki.rglob("*"))
            if path.is_file() and not any(p.startswith(".") for p in path.relative_to(pki).parts)
        ]


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise Conflict("FILE_EXISTS", f"{out} exists and is not written over; choose another name")


def _tells_password(config_path: Path, config: CoordinatorConfig) -> bool:
    url = config.storage.database_url
    return make_url(url).password is not None and url.encode() in config_path.read_bytes()


@contextlib.contextmanager
def _only_one(blob_dir: Path) -> Iterator[Path]:
    """A folder for what a backup writes on its way, on the installation's own disk; emptied.

    Raises:
        Conflict: BACKUP_RUNS.
    """
    scratch = blob_dir / SCRATCH
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = "another backup of this installation is being written; wait for it"
    with (
        alone(scratch / "lock", "BACKUP_RUNS", text),
        tempfile.TemporaryDirectory(dir=_emptied(scratch), prefix="now-") as folder,
    ):
        yield Path(folder)


def _emptied(scratch: Path) -> Path:
    """What a backup that was killed has left is of no use to anybody."""
    for old in scratch.glob("now-*"):
        shutil.rmtree(old, ignore_errors=True)
    return scratch


def _record(url: str, made_at_s: float, size: int, *, keys: bool) -> bool:
    """Remember it where the coordinator's metrics look."""
    database = Database(url)
    try:
        if database.revision() != newest_revision():
            return False
        database.write_now(lambda inside: backups.add(inside, made_at_s, size, keys=keys))
    except FeddpError as error:
        raise Unavailable(
            "BACKUP_NOT_RECORDED",
            f"the backup is whole, but the database could not be told: {error.message}",
        ) from None
    finally:
        database.close()
    return True
