"""The ledger only grows: nothing of ours changes an entry, but for a signature that was missing."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from coordinator.store import booking, ledger
from coordinator.store.booking import Books
from coordinator.store.database import Database
from coordinator.store.engines import is_sqlite
from privacy.ledger import sign
from protos.errors import Conflict
from tests.coordinator.store_conformance.samples import ACCOUNT, KEY, PUBLIC, kinds, statement

COLUMNS = (
    "account, seq, kind, attempt_id, project, node, dataset, job_id, round, unit, declared_n, "
    "mechanism, noise_multiplier, sample_rate, steps, prev_hash, hash, limit_change"
)
SQLITE_GUARDS = (
    f"""CREATE TRIGGER kept BEFORE UPDATE OF {COLUMNS} ON entries
    BEGIN SELECT RAISE(ABORT, 'ledger entries are never changed'); END""",
    """CREATE TRIGGER signed BEFORE UPDATE OF node_signature ON entries
    WHEN OLD.node_signature <> x'' BEGIN SELECT RAISE(ABORT, 'ledger entries are never changed');
    END""",
    """CREATE TRIGGER stays BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'ledger entries are never changed'); END""",
)
"""What PostgreSQL has from its migration, for the same test on SQLite."""


@pytest.fixture
def guarded(database: Database, url: str) -> Database:
    """A store that refuses every change of an entry, whoever makes it."""
    if is_sqlite(url):
        for guard in SQLITE_GUARDS:
            database.write_now(lambda c, guard=guard: c.execute(text(guard)))
    return database


def test_reserve_sign_post_and_void_change_no_entry(guarded: Database) -> None:
    """Every way in which we book passes where the database itself refuses a change."""
    for attempt, end in (("x", "post"), ("y", "void")):
        one = statement(attempt)
        guarded.write_now(lambda c, one=one: booking.book(c, one))

        def later(connection, one=one, end=end):  # type: ignore[no-untyped-def]
            books = Books(connection)
            books.keep_signature(one.attempt_id, sign(KEY, one))
            books.keep_signature(one.attempt_id, sign(KEY, one))  # a retry
            books.resolve(one.attempt_id, end, sign(KEY, one.resolved(end)))
            books.flush()

        guarded.write_now(later)
        guarded.write_now(later)
    with pytest.raises(Conflict):
        guarded.write_now(lambda c: booking.book(c, statement("x", kind="void")))
    assert kinds(guarded) == ["reserve", "post", "reserve", "void"]
    chain = guarded.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    for entry in chain:
        ledger.check_signature(PUBLIC, entry.statement, entry.node_signature)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET noise_multiplier = 1000",
        "UPDATE entries SET node_signature = '' WHERE kind = 'post'",
        "UPDATE entries SET node_signature = 'x' WHERE kind = 'post'",
        "UPDATE entries SET node_signature = 'x', seq = 9 WHERE kind = 'reserve'",
        "DELETE FROM entries WHERE seq = 2",
    ],
)
def test_a_change_of_an_entry_is_refused(guarded: Database, change: str) -> None:
    """Also by a statement that only a mistake of ours, or somebody with SQL, would send."""
    guarded.write_now(lambda c: booking.book(c, statement("x")))
    one = statement("x", kind="post")
    guarded.write_now(lambda c: booking.book(c, one, sign(KEY, one)))
    before = guarded.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    with pytest.raises(DBAPIError, match="never changed"):
        guarded.write_now(lambda c: c.execute(text(change)))
    assert guarded.read_now(lambda c: list(ledger.chain(c, ACCOUNT))) == before


def test_a_sequence_number_is_given_once(database: Database) -> None:
    """Two entries of one account never stand at one place of its chain."""
    database.write_now(lambda c: booking.book(c, statement("x")))
    again = f"INSERT INTO entries ({COLUMNS}, node_signature) SELECT {COLUMNS}, '' FROM entries"  # noqa: S608
    with pytest.raises(DBAPIError, match=r"(?i)unique"):
        database.write_now(lambda c: c.execute(text(again)))
