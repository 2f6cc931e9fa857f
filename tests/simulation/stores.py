"""What the coordinator must never forget: a fast double, and the real store on SQLite in memory.

Both are given to the product's own turns as their connection; a test plays seeds on both and
compares the transcripts.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, create_engine, select
from sqlalchemy.pool import StaticPool

from coordinator.rounds import answers, effects, turns
from coordinator.rounds import events as e
from coordinator.store import jobs as job_store
from coordinator.store import ledger, people, schema
from coordinator.store.booking import Books, _Kept
from coordinator.store.jobs import RUNNING, JobRecord, ModelRecord
from coordinator.store.ledger import Account
from coordinator.store.people import NodeRecord
from privacy.filters import make_filter
from privacy.ledger import GENESIS, Balance, Entry, Statement
from protos.errors import Malformed, NotFound
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
        )
        return [
            (turns, "Books", MemoryBooks),
            (turns, "job_store", tables),
            (effects, "job_store", tables),
            (answers, "people", tables),
            (answers, "ledger", tables),
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

    def keep_hello(self, node: str, hello: pb.Hello, now_s: float) -> None:
        """As `coordinator.store.people.keep_hello`."""
        self._put(self._nodes, node, NodeRecord(node, "", "enrolled", b"", now_s, hello))

    def all_nodes(self) -> list[NodeRecord]:
        """Every node, by name."""
        return [self._nodes[name] for name in sorted(self._nodes)]

    # The ledger

    def open_account(self, account: str, node: str, hello: pb.Account) -> None:
        """As `coordinator.store.ledger.open_account`."""
        kind, order = hello.filter, hello.rdp_order
        announced = make_filter(kind, order, hello.epsilon_limit, hello.delta)
        known = self._accounts.get(account)
        if known is None or known.entries == 0:
            opened = Account(account, node, Balance(announced), 0, GENESIS, hello.epsilon_limit)
            self._put(self._accounts, account, opened)
            self._chains.setdefault(account, [])
        elif (known.filter.kind, known.filter.order, known.filter.delta) != (
            kind,
            order,
            hello.delta,
        ):
            raise Malformed("ACCOUNT_CHANGED", "an account's filter never changes")
        elif announced.limit_units < known.filter.limit_units:
            lowered = replace(known, balance=replace(known.balance, filter=announced))
            self._put(self._accounts, account, lowered)

    def accounts(self) -> list[Account]:
        """Every account, by name."""
        return [self._accounts[name] for name in sorted(self._accounts)]

    def named_accounts(self, names: Sequence[str]) -> list[Account]:
        """As `coordinator.store.ledger.named_accounts`."""
        return [self._accounts[name] for name in sorted(set(names)) if name in self._accounts]

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


class SqlStore:
    """The real tables and functions, on one connection to SQLite in memory."""

    def __init__(self) -> None:
        engine = create_engine("sqlite://", poolclass=StaticPool)
        schema.metadata.create_all(engine)
        self._connection = engine.connect()

    def seams(self) -> list[Seam]:
        """The product writes its SQL."""
        return []

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All or nothing."""
        if self._connection.in_transaction():
            yield self._connection
            return
        with self._connection.begin():
            yield self._connection

    def _do(self, function: Callable[..., Any], *args: Any) -> Any:
        with self.transaction():
            return function(self._connection, *args)

    def keep_hello(self, node: str, hello: pb.Hello, now_s: float) -> None:
        """See `coordinator.store.people`; a node that says Hello has been enrolled before."""
        row = {
            "name": node,
            "node_class": "",
            "status": "enrolled",
            "ledger_public_key": b"",
            "created_at": 0.0,
            "last_seen_at": 0.0,
            "hello": b"",
        }
        with self.transaction() as connection:
            connection.execute(schema.nodes.insert().prefix_with("OR IGNORE").values(row))
        self._do(people.keep_hello, node, hello, now_s)

    def all_nodes(self) -> list[NodeRecord]:
        """Every node, by name."""
        return self._do(people.all_nodes)

    def open_account(self, account: str, node: str, hello: pb.Account) -> None:
        """See `coordinator.store.ledger`."""
        terms = (hello.filter, hello.rdp_order, hello.epsilon_limit, hello.delta)
        self._do(ledger.open_account, account, node, *terms)

    def accounts(self) -> list[Account]:
        """Every account, by name."""
        return self._do(ledger.all_accounts)

    def reserved(self, attempt_id: str) -> Statement:
        """See `coordinator.store.ledger`."""
        return self._do(ledger.reserved, attempt_id)

    def outcome(self, attempt_id: str) -> str | None:
        """See `coordinator.store.ledger`."""
        return self._do(ledger.outcome, attempt_id)

    def chain(self, account: str, after: int = 0) -> list[Entry]:
        """An account's entries in order, without the first `after`."""
        entries = schema.entries
        wanted = select(entries).where(entries.c.account == account, entries.c.seq > after)
        with self.transaction() as connection:
            rows = connection.execute(wanted.order_by(entries.c.seq))
            return [ledger.entry_of(row) for row in rows]

    def add_job(self, record: JobRecord) -> None:
        """See `coordinator.store.jobs`."""
        self._do(job_store.add, record)

    def jobs(self) -> list[JobRecord]:
        """Every job in order of its id."""
        return sorted(self._do(job_store.listed), key=lambda record: record.job_id)

    def append_all(
        self, job_id: str, first_seq: int, at_s: float, taken: Sequence[e.Event]
    ) -> None:
        """See `coordinator.store.jobs`."""
        self._do(job_store.append_all, job_id, first_seq, at_s, taken)

    def history(self, job_id: str, after: int = 0) -> list[tuple[float, e.Event]]:
        """A job's steps, read back, without the first `after`."""
        journal = schema.journal
        wanted = select(journal).where(journal.c.job_id == job_id, journal.c.seq >= after)
        with self.transaction() as connection:
            rows = connection.execute(wanted.order_by(journal.c.seq))
            return [(row.at, e.from_json(row.event)) for row in rows]

    def models(self) -> list[ModelRecord]:
        """Every model that can be listed."""
        return self._do(job_store.models_of)


Store = MemoryStore | SqlStore
