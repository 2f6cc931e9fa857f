"""What every store must do; run against SQLite in a file."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError, OperationalError

from coordinator.rounds import events
from coordinator.store import booking, jobs, ledger, people
from coordinator.store.database import Database, newest_revision
from coordinator.store.schema import certificates, metadata
from coordinator.store.upgrade import alembic_config
from privacy.ledger import Statement, sign
from privacy.verification import verify
from protos.errors import BudgetRefused, Conflict, FeddpError, Malformed, Unauthenticated

NODE, ACCOUNT = "a", "a/patients"
SPIFFE = "spiffe://test.example/node/a"
KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A fresh store with one node and one account of epsilon 1."""
    opened = Database(f"sqlite:///{tmp_path / 'c.db'}")
    opened.migrate()
    invite(opened, "s")
    opened.write_now(lambda c: ledger.open_account(c, ACCOUNT, NODE, "gdp", 0, 1.0, 1e-5))
    yield opened
    opened.close()


def invite(database: Database, secret_hash: str, *, now_s: float = 0.0) -> None:
    """A token for the node."""
    database.write_now(
        lambda c: people.invite(
            c, NODE, "hpc", secret_hash, spiffe_id=SPIFFE, now_s=now_s, expires_at_s=now_s + 1000
        )
    )


def statement(attempt_id: str, noise: float = 20.0, kind: str = "reserve") -> Statement:
    """A full-batch release of 5 steps; at noise 20 about 0.17 of the account's mu squared."""
    return Statement(
        kind,
        attempt_id,
        "default",
        NODE,
        ACCOUNT,
        "heart",
        "j",
        1,
        "patient",
        100,  # type: ignore[arg-type]
        "gaussian",
        noise,
        1.0,
        5,
    )


def entries(database: Database) -> list[str]:
    """Kinds in the account's chain."""
    return database.read_now(lambda c: [e.statement.kind for e in ledger.chain(c, ACCOUNT)])


def test_migrations_make_exactly_the_tables_of_the_schema(database: Database) -> None:
    """A change to the schema without a migration, or the reverse, is found here."""

    def work(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert database.read_now(work) == []


def test_the_newest_revision_is_the_one_that_the_migrations_lead_to() -> None:
    """It is read from the files' names, so that a start does not load Alembic to find it."""
    script = ScriptDirectory.from_config(alembic_config())
    assert newest_revision() == script.get_current_head()


def test_a_database_of_an_older_revision_is_upgraded(database: Database) -> None:
    """Also one that has tables already."""

    def older(connection: Connection) -> None:
        command.downgrade(alembic_config(connection), "0001")

    database.write_now(older)
    with pytest.raises(OperationalError, match="leases"):
        database.read_now(lambda c: c.execute(text("SELECT * FROM leases")).all())
    database.migrate()
    assert database.read_now(lambda c: c.execute(text("SELECT * FROM leases")).all()) == []


def test_every_sqlite_connection_is_durable(database: Database) -> None:
    """WAL with full sync: what was committed survives a power cut."""

    def pragma(name: str) -> object:
        return database.write_now(lambda c: c.execute(text(f"PRAGMA {name}")).scalar())

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2


def test_a_hundred_redemptions_of_one_token_have_one_winner(database: Database) -> None:
    """Many keys race for a token; one conditional UPDATE lets one of them in."""

    def attempt(number: int) -> bool:
        try:
            database.write_now(lambda c: people.redeem(c, "s", f"key{number}", 10.0))
        except Unauthenticated as error:
            assert error.reason == "TOKEN_USED"
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(attempt, range(100))) == 1


def test_the_same_key_may_redeem_again_for_fifteen_minutes(database: Database) -> None:
    """A lost reply locks nobody out: the first answer is given again, then the token is used up."""
    database.write_now(lambda c: people.redeem(c, "s", "key", 10.0))
    database.write_now(lambda c: people.enrol(c, "s", NODE, PUBLIC, b"chain"))
    again = database.write_now(lambda c: people.redeem(c, "s", "key", 10.0 + people.REPLY_LOST_S))
    assert again.chain == b"chain"
    with pytest.raises(Unauthenticated) as caught:
        database.write_now(lambda c: people.redeem(c, "s", "key", 11.0 + people.REPLY_LOST_S))
    assert caught.value.reason == "TOKEN_USED"


@pytest.mark.parametrize(
    ("secret", "now_s", "reason"), [("x", 10.0, "TOKEN_INVALID"), ("s", 1001.0, "TOKEN_EXPIRED")]
)
def test_wrong_and_expired_tokens_are_told_apart(
    database: Database, secret: str, now_s: float, reason: str
) -> None:
    """Each refusal has its own reason, and leaves the token as it was."""
    with pytest.raises(Unauthenticated) as caught:
        database.write_now(lambda c: people.redeem(c, secret, "key", now_s))
    assert caught.value.reason == reason


def joined(database: Database) -> None:
    """The node joins, with a certificate that is valid until 500."""
    database.write_now(lambda c: people.redeem(c, "s", "key", 10.0))
    database.write_now(lambda c: people.enrol(c, "s", NODE, PUBLIC, b"chain"))
    row = {"fingerprint": "f", "spiffe_id": SPIFFE, "not_before": 0, "not_after": 500}
    database.write_now(lambda c: c.execute(certificates.insert().values(**row, revoked=False)))


def test_a_node_that_can_still_connect_cannot_be_invited_again(database: Database) -> None:
    """Two machines under one name would share an identity."""
    joined(database)
    with pytest.raises(Conflict) as caught:
        invite(database, "t", now_s=499)
    assert caught.value.reason == "NODE_EXISTS"


def test_a_node_whose_certificate_has_ended_may_join_again_as_itself(database: Database) -> None:
    """The new token knows the ledger key that must be shown again; nothing is reset."""
    joined(database)
    invite(database, "t", now_s=501)
    again = database.write_now(lambda c: people.redeem(c, "t", "new key", 510.0))
    assert (again.ledger_public_key, again.chain) == (PUBLIC, b"")


def test_a_node_disabled_before_it_joined_can_be_let_in_again(database: Database) -> None:
    """Enabling makes it "invited": it has no key yet."""
    database.write_now(lambda c: people.set_status(c, NODE, "disabled"))
    with pytest.raises(Conflict):
        invite(database, "t")
    assert database.write_now(lambda c: people.set_status(c, NODE, "enrolled")).status == "invited"
    invite(database, "t")


def test_a_new_token_voids_the_unused_one_before(database: Database) -> None:
    """Of two tokens for one name only the newest works."""
    invite(database, "t")
    with pytest.raises(Unauthenticated, match="does not know"):
        database.write_now(lambda c: people.redeem(c, "s", "key", 10.0))
    assert database.write_now(lambda c: people.redeem(c, "t", "key", 10.0)).node_class == "hpc"


def test_a_transaction_that_fails_leaves_no_entry(database: Database) -> None:
    """The reservation and the step that caused it commit together or not at all."""

    def work(connection: Connection) -> None:
        booking.book(connection, statement("x"))
        raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError):
        database.write_now(work)
    assert entries(database) == []
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    assert (account.balance.pending, account.entries) == ((), 0)


def test_booking_twice_writes_one_entry(database: Database) -> None:
    """Reserve, post, and each of them again: two entries."""
    for kind in ("reserve", "reserve", "post", "post"):
        database.write_now(lambda c, kind=kind: booking.book(c, statement("x", kind=kind)))
    assert entries(database) == ["reserve", "post"]
    with pytest.raises(Conflict):
        database.write_now(lambda c: booking.book(c, statement("x", kind="void")))


def test_a_reservation_over_the_limit_is_refused_and_changes_nothing(database: Database) -> None:
    """Pending counts like posted: what is ordered may be released."""
    for number in range(5):
        database.write_now(lambda c, n=number: booking.book(c, statement(f"x{n}")))
    with pytest.raises(BudgetRefused):
        database.write_now(lambda c: booking.book(c, statement("x5", noise=2.0)))
    assert entries(database) == ["reserve"] * 5


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


def test_two_writers_cannot_both_go_on_from_the_same_step(database: Database) -> None:
    """The journal's key is job and step: the second writer is refused."""
    record = jobs.JobRecord("j", "default", "n", "u", "r", b"", "{}", "h", "running", 0.0)
    database.write_now(lambda c: jobs.add(c, record))
    event = events.JobSubmitted("m0")
    database.write_now(lambda c: jobs.append(c, "j", 0, 1.0, event))
    with pytest.raises(IntegrityError):
        database.write_now(lambda c: jobs.append(c, "j", 0, 2.0, event))
    assert database.read_now(lambda c: jobs.history(c, "j")) == [(1.0, event)]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "post", "void"]),
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
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, str, float, bool]]
) -> None:
    """Any order of reserve, post and void, with crashes in between: the chain verifies offline,
    the balance equals the chain's, and the limit holds."""
    opened = Database(f"sqlite:///{tmp_path_factory.mktemp('db') / 'c.db'}")
    opened.migrate()
    invite(opened, "s")
    opened.write_now(lambda c: ledger.open_account(c, ACCOUNT, NODE, "gdp", 0, 1.0, 1e-5))
    noises: dict[str, float] = {}
    for kind, attempt_id, noise, crash in actions:
        one = statement(attempt_id, noises.setdefault(attempt_id, noise), kind)

        def work(connection: Connection, one: Statement = one, crash: bool = crash) -> None:
            booking.book(connection, one, sign(KEY, one))
            if crash:
                raise RuntimeError("the process dies here")

        try:
            opened.write_now(work)
        except (FeddpError, RuntimeError):
            continue
    chain = opened.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    account = opened.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    opened.close()
    assert verify(chain, {ACCOUNT: account.filter}, {NODE: PUBLIC}).ok
    posted = [e.statement for e in chain if e.statement.kind == "post"]
    cost = sum(account.filter.cost_units(s.release) for s in posted)
    assert cost == account.balance.posted_units
    assert (
        account.balance.posted_units + account.balance.pending_units <= account.filter.limit_units
    )
    assert (account.entries, account.head_hash) == (
        len(chain),
        chain[-1].hash if chain else "0" * 64,
    )
