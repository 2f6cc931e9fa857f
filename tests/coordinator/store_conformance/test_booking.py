"""The ledger: what is booked, what is refused, and that it verifies."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from coordinator.store import booking, ledger
from coordinator.store.database import Database
from privacy.ledger import GENESIS, Kind, Statement, sign
from privacy.verification import verify
from protos.errors import BudgetRefused, Conflict, FeddpError, InvariantBroken, Malformed
from tests.coordinator.store_conformance.samples import (
    ACCOUNT,
    KEY,
    KINDS,
    NODE,
    PUBLIC,
    kinds,
    open_account,
    statement,
)


def test_a_transaction_that_fails_leaves_no_entry(database: Database) -> None:
    """The reservation and the step that caused it commit together or not at all."""

    def work(connection: Connection) -> None:
        booking.book(connection, statement("x"))
        raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError):
        database.write_now(work)
    assert kinds(database) == []
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    assert (account.balance.pending, account.entries) == ((), 0)


def test_booking_twice_writes_one_entry(database: Database) -> None:
    """Reserve, post, and each of them again: two entries."""
    for kind in ("reserve", "reserve", "post", "post"):
        database.write_now(lambda c, kind=kind: booking.book(c, statement("x", kind=kind)))
    assert kinds(database) == ["reserve", "post"]
    with pytest.raises(Conflict):
        database.write_now(lambda c: booking.book(c, statement("x", kind="void")))


def test_what_a_job_holds_is_what_it_has_posted_or_not_ended_yet(database: Database) -> None:
    """Each release with how many; voids and other jobs do not count."""
    booked = [("a", "post"), ("b", "post"), ("c", ""), ("d", "void")]
    for attempt, end in booked:
        for kind in ("reserve", *([end] if end else [])):
            one = statement(attempt, kind=kind)
            database.write_now(lambda c, one=one: booking.book(c, one))
    other = replace(statement("e"), job_id="another")
    database.write_now(lambda c: booking.book(c, other))
    job_id = statement("a").job_id
    held = database.read_now(lambda c: ledger.held_by(c, job_id))
    assert held == {ACCOUNT: {statement("a").release: 3}}
    assert database.read_now(lambda c: ledger.held_by(c, "none")) == {}


def test_booking_twice_within_a_transaction_writes_one_entry(database: Database) -> None:
    """A turn takes what arrived together, a repeated message included; nothing is charged twice."""

    def work(connection: Connection) -> None:
        books = booking.Books(connection)
        for kind in ("reserve", "reserve", "post", "post"):
            books.book(statement("x", kind=kind))
        books.flush()
        books.resolve("x", "post", b"")
        books.flush()

    database.write_now(work)
    assert kinds(database) == ["reserve", "post"]
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    assert account.balance.pending_units == 0


def test_what_was_gone_back_on_was_never_booked(database: Database) -> None:
    """Reservations below quorum; and what the same transaction books after that is whole."""

    def work(connection: Connection) -> None:
        books = booking.Books(connection)
        books.book(statement("kept"))
        before = books.mark()
        books.book(statement("gone"))
        books.book(statement("gone", kind="post"))
        books.book(statement("kept", kind="post"))
        books.book(statement("open"))
        books.go_back(before)
        books.book(statement("gone"))
        books.flush()

    database.write_now(work)
    assert kinds(database) == ["reserve", "reserve"]
    pending = database.read_now(lambda c: ledger.read_account(c, ACCOUNT)).balance.pending
    assert sorted(one.attempt_id for one in pending) == ["gone", "kept"]
    for attempt_id in ("gone", "kept"):
        database.write_now(lambda c, n=attempt_id: booking.book(c, statement(n, kind="post")))
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    entries = database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    assert account.balance.pending == ()
    assert verify(entries, {ACCOUNT: account.filter}, {NODE: PUBLIC}).ok


def test_a_reservation_over_the_limit_is_refused_and_changes_nothing(database: Database) -> None:
    """Pending counts like posted: what is ordered may be released."""
    for number in range(5):
        database.write_now(lambda c, n=number: booking.book(c, statement(f"x{n}")))
    with pytest.raises(BudgetRefused):
        database.write_now(lambda c: booking.book(c, statement("x5", noise=2.0)))
    assert kinds(database) == ["reserve"] * 5


def test_racing_reservations_never_pass_the_limit(database: Database) -> None:
    """Eight threads reserve at once; exactly as many fit as would one after the other."""

    def attempt(number: int) -> bool:
        try:
            database.write_now(lambda c: booking.book(c, statement(f"x{number}")))
        except BudgetRefused:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(attempt, range(32)))
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    cost = account.filter.cost_units(statement("x").release)
    assert granted == account.filter.limit_units // cost
    assert account.balance.pending_units == granted * cost


def test_filter_and_delta_of_an_account_never_change_once_it_has_an_entry(
    database: Database,
) -> None:
    """A policy that is edited later cannot turn the guarantee into another one."""
    changes = (("rdp", 16, 1e-5), ("gdp", 0, 1e-6))
    for kind, order, delta in (*changes, ("gdp", 0, 1e-5)):  # nothing counts by them yet
        database.write_now(
            lambda c, k=kind, o=order, d=delta: ledger.open_account(c, ACCOUNT, NODE, k, o, 1.0, d)
        )
    database.write_now(lambda c: booking.book(c, statement("x")))
    for kind, order, delta in changes:
        with pytest.raises(Malformed) as caught:
            database.write_now(
                lambda c, k=kind, o=order, d=delta: ledger.open_account(
                    c, ACCOUNT, NODE, k, o, 1.0, d
                )
            )
        assert caught.value.reason == "ACCOUNT_CHANGED"


def test_a_lowered_limit_does_not_make_the_earlier_entries_wrong(database: Database) -> None:
    """The chain is verified against the highest limit that it was written under."""
    for number in range(5):
        for kind in ("reserve", "post"):
            one = statement(f"x{number}", kind=kind)
            database.write_now(lambda c, one=one: booking.book(c, one, sign(KEY, one)))
    after = database.write_now(lambda c: ledger.open_account(c, ACCOUNT, NODE, "gdp", 0, 0.5, 1e-5))
    assert after.balance.posted_units > after.filter.limit_units
    chain = database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    assert verify(chain, {ACCOUNT: after.verifying_filter}, {NODE: PUBLIC}).ok
    assert not verify(chain, {ACCOUNT: after.filter}, {NODE: PUBLIC}).ok


@pytest.mark.parametrize(("announced", "kept"), [(0.5, 0.5), (2.0, 1.0)])
def test_a_limit_can_be_lowered_but_not_raised_by_the_node_alone(
    database: Database, announced: float, kept: float
) -> None:
    """Raising a lifetime guarantee is not one party's word."""
    database.write_now(lambda c: booking.book(c, statement("x")))
    after = database.write_now(
        lambda c: ledger.open_account(c, ACCOUNT, NODE, "gdp", 0, announced, 1e-5)
    )
    assert after.filter.epsilon_limit == kept


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.sampled_from(["x", "y", "z"]),
        st.sampled_from([8.0, 15.0, 40.0]),
        st.booleans(),
    ),
    max_size=12,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=ACTIONS)
def test_whatever_happens_the_exported_ledger_verifies(
    database: Database, actions: list[tuple[Kind, str, float, bool]]
) -> None:
    """Any order of reserve, post and void, with crashes in between: the chain verifies offline,
    the balance equals the chain's, and the limit holds."""
    name = f"{NODE}/{secrets.token_hex(8)}"
    open_account(database, name)
    noises: dict[str, float] = {}
    for kind, attempt, noise, crash in actions:
        noise = noises.setdefault(attempt, noise)
        one = statement(f"{attempt}-{name}", noise, kind, account=name)

        def work(connection: Connection, one: Statement = one, crash: bool = crash) -> None:
            booking.book(connection, one, sign(KEY, one))
            if crash:
                raise RuntimeError("the process dies here")

        try:
            database.write_now(work)
        except (FeddpError, RuntimeError):
            continue
    chain = database.read_now(lambda c: list(ledger.chain(c, name)))
    account = database.read_now(lambda c: ledger.read_account(c, name))
    assert verify(chain, {name: account.filter}, {NODE: PUBLIC}).ok
    posted = [e.statement for e in chain if e.statement.kind == "post"]
    cost = sum(account.filter.cost_units(s.release) for s in posted)
    assert cost == account.balance.posted_units
    held = account.balance.pending_units
    assert account.balance.posted_units + held <= account.filter.limit_units
    head = chain[-1].hash if chain else GENESIS
    assert (account.entries, account.head_hash) == (len(chain), head)


def test_a_reservation_of_the_most_steps_and_rounds_of_the_wire_is_kept(
    database: Database,
) -> None:
    """Both travel as uint32, whose upper half a 32-bit integer column would refuse."""
    one = replace(statement("x"), steps=2**32 - 1, round=2**32 - 1, noise_multiplier=1e6)
    database.write_now(lambda c: booking.book(c, one))
    assert database.read_now(lambda c: ledger.reserved(c, "x")) == one


def test_open_reservations_that_nothing_is_booked_for_count_all_the_same(
    database: Database,
) -> None:
    """Only their sum is read: it refuses what would pass the limit, and one that is voided later
    makes its room free."""
    for number in range(5):
        database.write_now(lambda c, n=number: booking.book(c, statement(f"x{n}")))
    with pytest.raises(BudgetRefused):
        database.write_now(lambda c: booking.book(c, statement("y")))

    def both(connection: Connection) -> None:
        books = booking.Books(connection)
        void = statement("x3", kind="void")
        books.book(void, sign(KEY, void))
        books.book(statement("y"))
        books.flush()

    database.write_now(both)
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    assert {one.attempt_id for one in account.balance.pending} == {"x0", "x1", "x2", "x4", "y"}


def test_what_is_undone_leaves_nothing_in_the_ledger(database: Database) -> None:
    """Neither an entry, nor a reservation, nor an end; what was booked before stays, and what is
    booked after it continues that."""
    database.write_now(lambda c: booking.book(c, statement("old", noise=60.0)))

    def work(connection: Connection) -> None:
        books = booking.Books(connection)
        books.book(statement("kept", noise=60.0))
        before = books.mark()
        books.book(statement("undone", noise=60.0))
        books.resolve("old", "post", b"")
        books.go_back(before)
        books.book(statement("after", noise=60.0))
        books.flush()

    database.write_now(work)
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    chain = database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    found = verify(chain, {ACCOUNT: account.verifying_filter}, {NODE: PUBLIC})
    assert found.ok, found.problems
    assert [one.statement.attempt_id for one in chain] == ["old", "kept", "after"]  # type: ignore[union-attr]
    assert {one.attempt_id for one in account.balance.pending} == {"old", "kept", "after"}
    assert account.balance.posted_units == 0
    assert (account.entries, account.head_hash) == (3, chain[-1].hash)
    database.write_now(lambda c: booking.book(c, statement("undone", noise=60.0)))
    assert kinds(database) == ["reserve"] * 4


def test_a_guarantee_that_was_lost_stays_lost(database: Database) -> None:
    """With the first post of a release without accounting, also after others."""
    bare = replace(statement("bare"), mechanism="none", noise_multiplier=None)
    guarantees = []
    for one in (bare, bare.resolved("post"), statement("x"), statement("x", kind="post")):
        database.write_now(lambda c, one=one: booking.book(c, one))
        account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
        guarantees.append(account.balance.guarantee)
    assert guarantees == [True, False, False, False]


@pytest.mark.parametrize("kind", ["reserve", "", "POST"])
def test_an_attempt_ends_in_nothing_but_post_or_void(database: Database, kind: str) -> None:
    """A word that is neither would else give the charge back."""
    database.write_now(lambda c: booking.book(c, statement("x")))

    def work(connection: Connection) -> None:
        books = booking.Books(connection)
        books.resolve("x", kind, b"")
        books.flush()

    with pytest.raises(InvariantBroken):
        database.write_now(work)
    assert kinds(database) == ["reserve"]
