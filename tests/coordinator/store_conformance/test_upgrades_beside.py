"""What an upgrade does to coordinators of an older version that share the database."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from alembic import command
from sqlalchemy import Connection, text

from benchmarks.postgresql import PostgreSql
from coordinator.replicas.leadership import NAME, Leadership
from coordinator.store import leases, upgrade
from coordinator.store.database import Database, newest_revision
from coordinator.store.engines import now_s
from coordinator.store.leases import Lease
from coordinator.store.serving import oldest_that_serves, revision_of
from protos.errors import Conflict, Malformed, Unavailable
from tests.coordinator.next_release import ADDS, TAKES, NextRelease


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of its own, which a test may upgrade for good."""
    made = f"sqlite:///{tmp_path / 'c.db'}"
    if request.param == "postgresql":
        server: PostgreSql = request.getfixturevalue("postgresql_server")
        made = server.new_database()
    opened = Database(made)
    opened.migrate()
    opened.close()
    return made


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[], Database]]:
    """Opens the database, as each process does."""
    made: list[Database] = []

    def new() -> Database:
        made.append(Database(url))
        return made[-1]

    yield new
    for one in made:
        one.close()


def taken(database: Database, holder: str = "elsewhere 1 2 3") -> Lease:
    """A lease as a serving coordinator of another machine has it; it is not renewed."""
    found = database.write_now(lambda c: leases.take(c, NAME, holder, now_s(c)))
    assert found is not None
    return found


@contextmanager
def renewed(database: Database, lease: Lease) -> Iterator[None]:
    """Renewed as by a coordinator that serves, through another connection."""
    done = Event()

    def renew() -> None:
        while not done.wait(0.1):
            database.write_now(lambda c: leases.renew(c, lease, now_s(c)))

    thread = Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_older_ones_keep_serving_beneath_an_upgrade_that_lets_them(
    opened: Callable[[], Database], tmp_path: Path
) -> None:
    """The holder writes on, one of its version starts, takes over and is not refused."""
    serving = opened()
    lease = taken(serving)
    serving.fence = lambda inside: leases.check(inside, lease)
    with renewed(opened(), lease), NextRelease(tmp_path, older_may_serve=True) as following:
        opened().migrate()
        assert serving.revision() == following.revision
    assert serving.write_now(lambda c: c.scalar(text("SELECT count(*) FROM jobs"))) == 0
    again = opened()
    again.migrate()
    assert again.read_now(oldest_that_serves) == newest_revision() < following.revision
    serving.write_now(lambda c: leases.release(c, lease))

    async def leads() -> None:
        leadership = Leadership(again)
        await leadership.take()
        await leadership.give_back()

    asyncio.run(leads())


@pytest.mark.parametrize("mark", [False, None])
def test_an_upgrade_that_needs_a_stop_is_refused_while_an_older_one_serves(
    opened: Callable[[], Database], tmp_path: Path, mark: bool | None
) -> None:
    """A migration without a mark needs one too; nothing is changed, and the holder writes on."""
    serving = opened()
    lease = taken(serving)
    with renewed(opened(), lease), NextRelease(tmp_path, older_may_serve=mark) as following:
        with pytest.raises(Conflict, match=f"elsewhere.*{following.revision}.*Stop every") as found:
            opened().migrate()
        assert found.value.reason == "OLDER_VERSION_SERVES"
    assert serving.revision() == newest_revision()
    serving.write_now(lambda c: leases.check(c, lease))


def test_one_that_has_ended_is_waited_for_and_fenced_off(
    opened: Callable[[], Database], tmp_path: Path
) -> None:
    """A lease that nobody renews expires; should its holder only have hung, it can write no more,
    and neither it nor one that waited behind it comes back on tables that are not for it."""
    hung = opened()
    lease = taken(hung)
    hung.fence = lambda inside: leases.check(inside, lease)
    began_s = time.monotonic()
    with NextRelease(tmp_path, older_may_serve=False, statement=TAKES) as following:
        opened().migrate()
        assert hung.revision() == following.revision
    assert time.monotonic() - began_s < leases.LEASE_S + 5
    with pytest.raises(Unavailable, match="another coordinator has taken over"):
        hung.write_now(lambda _: None)
    waited = opened()
    with pytest.raises(Malformed, match="newer version") as found:
        asyncio.run(Leadership(waited).take())
    assert found.value.reason == "DATABASE_NEWER"
    assert waited.read_now(lambda c: leases.look(c, NAME)) is None
    with pytest.raises(Malformed, match="newer version"):
        opened().migrate()


def test_what_may_serve_is_kept_over_several_upgrades(
    opened: Callable[[], Database], tmp_path: Path
) -> None:
    """One that needs a stop shuts out all before it; those after it that do not, nobody."""
    database = opened()
    before = newest_revision()
    assert database.read_now(oldest_that_serves) == before
    (tmp_path / "one").mkdir()
    with NextRelease(tmp_path / "one", older_may_serve=True):
        database.migrate()
        assert database.read_now(oldest_that_serves) == before
    (tmp_path / "two").mkdir()
    with NextRelease(tmp_path / "two", older_may_serve=True, then=(False, True)) as following:
        database.migrate()
        assert int(following.revision) == int(before) + 3
        assert database.read_now(oldest_that_serves) == f"{int(before) + 2:04d}"


def test_an_upgrade_does_not_wait_long_for_a_table_that_is_read(
    postgresql_server: PostgreSql, tmp_path: Path
) -> None:
    """A backup reads for minutes, and who wants its table's lock makes everybody else wait."""
    url = postgresql_server.new_database()
    first, second = Database(url), Database(url)
    first.migrate()
    lease = taken(first)

    def read(connection: Connection) -> str:
        # It reads all the time, and is never idle.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SELECT * FROM jobs")).all()
        third = Database(url)
        with (
            NextRelease(tmp_path, older_may_serve=True, statement=ADDS),
            renewed(second, lease),
            pytest.raises(Unavailable, match="keeps one locked") as found,
        ):
            third.migrate()
        third.close()
        return found.value.reason

    began_s = time.monotonic()
    assert first.read_now(read) == "DATABASE_BUSY"
    assert time.monotonic() - began_s < 30
    assert first.read_now(revision_of) == newest_revision()
    first.write_now(lambda c: leases.check(c, lease))
    first.close()
    second.close()


HOLDS = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA journal_mode=WAL")
database.execute("SELECT * FROM nodes").fetchall()
print("open", flush=True)
sys.stdin.read()
"""


def test_tables_without_leases_are_upgraded_only_where_nobody_has_the_file_open(
    tmp_path: Path,
) -> None:
    """A coordinator of 0.1.0 holds no lease; that it serves shows in nothing else."""
    file = tmp_path / "c.db"
    database = Database(f"sqlite:///{file}")
    database.migrate()
    database.write_now(lambda c: command.downgrade(upgrade.alembic_config(c), "0001"))
    database.close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        starting = Database(f"sqlite:///{file}")
        with pytest.raises(Conflict, match="older version serves") as found:
            starting.migrate()
        assert found.value.reason == "OLDER_VERSION_SERVES"
        assert starting.revision() == "0001"
        other.stdin.close()
        other.wait()
    starting.migrate()
    assert starting.revision() == newest_revision()
    starting.close()
