"""What /metrics shows of the whole federation, read from the database and from memory."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from sqlalchemy import Connection, func, select

from certs.spiffe import SpiffeId
from coordinator.observing.metrics import Holder, Metrics, NodeStatus, Refusal
from coordinator.rounds import participation
from coordinator.rounds.driver import Rounds
from coordinator.rounds.phases import Selecting
from coordinator.server_certificate import ServerCertificate
from coordinator.sessions import Sessions
from coordinator.store import certificates, epochs, ledger, people, users
from coordinator.store.database import Database
from coordinator.store.schema import accounts, countersignatures

ENDED_S: Final = 3600.0
"""How long a job that has ended still counts for who was left out: Prometheus has seen it then."""

SELDOM_S: Final = 30.0
"""Between looks at what changes seldom and is long to read: certificates, signatures, people."""

_REFUSALS: Final[Mapping[str, Refusal]] = {
    "LEDGER_DISPUTED": "disputed",
    "LEDGER_ROLLED_BACK": "rolled_back",
    "LEDGER_CATCHING_UP": "catching_up",
}


@dataclass(slots=True)
class Figures:
    """Keeps the gauges of nodes, accounts, certificates and waiting jobs current.

    Args:
        node_life_s: how long a node's certificate is valid.
    """

    metrics: Metrics
    database: Database
    rounds: Rounds
    sessions: Sessions
    certificate: ServerCertificate
    node_life_s: float
    _below_quorum_s: dict[tuple[str, int], float] = field(default_factory=dict)
    _left_out: dict[str, tuple[int, Mapping[str, int]]] = field(default_factory=dict)
    _looked_at_s: float = -SELDOM_S

    async def refresh(
        self, nodes: list[people.NodeRecord], known: Mapping[str, ledger.Account]
    ) -> None:
        """Take what the observer has read already, read the rest, and show it.

        Args:
            nodes: every node.
            known: every account, by name.
        """
        shut_out = await self.database.read(people.all_quarantines)
        statuses = Counter(cast(NodeStatus, one.status) for one in nodes)
        self.metrics.nodes(statuses, len(shut_out), len(self.sessions.nodes()))
        enrolled = [one for one in nodes if one.status == "enrolled"]
        self._nodes(enrolled, time.time())
        self._accounts({one.name for one in enrolled}, known)
        self._jobs(time.time())
        if time.monotonic() - self._looked_at_s >= SELDOM_S:
            self._certificates(enrolled, await self.database.read(certificates.ends))
            self.metrics.users(len(await self.database.read(users.all_users)))
            self.metrics.chains(*await self.database.read(chain_lengths))
            waiting = await self.database.read(epochs.unreconciled)
            numbers = Counter(one.node for one in known.values() if one.account in waiting)
            for node in enrolled:
                self.metrics.unreconciled_accounts(node.name, numbers[node.name])
            self._looked_at_s = time.monotonic()

    def _certificates(self, nodes: list[people.NodeRecord], ends: Mapping[str, float]) -> None:
        authority = self.certificate.authority
        own: dict[Holder, float] = {
            "server": self.certificate.expires_at.timestamp(),
            "issuing": authority.issuing.not_valid_after_utc.timestamp(),
            "root": authority.root.not_valid_after_utc.timestamp(),
        }
        gateway = ends.get(str(SpiffeId(authority.trust_domain, "gateway")))
        if gateway is not None:
            own["gateway"] = gateway
        for holder, ends_at_s in own.items():
            self.metrics.certificate(holder, ends_at_s)
        self.metrics.node_certificate_life(self.node_life_s)
        for node in nodes:
            ends_at_s = ends.get(str(SpiffeId(authority.trust_domain, "node", node.name)), 0.0)
            if ends_at_s:
                self.metrics.node_certificate(node.name, ends_at_s)

    def _nodes(self, nodes: list[people.NodeRecord], now_s: float) -> None:
        before, self._left_out = self._left_out, {}
        left_out: Counter[str] = Counter()
        for live in self.rounds.recent(now_s - ENDED_S):
            rounds, found = len(live.phase.course.done), before.get(live.job_id)
            if found is None or found[0] != rounds:
                found = (rounds, participation.left_out(live.phase.course))
            self._left_out[live.job_id] = found
            for name, number in found[1].items():
                left_out[name] = max(left_out[name], number)
        for node in nodes:
            self.metrics.left_out(node.name, left_out[node.name])
            said = (_REFUSALS.get(one.refuses) for one in node.hello.accounts)
            self.metrics.refused_accounts(node.name, Counter(one for one in said if one))

    def _accounts(self, nodes: set[str], known: Mapping[str, ledger.Account]) -> None:
        theirs = [one for one in known.values() if one.node in nodes]
        guaranteed = sum(one.balance.guarantee for one in theirs)
        reservations = sum(len(one.balance.pending) for one in known.values())
        self.metrics.accounts(guaranteed, len(theirs) - guaranteed, reservations)

    def _jobs(self, now_s: float) -> None:
        """A job in selection waits since that began; a round below quorum since it was first seen
        so, which a restart of the coordinator forgets."""
        before, self._below_quorum_s = self._below_quorum_s, {}
        began_s: list[float] = []
        for live in self.rounds.running():
            if not live.is_waiting():
                continue
            if isinstance(live.phase, Selecting):
                began_s.append(live.phase.since_s)
            else:
                round_ = (live.job_id, live.phase.course.next_round)
                self._below_quorum_s[round_] = before.get(round_, now_s)
                began_s.append(self._below_quorum_s[round_])
        longest_s = max((now_s - one for one in began_s), default=0.0)
        self.metrics.jobs_waiting(len(began_s), max(0.0, longest_s))


def chain_lengths(connection: Connection) -> tuple[int, int]:
    """(entries of all chains, entries up to which their nodes have signed them)."""
    entries = connection.execute(select(func.sum(accounts.c.entries))).scalar_one()
    newest = (
        select(func.max(countersignatures.c.seq).label("seq"))
        .group_by(countersignatures.c.account)
        .subquery()
    )
    signed = connection.execute(select(func.sum(newest.c.seq))).scalar_one()
    return int(entries or 0), int(signed or 0)
