"""The central ledger in SQL: one append-only chain per account, its balance kept beside it.

What a statement does to a balance is decided by `privacy.ledger.Balance` alone. Every function
here runs inside the caller's transaction, so that entries commit with the step that caused them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, update

from coordinator.store.schema import accounts, entries, reservations
from privacy.filters import Filter, make_filter
from privacy.ledger import GENESIS, Balance, Entry, Pending, Statement, append, signature_ok
from protos.errors import Malformed, NotFound, invariant


@dataclass(frozen=True, slots=True)
class Account:
    """An account with its balance, as of the transaction that read it."""

    account: str
    node: str
    balance: Balance
    entries: int
    head_hash: str
    epsilon_limit_highest: float = 0.0

    @property
    def filter(self) -> Filter:
        """The filter, fixed with the account's first entry; its limit is today's."""
        return self.balance.filter

    @property
    def verifying_filter(self) -> Filter:
        """The filter at the highest limit that the account ever had."""
        now = self.balance.filter
        return make_filter(now.kind, now.order, self.epsilon_limit_highest, now.delta)


def open_account(
    connection: Connection,
    account: str,
    node: str,
    kind: str,
    order: int,
    epsilon_limit: float,
    delta: float,
) -> Account:
    """The account, created at its first mention from what the steward announced.

    Filter and delta never change once an entry counts by them. A lower limit that is announced
    later is kept; a higher one is not: raising a guarantee is not a node's word alone.

    Raises:
        Malformed: FILTER_INVALID, or ACCOUNT_CHANGED for another filter or delta.
    """
    announced = make_filter(kind, order, epsilon_limit, delta)
    row = connection.execute(select(accounts).where(accounts.c.account == account)).one_or_none()
    if row is None:
        connection.execute(
            accounts.insert().values(
                account=account,
                node=node,
                filter=kind,
                rdp_order=order,
                epsilon_limit=epsilon_limit,
                epsilon_limit_highest=epsilon_limit,
                delta=delta,
                posted_units=0,
                guarantee=True,
                entries=0,
                head_hash=GENESIS,
            )
        )
    elif row.entries == 0:  # nothing counts by the old terms yet
        connection.execute(
            update(accounts)
            .where(accounts.c.account == account)
            .values(
                filter=kind,
                rdp_order=order,
                epsilon_limit=epsilon_limit,
                epsilon_limit_highest=epsilon_limit,
                delta=delta,
            )
        )
    elif (row.filter, row.rdp_order, row.delta) != (kind, order, delta):
        raise Malformed(
            "ACCOUNT_CHANGED",
            f"account {account} was created with filter {row.filter} and delta {row.delta:g}, "
            "which never change; set them back in the policy, or use a new account for new "
            "patients",
        )
    elif announced.limit_units < make_filter(kind, order, row.epsilon_limit, delta).limit_units:
        connection.execute(
            update(accounts)
            .where(accounts.c.account == account)
            .values(epsilon_limit=epsilon_limit)
        )
    return read_account(connection, account)


def read_account(connection: Connection, account: str) -> Account:
    """One account with every open reservation.

    Raises:
        NotFound: ACCOUNT_UNKNOWN.
    """
    row = connection.execute(select(accounts).where(accounts.c.account == account)).one_or_none()
    if row is None:
        raise NotFound("ACCOUNT_UNKNOWN", f"there is no account {account}")
    return _account(connection, row)


def all_accounts(connection: Connection) -> list[Account]:
    """Every account, by name."""
    rows = connection.execute(select(accounts).order_by(accounts.c.account)).all()
    return [_account(connection, row) for row in rows]


def _account(connection: Connection, row: Row[Any]) -> Account:
    held = connection.execute(select(reservations).where(reservations.c.account == row.account))
    pending = tuple(Pending(r.attempt_id, r.units, r.digest, r.accounted) for r in held)
    filter_ = make_filter(row.filter, row.rdp_order, row.epsilon_limit, row.delta)
    balance = Balance(filter_, row.posted_units, pending, guarantee=row.guarantee)
    return Account(
        row.account, row.node, balance, row.entries, row.head_hash, row.epsilon_limit_highest
    )


def book(connection: Connection, statement: Statement, signature: bytes = b"") -> None:
    """Reserve, post or void as `statement` says; the very same again changes nothing.

    Raises:
        BudgetRefused, Conflict, NotFound: as `privacy.ledger.Balance`.
    """
    account = read_account(connection, statement.account)
    attempt_id = statement.attempt_id
    kinds = {
        row.kind
        for row in connection.execute(
            select(entries.c.kind).where(entries.c.attempt_id == attempt_id)
        )
    }
    before = Balance(
        account.filter,
        account.balance.posted_units,
        account.balance.pending,
        frozenset({attempt_id} if "post" in kinds else ()),
        frozenset({attempt_id} if "void" in kinds else ()),
        account.balance.guarantee,
    )
    after = before.apply(statement)
    if after == before:
        return
    _write_entry(connection, account, statement, signature)
    if statement.kind == "reserve":
        added = next(one for one in after.pending if one.attempt_id == attempt_id)
        connection.execute(
            reservations.insert().values(
                attempt_id=attempt_id,
                account=statement.account,
                job_id=statement.job_id,
                units=added.units,
                digest=added.digest,
                accounted=added.accounted,
            )
        )
    else:
        connection.execute(reservations.delete().where(reservations.c.attempt_id == attempt_id))
    connection.execute(
        update(accounts)
        .where(accounts.c.account == statement.account)
        .values(posted_units=after.posted_units, guarantee=after.guarantee)
    )


def _write_entry(
    connection: Connection, account: Account, statement: Statement, signature: bytes
) -> None:
    head = None if account.entries == 0 else _last(connection, account.account)
    invariant(head is None or head.hash == account.head_hash, "the chain's head is not its last")
    entry = append(statement, head, signature)
    connection.execute(
        entries.insert().values(
            **statement.fields(),
            seq=entry.seq,
            prev_hash=entry.prev_hash,
            hash=entry.hash,
            node_signature=signature,
        )
    )
    connection.execute(
        update(accounts)
        .where(accounts.c.account == account.account)
        .values(entries=entry.seq, head_hash=entry.hash)
    )


def _last(connection: Connection, account: str) -> Entry:
    row = connection.execute(
        select(entries).where(entries.c.account == account).order_by(entries.c.seq.desc()).limit(1)
    ).one()
    return _entry(row)


def reserved(connection: Connection, attempt_id: str) -> Statement:
    """The reserve statement of an attempt.

    Raises:
        NotFound: ATTEMPT_UNKNOWN.
    """
    row = connection.execute(
        select(entries).where(entries.c.attempt_id == attempt_id, entries.c.kind == "reserve")
    ).one_or_none()
    if row is None:
        raise NotFound("ATTEMPT_UNKNOWN", f"there is no attempt {attempt_id}")
    return _entry(row).statement


def resolve(connection: Connection, attempt_id: str, kind: str, signature: bytes) -> None:
    """Post or void an attempt; the statement is its reservation's."""
    invariant(kind in ("post", "void"), "an attempt ends in post or void")
    statement = reserved(connection, attempt_id)
    book(connection, statement.resolved("post" if kind == "post" else "void"), signature)


def outcome(connection: Connection, attempt_id: str) -> str | None:
    """ "post" or "void", or None while the attempt is open or unknown."""
    return connection.execute(
        select(entries.c.kind).where(
            entries.c.attempt_id == attempt_id, entries.c.kind.in_(("post", "void"))
        )
    ).scalar_one_or_none()


def keep_signature(connection: Connection, attempt_id: str, signature: bytes) -> None:
    """Attach the node's signature to a reserve entry that has none yet."""
    connection.execute(
        update(entries)
        .where(
            entries.c.attempt_id == attempt_id,
            entries.c.kind == "reserve",
            entries.c.node_signature == b"",
        )
        .values(node_signature=signature)
    )


def check_signature(public_key: bytes, statement: Statement, signature: bytes) -> None:
    """Refuse a signature that is not the node's over exactly this statement.

    Raises:
        Malformed: SIGNATURE_INVALID.
    """
    if not signature_ok(public_key, statement, signature):
        raise Malformed(
            "SIGNATURE_INVALID",
            f"the {statement.kind} signature of attempt {statement.attempt_id} is not that of "
            f"node {statement.node}'s ledger key",
        )


def posted_by(connection: Connection, job_id: str, account: str) -> list[Statement]:
    """What a job has posted to an account, in chain order."""
    rows = connection.execute(
        select(entries)
        .where(entries.c.job_id == job_id, entries.c.account == account, entries.c.kind == "post")
        .order_by(entries.c.seq)
    )
    return [_entry(row).statement for row in rows]


def job_spending(connection: Connection, job_id: str, account: Account) -> tuple[int, int]:
    """(filter units, number of releases) that a job has posted or holds in an account."""
    posted = [
        account.filter.cost_units(statement.release)
        for statement in posted_by(connection, job_id, account.account)
    ]
    held = connection.execute(
        select(reservations.c.units).where(
            reservations.c.job_id == job_id, reservations.c.account == account.account
        )
    ).scalars()
    units = [*posted, *held]
    return sum(units), len(units)


def chain(connection: Connection, account: str) -> Iterator[Entry]:
    """An account's entries in order."""
    rows = connection.execute(
        select(entries).where(entries.c.account == account).order_by(entries.c.seq)
    )
    for row in rows:
        yield _entry(row)


def _entry(row: Row[Any]) -> Entry:
    values = row._mapping
    statement = Statement(**{name: values[name] for name in Statement.__dataclass_fields__})
    return Entry(row.seq, statement, row.prev_hash, row.hash, row.node_signature)
