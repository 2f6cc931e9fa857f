"""Who a connection is: its certificate, looked up in the registry on every rpc."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from certs.peer import Peer, peer_of
from certs.registry import CertificateRecord, admit
from certs.spiffe import SpiffeId
from coordinator.authz import Caller
from coordinator.gateway.shown import Metadata, forwarded_fingerprint, forwarded_fingerprints
from coordinator.restoring.revocations import RevocationsFile
from coordinator.store import (
    certificates,
    epochs,
    people,
    registry,
    revocations,
    signals,
    standings,
    users,
)
from coordinator.store.database import Database
from privacy.epochs import Epoch
from protos.errors import FeddpError, NotAllowed, Unauthenticated, Unavailable

log = structlog.get_logger(__name__)

ENDED_KEPT_S = 30 * 86_400.0
"""A certificate that ended longer ago is unknown: each node leaves one a week, and reading them
all would take longer every year."""

BELIEVED_S = 3.0
"""What was read so long ago lets nobody in at a replica that does not lead: with the time until
open calls are looked at again, a certificate that is revoked is cut within 5 s."""

AuthContext = Mapping[str, object]


class Identities:
    """The registry of certificates, nodes and users, kept in memory.

    The database is the truth; this process calls `reload` after a change.

    Args:
        gateway_sidecar: a second proxy stands behind the gateway that ends TLS.
        revocations: where each revoked certificate, and who is shut out, is kept, too.
        clock: seconds, for how long is believed what `follow` has read.

    Attributes:
        known: how many certificates there were when it was read, and how many were revoked.
        restored: every restoration from a backup, in order.
        is_behind: not every revocation could be written to `revocations`; the next reload tries
            again.
    """

    def __init__(
        self,
        database: Database,
        trust_domain: str,
        *,
        gateway_sidecar: bool = False,
        revocations: RevocationsFile | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._revocations = revocations
        self._clock = clock
        self.restored: list[Epoch] = []
        self.is_behind = False
        self._is_unread = True
        self._database = database
        self._gateway_sidecar = gateway_sidecar
        self._trust_domain = trust_domain
        self._certificates: dict[str, CertificateRecord] = {}
        self._users: dict[str, users.User] = {}
        self._disabled: set[str] = set()
        self._quarantined: dict[str, str] = {}
        self._revoked: set[str] = set()
        self._reloading = asyncio.Lock()
        self._used_at_s: dict[str, float] = {}
        self.known = (0, 0)
        self._stamp: registry.Stamp | None = None
        self._believed_until_s = -math.inf

    async def reload(self) -> None:
        """Read everything again; never an older state over a newer one. What this process reads it
        believes from now on, as nobody changes it beside whoever leads."""
        async with self._reloading:
            self._is_unread = True
            await self._reload()
            self._believed_until_s = math.inf
            with suppress(FeddpError):  # the other replicas look by themselves
                await self._database.read(signals.announce)
            if self._revocations is not None:
                await self._keep_revocations(self._revocations)
            self._is_unread = False

    async def look(self) -> None:
        """For whoever leads, every few seconds: read what was changed beside it, and what a reload
        could not read; whoever was shut out just then would stay in."""
        found = await self._database.read(certificates.counts)
        if found != self.known or self.is_behind or self._is_unread:
            await self.reload()

    async def follow(self) -> None:
        """Read what whoever leads has changed; to be called again within `BELIEVED_S`.

        Raises:
            Unavailable: DATABASE_UNREACHABLE.
        """
        async with self._reloading:
            begun_s = self._clock()
            stamp = await self._database.read(registry.stamp)
            if stamp != self._stamp:
                await self._reload()
                self._stamp = stamp
            self._believed_until_s = max(self._believed_until_s, begun_s + BELIEVED_S)

    async def _reload(self) -> None:
        since_s = time.time() - ENDED_KEPT_S
        self.known = await self._database.read(certificates.counts)
        self._certificates = await self._database.read(lambda c: certificates.records(c, since_s))
        self._users = await self._database.read(users.all_users)
        nodes = await self._database.read(people.all_nodes)
        self._disabled = {node.name for node in nodes if node.status == "disabled"}
        self._quarantined = await self._database.read(people.all_quarantines)
        self._revoked = await self._database.read(certificates.revoked_identities)
        self.restored = await self._database.read(epochs.all_of)

    async def _keep_revocations(self, file: RevocationsFile) -> None:
        """Before whoever revoked, disabled or let in again is told that it is done."""
        read_at_s = time.time()
        revoked = await self._database.read(revocations.revoked)
        shut_out = await self._database.read(standings.shut_out)
        try:
            await asyncio.to_thread(file.keep, revoked, shut_out, read_at_s)
        except OSError as error:
            if not self.is_behind:
                log.error(
                    "revocations_not_kept",
                    file=str(file.path),
                    fault=error.strerror,
                    do="they are in force; a restore from a backup would not know of them. Make "
                    "room, or let this user write there (storage.revocations_file)",
                )
            self.is_behind = True
        else:
            self.is_behind = False

    def peer(
        self, auth_context: Mapping[str, list[bytes]], metadata: Metadata | None = None
    ) -> Peer:
        """The certificate behind a connection; refuses anything below TLS 1.3.

        A gateway's own certificate lets nobody in: it only vouches for the one that it was shown.
        With a second proxy, whose certificate is of the same kind, that vouches for the gateway's.

        Raises:
            Unauthenticated: as `peer_of`, `certs.registry.admit`, `forwarded_fingerprint` and
                `forwarded_fingerprints`.
            Unavailable: REGISTRY_UNREAD.
        """
        self._believe()
        seen = peer_of(auth_context, self._trust_domain)
        if seen.spiffe_id.kind != "gateway":
            return seen
        self._admit_gateway(seen)
        through: tuple[str, ...] = (seen.fingerprint,)
        if self._gateway_sidecar:
            client, gateway = forwarded_fingerprints(metadata or ())
            self._admit_gateway(self._gateway(gateway))
            through = (gateway, seen.fingerprint)
        else:
            client = forwarded_fingerprint(metadata or ())
        record = self._certificates.get(client)
        if record is None:
            raise Unauthenticated(
                "CERTIFICATE_UNKNOWN",
                "the certificate that the gateway was shown is not in this coordinator's registry; "
                "enrol again with a new token",
            )
        return Peer(record.fingerprint, record.spiffe_id, record.not_after, through)

    def _gateway(self, fingerprint: str) -> Peer:
        """The gateway that the proxy behind it names.

        Raises:
            Unauthenticated: FORWARDED_IDENTITY, it is no gateway.
        """
        record = self._certificates.get(fingerprint)
        if record is None or record.spiffe_id.kind != "gateway":
            raise Unauthenticated(
                "FORWARDED_IDENTITY",
                "whom the proxy behind the gateway was shown is no gateway of this coordinator: "
                "nobody but the gateway may reach that proxy",
            )
        return Peer(record.fingerprint, record.spiffe_id, record.not_after)

    def _admit_gateway(self, seen: Peer) -> None:
        """Let in a gateway.

        Raises:
            Unauthenticated: GATEWAY_REVOKED, and as `certs.registry.admit`.
        """
        record = self._certificates.get(seen.fingerprint)
        if record is not None and record.revoked:
            raise _gateway_revoked()
        admit(seen, record, datetime.now(UTC))

    def caller(self, peer: Peer) -> Caller:
        """The caller behind a certificate, if it may speak now.

        Raises:
            Unauthenticated: as `certs.registry.admit`; GATEWAY_REVOKED, also of a stream that
                began before.
            NotAllowed: NODE_DISABLED, NODE_QUARANTINED, USER_UNKNOWN.
            Unavailable: REGISTRY_UNREAD.
        """
        self._believe()
        for gateway in peer.through:
            vouching = self._certificates.get(gateway)
            if vouching is not None and vouching.revoked:
                raise _gateway_revoked()
        record = self._certificates.get(peer.fingerprint)
        if record is None and self.restored:
            raise _lost(peer.spiffe_id, self.restored[-1])
        admit(peer, record, datetime.now(UTC))
        identity: SpiffeId = peer.spiffe_id
        if identity.kind == "node":
            if identity.name in self._disabled:
                raise NotAllowed(
                    "NODE_DISABLED",
                    f"node {identity.name} is disabled at the coordinator; ask its operator",
                )
            if why := self._quarantined.get(identity.name):
                raise quarantined(identity.name, why)
            return Caller(identity.name, frozenset({"node"}), node=identity.name)
        user = self._users.get(identity.name)
        if identity.kind != "user" or user is None:
            raise NotAllowed("USER_UNKNOWN", f"{identity} has no role at this coordinator")
        self._used_at_s[user.name] = time.time()
        return Caller(user.name, user.roles, project=user.project)

    def _believe(self) -> None:
        """Return if what was read may be believed now."""
        if self._clock() > self._believed_until_s:
            raise Unavailable(
                "REGISTRY_UNREAD",
                "this replica could not read just now who may call; whoever leads answers",
                retry_after_s=1,
            )

    def take_used(self) -> dict[str, float]:
        """When each person called last who has called since this was asked last."""
        used, self._used_at_s = self._used_at_s, {}
        return used

    def generation(self, peer: Peer) -> int:
        """Which of its identity's certificates this is; 0 for one that is not registered."""
        record = self._certificates.get(peer.fingerprint)
        return record.generation if record is not None else 0

    def superseded_at(self, peer: Peer) -> float:
        """Since when a later certificate of the same identity is in use; 0 for long ago."""
        record = self._certificates.get(peer.fingerprint)
        return record.superseded_at_s if record is not None else 0.0

    def is_disabled(self, node: str) -> bool:
        """Whether an operator has disabled the node."""
        return node in self._disabled

    def quarantine_of(self, node: str) -> str:
        """Why the node is shut out until a person lets it in; empty if it is not."""
        return self._quarantined.get(node, "")

    def is_revoked(self, node: str) -> bool:
        """Whether every certificate that the node ever had was revoked."""
        return str(SpiffeId(self._trust_domain, "node", node)) in self._revoked

    def expires_at(self, node: str) -> float:
        """When the node's newest certificate ends, in seconds since the epoch; 0 for none."""
        ends = [
            record.not_after.timestamp()
            for record in self._certificates.values()
            if record.spiffe_id.kind == "node"
            and record.spiffe_id.name == node
            and not record.revoked
        ]
        return max(ends, default=0.0)

    def nodes_expire_at(self) -> dict[str, float]:
        """As `expires_at`, of every node that has a certificate."""
        ends: dict[str, float] = {}
        for record in self._certificates.values():
            if record.spiffe_id.kind == "node" and not record.revoked:
                name, end_s = record.spiffe_id.name, record.not_after.timestamp()
                ends[name] = max(ends.get(name, 0.0), end_s)
        return ends


def _lost(identity: SpiffeId, epoch: Epoch) -> Unauthenticated:
    """How a certificate is refused that a restored coordinator does not know."""
    again = (
        f"an operator invites you again with `feddp user invite {identity.name}`"
        if identity.kind == "user"
        else "if the node had joined before that backup, its operator is told and lets it in; else "
        "join again with a new token"
    )
    return Unauthenticated(
        "CERTIFICATE_UNKNOWN",
        f"the certificate of {identity} is not in this coordinator's registry, which was restored "
        f"from a backup of {epoch.backup_made}: {again}",
    )


def _gateway_revoked() -> Unauthenticated:
    """How everybody is refused who comes through a gateway whose certificate was revoked."""
    return Unauthenticated(
        "GATEWAY_REVOKED",
        "the certificate of the gateway between was revoked, so that nobody gets through it; your "
        "own is none the worse for it. The coordinator's operator gives the gateway the next one "
        "(`feddp coordinator gateway`)",
    )


def quarantined(node: str, why: str) -> NotAllowed:
    """How every certificate of a quarantined node is refused."""
    return NotAllowed(
        "NODE_QUARANTINED",
        f"node {node} is quarantined: {why}. Its hospital and the coordinator's operator settle "
        "which machine is the right one; `feddp node release` lets it in again",
    )
