"""Raised limits in the store: once each, in the chain, and in force from there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from alembic import command
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError

from coordinator.store import booking, ledger, limits
from coordinator.store.database import Database
from coordinator.store.schema import entries
from coordinator.store.upgrade import alembic_config
from privacy.ledger import LimitChange, sign, verify
from privacy.limits import LimitTerms, sign_terms
from protos.errors import BudgetRefused, Conflict, FeddpError
from tests.coordinator.store_conformance.samples import (
    ACCOUNT,
    KEY,
    NODE,
    PUBLIC,
    kinds,
    open_account,
    statement,
)

ANNA, BERT = (Ed25519PrivateKey.from_private_bytes(bytes([one] * 32)) for one in (1, 2))


def change(old: float = 1.0, new: float = 2.0, number: int = 1, **terms: Any) -> LimitChange:
    """A raise that two people have signed."""
    fields = {
        "account": ACCOUNT,
        "node": NODE,
        "number": number,
        "filter": "gdp",
        "rdp_order": 0,
        "delta": 1e-5,
        "epsilon_limit_old": old,
        "epsilon_limit_new": new,
        "reason": "a second study",
        "asked_by": "anna",
        "asked_key": ANNA.public_key().public_bytes_raw().hex(),
        **terms,
    }
    made = LimitTerms(**fields)
    return LimitChange(
        made,
        asked_signature=sign_terms(ANNA, made),
        agreed_by="bert",
        agreed_key=BERT.public_key().public_bytes_raw().hex(),
        agreed_signature=sign_terms(BERT, made),
    )


def record(one: LimitChange, signature: bytes | None = None) -> Callable[[Connection], bool]:
    """What a node's Hello makes the coordinator do."""
    signed = sign(KEY, one) if signature is None else signature
    return lambda c: limits.record(c, NODE, PUBLIC, one, signed)


def limit(database: Database) -> float:
    return database.read_now(lambda c: ledger.read_account(c, ACCOUNT)).filter.epsilon_limit


def told(database: Database) -> dict[str, float | None]:
    """Each account's guarantee, as people see it."""
    return database.read_now(lambda c: limits.guarantees(c, ledger.all_accounts(c)))


def verifies(database: Database) -> bool:
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    chain = database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    found = verify(chain, {ACCOUNT: account.verifying_filter}, {NODE: PUBLIC})
    assert found.balances[ACCOUNT].filter == account.filter
    assert found.heads[ACCOUNT] == (account.entries, account.head_hash)
    return found.ok


def fill(database: Database) -> None:
    """Five attempts of 0.17 of the limit each; a sixth does not fit."""
    for number in range(5):
        database.write_now(lambda c, n=number: booking.book(c, statement(f"a{n}")))
    with pytest.raises(BudgetRefused):
        database.write_now(lambda c: booking.book(c, statement("b")))


def test_a_raise_is_one_entry_and_in_force_from_there(database: Database) -> None:
    """What did not fit fits after it, and the whole chain verifies."""
    fill(database)
    assert database.write_now(record(change()))
    assert limit(database) == 2.0
    database.write_now(lambda c: booking.book(c, statement("b")))
    assert kinds(database) == ["reserve"] * 5 + ["limit", "reserve"]
    assert database.read_now(lambda c: limits.raises(c, ACCOUNT)) == [change()]
    assert verifies(database)


def test_the_same_raise_again_changes_nothing(database: Database) -> None:
    """A node brings it in each Hello until it has seen it in the chain."""
    assert database.write_now(record(change()))
    for _ in range(2):
        assert not database.write_now(record(change()))
    assert kinds(database) == ["limit"]
    assert database.write_now(record(change(2.0, 3.0, 2)))
    assert not database.write_now(record(change()))
    assert limit(database) == 3.0
    assert verifies(database)


def test_writers_at_once_append_it_once(database: Database, url: str) -> None:
    """Whatever lease each believes to hold."""
    others = [Database(url) for _ in range(4)]
    with ThreadPoolExecutor(len(others)) as pool:
        done = list(pool.map(lambda one: one.write_now(record(change())), others))
    for one in others:
        one.close()
    assert sorted(done) == [False, False, False, True]
    assert kinds(database) == ["limit"]
    assert verifies(database)


def test_a_lower_announcement_after_a_raise_is_kept_and_an_old_raise_does_not_return(
    database: Database,
) -> None:
    """Lowering is no entry; the number of a raise keeps it from being used a second time."""
    database.write_now(record(change()))
    open_account(database, epsilon=0.5)
    assert limit(database) == 0.5
    assert not database.write_now(record(change()))
    assert limit(database) == 0.5
    open_account(database, epsilon=2.0)
    assert limit(database) == 0.5
    assert database.write_now(record(change(0.5, 1.5, 2)))
    assert limit(database) == 1.5


@pytest.mark.parametrize(
    ("raises_known", "in_force"), [(0, 3.0), (1, 3.0), (2, 0.5), (9, 0.5), (None, 0.5)]
)
def test_a_lower_limit_of_a_ledger_from_before_a_raise_undoes_no_raise(
    database: Database, raises_known: int | None, in_force: float
) -> None:
    """A node whose ledger was put back announces what was in force then; a steward who lowers it
    has a ledger that knows every raise. An agent that tells no number is followed as ever."""
    database.write_now(record(change()))
    database.write_now(record(change(2.0, 3.0, 2)))
    terms = (ACCOUNT, NODE, "gdp", 0, 0.5, 1e-5)
    kept = database.write_now(lambda c: ledger.open_account(c, *terms, raises_known))
    assert kept.filter.epsilon_limit == limit(database) == in_force


@pytest.mark.parametrize(
    ("one", "signature", "reason"),
    [
        (change(), b"", "SIGNATURE_INVALID"),
        (change(), sign(BERT, change()), "SIGNATURE_INVALID"),
        (change(account="b/patients"), None, "ACCOUNT_UNKNOWN"),
        (change(node="b"), None, "ACCOUNT_UNKNOWN"),
        (change(number=2), None, "LIMIT_INVALID"),
        (change(1.5, 2.0), None, "LIMIT_INVALID"),
        (change(1.0, 0.5), None, "LIMIT_INVALID"),
        (change(delta=1e-6), None, "LIMIT_INVALID"),
        (replace(change(), agreed_by="Anna"), None, "LIMIT_INVALID"),
        (replace(change(), agreed_signature="00" * 64), None, "LIMIT_INVALID"),
    ],
)
def test_a_raise_that_does_not_hold_is_refused_and_writes_nothing(
    database: Database, one: LimitChange, signature: bytes | None, reason: str
) -> None:
    """By name; the limit stays what it was."""
    with pytest.raises(FeddpError) as caught:
        database.write_now(record(one, signature))
    assert caught.value.reason == reason
    assert kinds(database) == []
    assert limit(database) == 1.0


def test_the_guarantee_is_the_highest_limit_that_was_ever_in_force(database: Database) -> None:
    """By the announcement or by a raise, and no lower one takes it back; each account has its
    own."""
    open_account(database, "a/others", 3.0)
    assert told(database) == {ACCOUNT: 1.0, "a/others": 3.0}
    database.write_now(lambda c: booking.book(c, statement("a0")))
    open_account(database, ACCOUNT, 0.5)
    assert (limit(database), told(database)[ACCOUNT]) == (0.5, 1.0)
    assert database.write_now(record(change(1.0, 2.0)))
    open_account(database, ACCOUNT, 0.7)
    assert (limit(database), told(database)) == (0.7, {ACCOUNT: 2.0, "a/others": 3.0})


@pytest.mark.parametrize("damaged", ["", "{", "[]", "{}", '{"epsilon_limit_new": "2"}', None])
def test_a_raise_that_cannot_be_read_leaves_the_guarantee_untold(
    database: Database, damaged: str | None
) -> None:
    """Never a lower one than was promised; the check of the ledger names the entry."""
    database.write_now(record(change()))
    assert told(database) == {ACCOUNT: 2.0}
    row = database.read_now(lambda c: c.execute(select(entries)).one())
    changed = {**row._mapping, "seq": 2, "attempt_id": "x", "limit_change": damaged}
    database.write_now(lambda c: c.execute(entries.insert().values(changed)))
    assert told(database) == {ACCOUNT: None}


def test_another_raise_of_the_same_number_is_a_conflict(database: Database) -> None:
    """The chain keeps the first."""
    database.write_now(record(change()))
    with pytest.raises(Conflict):
        database.write_now(record(change(new=9.0)))
    assert limit(database) == 2.0


def test_a_database_that_holds_a_raise_is_not_taken_back(database: Database) -> None:
    """An older coordinator could not read it; without one the column comes and goes."""

    def older(connection: Connection) -> None:
        command.downgrade(alembic_config(connection), "0004")

    database.write_now(older)
    with pytest.raises(DBAPIError, match="limit_change"):
        database.read_now(lambda c: c.execute(text("SELECT limit_change FROM entries")).all())
    database.migrate()
    database.write_now(record(change()))
    with pytest.raises(RuntimeError, match="older versions"):
        database.write_now(older)
    assert verifies(database)


def test_a_raise_is_as_unchangeable_as_every_entry(database: Database) -> None:
    """What only a raise has is guarded, too; bringing it again passes the guard."""
    for _ in range(2):
        database.write_now(record(change()))
    forged = "UPDATE entries SET limit_change = replace(limit_change, '2.0', '9.0')"
    with pytest.raises(DBAPIError, match="never changed"):
        database.write_now(lambda c: c.execute(text(forged)))
