"""What only one of the two databases has; what both must do is in `store_conformance`."""

import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from benchmarks.postgresql import PostgreSql
from coordinator.store import booking, engines, leases
from coordinator.store.booking import Books
from coordinator.store.database import Database, newest_revision
from coordinator.store.diagnosis import fault
from coordinator.store.engines import POSTGRES_SETTINGS
from protos.errors import Unavailable
from tests.coordinator.store_conformance.samples import (
    ACCOUNT,
    kinds,
    open_account,
    statement,
    with_account,
)


def answers(url: str, questions: dict[str, object]) -> dict[str, object]:
    """What a fresh writing connection answers to statements."""
    database = Database(url)
    found = {
        question: database.write_now(lambda c, q=question: c.execute(text(q)).scalar())
        for question in questions
    }
    database.close()
    return found


def test_a_commit_on_sqlite_survives_a_power_cut(tmp_path: Path) -> None:
    """WAL with full sync, on every connection."""
    wanted = {"PRAGMA journal_mode": "wal", "PRAGMA synchronous": 2}
    assert answers(f"sqlite:///{tmp_path / 'c.db'}", dict(wanted)) == wanted


def test_a_commit_on_postgresql_survives_a_power_cut(postgresql_server: PostgreSql) -> None:
    """It returns when it is on disk, also where the server's default is another."""
    url = postgresql_server.new_database()
    name = url.rpartition("/")[2]
    postgresql_server.superuser(f"ALTER DATABASE {name} SET synchronous_commit = off")
    wanted = {"SHOW synchronous_commit": "on", "SHOW fsync": "on"}
    assert answers(url, dict(wanted)) == wanted


def test_two_coordinators_that_start_together_make_the_tables_once(
    postgresql_server: PostgreSql,
) -> None:
    """The second waits, and finds them made."""
    url = postgresql_server.new_database()
    begin = threading.Barrier(3)

    def start(_: int) -> bool:
        database = Database(url)
        begin.wait(30)
        database.migrate()
        try:
            return database.revision() == newest_revision()
        finally:
            database.close()

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(start, range(3)))


def test_a_deadlock_on_postgresql_ends_with_both_transactions_done(
    postgresql_server: PostgreSql,
) -> None:
    """The server rolls one of them back, and it begins again by itself."""
    url, other = postgresql_server.new_database(), "a/others"
    database = Database(url)
    database.migrate()
    with_account(database)
    open_account(database, other)
    begun = [0, 0]
    first_locked = threading.Barrier(2)

    def both(connection: Connection, number: int) -> None:
        begun[number] += 1
        books = Books(connection)
        first, second = (ACCOUNT, other) if number else (other, ACCOUNT)
        books.book(statement(f"{number}-{first}", account=first))
        if begun[number] == 1:
            first_locked.wait(30)
        books.book(statement(f"{number}-{second}", account=second))
        books.flush()

    def run(number: int) -> None:
        own = Database(url)
        own.write_now(lambda c: both(c, number))
        own.close()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    assert max(begun) > 1, "there was a deadlock"
    for account in (ACCOUNT, other):
        assert kinds(database, account) == ["reserve", "reserve"]
    database.close()


def test_a_transaction_that_its_process_left_open_does_not_hold_the_others_up(
    postgresql_server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that was stopped within one loses it (after 10 s; here 2 s), and another
    takes over; what the first had begun is not written."""
    url, idle = postgresql_server.new_database(), "SET idle_in_transaction_session_timeout = "
    settings = [re.sub(f"^{idle}'10s'", f"{idle}'2s'", one) for one in POSTGRES_SETTINGS]
    assert settings != list(POSTGRES_SETTINGS)
    monkeypatch.setattr(engines, "POSTGRES_SETTINGS", settings)
    first, second = Database(url), Database(url)
    first.migrate()
    with_account(first)
    lease = first.write_now(lambda c: leases.take(c, "x", "a", 0.0))
    assert lease is not None
    first.fence = lambda inside: leases.check(inside, lease)

    def stands_still(connection: Connection) -> None:
        booking.book(connection, statement("x"))
        took = second.write_now(lambda c: leases.take(c, "x", "b", 1000.0))
        assert took is not None

    with pytest.raises(DBAPIError):
        first.write_now(stands_still)
    assert kinds(second) == []
    first.close()
    second.close()


def test_no_word_about_a_database_repeats_its_password(postgresql_server: PostgreSql) -> None:
    """Neither what it is called, nor any error of a server that does not let us in."""
    right = postgresql_server.new_database()
    password = postgresql_server.password
    database = Database(right)
    assert password not in repr(database)
    database.close()
    wrong = {
        right.replace(password, "hunter2"): "does not accept this user",
        right.replace("feddp:", "hunter2:"): "does not accept this user",
        f"{right}_hunter2": "no database of that name",
        right.replace(f":{postgresql_server.port}/", ":1/").replace(password, "hunter2"): (
            "no server listens"
        ),
        right: "the database is empty",
    }
    for url, said in wrong.items():
        found = fault(url)
        assert found is not None
        assert said in found, found
        assert password not in found
        assert "hunter2" not in found
        if url == right:
            continue
        refused = Database(url)
        for act in (refused.migrate, lambda r=refused: r.read_now(lambda c: None)):
            with pytest.raises(Unavailable) as caught:
                act()
            assert caught.value.reason == "DATABASE_UNREACHABLE"
            assert "hunter2" not in str(caught.value)
        refused.close()


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    said = fault("postgresql+psycopg://u:hunter2@localhost/x")
    assert said is not None
    assert "pip install 'feddp[postgres]'" in said
    assert "hunter2" not in said
