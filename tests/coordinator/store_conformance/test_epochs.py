"""A database that was restored from a backup says so, and spends nothing before nodes have said
what it lacks."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from certs.enrolment import public_bytes_of
from coordinator.store import booking, checkpoints, epochs
from coordinator.store.booking import Books
from coordinator.store.database import Database
from privacy.epochs import Epoch, epochs_fault
from privacy.heads import root_of
from privacy.ledger import sign
from protos.errors import Malformed, WrongPhase
from tests.coordinator.store_conformance.samples import ACCOUNT, KEY, kinds, open_account, statement

COORDINATOR_KEY = Ed25519PrivateKey.generate()
PUBLIC = public_bytes_of(COORDINATOR_KEY)


def raised(database: Database, now_s: float = 1000.0) -> Epoch:
    """The database declares that it was restored."""
    return database.write_now(
        lambda c: epochs.raise_epoch(c, COORDINATOR_KEY, now_s=now_s, backup_made_at_s=500.0)
    )


def reconciled(database: Database, number: int = 2, account: str = ACCOUNT) -> bool:
    """The account's node has handed in all that it knows."""
    return database.write_now(lambda c: epochs.reconcile(c, account, number, 2000.0))


def test_a_database_that_was_never_restored_has_no_epoch(database: Database) -> None:
    """And no account that waits for its node."""
    assert database.read_now(epochs.newest) is None
    assert database.read_now(epochs.all_of) == []
    assert database.read_now(epochs.unreconciled) == frozenset()


def test_an_epoch_fixes_where_accounts_and_checkpoints_stood(database: Database) -> None:
    """It is signed by the coordinator, and chained to the one before."""
    database.write_now(lambda c: booking.book(c, statement("x")))
    database.write_now(lambda c: checkpoints.renew(c, COORDINATOR_KEY, 400.0))
    database.write_now(lambda c: booking.book(c, statement("y")))
    heads = database.read_now(checkpoints.heads)
    first = raised(database)
    checkpoint = database.read_now(checkpoints.newest)
    assert checkpoint is not None
    assert (first.number, first.restored_at_s, first.backup_made_at_s) == (2, 1000, 500)
    assert (first.checkpoint_number, first.checkpoint_hash) == (1, checkpoint[0].hash)
    assert first.heads_root == root_of(head.leaf() for head in heads)
    assert database.read_now(lambda c: epochs.places(c, 2)) == heads
    second = raised(database, now_s=1000.0)  # a clock that stands still
    assert (second.number, second.restored_at_s) == (3, 1001)
    assert database.read_now(epochs.all_of) == [first, second]
    assert database.read_now(epochs.newest) == second
    assert epochs_fault([first, second], PUBLIC) == ""


def test_a_database_of_another_ledger_key_raises_no_epoch(database: Database) -> None:
    """Nodes know the key of its checkpoints, and would believe nothing that another one signs."""
    database.write_now(lambda c: checkpoints.renew(c, Ed25519PrivateKey.generate(), 400.0))
    with pytest.raises(Malformed) as caught:
        raised(database)
    assert caught.value.reason == "LEDGER_KEY_CHANGED"
    assert database.read_now(epochs.newest) is None


def test_nothing_is_reserved_on_an_account_until_its_node_has_handed_in(
    database: Database,
) -> None:
    """What was reserved before is resolved as ever, and what is handed in is booked."""
    database.write_now(lambda c: booking.book(c, statement("x")))
    raised(database)
    with pytest.raises(WrongPhase) as caught:
        database.write_now(lambda c: booking.book(c, statement("y")))
    assert caught.value.reason == "LEDGER_RECONCILING"
    assert "backup of 1970-01-01 00:08:20 UTC" in caught.value.message
    with pytest.raises(WrongPhase) as caught:
        reconciled(database)
    assert caught.value.reason == "ATTEMPTS_OPEN"
    database.write_now(lambda c: booking.book(c, statement("x")))  # the very same changes nothing
    void = statement("x", kind="void")
    database.write_now(lambda c: booking.book(c, void, sign(KEY, void)))

    def handed_in(connection) -> None:  # type: ignore[no-untyped-def]
        books = Books(connection, hands_in=True)
        books.book(statement("z"))
        books.book(statement("z", kind="post"))
        books.flush()

    database.write_now(handed_in)
    assert database.read_now(epochs.unreconciled) == {ACCOUNT}
    assert reconciled(database)
    assert not reconciled(database)
    assert database.read_now(epochs.unreconciled) == frozenset()
    assert [one.seq for one in database.read_now(lambda c: epochs.reconciled_at(c, 2))] == [4]
    database.write_now(lambda c: booking.book(c, statement("y")))
    assert kinds(database) == ["reserve", "void", "reserve", "post", "reserve"]


def test_each_account_waits_for_its_own_node_and_each_restoration_begins_anew(
    database: Database,
) -> None:
    """Also an account that is opened only after it: the backup may be older than the account."""
    raised(database)
    assert reconciled(database)
    open_account(database, "a/others")
    assert database.read_now(lambda c: epochs.unreconciled(c, [ACCOUNT])) == frozenset()
    assert database.read_now(epochs.unreconciled) == {"a/others"}
    raised(database, now_s=3000.0)
    assert database.read_now(epochs.unreconciled) == {ACCOUNT, "a/others"}
    with pytest.raises(WrongPhase) as caught:
        reconciled(database, 2)
    assert caught.value.reason == "EPOCH_PAST"
    assert reconciled(database, 3)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE epochs SET backup_made_at_s = 1",
        "DELETE FROM epochs",
        "UPDATE reconciled SET seq = 7",
        "DELETE FROM reconciled",
    ],
)
def test_no_restoration_is_changed_or_forgotten(database: Database, change: str) -> None:
    """Nor that a node has handed in."""
    one = raised(database)
    reconciled(database)
    with pytest.raises(DBAPIError, match="never changed"):
        database.write_now(lambda c: c.execute(text(change)))
    assert database.read_now(epochs.all_of) == [one]


@pytest.mark.parametrize("table", ["epochs", "reconciled"])
def test_no_restoration_is_replaced(database: Database, url: str, table: str) -> None:
    """Which SQLite does by removing the old row, past the triggers for removals."""
    one = raised(database)
    reconciled(database)
    replacing = f"INSERT INTO {table} SELECT * FROM {table}"  # noqa: S608
    if url.startswith("sqlite"):
        replacing = replacing.replace("INSERT", "INSERT OR REPLACE")
    with pytest.raises(DBAPIError, match=r"never changed|(?i:unique)"):
        database.write_now(lambda c: c.execute(text(replacing)))
    assert database.read_now(epochs.all_of) == [one]
