"""Several writers at once, each with its own connections and none with a lease: together they spend
what one would."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Connection

from coordinator.store import booking, ledger
from coordinator.store.database import Database
from privacy.ledger import sign
from privacy.verification import verify
from protos.errors import BudgetRefused, FeddpError
from tests.coordinator.store_conformance.samples import (
    ACCOUNT,
    KEY,
    NODE,
    PUBLIC,
    kinds,
    statement,
)

WRITERS = 4
EACH = 80
NOISE = 120.0
"""A reservation takes 1/210 of the account's limit: of 320 it admits 207 to 215."""


def at_once(url: str, work: Callable[[Database, int], list[str]]) -> list[str]:
    """What `work` gave in each of the writers, which begin together."""
    begin = threading.Barrier(WRITERS)

    def run(number: int) -> list[str]:
        own = Database(url)
        try:
            begin.wait(30)
            return work(own, number)
        finally:
            own.close()

    with ThreadPoolExecutor(WRITERS) as pool:
        return [one for found in pool.map(run, range(WRITERS)) for one in found]


def book_each(own: Database, wanted: list[str], kind: str = "reserve") -> list[str]:
    """The attempts that were booked, each in a transaction of its own."""
    booked = []
    for attempt_id in wanted:
        one = statement(attempt_id, NOISE).resolved(kind)  # type: ignore[arg-type]
        try:
            own.write_now(lambda c, one=one: booking.book(c, one, sign(KEY, one)))  # type: ignore[misc]
        except BudgetRefused:
            continue
        booked.append(attempt_id)
    return booked


def test_writers_together_are_admitted_exactly_what_fits(url: str, database: Database) -> None:
    """320 reservations of four writers against one account: as many are admitted as would be one
    after the other, each is in the chain once, and the chain verifies."""
    admitted = at_once(
        url, lambda own, number: book_each(own, [f"{number}-{n}" for n in range(EACH)])
    )
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    cost = account.filter.cost_units(statement("x", NOISE).release)
    fitting = account.filter.limit_units // cost
    assert WRITERS * EACH * 0.6 < fitting < WRITERS * EACH * 0.7
    assert len(admitted) == fitting
    assert account.balance.pending_units == fitting * cost
    chain = database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    assert Counter(e.statement.attempt_id for e in chain) == Counter(admitted)
    assert (account.entries, account.head_hash) == (fitting, chain[-1].hash)
    assert verify(chain, {ACCOUNT: account.filter}, {NODE: PUBLIC}).ok


def test_writers_that_post_the_same_attempts_charge_each_once(url: str, database: Database) -> None:
    """A repeated booking is the same booking, also when both come at one moment."""
    wanted = [f"x{number}" for number in range(40)]
    assert book_each(database, wanted) == wanted
    told = at_once(url, lambda own, _: book_each(own, wanted, "post"))
    assert Counter(told) == Counter(wanted * WRITERS)
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    cost = account.filter.cost_units(statement("x", NOISE).release)
    assert (account.balance.posted_units, account.balance.pending) == (40 * cost, ())
    assert kinds(database) == ["reserve"] * 40 + ["post"] * 40


def test_an_attempt_that_is_posted_and_voided_at_one_moment_ends_once(
    url: str, database: Database
) -> None:
    """Whoever comes second is told how it ended."""
    wanted = [f"x{number}" for number in range(40)]
    assert book_each(database, wanted) == wanted

    def end(own: Database, number: int) -> list[str]:
        refused = []
        for attempt_id in wanted:
            try:
                book_each(own, [attempt_id], "void" if number % 2 else "post")
            except FeddpError as error:
                refused.append(error.reason)
        return refused

    assert set(at_once(url, end)) == {"ATTEMPT_RESOLVED"}
    chain = database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    ended = Counter(e.statement.attempt_id for e in chain if e.statement.kind != "reserve")
    assert ended == Counter(wanted)


def test_a_reader_sees_one_moment_while_others_write(url: str, database: Database) -> None:
    """An account and its chain fit together however much is booked between the two reads."""
    other = Database(url)

    def work(connection: Connection) -> None:
        before = ledger.read_account(connection, ACCOUNT)
        other.write_now(lambda c: booking.book(c, statement("x")))
        assert len(list(ledger.chain(connection, ACCOUNT))) == before.entries == 0

    database.read_now(work)
    assert kinds(database) == ["reserve"]
    other.close()
