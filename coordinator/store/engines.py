"""Engines for the two databases: how a transaction begins there, and what makes it durable."""

import time
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from protos.disks import disk_trouble
from protos.errors import Malformed, Unavailable

WAIT_S: Final = 10
"""How long a transaction waits for another's lock, and a connection for the server."""

_SQLITE_PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "recursive_triggers=ON",  # so that REPLACE, which deletes, is refused where a DELETE is
)

POSTGRES_SETTINGS: Final = (
    # A server whose default is "off" would acknowledge what a power cut still takes away.
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local')",
    f"SET lock_timeout = '{WAIT_S}s'",
    # A process that was stopped within a transaction holds its locks no longer than this, so that
    # another can take over.
    f"SET idle_in_transaction_session_timeout = '{WAIT_S}s'",
)

CONNECTING: Final[Mapping[str, Any]] = {
    "connect_timeout": WAIT_S,
    "application_name": "feddp",
    # A server that died without a word is noticed in seconds; the kernel's own limits are hours.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": WAIT_S * 1000,
}
"""What every connection to PostgreSQL is opened with."""

FULL_RETRY_S: Final = 2.0

_TRY_AGAIN: Final = ("40001", "40P01")
"""SQLSTATE of a serialization failure and of a deadlock: the server has rolled all of it back."""

_AWAY_CLASSES: Final = ("08", "53", "57")
"""Classes of SQLSTATE: the connection, the server's resources, its operator."""

_READ_ONLY: Final = "25006"
_LOCK_TIMEOUT: Final = "55P03"


def is_sqlite(url: str) -> bool:
    """Whether a URL names a SQLite file."""
    return url.startswith("sqlite")


def now_s(connection: Connection) -> float:
    """Seconds since 1970 by the one clock that all who share the database have."""
    if connection.dialect.name == "postgresql":
        return float(connection.scalar(_NOW) or 0.0)
    return time.time()


_NOW: Final = text("SELECT extract(epoch FROM clock_timestamp())")


def writer_engine(url: str) -> Engine:
    """Connections whose transactions may write.

    On SQLite a transaction takes the file's one write lock as it begins. On PostgreSQL it sees
    each statement's newest rows (READ COMMITTED), and what it decides by it must lock:
    `SELECT ... FOR UPDATE`.

    Raises:
        Malformed: DATABASE_DRIVER_MISSING.
    """
    if is_sqlite(url):
        return _sqlite(url, "BEGIN IMMEDIATE")
    return _postgresql(url, {"isolation_level": "READ COMMITTED"})


def reader_engine(url: str) -> Engine:
    """Connections whose transactions only read, and see one moment of the database throughout.

    Raises:
        Malformed: DATABASE_DRIVER_MISSING.
    """
    if is_sqlite(url):
        return _sqlite(url, "BEGIN")
    return _postgresql(url, {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True})


def alone_engine(url: str) -> Engine:
    """Connections to a SQLite file that nobody else has open, for as long as they are: to begin is
    refused as busy while any other process has it."""
    return _sqlite(url, "BEGIN EXCLUSIVE", ("locking_mode=EXCLUSIVE",))


def _sqlite(url: str, begin: str, first: tuple[str, ...] = ()) -> Engine:
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the transaction begins in `_on_begin`, not by itself
        cursor = connection.cursor()
        for pragma in (*first, *_SQLITE_PRAGMAS):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.execute(f"PRAGMA busy_timeout={WAIT_S * 1000}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgresql(url: str, execution_options: dict[str, Any]) -> Engine:
    try:
        engine = create_engine(
            url,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=dict(CONNECTING),
            execution_options=execution_options,
        )
    except ImportError:
        raise Malformed(
            "DATABASE_DRIVER_MISSING",
            "storage.database_url names a PostgreSQL database, and the package that talks to one "
            "is not installed; run: pip install 'feddp[postgres]'",
        ) from None

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            for statement in POSTGRES_SETTINGS:
                cursor.execute(statement)
        connection.commit()

    return engine


def was_rolled_back(error: DBAPIError) -> bool:
    """Whether the server ended the transaction for another's sake, and it may be run again."""
    return getattr(error.orig, "sqlstate", None) in _TRY_AGAIN


def is_away(error: DBAPIError) -> bool:
    """Whether a PostgreSQL server ended the connection, or takes no work now: it stops, starts, is
    full of connections, or is a copy that is read-only until it is promoted."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return error.connection_invalidated or state[:2] in _AWAY_CLASSES or state == _READ_ONLY


def why_away(error: Exception) -> str:
    """Of what `is_away`, or could not be reached."""
    if getattr(getattr(error, "orig", None), "sqlstate", None) == _READ_ONLY:
        return "it takes no writes: a copy that is not promoted, or one that was set to read-only"
    return (
        "it cannot be reached, or does not let this process in; `feddp coordinator check` says more"
    )


def unserved(error: DBAPIError) -> Unavailable | None:
    """What to tell whoever asked for something that the database could not do now; None for a fault
    that has to be looked at."""
    if disk_trouble(error) == "full":
        return Unavailable(
            "DATABASE_FULL",
            "the disk of the coordinator's database is full, and nothing was changed; free room "
            "there and try again. What waits goes on by itself",
            retry_after_s=FULL_RETRY_S,
        )
    if is_failing(error):
        return Unavailable(
            "DATABASE_FAILING",
            "the disk of the coordinator's database gives errors or takes no writes; its operator "
            "has to look at that disk. What waits goes on by itself then; look at what has become "
            "of this",
            retry_after_s=FULL_RETRY_S,
        )
    if getattr(error.orig, "sqlstate", None) == _LOCK_TIMEOUT:
        return Unavailable(
            "DATABASE_BUSY",
            "somebody keeps a table of the coordinator's database locked, and nothing was changed; "
            "try again in a moment",
            retry_after_s=1,
        )
    if is_away(error):
        return Unavailable(
            "DATABASE_AWAY",
            "the coordinator's database went away meanwhile, or takes no work now; try again in a "
            "moment, and look then what has become of it",
            retry_after_s=1,
        )
    return None


def is_failing(error: DBAPIError) -> bool:
    """Whether SQLite could not read or write, or its disk was made read-only: by the system, say,
    after an error."""
    name = str(getattr(error.orig, "sqlite_errorname", ""))
    return disk_trouble(error) == "failing" or name.startswith("SQLITE_READONLY")


def is_busy(error: DBAPIError) -> bool:
    """Whether another process held a lock for longer than anybody waits for it."""
    if getattr(error.orig, "sqlstate", None) == _LOCK_TIMEOUT:
        return True
    return getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_BUSY")


def insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that can say ON CONFLICT, in the words of the connection's database."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
