"""What the coordinator must never forget, in a fast double of its tables.

It is given to the product's own turns and greetings as their connection; a test plays seeds on it
and on the real tables, and compares the transcripts.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

from coordinator.rounds import answers, effects, turns
from coordinator.rounds import events as e
from coordinator.rpc import greeting
from coordinator.store.booking import Books, _Kept
from coordinator.store.checkpoints import POSTS_TOLD
from coordinator.store.jobs import RUNNING, JobRecord, ModelRecord
from coordinator.store.ledger import Account
from coordinator.store.people import NodeRecord
from privacy.filters import make_filter
from privacy.ledger import (
    GENESIS,
    Balance,
    Entry,
    LimitChange,
    Statement,
    append,
    signature_ok,
)
from privacy.limits import fault_of
from protos.errors import Conflict, Malformed, NotFound
from protos.feddp.v1 import federation_pb2 as pb

Seam = tuple[Any, str, Any]
"""A module of the product, a name in it, and what stands there while a seed is played."""


class MemoryStore:
    """The tables as Python values; the arithmetic is `privacy.ledger`'s."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeRecord] = {}
        self._accounts: dict[str, Account] = {}
        self._chains: dict[str, list[Entry]] = {}
        self._at: dict[tuple[str, str], tuple[str, int]] = {}
        self._jobs: dict[str, JobRecord] = {}
        self._journal: dict[str, list[tuple[int, float, bytes]]] = {}
        self._models: list[ModelRecord] = []
        self._undo: list[Callable[[], None]] = []

    def seams(self) -> list[Seam]:
        """Where the product would write SQL."""
        tables = SimpleNamespace(
            RUNNING=RUNNING,
            append_all=MemoryStore.append_all,
            set_status=MemoryStore.set_status,
            add_model=MemoryStore.add_model,
            all_nodes=MemoryStore.all_nodes,
            named_accounts=MemoryStore.named_accounts,
            open_account=MemoryStore.open_account,
            is_of_before=MemoryStore.is_of_before,
            outcome=MemoryStore.outcome,
            keep_hello=MemoryStore.keep_hello,
            node=MemoryStore.node,
            record=MemoryStore.record_raise,
            raises=MemoryStore.raises,
            signed_last=MemoryStore.signed_last,
            damaged=MemoryStore.damaged,
            unreconciled=MemoryStore.unreconciled,
            all_of=MemoryStore.epochs,
            newest=MemoryStore.newest_epoch,
        )
        return [
            (turns, "Books", MemoryBooks),
            (turns, "job_store", tables),
            (effects, "job_store", tables),
            # One coordinator, which shares no work.
            (turns, "shared_work", SimpleNamespace(forget=lambda *_: None)),
            (effects, "shared_work", SimpleNamespace(forget=lambda *_: None)),
            (answers, "people", tables),
            (answers, "ledger", tables),
            (answers, "damage", tables),
            (answers, "epochs", tables),
            (greeting, "ledger", tables),
            (greeting, "people", tables),
            (greeting, "limits", tables),
            (greeting, "checkpoints", tables),
            (greeting, "epochs", tables),
        ]

    @contextlib.contextmanager
    def transaction(self) -> Iterator["MemoryStore"]:
        """All or nothing, as a transaction is."""
        self._undo = []
        try:
            yield self
        except BaseException:
            for undo in reversed(self._undo):
                undo()
            raise

    @contextlib.contextmanager
    def begin_nested(self) -> Iterator[None]:
        """All or nothing of a part."""
        mark = len(self._undo)
        try:
            yield
        except BaseException:
            for undo in reversed(self._undo[mark:]):
                undo()
            del self._undo[mark:]
            raise

    def _put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        if key in table:
            before = table[key]
            self._undo.append(lambda: table.__setitem__(key, before))
        else:
            self._undo.append(lambda: table.pop(key))
        table[key] = value

    def _add(self, rows: list[Any], row: Any) -> None:
        rows.append(row)
        self._undo.append(rows.pop)

    # Nodes

    def enrol(self, node: str, public_key: bytes) -> None:
        """A node that says Hello has been enrolled before."""
        if node not in self._nodes:
            known = NodeRecord(node, "", "enrolled", public_key, 0.0, pb.Hello())
            self._put(self._nodes, node, known)

    def keep_hello(self, node: str, hello: pb.Hello, now_s: float) -> None:
        """As `coordinator.store.people.keep_hello`."""
        said = replace(self._nodes[node], hello=hello, last_seen_at=now_s)
        self._put(self._nodes, node, said)

    def node(self, node: str) -> NodeRecord:
        """As `coordinator.store.people.node`."""
        return self._nodes[node]

    def all_nodes(self) -> list[NodeRecord]:
        """Every node, by name."""
        return [self._nodes[name] for name in sorted(self._nodes)]

    # The ledger

    def open_account(
        self,
        account: str,
        node: str,
        kind: str,
        order: int,
        epsilon_limit: float,
        delta: float,
        raises_known: int | None = None,
    ) -> Account:
        """As `coordinator.store.ledger.open_account`."""
        announced = make_filter(kind, order, epsilon_limit, delta)
        known = self._accounts.get(account)
        if known is None or known.entries == 0:
            opened = Account(account, node, Balance(announced), 0, GENESIS, epsilon_limit)
            self._put(self._accounts, account, opened)
            self._chains.setdefault(account, [])
        elif (known.filter.kind, known.filter.order, known.filter.delta) != (kind, order, delta):
            raise Malformed("ACCOUNT_CHANGED", "an account's filter never changes")
        elif announced.limit_units < known.filter.limit_units and not self.is_of_before(
            account, raises_known
        ):
            lowered = replace(known, balance=replace(known.balance, filter=announced))
            self._put(self._accounts, account, lowered)
        return self._accounts[account]

    def is_of_before(self, account: str, raises_known: int | None) -> bool:
        """As `coordinator.store.ledger.is_of_before`."""
        chain = self._chains[account]
        raises = sum(isinstance(one.statement, LimitChange) for one in chain)
        return raises_known is not None and raises_known < raises

    def record_raise(
        self, node: str, public_key: bytes, change: LimitChange, signature: bytes
    ) -> bool:
        """As `coordinator.store.limits.record`."""
        known = self._accounts.get(change.account)
        if known is None or known.node != node or change.node != node:
            raise NotFound("ACCOUNT_UNKNOWN", f"node {node} has no account {change.account}")
        if not signature_ok(public_key, change, signature):
            raise Malformed("SIGNATURE_INVALID", "it is not the node's")
        chain = self._chains[change.account]
        raises = [one.statement for one in chain if isinstance(one.statement, LimitChange)]
        number = change.terms.number
        if number <= len(raises):
            if raises[number - 1] == change:
                return False
            raise Conflict("LIMIT_CONFLICT", f"raise {number} is recorded with other terms")
        shown = raises[-1].raised() if raises else known.verifying_filter
        text = fault_of(change, shown, len(raises))
        if text:
            raise Malformed("LIMIT_INVALID", text)
        self.append_raise(change, signature)
        return True

    def append_raise(self, change: LimitChange, signature: bytes) -> None:
        """Add a raise to its account's chain, from where it is in force."""
        known, chain = self._accounts[change.account], self._chains[change.account]
        entry = append(change, chain[-1] if chain else None, signature)
        self._add(chain, entry)
        raised = replace(
            known,
            balance=replace(known.balance, filter=change.raised()),
            entries=entry.seq,
            head_hash=entry.hash,
        )
        self._put(self._accounts, change.account, raised)

    def accounts(self) -> list[Account]:
        """Every account, by name."""
        return [self._accounts[name] for name in sorted(self._accounts)]

    def named_accounts(self, names: Sequence[str]) -> list[Account]:
        """As `coordinator.store.ledger.named_accounts`."""
        return [self._accounts[name] for name in sorted(set(names)) if name in self._accounts]

    def damaged(self, names: Sequence[str]) -> frozenset[str]:
        """As `coordinator.store.damage.damaged`."""
        return frozenset(
            one.account
            for one in self.named_accounts(names)
            if (one.entries, one.head_hash) != _last(self._chains.get(one.account, []))
        )

    def unreconciled(self, names: Sequence[str]) -> frozenset[str]:
        """As `coordinator.store.epochs.unreconciled`: nothing is restored here."""
        return frozenset()

    def epochs(self) -> list[Any]:
        """As `coordinator.store.epochs.all_of`."""
        return []

    def newest_epoch(self) -> None:
        """As `coordinator.store.epochs.newest`."""

    def kinds(self, attempt_id: str) -> frozenset[str]:
        """What is booked of an attempt."""
        at = self._at
        return frozenset(k for k in ("reserve", "post", "void") if (attempt_id, k) in at)

    def reserved(self, attempt_id: str) -> Statement:
        """As `coordinator.store.ledger.reserved`."""
        found = self._at.get((attempt_id, "reserve"))
        if found is None:
            raise NotFound("ATTEMPT_UNKNOWN", f"there is no attempt {attempt_id}")
        return self._chains[found[0]][found[1]].statement

    def outcome(self, attempt_id: str) -> str | None:
        """As `coordinator.store.ledger.outcome`."""
        return next((k for k in ("post", "void") if (attempt_id, k) in self._at), None)

    def chain(self, account: str, after: int = 0) -> list[Entry]:
        """An account's entries in order, without the first `after`."""
        return self._chains[account][after:]

    def raises(self, account: str) -> list[LimitChange]:
        """As `coordinator.store.limits.raises`."""
        said = (one.statement for one in self._chains.get(account, []))
        return [one for one in said if isinstance(one, LimitChange)]

    def signed_last(self, account: str) -> tuple[None, list[Entry]]:
        """As `coordinator.store.checkpoints.signed_last`, of nodes that countersign nothing."""
        posts = (
            one
            for one in reversed(self._chains.get(account, []))
            if one.statement.kind == "post" and one.node_signature
        )
        return None, list(islice(posts, POSTS_TOLD))

    def write_entry(self, entry: Entry) -> None:
        """Append to the account's chain."""
        statement = entry.statement
        chain = self._chains[statement.account]
        place = (statement.account, len(chain))
        self._put(self._at, (statement.attempt_id, statement.kind), place)
        self._add(chain, entry)

    def write_account(self, account: str, kept: _Kept) -> None:
        """Keep an account's balance."""
        known = self._accounts[account]
        written = replace(
            known, balance=kept.balance, entries=kept.entries, head_hash=kept.head_hash
        )
        self._put(self._accounts, account, written)

    def write_signature(self, attempt_id: str, signature: bytes) -> None:
        """Attach a signature to a reserve entry that has none."""
        account, index = self._at[(attempt_id, "reserve")]
        chain = self._chains[account]
        entry = chain[index]
        if not entry.node_signature:
            chain[index] = replace(entry, node_signature=signature)
            self._undo.append(lambda: chain.__setitem__(index, entry))

    # Jobs

    def add_job(self, record: JobRecord) -> None:
        """Keep a new job."""
        self._put(self._jobs, record.job_id, record)
        self._put(self._journal, record.job_id, [])

    def jobs(self) -> list[JobRecord]:
        """Every job in order of its id."""
        return [self._jobs[job_id] for job_id in sorted(self._jobs)]

    def set_status(self, job_id: str, status: str) -> None:
        """As `coordinator.store.jobs.set_status`."""
        self._put(self._jobs, job_id, replace(self._jobs[job_id], status=status))

    def append_all(
        self, job_id: str, first_seq: int, at_s: float, taken: Sequence[e.Event]
    ) -> None:
        """As `coordinator.store.jobs.append_all`."""
        rows = self._journal[job_id]
        for seq, event in enumerate(taken, first_seq):
            if rows and seq <= rows[-1][0]:
                raise Malformed("JOURNAL", f"step {seq} of {job_id} is there already")
            self._add(rows, (seq, at_s, e.to_json(event)))

    def history(self, job_id: str, after: int = 0) -> list[tuple[float, e.Event]]:
        """A job's steps, read back, without the first `after`."""
        return [(at_s, e.from_json(text)) for _, at_s, text in self._journal[job_id][after:]]

    def add_model(self, record: ModelRecord) -> None:
        """As `coordinator.store.jobs.add_model`."""
        key = (record.job_id, record.kind, record.round)
        if key not in {(m.job_id, m.kind, m.round) for m in self._models}:
            self._add(self._models, record)

    def models(self) -> list[ModelRecord]:
        """Every model that can be listed."""
        return self._models


def _last(chain: Sequence[Entry]) -> tuple[int, str]:
    """Number and hash of a chain's newest entry."""
    return (chain[-1].seq, chain[-1].hash) if chain else (0, GENESIS)


class MemoryBooks(Books):
    """The product's books over a `MemoryStore`: only reading and writing differ."""

    connection: Any

    def expect(self, *, account_names: Sequence[str] = (), attempt_ids: Sequence[str] = ()) -> None:
        """See `Books.expect`."""
        store: MemoryStore = self.connection
        for one in attempt_ids:
            if one not in self._kinds:
                self._kinds[one] = store.kinds(one)
                if "reserve" in self._kinds[one]:
                    self._statements[one] = store.reserved(one)
        wanted = {*account_names} | {
            self._statements[one].account for one in attempt_ids if one in self._statements
        }
        for known in store.named_accounts(list(wanted - self._kept.keys())):
            self._kept[known.account] = _Kept(known.balance, known.entries, known.head_hash)

    def flush(self) -> None:
        """See `Books.flush`."""
        store: MemoryStore = self.connection
        self.booked.update(one.statement.kind for one in self._written)
        for entry in self._written:
            store.write_entry(entry)
        for account in sorted({one.statement.account for one in self._written}):
            store.write_account(account, self._kept[account])
        for one in self._signatures:
            store.write_signature(str(one["of_attempt"]), one["signature"])  # type: ignore[arg-type]
        for rows in (self._written, self._held, self._released, self._signatures):
            rows.clear()
