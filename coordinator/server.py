"""The coordinator's process: start-up, ports, and an orderly stop."""

import asyncio
import os
import signal
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import grpc
import structlog

from certs.authority import Authority
from certs.enrolment import public_bytes_of
from coordinator.blobs import BlobStore
from coordinator.config.config import CoordinatorConfig, load_config
from coordinator.identities import Identities
from coordinator.keyring import ledger_key
from coordinator.observing.health import HealthServer
from coordinator.observing.metrics import Metrics
from coordinator.observing.observer import Observer
from coordinator.pausing import Pausing
from coordinator.ports import (
    DRAIN_S,
    ENROLMENT_MESSAGE_BYTES_MAX,
    bind,
    joined,
    server_behind,
)
from coordinator.quarantine import Quarantine
from coordinator.replicas.followed_rounds import FollowedRounds
from coordinator.replicas.leadership import Leadership, is_lost, this_process
from coordinator.replicas.replicas import Address, Forwarder
from coordinator.replicas.shared_blobs import SharedBlobs
from coordinator.replicas.shared_work import SharedWork, WorkTaker
from coordinator.replicas.transfer_port import TransferPort
from coordinator.restoring.marker import refuse_unfinished
from coordinator.restoring.revocations import RevocationsFile
from coordinator.rounds.driver import Rounds
from coordinator.rounds.effects import Effects
from coordinator.rpc.diagnosis import DiagnosisService
from coordinator.rpc.enrollment import EnrollmentService
from coordinator.rpc.federation import FederationService
from coordinator.rpc.gate import Gate
from coordinator.rpc.jobs import JobsService
from coordinator.rpc.operations import OperationsService
from coordinator.rpc.people import BudgetsService, ModelsService, NodesService
from coordinator.rpc.renewal import RenewalService
from coordinator.rpc.transfer import TransferService
from coordinator.rpc.users import UsersService
from coordinator.rpc.witness import WitnessService
from coordinator.server_certificate import ServerCertificate
from coordinator.sessions import Sessions
from coordinator.store import epochs, users
from coordinator.store.database import Database
from coordinator.store.diagnosis import fault, hidden, is_empty
from protos import tracing
from protos.allocation import keep_freed
from protos.errors import Conflict, Malformed, Unavailable
from protos.feddp.v1 import (
    budgets_pb2_grpc,
    diagnosis_pb2_grpc,
    enrollment_pb2_grpc,
    federation_pb2_grpc,
    jobs_pb2_grpc,
    models_pb2_grpc,
    nodes_pb2_grpc,
    operations_pb2_grpc,
    renewal_pb2_grpc,
    users_pb2_grpc,
    witness_pb2_grpc,
)
from protos.frames import add_transfer

log = structlog.get_logger(__name__)

CERTIFICATE_S = 5.0
"""Between looks at the files of the server's certificate and of the authority."""

FREED_BYTES_KEPT = 16 << 20
"""Room for the messages of a few transfers."""


class Coordinator:
    """One running coordinator."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self.config = config
        storage, server = config.storage, config.server
        self._certificate = ServerCertificate(config, self._adopt)
        self.authority = self._certificate.authority
        self.database = Database(storage.database_url)
        self.database.migrate()
        address = Address(server.replica_host, server.port, server.enrollment_port)
        self._forwarder = Forwarder(server.host, address)
        signed = self.database.read_now(epochs.signed_last)
        self._ledger_key = ledger_key(storage.pki_dir, signed, shared=bool(server.replica_host))
        self._leadership = Leadership(
            self.database, str(address) if server.replica_host else "", self._forwarder.follow
        )
        shared = SharedBlobs(storage.blob_url, storage.blob_endpoint) if storage.blob_url else None
        self._shared_blobs = shared
        self.blobs = BlobStore(storage.blob_dir, shared)
        self.metrics = Metrics()
        federation = config.federation
        self.sessions = Sessions(federation.node_silent_s, federation.node_disconnected_s)
        self.identities = Identities(
            self.database,
            self.authority.trust_domain,
            gateway_sidecar=server.gateway_sidecar,
            revocations=RevocationsFile(storage.revocations_file, self._ledger_key),
        )
        self._quarantine = Quarantine(self.database, self.identities, self.sessions, self.authority)
        self._pausing = Pausing(self.database)
        # Where nodes move bytes at any replica, any of them has bytes to work on.
        sharing = SharedWork(self.database) if shared is not None and server.transfer_port else None
        effects = Effects(self.blobs, self.sessions, self._pausing, sharing)
        self.rounds = Rounds(self.database, self.sessions, effects, self.metrics, self._pausing)
        self.federation = FederationService(
            self.database,
            self.blobs,
            self.sessions,
            self.rounds,
            self.identities,
            federation.heartbeat_interval_s,
            server.transfer_address,
        )
        followed = FollowedRounds(self.database)
        self._transfer = TransferService(
            self.database, self.blobs, followed, self.metrics, storage.model_bytes_max
        )
        self._transfer_port = TransferPort(
            server.host,
            server.transfer_port,
            Gate(self.identities, self.metrics),
            self._transfer,
            followed,
            self.identities,
            self._certificate,
            self.blobs,
            storage.database_url,
            WorkTaker(self.database, self.blobs, followed, this_process()),
        )
        self._health = HealthServer(
            server.health_host, server.health_port, self._ready, self.metrics.registry
        )
        lifetime = timedelta(seconds=config.security.node_certificate_life_s)
        self._enrolling = EnrollmentService(
            self.database,
            self.authority,
            self.identities,
            joined(server.public_host, server.public_port),
            lifetime,
            timedelta(days=config.security.recovery_days),
            self._quarantine,
        )
        self._renewing = RenewalService(self.database, self.authority, self.identities, lifetime)
        enrolment = joined(
            server.public_enrollment_host or server.public_host, server.public_enrollment_port
        )
        self._nodes = NodesService(
            self.database,
            self.authority,
            self.identities,
            self.sessions,
            enrolment,
            config.security.approve_joins,
        )
        self._users = UsersService(self.database, self.authority, self.identities, enrolment)
        self._servers: list[grpc.aio.Server] = []
        self._observer = Observer(
            self.metrics,
            self.database,
            self.sessions,
            self.identities,
            self.rounds,
            self._pausing,
            self._certificate,
            config.security.node_certificate_life_s,
            self.blobs,
            shared,
        )
        self._is_ready = False

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        enough = [asyncio.create_task(one.wait()) for one in (stop, self._leadership.lost)]
        starting = asyncio.create_task(self.start())
        await asyncio.wait([starting, *enough], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()  # it waited for another coordinator to end
            await asyncio.gather(starting, return_exceptions=True)
            return
        try:
            await starting
        except Unavailable as error:
            if is_lost(error):  # what it says is for nodes and people
                raise self._taken_over() from None
            raise
        beside = [
            asyncio.create_task(one) for one in (self._observer.run(), self._keep_certificate())
        ]
        if self.config.monitoring.alert_webhook:
            beside.append(asyncio.create_task(self._alert()))
        await asyncio.wait(enough, return_when=asyncio.FIRST_COMPLETED)
        for task in (*beside, *enough):
            task.cancel()
        log.info("coordinator_draining")
        await self.stop()
        log.info("coordinator_stopped")
        if self._leadership.lost.is_set():
            raise self._taken_over()

    def _taken_over(self) -> Conflict:
        """Why this process ends."""
        do = (
            "one of several is started again, as its service does, and stands by"
            if self.config.server.replica_host
            else "run one at a time (several need server.replica_host)"
        )
        return Conflict(
            "LEASE_LOST",
            "another coordinator has taken over this installation's database, and this one "
            f"stopped; {do}",
        )

    async def start(self) -> None:
        """Open the ports and take up every job."""
        server = self.config.server
        if self._shared_blobs is not None:
            self._shared_blobs.look()
        await self._take_lead()
        await self._transfer_port.stop_following()
        self.metrics.leads()
        self.sessions.begin()
        await self.identities.reload()
        await asyncio.to_thread(self._certificate.refresh)
        watch = self._quarantine
        main = server_behind(Gate(self.identities, self.metrics, watch.seen, watch.lost))
        self._add_services(main)
        bind(main, server.host, server.port, self._certificate.mutual())
        enrolment = server_behind(Gate(None, self.metrics), ENROLMENT_MESSAGE_BYTES_MAX)
        enrollment_pb2_grpc.add_EnrollmentServicer_to_server(self._enrolling, enrolment)
        bind(enrolment, server.host, server.enrollment_port, self._certificate.enrolment())
        if not server.replica_host:
            self._health.start()
        await self._pausing.load()
        if self._pausing.now is not None:
            log.warning("all_work_is_paused", since=self._pausing.now.since_s)
        await self.rounds.start()
        self._transfer_port.leads(self.rounds)
        await self._transfer_port.open()
        for one in (main, enrolment):
            await one.start()
            self._servers.append(one)
        self._is_ready = True
        log.info(
            "coordinator_ready",
            port=server.port,
            enrollment_port=server.enrollment_port,
            health_port=server.health_port,
            trust_domain=self.authority.trust_domain,
        )

    async def _take_lead(self) -> None:
        """Wait until this replica leads; until then its ports pass connections on."""
        if not self.config.server.replica_host:
            await self._leadership.take()
            return
        self._health.start()
        await self._forwarder.start()
        await self._transfer_port.open()
        try:
            await self._leadership.take()
        except BaseException:
            await self._transfer_port.close()
            raise
        finally:
            await self._forwarder.stop()

    async def stop(self) -> None:
        """Send the agents away, finish what is being written, close."""
        self._is_ready = False
        self.federation.draining = True
        self.sessions.drain()
        draining = (one.stop(DRAIN_S) for one in self._servers)
        await asyncio.gather(self._transfer_port.close(), *draining)
        await self.rounds.stop()
        await self._leadership.give_back()
        self._health.stop()
        self.blobs.close()
        self.database.close()

    def _add_services(self, server: grpc.aio.Server) -> None:
        federation_pb2_grpc.add_FederationServicer_to_server(self.federation, server)
        add_transfer(self._transfer, server)
        nodes_pb2_grpc.add_NodesServicer_to_server(self._nodes, server)
        users_pb2_grpc.add_UsersServicer_to_server(self._users, server)
        renewal_pb2_grpc.add_RenewalServicer_to_server(self._renewing, server)
        jobs_pb2_grpc.add_JobsServicer_to_server(
            JobsService(self.database, self.blobs, self.rounds, self.config, self._pausing),
            server,
        )
        operations_pb2_grpc.add_OperationsServicer_to_server(
            OperationsService(self._pausing, self.rounds), server
        )
        diagnosis_pb2_grpc.add_DiagnosisServicer_to_server(
            DiagnosisService(self.identities), server
        )
        key = self._ledger_key
        witness_pb2_grpc.add_WitnessServicer_to_server(WitnessService(self.database, key), server)
        budgets_pb2_grpc.add_BudgetsServicer_to_server(
            BudgetsService(self.database, public_bytes_of(key)), server
        )
        models_pb2_grpc.add_ModelsServicer_to_server(ModelsService(self.database), server)

    def _ready(self) -> Mapping[str, bool]:
        leading = self._is_ready and self._leadership.is_sure()
        serving = leading or self._forwarder.has_leader
        return {"serving": serving, "database": self._database_answers()}

    def _database_answers(self) -> bool:
        try:
            self.database.read_now(users.all_users)
        except Exception:  # noqa: BLE001 - whatever it is, the answer is no
            return False
        return True

    async def _alert(self) -> None:
        """Post what is wrong to the configured receiver."""
        # Most installations need none of it.
        from coordinator.alerts import facts as alert_facts
        from coordinator.alerts import watch as alert_watch
        from coordinator.alerts import webhook as alert_webhook

        monitoring = self.config.monitoring
        webhook = alert_webhook.Webhook(
            monitoring.alert_webhook, monitoring.alert_webhook_ca, monitoring.alert_webhook_secret
        )
        sources = alert_facts.Sources(
            self.database,
            self.sessions,
            self.identities,
            self.rounds,
            lambda: {
                "server": self._certificate.expires_at,
                "authority": self.authority.issuing.not_valid_after_utc,
                "root authority": self.authority.root.not_valid_after_utc,
            },
            self.blobs,
            self._shared_blobs,
        )
        watch = alert_watch.AlertWatch(
            sources.facts,
            alert_watch.limits_of(monitoring, self.config.security.node_certificate_life_s),
            webhook,
            self.authority.trust_domain,
            monitoring.alert_every_s,
        )
        await watch.run()

    def _adopt(self, authority: Authority) -> None:
        """Another authority issues, or another is trusted, from now on."""
        self.authority = authority
        self._enrolling.authority = self._renewing.authority = authority
        self._nodes.authority = self._users.authority = authority
        self._quarantine.authority = authority

    async def _keep_certificate(self) -> None:
        """Reload and renew what the ports show and trust, and read the registry again where
        `feddp coordinator reissue` and `gateway` wrote beside us: the one also while the other
        fails."""
        while True:
            await asyncio.sleep(CERTIFICATE_S)
            try:
                await asyncio.to_thread(self._certificate.refresh)
            except Exception:
                log.exception("certificate_refresh_failed")
            try:
                await self.identities.look()
            except Exception:
                log.exception("registry_look_failed")


def serve(config_path: Path) -> None:
    """Run the coordinator that `config_path` describes until it is told to stop.

    Raises:
        Malformed: CONFIG_INVALID, PORT_IN_USE, DATABASE_UNUSABLE, OTEL_MISSING, TRACING_INVALID.
        NotFound: AUTHORITY_MISSING, SERVER_CERTIFICATE_MISSING.
        Conflict: LEASE_LOST, another coordinator has taken over.
        WrongPhase: RESTORE_UNFINISHED.
    """
    keep_freed(FREED_BYTES_KEPT)
    refuse_unfinished(config_path)
    config = load_config(config_path, os.environ)
    refuse_unfinished(config_path, config.storage)
    monitoring = config.monitoring
    if monitoring.trace_endpoint:
        from protos import otlp  # OpenTelemetry is loaded where it is asked for

        otlp.begin(
            "feddp-coordinator",
            monitoring.trace_endpoint,
            ca_file=monitoring.trace_ca,
            ratio=monitoring.trace_sample_ratio,
            instance=config.server.replica_host,
        )
    try:
        asyncio.run(_serve(config))
    finally:
        tracing.end()


async def _serve(config: CoordinatorConfig) -> None:
    if await asyncio.to_thread(is_empty, config.storage.database_url):
        if unseen := await asyncio.to_thread(hidden, config.storage.database_url):
            raise Malformed("DATABASE_UNUSABLE", f"storage.database_url: {unseen}")
        # A slip in its name, or a database that was lost: with a ledger of nothing, what was spent
        # would be booked once more.
        raise Malformed(
            "DATABASE_UNUSABLE",
            "storage.database_url names a database without tables: mend it, restore the database "
            "from a backup (`feddp coordinator restore`), or begin anew in another folder with "
            "`feddp coordinator init --database-url`",
        )
    try:
        coordinator = Coordinator(config)
    except Unavailable as error:
        if error.reason != "DATABASE_UNREACHABLE":
            raise
        # Only here, where who starts it reads it; later ones go to nodes, too.
        why = await asyncio.to_thread(fault, config.storage.database_url)
        raise Unavailable(error.reason, f"storage.database_url: {why or error.message}") from None
    await coordinator.run()
