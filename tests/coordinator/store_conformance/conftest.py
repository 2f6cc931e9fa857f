"""Every test of this folder runs on SQLite in a file and on a real PostgreSQL server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.postgresql import PostgreSql
from coordinator.store.database import Database
from coordinator.store.schema import metadata
from tests.coordinator.store_conformance.samples import with_account

EMPTY = (
    # As a replica does, so that the triggers that keep entries are silent.
    "SET session_replication_role = replica; TRUNCATE "
    + ", ".join(table.name for table in metadata.sorted_tables)
)
"""Takes a hundredth of the time of a database for each test."""


@pytest.fixture(scope="session")
def postgresql_tables(postgresql_server: PostgreSql) -> str:
    """A PostgreSQL database for one test at a time."""
    return postgresql_server.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated database that many may open."""
    made = f"sqlite:///{tmp_path / 'c.db'}"
    if request.param == "postgresql":
        made = request.getfixturevalue("postgresql_tables")
    opened = Database(made)
    opened.migrate()
    opened.close()
    if request.param == "postgresql":
        server: PostgreSql = request.getfixturevalue("postgresql_server")
        server.superuser(EMPTY, made.rpartition("/")[2])
    return made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """A store with one node and one account of epsilon 1."""
    opened = Database(url)
    with_account(opened)
    yield opened
    opened.close()
