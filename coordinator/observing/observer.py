"""Looks every two seconds at what the gauges tell, and keeps when nodes and people were heard."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from coordinator.blobs import BlobStore
from coordinator.gateway.watch import GatewayWatch, state_of
from coordinator.identities import Identities
from coordinator.observing.damage_watch import DamageWatch
from coordinator.observing.figures import Figures
from coordinator.observing.metrics import Metrics
from coordinator.pausing import Pausing
from coordinator.replicas.shared_blobs import SharedBlobs
from coordinator.rounds.driver import Rounds
from coordinator.server_certificate import ServerCertificate
from coordinator.sessions import Sessions
from coordinator.store import backups, ledger, people, users
from coordinator.store import jobs as job_store
from coordinator.store.damage import damaged
from coordinator.store.database import Database
from coordinator.store.engines import unserved
from privacy.epochs import FIRST

log = structlog.get_logger(__name__)

OBSERVE_S: Final = 2.0


class Observer:
    """Works while this coordinator leads.

    Args:
        certificate_life_s: of nodes.
    """

    def __init__(
        self,
        metrics: Metrics,
        database: Database,
        sessions: Sessions,
        identities: Identities,
        rounds: Rounds,
        pausing: Pausing,
        certificate: ServerCertificate,
        certificate_life_s: float,
        blobs: BlobStore,
        shared: SharedBlobs | None = None,
    ) -> None:
        self._metrics = metrics
        self._database = database
        self._sessions = sessions
        self._identities = identities
        self._pausing = pausing
        self._certificate = certificate
        self._blobs = blobs
        self._shared = shared
        self._damage = DamageWatch(metrics)
        self._gateway = GatewayWatch()
        self._figures = Figures(
            metrics, database, rounds, sessions, certificate, certificate_life_s
        )

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self._look()
            except Exception as error:
                # What the database cannot serve now is said elsewhere, once and not at each look.
                if not isinstance(error, DBAPIError) or unserved(error) is None:
                    log.exception("observer_failed")
            await asyncio.sleep(OBSERVE_S)

    async def _look(self) -> None:
        self._metrics.disk(*await asyncio.to_thread(self._blobs.disk))
        if self._shared is not None:
            self._metrics.store(is_reachable=self._shared.away is None)
            self._shared.try_again()
        sessions = self._sessions
        connected = {n: time.time() for n in sessions.nodes() if sessions.connected(n)}
        used = self._identities.take_used()

        def keep(connection: Connection) -> None:
            people.keep_seen(connection, connected)
            users.keep_used(connection, used)

        await self._database.write(keep)
        self._metrics.jobs(await self._database.read(job_store.counts))
        made_at_s = await self._database.read(backups.last_success_at)
        paused = self._pausing.now is not None
        restored = self._identities.restored
        epoch = restored[-1].number if restored else FIRST
        self._metrics.operations(paused=paused, backup_at_s=made_at_s, epoch=epoch)
        self._damage.found(await self._database.read(damaged))
        domain, now_s = self._certificate.authority.trust_domain, time.time()
        self._gateway.found(await self._database.read(lambda c: state_of(c, domain, now_s)))
        known = {a.account: a for a in await self._database.read(ledger.all_accounts)}
        nodes = await self._database.read(people.all_nodes)
        for record in nodes:
            if record.status != "enrolled":
                self._metrics.forget_node(record.name)
                continue
            self._metrics.node_health(record.name, record.name in connected)
            self._look_at_budgets(record, known)
        await self._figures.refresh(nodes, known)

    def _look_at_budgets(
        self, node: people.NodeRecord, known: Mapping[str, ledger.Account]
    ) -> None:
        for data_set in node.hello.data_sets:
            account = known.get(f"{node.name}/{data_set.account}")
            if account is None:
                continue
            filter_, balance = account.filter, account.balance
            booked = filter_.epsilon_of(balance.posted_units) if balance.guarantee else None
            self._metrics.budget(node.name, data_set.name, filter_.epsilon_limit, booked)
