"""What a node hands in after a restoration: each statement is checked as a verifier would, and
booked once."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.store import booking, epochs, handing_in, ledger
from coordinator.store.database import Database
from coordinator.store.handing_in import HandedIn
from privacy.heads import Terms
from privacy.ledger import LimitChange, Statement, sign, verify
from protos.errors import BudgetRefused, Conflict, FeddpError, Malformed, NotFound, WrongPhase
from tests.coordinator.store_conformance.samples import (
    ACCOUNT,
    KEY,
    NODE,
    PUBLIC,
    kinds,
    open_account,
    statement,
)
from tests.coordinator.store_conformance.test_limits import change as raise_of

COORDINATOR_KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def restored(database: Database) -> Database:
    """The backup held a post of "old", and "open", which was reserved."""
    old = statement("old")
    for one in (old, old.resolved("post"), statement("open")):
        database.write_now(lambda c, one=one: booking.book(c, one, sign(KEY, one)))
    database.write_now(
        lambda c: epochs.raise_epoch(c, COORDINATOR_KEY, now_s=1000.0, backup_made_at_s=500.0)
    )
    return database


def terms(account: str = ACCOUNT, limit: float = 1.0) -> Terms:
    """As the node's own ledger has them."""
    return Terms(account, "gdp", 0, 1e-5, limit)


def given(
    *statements: Statement | LimitChange,
    of: Terms | None = None,
    key: Ed25519PrivateKey = KEY,
    epoch: int = 2,
    done: bool = False,
) -> HandedIn:
    """What a node hands in, signed by it."""
    of = of or terms()
    signed = [(one, sign(key, one)) for one in statements]
    return HandedIn(of.account, epoch, (of, KEY.sign(of.canonical())), signed, done)


def hand_in(database: Database, what: HandedIn, node: str = NODE) -> int:
    """The node hands it in."""
    return database.write_now(lambda c: handing_in.take(c, node, PUBLIC, what, 2000.0))


def released(attempt_id: str, noise: float = 40.0) -> Sequence[Statement]:
    """An attempt that the backup does not know."""
    one = statement(attempt_id, noise)
    return one, one.resolved("post")


def posted_units(database: Database, account: str = ACCOUNT) -> int:
    """What the account has spent."""
    return database.read_now(lambda c: ledger.read_account(c, account)).balance.posted_units


def test_what_the_backup_lacks_is_booked_once(restored: Database) -> None:
    """The account is reconciled when its node says that this was all, and the chain verifies."""
    before = posted_units(restored)
    void = statement("open", kind="void")
    for number in (5, 0):
        assert hand_in(restored, given(void, *released("x"), *released("y"))) == number
    assert posted_units(restored) > before
    assert restored.read_now(epochs.unreconciled) == {ACCOUNT}
    for _ in range(2):
        assert hand_in(restored, given(done=True)) == 0
        assert restored.read_now(epochs.unreconciled) == frozenset()
    assert kinds(restored)[3:] == ["void", "reserve", "post", "reserve", "post"]
    chain = restored.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    account = restored.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    found = verify(chain, {ACCOUNT: account.verifying_filter}, {NODE: PUBLIC})
    assert found.ok, found.problems
    assert found.balances[ACCOUNT].posted_units == account.balance.posted_units
    assert found.unattested == ()


def test_an_account_is_not_reconciled_while_the_chain_holds_what_nobody_resolved(
    restored: Database,
) -> None:
    """Nothing of the same call is booked either."""
    with pytest.raises(WrongPhase) as caught:
        hand_in(restored, given(*released("x"), done=True))
    assert caught.value.reason == "ATTEMPTS_OPEN"
    assert kinds(restored) == ["reserve", "post", "reserve"]


def test_a_post_of_what_the_backup_holds_reserved_is_booked(restored: Database) -> None:
    """It is charged once, although its reservation is handed in again too."""
    one = statement("open")
    assert hand_in(restored, given(one, one.resolved("post"), done=True)) == 1
    assert kinds(restored)[2:] == ["reserve", "post"]


def test_terms_lift_no_limit_of_an_account_with_entries(restored: Database) -> None:
    """That takes two people; without entries the node's own ledger knows better."""
    open_account(restored, f"{NODE}/unused")
    for name in (ACCOUNT, f"{NODE}/unused"):
        hand_in(restored, given(of=terms(name, limit=5.0)))
    read = (ACCOUNT, 1.0), (f"{NODE}/unused", 5.0)
    for name, limit in read:
        account = restored.read_now(lambda c, name=name: ledger.read_account(c, name))
        assert account.epsilon_limit_highest == limit
        assert account.filter.epsilon_limit == 1.0


OTHERS = Ed25519PrivateKey.generate()


@pytest.mark.parametrize(
    ("what", "node", "error", "reason"),
    [
        (given(*released("x"), key=OTHERS), NODE, Malformed, "SIGNATURE_INVALID"),
        (given(*released("x")), "b", NotFound, "ACCOUNT_UNKNOWN"),
        (given(statement("x", account="a/others")), NODE, NotFound, "ACCOUNT_UNKNOWN"),
        (given(*released("x"), epoch=3), NODE, WrongPhase, "EPOCH_PAST"),
        (given(*released("x"), epoch=1), NODE, WrongPhase, "EPOCH_PAST"),
        (given(statement("open", 99.0, "post")), NODE, Conflict, "ATTEMPT_CONFLICT"),
        (given(statement("old", 99.0)), NODE, Conflict, "ATTEMPT_CONFLICT"),
        (given(statement("old", kind="void")), NODE, Conflict, "ATTEMPT_RESOLVED"),
        (given(statement("x", kind="post")), NODE, NotFound, "ATTEMPT_UNKNOWN"),
        (given(*released("x", 2.0)), NODE, BudgetRefused, "BUDGET_REFUSED"),
        (
            given(*released("x"), of=replace(terms(), delta=1e-6)),
            NODE,
            Malformed,
            "ACCOUNT_CHANGED",
        ),
        (
            replace(given(*released("x")), terms=(terms(limit=9.0), given().terms[1])),
            NODE,
            Malformed,
            "SIGNATURE_INVALID",
        ),
    ],
)
def test_what_does_not_hold_is_refused_and_changes_nothing(
    restored: Database, what: HandedIn, node: str, error: type[FeddpError], reason: str
) -> None:
    """As an officer's verification would refuse it."""
    with pytest.raises(error) as caught:
        hand_in(restored, what, node)
    assert caught.value.reason == reason
    assert kinds(restored) == ["reserve", "post", "reserve"]


def test_nothing_is_handed_in_to_a_coordinator_that_was_never_restored(
    database: Database,
) -> None:
    """Its chain is complete, and what its nodes may add goes by orders."""
    with pytest.raises(WrongPhase) as caught:
        hand_in(database, given(*released("x"), epoch=1))
    assert caught.value.reason == "EPOCH_PAST"


def test_what_was_spent_before_the_policy_was_lowered_is_booked_all_the_same(
    restored: Database,
) -> None:
    """The release has left; the chain counts by the limit that it shows itself."""
    open_account(restored, epsilon=0.2)  # what the node announces now
    hand_in(restored, given(statement("open", kind="void"), *released("x", 20.0)))
    account = restored.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    assert account.filter.epsilon_limit == 0.2
    assert account.balance.remaining_units == 0
    assert account.balance.posted_units > account.filter.limit_units


def test_an_account_that_the_backup_does_not_have_is_opened_at_its_nodes_first_limit(
    restored: Database,
) -> None:
    """Also where the node has announced a lower one since, which stays in force."""
    new = terms("a/new", 1.0)
    one = statement("n", 20.0, account="a/new")
    hand_in(restored, given(one, one.resolved("post"), of=new, done=True))
    announced = terms("a/later", 1.0)
    open_account(restored, "a/later", 0.2)
    other = statement("m", 20.0, account="a/later")
    hand_in(restored, given(other, other.resolved("post"), of=announced, done=True))
    later = restored.read_now(lambda c: ledger.read_account(c, "a/later"))
    assert (later.epsilon_limit_highest, later.filter.epsilon_limit) == (1.0, 0.2)
    assert restored.read_now(epochs.unreconciled) == {ACCOUNT}


def test_raises_come_back_before_what_they_made_possible(restored: Database) -> None:
    """In their order, each once."""
    change = raise_of(1.0, 3.0)
    what = given(statement("open", kind="void"), change, *released("x", 4.0))
    assert hand_in(restored, what) == 4
    assert hand_in(restored, what) == 0
    assert kinds(restored)[3:] == ["limit", "void", "reserve", "post"]
    account = restored.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    assert account.filter.epsilon_limit == 3.0


def test_nothing_more_is_taken_once_the_node_has_said_that_this_was_all(
    restored: Database,
) -> None:
    """From then on releases go by orders; what was lost of an answer is answered again."""
    void = statement("open", kind="void")
    all_of_it = given(void, *released("x"))
    hand_in(restored, all_of_it)
    hand_in(restored, given(done=True))
    assert hand_in(restored, all_of_it) == 0
    with pytest.raises(WrongPhase) as caught:
        hand_in(restored, given(*released("y")))
    assert caught.value.reason == "ACCOUNT_RECONCILED"
    assert kinds(restored)[3:] == ["void", "reserve", "post"]
