"""Books many statements in one transaction with a handful of SQL statements.

What a statement does to a balance is decided by `privacy.ledger.Balance` alone. Everything here
runs inside the caller's transaction, so that entries commit with the step that caused them.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select, update

from coordinator.store import epochs, limits
from coordinator.store.damage import damaged, refusal
from coordinator.store.ledger import account_of, statement_of
from coordinator.store.schema import accounts, entries, reservations
from privacy.ledger import Balance, Entry, EntryKind, Pending, Statement, entry_hash
from protos.errors import Conflict, NotFound, invariant


@dataclass(frozen=True, slots=True)
class _Kept:
    """One account as this transaction has left it so far."""

    balance: Balance
    entries: int
    head_hash: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of a `Books` that it can go back to."""

    kept: dict[str, _Kept]
    kinds: dict[str, frozenset[str]]
    written: int
    held: dict[str, tuple[str, Statement, Pending]]
    released: frozenset[str]


@dataclass(slots=True)
class Books:
    """The ledger within one transaction: book as often as needed, then `flush` once.

    `expect` reads what several bookings need at once; what is not expected is read one by one.

    Attributes:
        made: reserve statements that the caller knows; only their kinds are read.
        booked: entries that were flushed, by kind.
        hands_in: what is booked comes from the node, after the coordinator was restored.
    """

    connection: Connection
    made: Mapping[str, Statement] = field(default_factory=dict)
    booked: Counter[EntryKind] = field(default_factory=Counter)
    hands_in: bool = False
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _kinds: dict[str, frozenset[str]] = field(default_factory=dict)
    _statements: dict[str, Statement] = field(default_factory=dict)
    _written: list[Entry] = field(default_factory=list)
    _held: dict[str, tuple[str, Statement, Pending]] = field(default_factory=dict)
    _released: set[str] = field(default_factory=set)
    _signatures: list[dict[str, object]] = field(default_factory=list)
    _damaged: set[str] = field(default_factory=set)
    _unreconciled: set[str] = field(default_factory=set)

    def expect(
        self, *, account_names: Collection[str] = (), attempt_ids: Collection[str] = ()
    ) -> None:
        """Read accounts, and attempts with their accounts, that bookings will need.

        The accounts' rows stay locked until the transaction ends, and what is decided by is read
        after that: two writers, whatever lease they believe to hold, book on one account one after
        the other. (On SQLite a write transaction is alone from its start.)
        """
        unknown = [one for one in attempt_ids if one not in self._kinds]
        strange = [one for one in unknown if one not in self.made]
        reserves = {one: self.made[one] for one in unknown if one in self.made}
        if strange:  # a reserve statement never changes, so it may be read before the lock
            for row in self.connection.execute(_RESERVES, {"attempts": strange}):
                reserves[row.attempt_id] = statement_of(row)
        wanted = {*account_names, *(one.account for one in reserves.values())}
        if missing := sorted(wanted - self._kept.keys()):
            self._read_accounts(missing)
        if unknown:
            self._read_attempts(unknown, reserves)

    def _read_accounts(self, names: list[str]) -> None:
        kept = self.connection.execute(_LOCKED, {"names": names}).all()
        held = {row.account: row.units for row in self.connection.execute(_HELD, {"names": names})}
        self._damaged |= damaged(self.connection, names)
        if not self.hands_in:
            self._unreconciled |= epochs.unreconciled(self.connection, names)
        for row in kept:
            account = account_of(row, _others(int(held.get(row.account, 0))))
            balance = account.balance
            if self.hands_in:  # the node may have lowered the limit since; what left, left
                balance = replace(balance, filter=limits.shown(self.connection, row.account))
            self._kept[row.account] = _Kept(balance, account.entries, account.head_hash)

    def _read_attempts(self, unknown: list[str], reserves: Mapping[str, Statement]) -> None:
        found: dict[str, set[str]] = {one: set() for one in unknown}
        for row in self.connection.execute(_KINDS, {"attempts": unknown}):
            found[row.attempt_id].add(row.kind)
        self._kinds.update({one: frozenset(kinds) for one, kinds in found.items()})
        self._statements.update(
            {one: said for one, said in reserves.items() if "reserve" in found[one]}
        )
        if not any(kinds == {"reserve"} for kinds in found.values()):
            return
        for row in self.connection.execute(_OPEN, {"attempts": unknown}):
            kept = self._kept.get(row.account)
            if kept is None:
                continue  # its reserve entry is gone, so that nothing can be booked for it
            one = Pending(row.attempt_id, row.units, row.digest, row.accounted)
            others, *named = kept.balance.pending
            pending = (*_others(others.units - one.units), *named, one)
            self._kept[row.account] = replace(kept, balance=replace(kept.balance, pending=pending))

    def book(self, statement: Statement, signature: bytes = b"") -> None:
        """Reserve, post or void as `statement` says; the very same again changes nothing.

        Raises:
            BudgetRefused, Conflict, NotFound: as `privacy.ledger.Balance`; nothing was booked.
            WrongPhase: LEDGER_DAMAGED, nor is anything booked on this account until it is mended;
                LEDGER_RECONCILING, nor is anything reserved there until its node has handed in.
        """
        attempt_id = statement.attempt_id
        self.expect(account_names=[statement.account], attempt_ids=[attempt_id])
        kept = self._kept.get(statement.account)
        if kept is None:
            raise NotFound("ACCOUNT_UNKNOWN", f"there is no account {statement.account}")
        if statement.account in self._damaged:
            raise refusal(statement.account)
        kinds = self._kinds[attempt_id]
        if statement.account in self._unreconciled and statement.kind == "reserve" and not kinds:
            raise epochs.refusal(self.connection, statement.account)
        before = replace(
            kept.balance,
            posted=frozenset({attempt_id} if "post" in kinds else ()),
            voided=frozenset({attempt_id} if "void" in kinds else ()),
        )
        after = before.apply(statement)
        if after == before:
            return
        seq = kept.entries + 1
        digest = entry_hash(seq, kept.head_hash, statement)
        self._written.append(Entry(seq, statement, kept.head_hash, digest, signature))
        self._kinds[attempt_id] = kinds | {statement.kind}
        bare = replace(after, posted=frozenset(), voided=frozenset())
        self._kept[statement.account] = _Kept(bare, seq, digest)
        if statement.kind == "reserve":
            self._statements[attempt_id] = statement
            added = next(one for one in after.pending if one.attempt_id == attempt_id)
            self._held[attempt_id] = (statement.account, statement, added)
        elif attempt_id in self._held:
            del self._held[attempt_id]
        else:
            self._released.add(attempt_id)

    def take_over(self, statement: Statement, signature: bytes) -> None:
        """Book what a node hands in after a restoration; what is booked already changes nothing.

        Raises:
            Conflict: ATTEMPT_CONFLICT, the attempt is booked here with other terms.
            BudgetRefused, Conflict, NotFound, WrongPhase: as `book`.
        """
        attempt_id = statement.attempt_id
        self.expect(account_names=[statement.account], attempt_ids=[attempt_id])
        known = self._statements.get(attempt_id)
        if known is not None and not statement.continues(known):
            raise Conflict(
                "ATTEMPT_CONFLICT", f"attempt {attempt_id} is booked here with other terms"
            )
        if known is not None and statement.kind == "reserve":
            self.keep_signature(attempt_id, signature)
        else:
            self.book(statement, signature)

    def resolve(self, attempt_id: str, kind: str, signature: bytes) -> None:
        """Post or void an attempt; the statement is its reservation's.

        Raises:
            NotFound: ATTEMPT_UNKNOWN.
            WrongPhase: LEDGER_DAMAGED, the attempt stays reserved.
        """
        invariant(kind in ("post", "void"), "an attempt ends in post or void")
        self.expect(attempt_ids=[attempt_id])
        statement = self._statements.get(attempt_id)
        if statement is None:
            raise NotFound("ATTEMPT_UNKNOWN", f"there is no attempt {attempt_id}")
        self.book(statement.resolved("post" if kind == "post" else "void"), signature)

    def keep_signature(self, attempt_id: str, signature: bytes) -> None:
        """Attach the node's signature to a reserve entry that has none yet."""
        self._signatures.append({"of_attempt": attempt_id, "signature": signature})

    def mark(self) -> Mark:
        """Where the books stand now."""
        return Mark(
            dict(self._kept),
            dict(self._kinds),
            len(self._written),
            dict(self._held),
            frozenset(self._released),
        )

    def go_back(self, mark: Mark) -> None:
        """Undo what was booked since `mark`."""
        self._kept, self._kinds = dict(mark.kept), dict(mark.kinds)
        del self._written[mark.written :]
        self._held, self._released = dict(mark.held), set(mark.released)

    def flush(self) -> None:
        """Write what was booked since the last time."""
        execute = self.connection.execute
        self.booked.update(one.statement.kind for one in self._written)
        if self._written:
            execute(_ENTRY, [_row(one) for one in self._written])
            touched = sorted({one.statement.account for one in self._written})
            execute(_BALANCE, [_balance_row(name, self._kept[name]) for name in touched])
        if self._held:
            execute(_RESERVATION, [_held_row(*one) for one in self._held.values()])
        if self._released:
            execute(_RELEASE, {"attempts": sorted(self._released)})
        if self._signatures:
            execute(_SIGNATURE, self._signatures)
        for one in (self._written, self._held, self._released, self._signatures):
            one.clear()


def _others(units: int) -> tuple[Pending, ...]:
    """Reservations of attempts that nothing is booked for here, as one: only their sum counts, and
    an account may have thousands. No attempt's id is empty."""
    return (Pending("", units, ""),)


_KINDS = select(entries.c.attempt_id, entries.c.kind).where(
    entries.c.attempt_id.in_(bindparam("attempts", expanding=True))
)
_RESERVES: Select[Any] = select(entries).where(
    entries.c.attempt_id.in_(bindparam("attempts", expanding=True)), entries.c.kind == "reserve"
)
_OPEN = select(reservations).where(
    reservations.c.attempt_id.in_(bindparam("attempts", expanding=True))
)
_LOCKED: Select[Any] = (
    select(accounts)
    .where(accounts.c.account.in_(bindparam("names", expanding=True)))
    .order_by(accounts.c.account)  # two writers lock what they share in one order
    .with_for_update()
)
_HELD = (
    select(reservations.c.account, func.sum(reservations.c.units).label("units"))
    .where(reservations.c.account.in_(bindparam("names", expanding=True)))
    .group_by(reservations.c.account)
)
_ENTRY = entries.insert()
_RESERVATION = reservations.insert()
_RELEASE = reservations.delete().where(
    reservations.c.attempt_id.in_(bindparam("attempts", expanding=True))
)
_BALANCE = (
    update(accounts)
    .where(accounts.c.account == bindparam("of_account"))
    .values(
        posted_units=bindparam("units"),
        guarantee=bindparam("kept_guarantee"),
        entries=bindparam("count"),
        head_hash=bindparam("head"),
    )
)
_SIGNATURE = (
    update(entries)
    .where(
        entries.c.attempt_id == bindparam("of_attempt"),
        entries.c.kind == "reserve",
        entries.c.node_signature == b"",
    )
    .values(node_signature=bindparam("signature"))
)


def _row(entry: Entry) -> dict[str, Any]:
    return {
        **entry.statement.fields(),
        "seq": entry.seq,
        "prev_hash": entry.prev_hash,
        "hash": entry.hash,
        "node_signature": entry.node_signature,
    }


def _balance_row(name: str, kept: _Kept) -> dict[str, Any]:
    return {
        "of_account": name,
        "units": kept.balance.posted_units,
        "kept_guarantee": kept.balance.guarantee,
        "count": kept.entries,
        "head": kept.head_hash,
    }


def _held_row(account: str, statement: Statement, pending: Pending) -> dict[str, Any]:
    return {
        "attempt_id": pending.attempt_id,
        "account": account,
        "job_id": statement.job_id,
        "units": pending.units,
        "digest": pending.digest,
        "accounted": pending.accounted,
    }


def book(connection: Connection, statement: Statement, signature: bytes = b"") -> None:
    """Book one statement. Raises as `Books.book`."""
    books = Books(connection)
    books.book(statement, signature)
    books.flush()
