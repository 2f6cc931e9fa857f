"""One database, one writer: every write is a transaction on one thread, so that it never blocks a
session and never races another write of this process."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from protos.errors import Malformed

T = TypeVar("T")

VERSIONS = Path(__file__).parent / "migrations" / "versions"


def _engine(url: str, begin: str) -> Engine:
    """An engine whose SQLite connections are durable (WAL, full sync) and begin as told."""
    engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if not url.startswith("sqlite"):
        return engine

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the transaction begins in `_on_begin`, not by itself
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.execute("PRAGMA busy_timeout=10000")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def newest_revision() -> str:
    """The revision that the newest migration makes: the number that its file begins with."""
    return max(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*_*.py"))


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


class Database:
    """The coordinator's database.

    `write` and `read` give a connection inside a transaction to a plain function; the transaction
    commits when the function returns and rolls back when it raises.

    Attributes:
        fence: called first in every write transaction; raises if this process may not write.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.fence: Callable[[Connection], None] | None = None
        self._writer = _engine(url, "BEGIN IMMEDIATE")
        self._reader = _engine(url, "BEGIN")
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="sql-writer")
        self._read_threads = ThreadPoolExecutor(4, thread_name_prefix="sql-reader")

    def migrate(self) -> None:
        """Create or upgrade the tables.

        Raises:
            Malformed: DATABASE_UNUSABLE, the database cannot be opened or upgraded.
        """
        database = make_url(self.url).database
        if self.url.startswith("sqlite") and database:
            Path(database).parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._writer.begin() as connection:
                if _revision(connection) != newest_revision():
                    # Loading it takes 0.1 s and 10 MiB, for nothing at all but the first start.
                    from coordinator.store.upgrade import upgrade

                    upgrade(connection)
        except SQLAlchemyError as error:
            raise Malformed(
                "DATABASE_UNUSABLE",
                f"the database cannot be opened or upgraded ({type(error).__name__}); check "
                "storage.database_url and that this user may write there",
            ) from error

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a write transaction on this thread (start-up and command line)."""
        with self._writer.begin() as connection:
            if self.fence is not None:
                self.fence(connection)
            return work(connection)

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a read transaction on this thread."""
        with self._reader.begin() as connection:
            return work(connection)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a write transaction, after all writes asked for before.

        Once begun it is not abandoned: a caller that is cancelled leaves it to commit.
        """
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._write_thread, self.write_now, work))

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
