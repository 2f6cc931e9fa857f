"""An account whose row and chain do not belong together is found, and nothing is booked on it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from benchmarks.postgresql import PostgreSql
from coordinator.store import booking, ledger, limits
from coordinator.store.booking import Books
from coordinator.store.damage import damaged
from coordinator.store.database import Database
from coordinator.store.engines import is_sqlite
from privacy.ledger import sign
from protos.errors import NotFound, WrongPhase
from tests.attackers import drop_guards
from tests.coordinator.store_conformance.samples import (
    ACCOUNT,
    KEY,
    NODE,
    PUBLIC,
    kinds,
    open_account,
    statement,
)
from tests.coordinator.store_conformance.test_limits import change

OTHER = f"{NODE}/others"


@pytest.fixture
def open_to_harm(
    database: Database, url: str, request: pytest.FixtureRequest
) -> Iterator[Database]:
    """A store of two accounts whose guards are gone, as whoever owns the tables can do."""
    open_account(database, OTHER)
    if is_sqlite(url):
        database.write_now(lambda c: drop_guards(c.connection.cursor()))
        yield database
        return
    server: PostgreSql = request.getfixturevalue("postgresql_server")
    name = url.rpartition("/")[2]
    server.superuser("ALTER TABLE entries DISABLE TRIGGER USER", name)
    yield database
    server.superuser("ALTER TABLE entries ENABLE TRIGGER USER", name)


HARM = {
    "the head": "UPDATE accounts SET head_hash = 'x' WHERE account = :account",
    "the count": "UPDATE accounts SET entries = 1 WHERE account = :account",
    "the last entry": "UPDATE entries SET hash = 'x' WHERE account = :account AND seq = 2",
    "the last entry is gone": "DELETE FROM entries WHERE account = :account AND seq = 2",
    "all are gone": "DELETE FROM entries WHERE account = :account",
}


def harm(database: Database, change_: str) -> None:
    """Two entries in each account, and then this."""
    for account in (ACCOUNT, OTHER):
        for number in range(2):
            one = statement(f"{account}-{number}", account=account)
            database.write_now(lambda c, one=one: booking.book(c, one))
    assert database.read_now(damaged) == frozenset()
    database.write_now(lambda c: c.execute(text(change_), {"account": ACCOUNT}))


@pytest.mark.parametrize("change_", HARM.values(), ids=HARM)
def test_a_damaged_account_is_found_and_no_other(open_to_harm: Database, change_: str) -> None:
    """By its name, asked for by itself, with others, or not at all."""
    harm(open_to_harm, change_)
    for names in (None, [ACCOUNT], [ACCOUNT, OTHER]):
        assert open_to_harm.read_now(lambda c, n=names: damaged(c, n)) == {ACCOUNT}
    assert open_to_harm.read_now(lambda c: damaged(c, [OTHER])) == frozenset()


def test_an_account_without_entries_is_sound(database: Database) -> None:
    """From its beginning."""
    assert database.read_now(damaged) == frozenset()


@pytest.mark.parametrize("change_", HARM.values(), ids=HARM)
def test_nothing_is_booked_on_a_damaged_account(open_to_harm: Database, change_: str) -> None:
    """What is reserved stays reserved, and others' bookings of the same transaction hold."""
    harm(open_to_harm, change_)
    before = kinds(open_to_harm)

    def work(connection: Connection) -> list[str]:
        books, refused = Books(connection), []
        books.expect(attempt_ids=[f"{ACCOUNT}-0", f"{OTHER}-0"])
        for act in (
            lambda: books.book(statement("new")),
            lambda: books.resolve(f"{ACCOUNT}-0", "post", b""),
            lambda: books.resolve(f"{OTHER}-0", "post", b""),
            lambda: books.book(statement("new", account=OTHER)),
        ):
            try:
                act()
            except (WrongPhase, NotFound) as error:
                refused.append(error.reason)
        books.flush()
        return refused

    lost = change_ == HARM["all are gone"]  # with its entry goes what the attempt was
    reasons = ["LEDGER_DAMAGED", "ATTEMPT_UNKNOWN" if lost else "LEDGER_DAMAGED"]
    assert open_to_harm.write_now(work) == reasons
    assert kinds(open_to_harm) == before
    assert kinds(open_to_harm, OTHER) == ["reserve", "reserve", "post", "reserve"]
    account = open_to_harm.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    assert {one.attempt_id for one in account.balance.pending} == {f"{ACCOUNT}-0", f"{ACCOUNT}-1"}


def test_a_damaged_account_is_not_raised(open_to_harm: Database) -> None:
    """A raise would be an entry after another one than the account's head."""
    harm(open_to_harm, HARM["the head"])
    one = change()
    with pytest.raises(WrongPhase, match="feddp budget verify") as caught:
        open_to_harm.write_now(lambda c: limits.record(c, NODE, PUBLIC, one, sign(KEY, one)))
    assert caught.value.reason == "LEDGER_DAMAGED"
