"""The node's own ledger: one chain per account, in the format of the coordinator's."""

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.ledger.account_filters import FixedFilter
from node_agent.ledger.payers import FROM_CHAIN, Payers, Payment
from privacy.filters import EPSILON_MAX, Filter, make_filter
from privacy.ledger import Balance, Entry, LimitChange, Statement, append, from_json, sign, to_json

SCHEMA: Final = """
CREATE TABLE accounts (
    account TEXT PRIMARY KEY,
    filter TEXT NOT NULL,
    rdp_order INTEGER NOT NULL,
    delta REAL NOT NULL,
    epsilon_limit REAL NOT NULL,
    epsilon_limit_highest REAL NOT NULL,
    posted_units INTEGER NOT NULL DEFAULT 0,
    guarantee INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE TABLE entries (
    account TEXT NOT NULL,
    seq INTEGER NOT NULL,
    attempt_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (account, seq),
    UNIQUE (attempt_id, kind)
) STRICT;
"""

RAISES_SCHEMA: Final = """
CREATE TABLE raises (
    account TEXT NOT NULL,
    number INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    PRIMARY KEY (account, number)
) STRICT;
"""
"""Which entries are raises; such an entry's `attempt_id` is the raise's digest."""


@dataclass(frozen=True, slots=True)
class KeptAccount:
    """One account that has entries.

    Attributes:
        account: "NODE/NAME".
        fixed: with the limit that is in force: the lowest of what the policy said at a Hello since
            the first entry, or since the last raise.
        epsilon_limit_highest: the limit from which a check of the chain starts: no entry before
            the first raise can be above it.
        guarantee: False for ever once something was released without accounting.
    """

    account: str
    fixed: FixedFilter
    epsilon_limit_highest: float
    posted_units: int
    guarantee: bool

    @property
    def epsilon_limit(self) -> float:
        """The limit that is in force."""
        return self.fixed.epsilon_limit

    def filter(self, epsilon_limit: float) -> Filter:
        """The account's filter with this limit."""
        return make_filter(self.fixed.kind, self.fixed.order, epsilon_limit, self.fixed.delta)


def kept_fault(kept: KeptAccount, balance: Balance | None) -> str:
    """Where what is kept beside an account's entries is not what follows from them; or empty.

    Args:
        balance: what its entries add up to; None if it has none.
    """
    posted, guarantee = (0, True) if balance is None else (balance.posted_units, balance.guarantee)
    shown = kept.epsilon_limit_highest if balance is None else balance.filter.epsilon_limit
    if (kept.posted_units, kept.guarantee) != (posted, guarantee):
        return "the balance kept is not what its entries add up to"
    if not kept.epsilon_limit <= shown:
        return f"the limit kept, {kept.epsilon_limit:g}, is above what its entries show, {shown:g}"
    return ""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A post of the coordinator's chain of which there is no order here: this ledger is a copy."""

    job_id: str
    project: str
    units: int


class OwnLedger:
    """Appends within the caller's transaction."""

    def __init__(
        self, connection: sqlite3.Connection, key: Ed25519PrivateKey, payers: Payers
    ) -> None:
        self._connection = connection
        self._key = key
        self._payers = payers
        self._taken_over: dict[str, tuple[TakenOver, ...]] = {}

    def sign(self, statement: Statement) -> bytes:
        """The node's signature, the same each time."""
        return sign(self._key, statement)

    def fix(self, account: str, filter_: Filter) -> None:
        """Fix an account's filter at its first entry; its limit changes by `lower` and raises."""
        limit = filter_.epsilon_limit
        self._connection.execute(
            "INSERT INTO accounts (account, filter, rdp_order, delta, epsilon_limit,"
            " epsilon_limit_highest) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (account) DO NOTHING",
            (account, filter_.kind, filter_.order, filter_.delta, limit, limit),
        )

    def lower(self, account: str, epsilon_limit: float, raises: int) -> None:
        """Lower an account's limit for good, if it is higher; one statement, so all or nothing.

        Args:
            raises: `raise_counts` as it was before `epsilon_limit` was read from the policy. After
                a raise that came between, the number is an old one, and lowers nothing.
        """
        self._connection.execute(
            "UPDATE accounts SET epsilon_limit = ? WHERE account = ? AND epsilon_limit > ?"
            " AND (SELECT count(*) FROM raises WHERE raises.account = accounts.account) = ?",
            (epsilon_limit, account, epsilon_limit, raises),
        )

    def record(self, change: LimitChange) -> bytes:
        """Sign a raise and add it to its account's chain, from where it is in force; returns the
        signature."""
        signature, digest = sign(self._key, change), change.digest()
        entry = append(change, self._head(change.account), signature)
        execute = self._connection.execute
        execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
            (change.account, entry.seq, digest, change.kind, json.dumps(to_json(entry))),
        )
        execute(
            "INSERT INTO raises VALUES (?, ?, ?, ?)",
            (change.account, change.terms.number, entry.seq, digest),
        )
        execute(
            "UPDATE accounts SET epsilon_limit = ? WHERE account = ?",
            (change.terms.epsilon_limit_new, change.account),
        )
        return signature

    def raises(self, account: str) -> list[LimitChange]:
        """An account's raises, in order."""
        query = "SELECT entry FROM raises JOIN entries USING (account, seq) WHERE account = ?"
        rows = self._connection.execute(f"{query} ORDER BY number", (account,))
        return [change for change, _ in _changes(rows)]

    def raise_counts(self) -> dict[str, int]:
        """How many raises each account has that has one."""
        query = "SELECT account, count(*) FROM raises GROUP BY account"
        return dict(self._connection.execute(query).fetchall())

    def shown(self, kept: KeptAccount) -> Filter:
        """An account's filter at the limit that its chain shows."""
        known = self.raises(kept.account)
        return known[-1].raised() if known else kept.filter(kept.epsilon_limit_highest)

    def epsilon_guarantee(self, kept: KeptAccount) -> float:
        """The highest limit that was ever in force: what the account's patients can rely on, also
        after the policy has lowered it."""
        raised = (change.terms.epsilon_limit_new for change in self.raises(kept.account))
        return max([kept.epsilon_limit_highest, *raised])

    def append(self, statement: Statement, posted_units: int = 0, source: str = "") -> bytes:
        """Sign a statement and add it to its account's chain; returns the signature.

        Args:
            posted_units: what a post adds to the account.
            source: what a reservation is to read, as `payers.source_digest` has it; empty for
                nothing, or where it is not known. Kept beside the chain and never in it.
        """
        signature = self.sign(statement)
        entry = append(statement, self._head(statement.account), signature)
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
            (
                statement.account,
                entry.seq,
                statement.attempt_id,
                statement.kind,
                json.dumps(to_json(entry)),
            ),
        )
        if statement.kind == "reserve":
            self._payers.note(Payment(statement.dataset, source, statement.account))
        if statement.kind == "post":
            self._connection.execute(
                "UPDATE accounts SET posted_units = posted_units + ?, guarantee = guarantee AND ?"
                " WHERE account = ?",
                (posted_units, statement.mechanism != "none", statement.account),
            )
        return signature

    def begin_at(self, account: str, epsilon_limit: float) -> None:
        """What this node has signed shows that an account began with a limit as high as this: the
        policy from which its own ledger took the first one was lower. Not after a raise, which says
        itself what it goes on from."""
        self._connection.execute(
            "UPDATE accounts SET epsilon_limit_highest = max(epsilon_limit_highest, ?)"
            " WHERE account = ? AND account NOT IN (SELECT account FROM raises)",
            (epsilon_limit, account),
        )

    def take_over(self, post: Statement, units: int, *, reserved: bool) -> None:
        """Book a post of the coordinator's chain, of an attempt that is not under way here.

        Args:
            reserved: its reservation is here already.
        """
        kept = self.account(post.account)
        if kept is not None:
            needed = _limit_for(kept, kept.posted_units + units)
            self.begin_at(post.account, needed)
        if not reserved:
            self.append(post.resolved("reserve"), source=FROM_CHAIN)
        self.append(post, posted_units=units)
        self._taken_over.clear()

    def taken_over(self, account: str) -> tuple[TakenOver, ...]:
        """What was posted on an account and `attempts` does not count; read once."""
        if account not in self._taken_over:
            self._taken_over[account] = tuple(self._read_taken_over(account))
        return self._taken_over[account]

    def _read_taken_over(self, account: str) -> Iterator[TakenOver]:
        kept = self.account(account)
        if kept is None:
            return
        filter_ = kept.filter(kept.epsilon_limit_highest)
        rows = self._connection.execute(
            "SELECT entry FROM entries LEFT JOIN attempts USING (attempt_id)"
            " WHERE entries.account = ? AND entries.kind = 'post'"
            " AND coalesce(attempts.outcome, 'void') = 'void'",
            (account,),
        )
        for (text,) in rows:
            said = from_json(json.loads(text)).statement
            if isinstance(said, Statement):
                yield TakenOver(said.job_id, said.project, filter_.cost_units(said.release))

    def statements_of(self, attempt_id: str) -> list[Statement]:
        """What is booked of one attempt, in the order in which it was."""
        query = "SELECT entry FROM entries WHERE attempt_id = ? ORDER BY seq"
        rows = self._connection.execute(query, (attempt_id,))
        found = [from_json(json.loads(text)).statement for (text,) in rows]
        return [one for one in found if isinstance(one, Statement)]

    def unseen_raises(self) -> list[tuple[LimitChange, bytes]]:
        """Raises, in order, that were not yet seen in the coordinator's chain; with signatures."""
        query = (
            "SELECT entry FROM raises JOIN entries USING (account, seq) LEFT JOIN seen_attempts"
            " ON seen_attempts.attempt_id = digest WHERE seen_attempts.kind IS NULL"
            " ORDER BY account, number"
        )
        return list(_changes(self._connection.execute(query)))

    def account(self, account: str) -> KeptAccount | None:
        """One account by its full name."""
        return next((one for one in self.accounts() if one.account == account), None)

    def accounts(self) -> list[KeptAccount]:
        """Accounts that have entries, by name."""
        query = (
            "SELECT account, filter, rdp_order, delta, epsilon_limit, epsilon_limit_highest,"
            " posted_units, guarantee FROM accounts ORDER BY account"
        )
        return [
            KeptAccount(
                account, FixedFilter(kind, order, delta, limit), highest, posted, bool(guarantee)
            )
            for account, kind, order, delta, limit, highest, posted, guarantee in (
                self._connection.execute(query)
            )
        ]

    def entries(self) -> list[Entry]:
        """Every entry, each account's in chain order."""
        query = "SELECT entry FROM entries ORDER BY account, seq"
        return [from_json(json.loads(text)) for (text,) in self._connection.execute(query)]

    def _head(self, account: str) -> Entry | None:
        row = self._connection.execute(
            "SELECT entry FROM entries WHERE account = ? ORDER BY seq DESC LIMIT 1", (account,)
        ).fetchone()
        return from_json(json.loads(row[0])) if row else None


def _limit_for(kept: KeptAccount, units: int) -> float:
    """A limit that holds so many units, and hardly more; the present one where it does."""
    limit = kept.epsilon_limit_highest
    if kept.filter(limit).limit_units >= units:
        return limit
    limit = min(EPSILON_MAX, kept.filter(limit).epsilon_of(units))
    while limit < EPSILON_MAX and kept.filter(limit).limit_units < units:
        limit = math.nextafter(limit, math.inf)
    return limit


def _changes(rows: Iterable[tuple[str]]) -> Iterator[tuple[LimitChange, bytes]]:
    """Raises with the node's signatures, of rows that hold an entry each."""
    for (text,) in rows:
        entry = from_json(json.loads(text))
        if isinstance(entry.statement, LimitChange):
            yield entry.statement, entry.node_signature
