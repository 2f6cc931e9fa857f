"""Tables and how they are upgraded."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from coordinator.store.database import Database, newest_revision
from coordinator.store.schema import metadata
from coordinator.store.serving import TABLES
from coordinator.store.upgrade import alembic_config


def test_migrations_make_exactly_the_tables_of_the_schema(database: Database) -> None:
    """A change to the schema without a migration, or the reverse, is found here."""

    def work(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert database.read_now(work) == []


def test_the_newest_revision_is_the_one_that_the_migrations_lead_to() -> None:
    """It is read from the files' names, so that a start does not load Alembic to find it."""
    script = ScriptDirectory.from_config(alembic_config())
    assert newest_revision() == script.get_current_head()


def test_a_database_of_an_older_revision_is_upgraded(database: Database) -> None:
    """Also one that has tables already."""

    def older(connection: Connection) -> None:
        command.downgrade(alembic_config(connection), "0001")

    database.write_now(older)
    with pytest.raises(DBAPIError, match="leases"):
        database.read_now(lambda c: c.execute(text("SELECT * FROM leases")).all())
    database.migrate()
    kept = database.read_now(lambda c: c.execute(text("SELECT name FROM leases")).scalars().all())
    assert kept == [TABLES]
