"""Gathers what alerts are about, from what the coordinator has at hand."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection

from coordinator.alerts.conditions import Facts, NodeFact, WaitingJob
from coordinator.blobs import BlobStore
from coordinator.identities import Identities
from coordinator.replicas.shared_blobs import SharedBlobs
from coordinator.rounds.driver import Rounds
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Selecting, Training
from coordinator.sessions import Sessions
from coordinator.store import ledger, people
from coordinator.store.damage import damaged
from coordinator.store.database import Database


@dataclass(slots=True)
class Sources:
    """Where facts come from.

    Attributes:
        certificates: what -> when it ends; of the server and the authority.
    """

    database: Database
    sessions: Sessions
    identities: Identities
    rounds: Rounds
    certificates: Callable[[], Mapping[str, datetime]]
    blobs: BlobStore
    shared: SharedBlobs | None = None
    _began_at_s: float = field(default_factory=time.time)
    _waiting_since_s: dict[str, float] = field(default_factory=dict)

    async def facts(self, now_s: float) -> Facts:
        """Everything that an alarm can be about, as it is now."""

        def read(
            connection: Connection,
        ) -> tuple[list[people.NodeRecord], dict[str, ledger.Account], frozenset[str]]:
            accounts = {one.account: one for one in ledger.all_accounts(connection)}
            return people.all_nodes(connection), accounts, damaged(connection)

        free_bytes, size_bytes = await asyncio.to_thread(self.blobs.disk)
        records, accounts, broken = await self.database.read(read)
        ends_s = self.identities.nodes_expire_at()
        enrolled = [
            one
            for one in records
            if one.status == "enrolled" and not self.identities.is_revoked(one.name)
        ]
        return Facts(
            now_s,
            nodes=tuple(self._node(one, ends_s.get(one.name, 0.0)) for one in enrolled),
            remaining=_remaining(enrolled, accounts),
            damaged=broken,
            jobs=self._jobs(now_s),
            certificates={what: at.timestamp() for what, at in self.certificates().items()},
            store=self.shared.away if self.shared is not None else None,
            disk_free_share=free_bytes / size_bytes if size_bytes else 1.0,
        )

    def _node(self, record: people.NodeRecord, ends_s: float) -> NodeFact:
        return NodeFact(
            record.name,
            self.sessions.connected(record.name),
            # After our own start every node has as long to come back.
            max(record.last_seen_at, self._began_at_s),
            self.identities.quarantine_of(record.name),
            tuple((one.name, one.refuses) for one in record.hello.accounts if one.refuses),
            ends_s,
        )

    def _jobs(self, now_s: float) -> tuple[WaitingJob, ...]:
        waiting = [live for live in self.rounds.running() if live.is_waiting()]
        since_s = self._waiting_since_s
        self._waiting_since_s = {
            one.job_id: since_s.get(one.job_id, _began_s(one, now_s)) for one in waiting
        }
        return tuple(
            WaitingJob(one.job_id, self._waiting_since_s[one.job_id], _waited_for(one))
            for one in waiting
        )


def _began_s(live: LiveJob, now_s: float) -> float:
    return live.phase.since_s if isinstance(live.phase, Selecting) else now_s


def _waited_for(live: LiveJob) -> tuple[str, ...]:
    phase = live.phase
    if not isinstance(phase, Selecting | Training):
        return ()
    return tuple(sorted({one.node for one in phase.waiting}))


def _remaining(
    nodes: list[people.NodeRecord], accounts: Mapping[str, ledger.Account]
) -> dict[str, float]:
    """Epsilon that is left of each account that a node publishes and that has a guarantee."""
    left = {}
    for node in nodes:
        for published in node.hello.accounts:
            account = accounts.get(f"{node.name}/{published.name}")
            if account is not None and account.balance.guarantee:
                booked = account.filter.epsilon_of(account.balance.posted_units)
                left[account.account] = account.filter.epsilon_limit - booked
    return left
