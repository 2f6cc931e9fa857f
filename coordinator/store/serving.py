"""Which versions of the code may serve the tables, once a newer one has upgraded them.

A migration says in its file whether older versions may serve the tables that it leaves
(`OLDER_MAY_SERVE`); the oldest revision whose code still may is kept in the database, since an
older version knows nothing of the files that come after it. It lies among the leases, as a row of
this name whose epoch is that revision: as an epoch does, it shuts out whoever is behind it.
"""

from typing import Final

from sqlalchemy import Connection, inspect, select, text

from coordinator.store.engines import insert
from coordinator.store.schema import leases

TABLES: Final = "tables"

LEASES_FROM: Final = "0002"
"""Versions before know no lease: nothing in the database tells whether one of them serves."""


def revision_of(connection: Connection) -> str | None:
    """Which migration the tables are at; None where there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def oldest_that_serves(connection: Connection) -> str | None:
    """The oldest revision whose code may serve these tables; None where there are none.

    Without a note it is the tables' own: nobody has said that an older one may.
    """
    revision = revision_of(connection)
    if revision is None or revision < LEASES_FROM:
        return revision
    noted = connection.scalar(select(leases.c.epoch).where(leases.c.name == TABLES))
    return revision if noted is None else f"{noted:04d}"


def note_oldest(connection: Connection, revision: str) -> None:
    """Keep which revision's code is the oldest that may serve."""
    values = {"holder": "", "epoch": int(revision), "expires_at": 0.0}
    connection.execute(
        insert(connection, leases)
        .values(name=TABLES, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )


def is_outgrown(connection: Connection, newest: str) -> bool:
    """Whether code whose newest revision is `newest` may not serve these tables any more."""
    revision = revision_of(connection)
    if revision is None or revision <= newest:
        return False
    return (oldest_that_serves(connection) or revision) > newest
