"""Every table of a database at one moment, in a SQLite file, beside a running coordinator."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, select

from coordinator.store.database import Database, newest_revision
from coordinator.store.diagnosis import sqlite_file
from coordinator.store.engines import is_sqlite
from coordinator.store.schema import metadata
from protos.errors import WrongPhase

ROWS_AT_ONCE = 500


def snapshot(url: str, copy: Path) -> None:
    """Write the database of `url` to `copy`, a file that is not there yet. Nobody waits for it.

    Memory does not grow with the database.

    Raises:
        WrongPhase: TABLES_OF_ANOTHER_VERSION (PostgreSQL).
        Unavailable: DATABASE_UNREACHABLE.
    """
    if is_sqlite(url):
        # One statement, which sees one moment; writers go on meanwhile (WAL).
        with closing(sqlite3.connect(f"{sqlite_file(url).as_uri()}?mode=rw", uri=True)) as source:
            source.execute("VACUUM INTO ?", (str(copy),))
        return
    source_database, target = Database(url), Database(f"sqlite:///{copy}")
    try:
        if source_database.revision() != newest_revision():
            raise WrongPhase(
                "TABLES_OF_ANOTHER_VERSION",
                "another version of feddp made the tables of this PostgreSQL database; back it up "
                "with that version, or with pg_dump",
            )
        target.migrate()

        def take(source: Connection) -> None:
            target.write_now(lambda inside: copy_rows(source, inside))

        source_database.read_now(take)
    finally:
        source_database.close()
        target.close()


def copy_rows(
    source: Connection, target: Connection, told: Callable[[int], None] = lambda _: None
) -> None:
    """Write every row of one database into the empty tables of another, of whatever kind.

    Args:
        told: the number of rows so far.
    """
    number = 0
    for table in metadata.sorted_tables:  # those that others refer to come first
        rows = source.execution_options(yield_per=ROWS_AT_ONCE).execute(select(table))
        for some in rows.mappings().partitions():
            target.execute(table.insert(), [dict(row) for row in some])
            number += len(some)
            told(number)
