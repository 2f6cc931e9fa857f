"""What a node hands in of an account after the coordinator was restored from a backup. Every
function runs inside the caller's transaction."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from coordinator.store import epochs, ledger, limits
from coordinator.store.booking import Books
from coordinator.store.schema import accounts
from privacy.epochs import FIRST
from privacy.heads import Terms, signed_by
from privacy.ledger import LimitChange, Statement, signature_ok
from protos.errors import Malformed, NotFound, WrongPhase


@dataclass(frozen=True, slots=True)
class HandedIn:
    """One account, as its node's own ledger has it.

    Attributes:
        account: "NODE/NAME".
        epoch: the number of the newest that the node has seen.
        terms: what the account's patients were promised at first, and the node's signature; None
            where its own ledger has no entry of the account.
        statements: each with the node's signature, in the order in which they are booked.
        done: there is nothing more.
    """

    account: str
    epoch: int
    terms: tuple[Terms, bytes] | None = None
    statements: Sequence[tuple[Statement | LimitChange, bytes]] = ()
    done: bool = False


def take(
    connection: Connection, node: str, public_key: bytes, given: HandedIn, now_s: float
) -> int:
    """Book what the chain lacks, and note the account as reconciled once that is all; the same
    again changes nothing. Returns how many entries were added.

    Args:
        node: who hands in; the account must be this node's.
        public_key: the node's raw ledger key.

    Raises:
        WrongPhase: EPOCH_PAST; ATTEMPTS_OPEN; LEDGER_DAMAGED.
        NotFound: ACCOUNT_UNKNOWN, also for another node's account; ATTEMPT_UNKNOWN.
        Malformed: SIGNATURE_INVALID; ACCOUNT_CHANGED, its filter or delta is another one here;
            LIMIT_INVALID, FILTER_INVALID.
        Conflict: ATTEMPT_CONFLICT, ATTEMPT_RESOLVED, LIMIT_CONFLICT.
        BudgetRefused: the chain would pass the account's limit, and verify no more.
    """
    name = given.account
    if name.partition("/")[0] != node:
        raise NotFound("ACCOUNT_UNKNOWN", f"node {node} has no account {name}")
    if given.terms is not None and not signed_by(public_key, *given.terms):
        raise Malformed("SIGNATURE_INVALID", f"the terms of {name} are not signed by its node")
    for statement, signature in given.statements:
        if (statement.account, statement.node) != (name, node):
            raise NotFound("ACCOUNT_UNKNOWN", f"what is handed in of {name} is of another account")
        if not signature_ok(public_key, statement, signature):
            raise Malformed(
                "SIGNATURE_INVALID", f"a {statement.kind} of {name} is not signed by its node"
            )
    newest = epochs.newest(connection)
    if newest is None or newest.number != given.epoch:
        present = newest.number if newest else FIRST
        raise WrongPhase("EPOCH_PAST", f"this coordinator is at epoch {present}, not {given.epoch}")
    if given.terms is not None:
        _open(connection, node, given.terms[0])
    before = ledger.read_account(connection, name).entries
    for statement, signature in given.statements:
        if isinstance(statement, LimitChange):
            limits.record(connection, node, public_key, statement, signature)
    books = Books(connection, hands_in=True)
    for statement, signature in given.statements:
        if isinstance(statement, Statement):
            books.take_over(statement, signature)
    books.flush()
    if given.done:
        epochs.reconcile(connection, name, given.epoch, now_s)
    return ledger.read_account(connection, name).entries - before


def _open(connection: Connection, node: str, terms: Terms) -> None:
    """The account at its node's terms, where the backup does not have it, or no entry of it: the
    limit that its node has announced since may be below what was spent under the first one."""
    fixed = (terms.filter, terms.rdp_order, terms.delta)
    limit = terms.epsilon_limit_highest
    row = connection.execute(
        select(accounts).where(accounts.c.account == terms.account).with_for_update()
    ).one_or_none()
    if row is None:
        ledger.open_account(connection, terms.account, node, *fixed[:2], limit, terms.delta)
        return
    if row.node != node:
        raise NotFound("ACCOUNT_UNKNOWN", f"node {node} has no account {terms.account}")
    if (row.filter, row.rdp_order, row.delta) != fixed:
        if row.entries:
            raise Malformed(
                "ACCOUNT_CHANGED",
                f"account {terms.account} was created with filter {row.filter} and delta "
                f"{row.delta:g}, and its node's own ledger counts by others",
            )
        ledger.open_account(connection, terms.account, node, *fixed[:2], limit, terms.delta)
    elif not row.entries and limit > row.epsilon_limit_highest:
        connection.execute(
            update(accounts)
            .where(accounts.c.account == terms.account)
            .values(epsilon_limit_highest=limit)
        )
