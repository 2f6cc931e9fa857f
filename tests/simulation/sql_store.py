"""What the coordinator must never forget, in its real tables on SQLite in memory."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, select

from coordinator.rounds import events as e
from coordinator.store import jobs as job_store
from coordinator.store import ledger, people, schema
from coordinator.store.engines import writer_engine
from coordinator.store.jobs import JobRecord, ModelRecord
from coordinator.store.ledger import Account
from coordinator.store.people import NodeRecord
from privacy.ledger import Entry, Statement
from tests.simulation.stores import MemoryStore, Seam


class SqlStore:
    """The real tables and functions, on one connection to SQLite in memory."""

    def __init__(self) -> None:
        self._connection = writer_engine("sqlite://").connect()
        with self._connection.begin():
            schema.metadata.create_all(self._connection)

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

    def enrol(self, node: str, public_key: bytes) -> None:
        """A node that says Hello has been enrolled before."""
        row = {
            "name": node,
            "node_class": "",
            "status": "enrolled",
            "ledger_public_key": public_key,
            "created_at": 0.0,
            "last_seen_at": 0.0,
            "hello": b"",
        }
        with self.transaction() as connection:
            connection.execute(schema.nodes.insert().prefix_with("OR IGNORE").values(row))

    def all_nodes(self) -> list[NodeRecord]:
        """Every node, by name."""
        return self._do(people.all_nodes)

    def accounts(self) -> list[Account]:
        """Every account, by name."""
        return self._do(ledger.all_accounts)

    def reserved(self, attempt_id: str) -> Statement:
        """See `coordinator.store.ledger`."""
        return self._do(ledger.reserved, attempt_id)

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
