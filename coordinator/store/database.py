"""One database, one writer: every write is a transaction on one thread, so that it never blocks a
session and never races another write of this process."""

import asyncio
import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakSet

import structlog
from sqlalchemy import Connection, Engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from coordinator.store.engines import (
    alone_engine,
    is_busy,
    is_failing,
    is_sqlite,
    reader_engine,
    was_rolled_back,
    writer_engine,
)
from coordinator.store.leases import HeldLease
from coordinator.store.schema import metadata
from coordinator.store.serving import LEASES_FROM, is_outgrown, revision_of
from protos.disks import disk_trouble
from protos.errors import FeddpError, Limited, Malformed, Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

VERSIONS = Path(__file__).parent / "migrations" / "versions"

ROLLBACKS_MAX: Final = 5
"""How often a write that the server rolled back for another's sake is begun again."""

PAUSE_S: Final = 0.02
"""Before it begins again, so that the transaction that it gave way to gets the lock first."""

FULL_S: Final = 20.0
"""How long a disk counts as full after a write found no room there."""

COMPLAIN_S: Final = 30.0

LOOK_AGAIN_S: Final = 0.25
"""While it is seen whether a lease that is in the way is renewed."""

LOCK_S: Final = 2
"""How long an upgrade waits for a table, so long as a coordinator may be serving."""

MIGRATING: Final = 0x6665_6464_7000
"""Key of PostgreSQL's advisory lock: two coordinators that start together upgrade one by one."""


def newest_revision() -> str:
    """The revision that the newest migration makes: the number that its file begins with."""
    return max(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*_*.py"))


def tables_fault(connection: Connection) -> Malformed | None:
    """Why this version cannot use the tables that are there; None also where there are none, those
    of an older version, or those of a newer one that lets this one serve.

    Returns:
        DATABASE_NEWER or TABLES_MISSING.
    """
    if is_outgrown(connection, newest_revision()):
        return newer_fault()
    if (revision_of(connection) or "") < newest_revision():
        return None
    missing = sorted(metadata.tables.keys() - set(inspect(connection).get_table_names()))
    if not missing:
        return None
    return Malformed(
        "TABLES_MISSING",
        f"the database lacks what this version keeps in it ({', '.join(missing)}): somebody has "
        "removed it, or only a part was put back; restore the whole database from a backup",
    )


def _gives_way(error: DBAPIError, *, alone: bool) -> bool:
    """Whether an upgrade met somebody who holds what it needs."""
    on_server = getattr(error.orig, "sqlstate", None) is not None
    return was_rolled_back(error) or (is_busy(error) and (on_server or alone))


def newer_fault() -> Malformed:
    """That only newer versions may serve these tables now."""
    return Malformed(
        "DATABASE_NEWER",
        "the database was upgraded by a newer version of feddp; serve it with that one",
    )


class Database:
    """The coordinator's database.

    `write` and `read` give a connection inside a transaction to a plain function; the transaction
    commits when the function returns and rolls back when it raises. A reading transaction sees one
    moment throughout. A writing one may be run again from its beginning, when the database rolled
    it back for another's sake: the function does nothing that a rollback would not undo.

    Attributes:
        fence: called first in every write transaction; raises if this process may not write.

    Raises:
        Malformed: DATABASE_DRIVER_MISSING.
    """

    def __init__(self, url: str) -> None:
        self.fence: Callable[[Connection], None] | None = None
        self._full_at_s = self._complained_at_s = -math.inf
        self._url = url
        self._writer = writer_engine(url)
        self._reader = reader_engine(url)
        self._opened: WeakSet[Any] = WeakSet()
        self._opening = threading.Lock()
        if not is_sqlite(url):
            for engine in (self._writer, self._reader):
                event.listen(engine, "connect", self._note)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="sql-writer")
        self._read_threads = ThreadPoolExecutor(4, thread_name_prefix="sql-reader")

    def __repr__(self) -> str:
        """Without the password that the URL may hold."""
        return f"Database({make_url(self._url).render_as_string(hide_password=True)})"

    def migrate(self) -> None:
        """Create or upgrade the tables; leave those of a newer version that lets this one serve.

        Raises:
            Malformed: DATABASE_UNUSABLE, the database cannot be opened or upgraded;
                DATABASE_NEWER, TABLES_MISSING.
            Conflict: OLDER_VERSION_SERVES.
            Limited: DISK_FULL.
            Unavailable: DATABASE_UNREACHABLE; DATABASE_BUSY, somebody keeps a table locked.
        """
        database = make_url(self._url).database
        if is_sqlite(self._url) and database:
            Path(database).parent.mkdir(parents=True, exist_ok=True)
        seen: HeldLease | None = None
        while (held := self._migrate_if_free()) is not None:
            if seen is not None and held != seen:
                # It was renewed: whoever holds it lives.
                from coordinator.store.upgrade import refusal

                raise refusal(self.revision(), held.holder)
            seen = held
            time.sleep(LOOK_AGAIN_S)

    def _migrate_if_free(self) -> HeldLease | None:
        """Once: the lease that keeps it from being done."""
        tries = 0
        while True:
            engine = self._migrator()
            begun = False
            try:
                with engine.begin() as connection:
                    begun = True
                    return self._migrate(connection)
            except SQLAlchemyError as error:
                alone = engine is not self._writer
                if isinstance(error, DBAPIError) and _gives_way(error, alone=alone):
                    tries += 1
                    if tries <= ROLLBACKS_MAX and not alone:
                        time.sleep(tries * random.uniform(PAUSE_S, 2 * PAUSE_S))
                        continue
                    raise self._busy(alone=alone) from None
                if not begun and not is_sqlite(self._url):
                    raise self._unreached(error) from None
                raise self._unusable(error) from error
            finally:
                if engine is not self._writer:
                    engine.dispose()

    def _migrator(self) -> Engine:
        """The writer; where a version that knows no leases made the tables of a SQLite file, one
        that has the file for itself: nothing else would tell that such a version serves it."""
        if not is_sqlite(self._url):
            return self._writer
        try:
            with self._writer.begin() as connection:
                revision = revision_of(connection)
        except SQLAlchemyError:
            return self._writer  # and what is wrong is told where it is used
        if revision is None or revision >= LEASES_FROM:
            return self._writer
        self._writer.dispose()
        self._reader.dispose()
        return alone_engine(self._url)

    def _migrate(self, connection: Connection) -> HeldLease | None:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATING})"))
            # Whoever serves waits behind a table that is asked for: not for long.
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_S}s'"))
        if (unusable := tables_fault(connection)) is not None:
            raise unusable
        if (revision_of(connection) or "") >= newest_revision():
            return None
        # Loading it takes 0.1 s and 10 MiB, for nothing at all but the first start.
        from coordinator.store.upgrade import upgrade

        return upgrade(connection)

    def _busy(self, *, alone: bool) -> FeddpError:
        if alone:
            from coordinator.store.upgrade import refusal

            return refusal(self.revision(), "")
        return Unavailable(
            "DATABASE_BUSY",
            "the tables cannot be upgraded now, as somebody keeps one locked (a backup that is "
            "being written, say); nothing was changed. Start again when that is done",
        )

    def _unusable(self, error: SQLAlchemyError) -> FeddpError:
        if disk_trouble(error) == "full":
            database = make_url(self._url).database
            where = database if is_sqlite(self._url) else "the database's server"
            return Limited(
                "DISK_FULL",
                f"disk full: free room on the disk of {where} (or raise the quota), and run "
                "the same again. This is no sign of damage: nothing has to be put back",
            )
        return Malformed(
            "DATABASE_UNUSABLE",
            f"the database cannot be opened or upgraded ({type(error).__name__}); check "
            "storage.database_url and that this user may write there",
        )

    def revision(self) -> str | None:
        """Which migration the tables are at; None where there are none.

        Raises:
            Unavailable: DATABASE_UNREACHABLE.
        """
        return self.read_now(revision_of)

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a write transaction on this thread (start-up and command line).

        Raises:
            Unavailable: DATABASE_UNREACHABLE, before anything was begun; LEASE_LOST.
        """
        rollbacks = 0
        while True:
            begun = False
            try:
                with self._writer.begin() as connection:
                    begun = True
                    if self.fence is not None:
                        self.fence(connection)
                    return work(connection)
            except DBAPIError as error:
                self._note_disk(error)
                if not begun:
                    raise self._unreached(error) from None
                rollbacks += 1
                if rollbacks > ROLLBACKS_MAX or not was_rolled_back(error):
                    raise
                time.sleep(rollbacks * random.uniform(PAUSE_S, 2 * PAUSE_S))

    @property
    def is_full(self) -> bool:
        """Whether a write found no room on the disk not long ago; smaller ones may find some."""
        return time.monotonic() - self._full_at_s < FULL_S

    def _note_disk(self, error: DBAPIError) -> None:
        """Say what is wrong with the disk once in a while: what waits for it tries again every few
        seconds."""
        now_s = time.monotonic()
        if disk_trouble(error) == "full":
            self._full_at_s = now_s
            event, do = "database_full", "free room on the disk of the database; all waits for it"
        elif is_failing(error):
            event, do = "database_failing", "look at the disk of the database; all waits for it"
        else:
            return
        if now_s - self._complained_at_s >= COMPLAIN_S:
            self._complained_at_s = now_s
            log.error(event, detail=str(getattr(error.orig, "sqlite_errorname", "")), do=do)

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a read transaction on this thread.

        Raises:
            Unavailable: DATABASE_UNREACHABLE.
        """
        begun = False
        try:
            with self._reader.begin() as connection:
                begun = True
                return work(connection)
        except DBAPIError as error:
            if begun:
                raise
            raise self._unreached(error) from None

    def _unreached(self, error: SQLAlchemyError) -> Exception:
        """What to raise for a transaction that could not begin."""
        if is_sqlite(self._url):
            return error  # the file is busy, or no database: its own name says which
        # The driver's words name the server's user and address: they go no further.
        return Unavailable(
            "DATABASE_UNREACHABLE",
            "the PostgreSQL server that storage.database_url names does not let this process in; "
            "`feddp coordinator check` says more",
        )

    def _note(self, connection: Any, _record: Any) -> None:
        with self._opening:
            self._opened.add(connection)

    def cut(self) -> None:
        """End every connection to PostgreSQL from this side, also those that are waited on: what
        is under way fails as if the server had ended it, and what comes next connects anew."""
        with self._opening:
            opened = list(self._opened)
        for connection in opened:
            with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as own:
                own.shutdown(socket.SHUT_RDWR)  # which fails for one that has ended already

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a write transaction, after all writes asked for before.

        Once begun it is not abandoned: a caller that is cancelled leaves it to commit.
        """
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(self._write_thread, self.write_now, work)
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(_tell)
            raise

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a read transaction; it sees everything that was written before."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._read_threads, self.read_now, work)

    def close(self) -> None:
        """Finish what was begun and close every connection."""
        self._write_thread.shutdown()
        self._read_threads.shutdown()
        self._writer.dispose()
        self._reader.dispose()


def _tell(writing: "asyncio.Future[Any]") -> None:
    """What became of a write that nobody waits for any more. A refusal of our own leaves nothing
    behind, as when the lease is lost, and is no fault then."""
    fault = None if writing.cancelled() else writing.exception()
    if fault is not None and not isinstance(fault, FeddpError):
        log.error("write_failed", exc_info=fault)
