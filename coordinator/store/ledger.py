"""The central ledger in SQL: one append-only chain per account, its balance kept beside it.

Here it is read, and accounts are opened; `booking` writes the entries. Every function runs inside
the caller's transaction.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select, update

from coordinator.store.engines import insert
from coordinator.store.schema import accounts, entries, reservations
from privacy.filters import Filter, make_filter
from privacy.ledger import (
    GENESIS,
    Balance,
    Entry,
    LimitChange,
    Pending,
    Statement,
    signature_ok,
)
from privacy.limits import change_of
from privacy.releases import Release
from protos.errors import Malformed, NotFound


@dataclass(frozen=True, slots=True)
class Account:
    """An account with its balance, as of the transaction that read it.

    Attributes:
        epsilon_limit_highest: the highest limit before the first entry of kind limit.
    """

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
        """The filter at the limit from which a check of the account's chain starts."""
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
    raises_known: int | None = None,
) -> Account:
    """The account, created at its first mention from what the steward announced.

    Filter and delta never change once an entry counts by them. A lower limit that is announced
    later is kept; a higher one is not: that takes two people and an entry, see `limits`.

    Args:
        raises_known: how many raises of the account the announcing ledger knows. One that knows
            fewer than the chain holds was put back from an older copy: the lower limit that it
            announces is of before a raise, and keeping it would undo what two people signed. The
            node follows the chain, and what it announces then counts. None where it is not told.

    Raises:
        Malformed: FILTER_INVALID, or ACCOUNT_CHANGED for another filter or delta.
    """
    announced = make_filter(kind, order, epsilon_limit, delta)
    terms = {
        "filter": kind,
        "rdp_order": order,
        "epsilon_limit": epsilon_limit,
        "epsilon_limit_highest": epsilon_limit,
        "delta": delta,
    }
    empty = {"posted_units": 0, "guarantee": True, "entries": 0, "head_hash": GENESIS}
    connection.execute(
        insert(connection, accounts)
        .values(account=account, node=node, **terms, **empty)
        .on_conflict_do_nothing()
    )
    # Locked, so that no entry comes between reading the terms and changing them.
    row = connection.execute(
        select(accounts).where(accounts.c.account == account).with_for_update()
    ).one()
    if row.entries == 0:  # nothing counts by the old terms yet
        connection.execute(update(accounts).where(accounts.c.account == account).values(**terms))
    elif (row.filter, row.rdp_order, row.delta) != (kind, order, delta):
        raise Malformed(
            "ACCOUNT_CHANGED",
            f"account {account} was created with filter {row.filter} and delta {row.delta:g}, "
            "which never change; set them back in the policy, or use a new account for new "
            "patients",
        )
    elif announced.limit_units < make_filter(
        kind, order, row.epsilon_limit, delta
    ).limit_units and not is_of_before(connection, account, raises_known):
        connection.execute(
            update(accounts)
            .where(accounts.c.account == account)
            .values(epsilon_limit=epsilon_limit)
        )
    return read_account(connection, account)


def is_of_before(connection: Connection, account: str, raises_known: int | None) -> bool:
    """Whether a ledger that knows so many raises lacks one that the account's chain holds."""
    query = select(func.count()).where(
        entries.c.account == account, entries.c.kind == LimitChange.kind
    )
    return raises_known is not None and raises_known < connection.execute(query).scalar_one()


def read_account(connection: Connection, account: str) -> Account:
    """One account with every open reservation.

    Raises:
        NotFound: ACCOUNT_UNKNOWN.
    """
    found = named_accounts(connection, [account])
    if not found:
        raise NotFound("ACCOUNT_UNKNOWN", f"there is no account {account}")
    return found[0]


def all_accounts(connection: Connection) -> list[Account]:
    """Every account, by name."""
    names = connection.execute(select(accounts.c.account)).scalars().all()
    return named_accounts(connection, names)


def named_accounts(connection: Connection, names: Sequence[str]) -> list[Account]:
    """Those of the named accounts that exist, with every open reservation, by name."""
    found: list[Account] = []
    for first in range(0, len(names), NAMES_MAX):
        some = {"names": names[first : first + NAMES_MAX]}
        held: dict[str, list[Pending]] = defaultdict(list)
        for row in connection.execute(_HELD, some):
            held[row.account].append(Pending(row.attempt_id, row.units, row.digest, row.accounted))
        rows = connection.execute(_ACCOUNTS, some)
        found += [account_of(row, tuple(held[row.account])) for row in rows]
    return sorted(found, key=lambda one: one.account)


NAMES_MAX = 500
"""Names in one statement; every database takes so many."""

_HELD = select(reservations).where(reservations.c.account.in_(bindparam("names", expanding=True)))
_ACCOUNTS = select(accounts).where(accounts.c.account.in_(bindparam("names", expanding=True)))


def account_of(row: Row[Any], pending: tuple[Pending, ...]) -> Account:
    """The account that a row of the table holds, with these open reservations."""
    filter_ = make_filter(row.filter, row.rdp_order, row.epsilon_limit, row.delta)
    balance = Balance(filter_, row.posted_units, pending, guarantee=row.guarantee)
    return Account(
        row.account, row.node, balance, row.entries, row.head_hash, row.epsilon_limit_highest
    )


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
    return statement_of(row)


def outcome(connection: Connection, attempt_id: str) -> str | None:
    """ "post" or "void", or None while the attempt is open or unknown."""
    return connection.execute(
        select(entries.c.kind).where(
            entries.c.attempt_id == attempt_id, entries.c.kind.in_(("post", "void"))
        )
    ).scalar_one_or_none()


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


def posted_by(connection: Connection, job_id: str) -> list[Statement]:
    """What a job has posted, each account's releases in chain order."""
    rows = connection.execute(
        select(entries)
        .where(entries.c.job_id == job_id, entries.c.kind == "post")
        .order_by(entries.c.seq)
    )
    return sorted((statement_of(row) for row in rows), key=lambda one: one.account)


def held_by(connection: Connection, job_id: str) -> dict[str, dict[Release, int]]:
    """Account -> how often a job has posted or holds each release; grouped by the database."""
    columns = (
        entries.c.account,
        entries.c.mechanism,
        entries.c.noise_multiplier,
        entries.c.sample_rate,
        entries.c.steps,
    )
    found: defaultdict[str, Counter[Release]] = defaultdict(Counter)
    for kind, sign in (("reserve", 1), ("void", -1)):
        rows = connection.execute(
            select(*columns, func.count())
            .where(entries.c.job_id == job_id, entries.c.kind == kind)
            .group_by(*columns)
        )
        for account, *fields, count in rows:
            found[account][Release(*fields)] += sign * count
    return {account: +releases for account, releases in found.items()}


def posted_to(connection: Connection, account: str) -> dict[tuple[str, Release], int]:
    """How often an account has posted each release for each data set.

    Grouped by the database: a chain has few distinct releases, and any number of entries.
    """
    columns = (
        entries.c.dataset,
        entries.c.mechanism,
        entries.c.noise_multiplier,
        entries.c.sample_rate,
        entries.c.steps,
    )
    rows = connection.execute(
        select(*columns, func.count())
        .where(entries.c.account == account, entries.c.kind == "post")
        .group_by(*columns)
    )
    return {(dataset, Release(*fields)): count for dataset, *fields, count in rows}


def chain(connection: Connection, account: str) -> Iterator[Entry]:
    """An account's entries in order."""
    rows = connection.execute(
        select(entries).where(entries.c.account == account).order_by(entries.c.seq)
    )
    for row in rows:
        yield entry_of(row)


def chain_after(connection: Connection, account: str, seq: int, most: int) -> list[Entry]:
    """At most so many of an account's entries after one, in order."""
    rows = connection.execute(
        select(entries)
        .where(entries.c.account == account, entries.c.seq > seq)
        .order_by(entries.c.seq)
        .limit(most)
    )
    return [entry_of(row) for row in rows]


def entry_of(row: Row[Any]) -> Entry:
    """The entry that a row of the table holds."""
    statement: Statement | LimitChange
    if row.kind == LimitChange.kind:
        outer = {"kind": row.kind, "account": row.account, "node": row.node}
        statement = change_of({**json.loads(row.limit_change or "{}"), **outer})
    else:
        statement = statement_of(row)
    return Entry(row.seq, statement, row.prev_hash, row.hash, row.node_signature)


def statement_of(row: Row[Any]) -> Statement:
    """The statement that a row of an attempt holds."""
    values = row._mapping
    return Statement(**{name: values[name] for name in Statement.__dataclass_fields__})
