"""What the coordinator must never forget: a fast double, and the real store on SQLite in memory.

Both give the same answers; a test plays seeds on both and compares the transcripts.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from coordinator.rounds import events as e
from coordinator.store import jobs as job_store
from coordinator.store import ledger, schema
from coordinator.store.jobs import JobRecord, ModelRecord
from coordinator.store.ledger import Account
from privacy.filters import make_filter
from privacy.ledger import GENESIS, Balance, Entry, Statement, append
from protos.errors import Malformed, NotFound
from protos.feddp.v1 import federation_pb2 as pb

Reserve = Callable[[Balance, Statement], Balance]


class MemoryStore:
    """The tables as Python values; the arithmetic is `privacy.ledger`'s."""

    def __init__(self) -> None:
        self.hellos: dict[str, pb.Hello] = {}
        self._accounts: dict[str, Account] = {}
        self._chains: dict[str, list[Entry]] = {}
        self._at: dict[tuple[str, str], tuple[str, int]] = {}
        self._jobs: dict[str, JobRecord] = {}
        self._journal: dict[str, list[tuple[float, bytes]]] = {}
        self._models: list[ModelRecord] = []
        self.apply: Reserve = Balance.apply

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One commit. A crash never comes inside it: it is before or after."""
        yield

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[Callable[[], None]]:
        """Gives a function that undoes what was done to the ledger since."""
        accounts, at = dict(self._accounts), dict(self._at)
        chains = {name: list(chain) for name, chain in self._chains.items()}

        def undo() -> None:
            self._accounts, self._chains, self._at = accounts, chains, at

        yield undo

    # The ledger

    def open_account(self, account: str, node: str, hello: pb.Account) -> None:
        """As `coordinator.store.ledger.open_account`."""
        kind, order = hello.filter, hello.rdp_order
        announced = make_filter(kind, order, hello.epsilon_limit, hello.delta)
        known = self._accounts.get(account)
        if known is None or known.entries == 0:
            self._accounts[account] = Account(
                account, node, Balance(announced), 0, GENESIS, hello.epsilon_limit
            )
            self._chains[account] = []
        elif (known.filter.kind, known.filter.order, known.filter.delta) != (
            kind,
            order,
            hello.delta,
        ):
            raise Malformed("ACCOUNT_CHANGED", "an account's filter never changes")
        elif announced.limit_units < known.filter.limit_units:
            self._accounts[account] = replace(
                known, balance=replace(known.balance, filter=announced)
            )

    def read_account(self, account: str) -> Account:
        """As `coordinator.store.ledger.read_account`."""
        known = self._accounts.get(account)
        if known is None:
            raise NotFound("ACCOUNT_UNKNOWN", f"there is no account {account}")
        return known

    def accounts(self) -> list[Account]:
        """Every account, by name."""
        return [self._accounts[name] for name in sorted(self._accounts)]

    def book(self, statement: Statement, signature: bytes = b"") -> None:
        """As `coordinator.store.ledger.book`."""
        known = self.read_account(statement.account)
        after = self.apply(known.balance, statement)
        if after != known.balance:
            self.write_entry(replace(known, balance=after), statement, signature)

    def write_entry(self, known: Account, statement: Statement, signature: bytes) -> None:
        """Append to the account's chain and keep its balance."""
        chain = self._chains[statement.account]
        entry = append(statement, chain[-1] if chain else None, signature)
        chain.append(entry)
        self._at[(statement.attempt_id, statement.kind)] = (statement.account, len(chain) - 1)
        self._accounts[statement.account] = replace(known, entries=entry.seq, head_hash=entry.hash)

    def reserved(self, attempt_id: str) -> Statement:
        """As `coordinator.store.ledger.reserved`."""
        found = self._at.get((attempt_id, "reserve"))
        if found is None:
            raise NotFound("ATTEMPT_UNKNOWN", f"there is no attempt {attempt_id}")
        return self._chains[found[0]][found[1]].statement

    def resolve(self, attempt_id: str, kind: Any, signature: bytes) -> None:
        """As `coordinator.store.ledger.resolve`."""
        self.book(self.reserved(attempt_id).resolved(kind), signature)

    def outcome(self, attempt_id: str) -> str | None:
        """As `coordinator.store.ledger.outcome`."""
        return next((k for k in ("post", "void") if (attempt_id, k) in self._at), None)

    def keep_signature(self, attempt_id: str, signature: bytes) -> None:
        """As `coordinator.store.ledger.keep_signature`."""
        account, index = self._at[(attempt_id, "reserve")]
        entry = self._chains[account][index]
        if not entry.node_signature:
            self._chains[account][index] = replace(entry, node_signature=signature)

    def job_spending(self, job_id: str, account: Account) -> tuple[int, int]:
        """As `coordinator.store.ledger.job_spending`."""
        mine = [x.statement for x in self._chains[account.account] if x.statement.job_id == job_id]
        held = {one.attempt_id for one in account.balance.pending}
        units = [
            account.filter.cost_units(one.release)
            for one in mine
            if one.kind == "post" or (one.kind == "reserve" and one.attempt_id in held)
        ]
        return sum(units), len(units)

    def chain(self, account: str, after: int = 0) -> list[Entry]:
        """An account's entries in order, without the first `after`."""
        return self._chains[account][after:]

    # Jobs

    def add_job(self, record: JobRecord) -> None:
        """Keep a new job."""
        self._jobs[record.job_id] = record
        self._journal[record.job_id] = []

    def jobs(self) -> list[JobRecord]:
        """Every job in order of submission."""
        return list(self._jobs.values())

    def set_status(self, job_id: str, status: str) -> None:
        """Remember how a job ended."""
        self._jobs[job_id] = replace(self._jobs[job_id], status=status)

    def journal(self, job_id: str, seq: int, at_s: float, event: e.Event) -> None:
        """Write one step of a job."""
        if seq != len(self._journal[job_id]):
            raise Malformed("JOURNAL", f"step {seq} of {job_id} is written out of turn")
        self._journal[job_id].append((at_s, e.to_json(event)))

    def history(self, job_id: str, after: int = 0) -> list[tuple[float, e.Event]]:
        """A job's steps, read back, without the first `after`."""
        return [(at_s, e.from_json(text)) for at_s, text in self._journal[job_id][after:]]

    def add_model(self, record: ModelRecord) -> None:
        """As `coordinator.store.jobs.add_model`."""
        key = (record.job_id, record.kind, record.round)
        if key not in {(m.job_id, m.kind, m.round) for m in self._models}:
            self._models.append(record)

    def models(self) -> list[ModelRecord]:
        """Every model in the order of its making."""
        return self._models


class SqlStore:
    """The real tables and functions, on one connection to SQLite in memory."""

    def __init__(self) -> None:
        self.hellos: dict[str, pb.Hello] = {}
        engine = create_engine("sqlite://", poolclass=StaticPool)
        schema.metadata.create_all(engine)
        self._connection = engine.connect()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One commit."""
        if self._connection.in_transaction():
            yield
            return
        with self._connection.begin():
            yield

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[Callable[[], None]]:
        """Gives a function that undoes what was done since."""
        point = self._connection.begin_nested()
        yield point.rollback
        if point.is_active:
            point.commit()

    def _do(self, function: Callable[..., Any], *args: Any) -> Any:
        with self.transaction():
            return function(self._connection, *args)

    def open_account(self, account: str, node: str, hello: pb.Account) -> None:
        """See `coordinator.store.ledger`."""
        terms = (hello.filter, hello.rdp_order, hello.epsilon_limit, hello.delta)
        self._do(ledger.open_account, account, node, *terms)

    def read_account(self, account: str) -> Account:
        """See `coordinator.store.ledger`."""
        return self._do(ledger.read_account, account)

    def accounts(self) -> list[Account]:
        """Every account, by name."""
        return self._do(ledger.all_accounts)

    def book(self, statement: Statement, signature: bytes = b"") -> None:
        """See `coordinator.store.ledger`."""
        self._do(ledger.book, statement, signature)

    def reserved(self, attempt_id: str) -> Statement:
        """See `coordinator.store.ledger`."""
        return self._do(ledger.reserved, attempt_id)

    def resolve(self, attempt_id: str, kind: Any, signature: bytes) -> None:
        """See `coordinator.store.ledger`."""
        self._do(ledger.resolve, attempt_id, kind, signature)

    def outcome(self, attempt_id: str) -> str | None:
        """See `coordinator.store.ledger`."""
        return self._do(ledger.outcome, attempt_id)

    def keep_signature(self, attempt_id: str, signature: bytes) -> None:
        """See `coordinator.store.ledger`."""
        self._do(ledger.keep_signature, attempt_id, signature)

    def job_spending(self, job_id: str, account: Account) -> tuple[int, int]:
        """See `coordinator.store.ledger`."""
        return self._do(ledger.job_spending, job_id, account)

    def chain(self, account: str, after: int = 0) -> list[Entry]:
        """An account's entries in order, without the first `after`."""
        return self._do(lambda connection: list(ledger.chain(connection, account)))[after:]

    def add_job(self, record: JobRecord) -> None:
        """See `coordinator.store.jobs`."""
        self._do(job_store.add, record)

    def jobs(self) -> list[JobRecord]:
        """Every job in order of submission."""
        return sorted(self._do(job_store.listed), key=lambda record: record.job_id)

    def set_status(self, job_id: str, status: str) -> None:
        """See `coordinator.store.jobs`."""
        self._do(job_store.set_status, job_id, status)

    def journal(self, job_id: str, seq: int, at_s: float, event: e.Event) -> None:
        """See `coordinator.store.jobs`."""
        self._do(job_store.append, job_id, seq, at_s, event)

    def history(self, job_id: str, after: int = 0) -> list[tuple[float, e.Event]]:
        """See `coordinator.store.jobs`."""
        return self._do(job_store.history, job_id)[after:]

    def add_model(self, record: ModelRecord) -> None:
        """See `coordinator.store.jobs`."""
        self._do(job_store.add_model, record)

    def models(self) -> list[ModelRecord]:
        """See `coordinator.store.jobs`."""
        return self._do(job_store.models_of)


Store = MemoryStore | SqlStore
