"""A node's ledger as commands open it beside an agent, which may run, of whatever release.

One that reads never brings it along, writes nothing to it and leaves nothing beside it: under a
running agent of an older release, which could not open it again once it was brought along; on a
disk that is full, or that the kernel made read-only. What cannot be read where it lies is copied.
"""

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.folder.config import Folder
from node_agent.folder.installation import require_writable
from node_agent.ledger.lost_ledger import is_damage, ledger_damaged, ledger_missing
from node_agent.state.schema import SCHEMA_VERSION, prepare, version_of
from node_agent.state.state import State
from protos.disks import disk_trouble
from protos.errors import Limited, Unavailable

BUSY_S: Final = 5.0
COPY_TRIES: Final = 5
LOG, INDEX = "-wal", "-shm"
"""What SQLite keeps beside a database while somebody has it open."""


class Owner(Protocol):
    """Whose ledger it is."""

    @property
    def node(self) -> str:
        """The node's name."""

    @property
    def ledger_key(self) -> Ed25519PrivateKey:
        """What it signs with."""


@contextlib.contextmanager
def reading(folder: Folder, owner: Owner) -> Iterator[State]:
    """The state of an agent's folder, to read; the agent may run, of whatever release.

    Raises:
        NotFound: LEDGER_MISSING.
        Malformed, Limited, Unavailable, sqlite3.DatabaseError: as `reading_file`.
    """
    if not folder.has_ledger:
        raise ledger_missing(folder.state_db)
    with reading_file(folder.state_db, owner) as state:
        yield state


@contextlib.contextmanager
def writing(folder: Folder, owner: Owner) -> Iterator[State]:
    """The state of an agent's folder, for a command that writes to it while the agent may run.

    Raises:
        NotFound: LEDGER_MISSING.
        Malformed: STATE_NEWER, STATE_OF_ANOTHER_NODE.
        Limited: DISK_READ_ONLY.
        WrongPhase: STATE_OLDER, the agent may be of an older release; nothing was changed.
    """
    if not folder.has_ledger:
        raise ledger_missing(folder.state_db)
    require_writable(folder)
    opened = State(folder.state_db, owner.node, owner.ledger_key, bring=False)
    with contextlib.closing(opened) as state:
        yield state


@contextlib.contextmanager
def reading_file(path: Path, owner: Owner, *, in_place: bool = False) -> Iterator[State]:
    """The same of any file. One of an older schema is read as this version will have it, in a
    database of this process alone; `State.older` says so.

    Args:
        in_place: as `read_only`.

    Raises:
        NotFound: LEDGER_MISSING, it is empty.
        Malformed: STATE_NEWER, STATE_OF_ANOTHER_NODE; LEDGER_INVALID, it cannot be read.
        Limited, Unavailable, OSError, sqlite3.DatabaseError: as `read_only`.
    """
    with contextlib.ExitStack() as stack:
        connection, version = _opened(path, stack, in_place=in_place)
        if version < SCHEMA_VERSION:
            # Without a name: in memory, and what is too much for it in a file that has no name.
            private = stack.enter_context(contextlib.closing(_connected("")))
            connection.backup(private)
            connection = private
        prepare(connection, path, owner.node)
        connection.execute("PRAGMA query_only = ON")
        yield State(path, owner.node, owner.ledger_key, connection, older=older_said(path, version))


def _opened(
    path: Path, stack: contextlib.ExitStack, *, in_place: bool
) -> tuple[sqlite3.Connection, int]:
    try:
        connection = stack.enter_context(read_only(path, in_place=in_place))
        return connection, version_of(connection)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise ledger_damaged(path) from None
        raise


@contextlib.contextmanager
def read_only(path: Path, *, in_place: bool = False) -> Iterator[sqlite3.Connection]:
    """A database as it lies there, of whatever schema, for reading.

    Args:
        in_place: one at rest is not copied: for a moment's question, or a file that only this
            process knows. Who began to write to it meanwhile could tear what is read.

    Raises:
        Limited: DISK_FULL, TMPDIR_UNUSABLE, there is no room for a copy where one is needed.
        OSError: it is not there, or may not be read.
        Unavailable: LEDGER_BUSY, as `snapshot`.
        sqlite3.DatabaseError: it is none.
    """
    with contextlib.ExitStack() as stack:
        connection = _live(path)
        if connection is None and in_place and not Path(f"{path}{LOG}").exists():
            connection = _connected(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
        elif connection is None:
            copy = Path(stack.enter_context(_temporary(path))) / path.name
            snapshot(path, copy)
            connection = _connected(f"{copy.as_uri()}?mode=ro&immutable=1")
        stack.callback(connection.close)
        yield connection


def snapshot(source: Path, out: Path) -> None:
    """Write a database, as it is at one moment and of its own schema, to a new file, which only its
    owner may read.

    Raises:
        Limited: DISK_FULL, there is no room for it.
        OSError: it is not there, or may not be read.
        Unavailable: LEDGER_BUSY, it changed again and again while it was copied.
        sqlite3.DatabaseError: it is none.
    """
    log = Path(f"{out}{LOG}")
    with contextlib.ExitStack() as undo:
        undo.callback(out.unlink, missing_ok=True)
        undo.callback(log.unlink, missing_ok=True)
        live = _live(source)
        if live is not None:
            _create(out).close()
            with contextlib.closing(live), contextlib.closing(sqlite3.connect(out)) as new:
                live.backup(new)
        else:
            _copy_at_rest(source, out, log)
            # What the log holds goes into the file, and the log with it.
            with contextlib.closing(sqlite3.connect(out)) as new:
                new.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        undo.pop_all()


def older_said(path: Path, version: int) -> str:
    """That a file is of an older release, a sentence without its full stop; else empty."""
    if not 0 < version < SCHEMA_VERSION:
        return ""
    return (
        f"{path} is of an older release (schema {version}, this is {SCHEMA_VERSION}) and was left "
        "as it is; an agent of this version brings it along when it starts"
    )


def _live(path: Path) -> sqlite3.Connection | None:
    """The database itself, where somebody has it open, or ended without closing it; None where it
    is at rest, or cannot be read where it lies.

    A database at rest is not opened: SQLite would leave files beside it.
    """
    if not all(Path(f"{path}{suffix}").exists() for suffix in (LOG, INDEX)):
        return None
    connection = _connected(f"{path.absolute().as_uri()}?mode=ro")
    try:
        version_of(connection)
    except sqlite3.OperationalError as error:
        connection.close()
        if _closed_here(error):
            return None
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _closed_here(error: sqlite3.OperationalError) -> bool:
    """Its log or its index cannot be opened in that place: no room, or nothing may be written."""
    closed = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")
    return disk_trouble(error) == "full" or str(error.sqlite_errorname).startswith(closed)


def _connected(name: str) -> sqlite3.Connection:
    return sqlite3.connect(
        name, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )


def _temporary(path: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="feddp-ledger-")
    except OSError as error:
        raise Limited(
            "TMPDIR_UNUSABLE",
            f"{path} is read from a copy, and nowhere can one be written: name a folder in TMPDIR "
            f"that can be written ({error.strerror})",
        ) from None


def _copy_at_rest(source: Path, out: Path, log: Path) -> None:
    """The files of a database that nobody has open; whoever opens it meanwhile is noticed."""
    for _ in range(COPY_TRIES):
        before = _stamps(source)
        for part, copy in ((source, out), (Path(f"{source}{LOG}"), log)):
            copy.unlink(missing_ok=True)
            if part == source or part.exists():
                _copy(part, copy)
        if _stamps(source) == before:
            return
    raise Unavailable(
        "LEDGER_BUSY", f"{source} changed again and again while it was read; try again in a moment"
    )


def _copy(part: Path, copy: Path) -> None:
    with part.open("rb") as old, _create(copy) as new:
        try:
            shutil.copyfileobj(old, new, 1 << 20)
        except OSError as error:
            if not disk_trouble(error):
                raise
            raise Limited(
                "DISK_FULL",
                f"disk full: there is no room for a copy of {part} in {copy.parent}; free room "
                "there, or name another disk (for what is only read, a folder in TMPDIR)",
            ) from None


def _create(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _stamps(source: Path) -> list[tuple[int, int, int] | None]:
    """What changes when somebody writes to a database, or begins to."""
    found: list[tuple[int, int, int] | None] = []
    for suffix in ("", LOG, INDEX):
        try:
            stat = Path(f"{source}{suffix}").stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found
