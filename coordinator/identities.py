"""Who a connection is: its certificate, looked up in the registry on every rpc."""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from certs.peer import Peer, peer_of
from certs.registry import CertificateRecord, admit
from certs.spiffe import SpiffeId
from coordinator.authz import Caller
from coordinator.gateway import Metadata, forwarded_fingerprint
from coordinator.store import certificates, people, users
from coordinator.store.database import Database
from protos.errors import NotAllowed, Unauthenticated

ENDED_KEPT_S = 30 * 86_400.0
"""A certificate that ended longer ago is unknown: each node leaves one a week, and reading them
all would take longer every year."""

AuthContext = Mapping[str, object]


class Identities:
    """The registry of certificates, nodes and users, kept in memory.

    The database is the truth; this process calls `reload` after a change.

    Attributes:
        known: how many certificates there were when it was read.
    """

    def __init__(self, database: Database, trust_domain: str) -> None:
        self._database = database
        self._trust_domain = trust_domain
        self._certificates: dict[str, CertificateRecord] = {}
        self._users: dict[str, users.User] = {}
        self._disabled: set[str] = set()
        self._quarantined: dict[str, str] = {}
        self._revoked: set[str] = set()
        self._reloading = asyncio.Lock()
        self._used_at_s: dict[str, float] = {}
        self.known = 0

    async def reload(self) -> None:
        """Read everything again; never an older state over a newer one."""
        async with self._reloading:
            await self._reload()

    async def _reload(self) -> None:
        since_s = time.time() - ENDED_KEPT_S
        self.known = await self._database.read(certificates.count)
        self._certificates = await self._database.read(lambda c: certificates.records(c, since_s))
        self._users = await self._database.read(users.all_users)
        nodes = await self._database.read(people.all_nodes)
        self._disabled = {node.name for node in nodes if node.status == "disabled"}
        self._quarantined = await self._database.read(people.all_quarantines)
        self._revoked = await self._database.read(certificates.revoked_identities)

    def peer(
        self, auth_context: Mapping[str, list[bytes]], metadata: Metadata | None = None
    ) -> Peer:
        """The certificate behind a connection; refuses anything below TLS 1.3.

        A gateway's own certificate lets nobody in: it only vouches for the one that it was shown.

        Raises:
            Unauthenticated: as `peer_of`, `certs.registry.admit` and `forwarded_fingerprint`.
        """
        seen = peer_of(auth_context, self._trust_domain)
        if seen.spiffe_id.kind != "gateway":
            return seen
        admit(seen, self._certificates.get(seen.fingerprint), datetime.now(UTC))
        record = self._certificates.get(forwarded_fingerprint(metadata or ()))
        if record is None:
            raise Unauthenticated(
                "CERTIFICATE_UNKNOWN",
                "the certificate that the gateway was shown is not in this coordinator's registry; "
                "enrol again with a new token",
            )
        return Peer(record.fingerprint, record.spiffe_id, record.not_after)

    def caller(self, peer: Peer) -> Caller:
        """The caller behind a certificate, if it may speak now.

        Raises:
            Unauthenticated: as `certs.registry.admit`.
            NotAllowed: NODE_DISABLED, NODE_QUARANTINED, USER_UNKNOWN.
        """
        admit(peer, self._certificates.get(peer.fingerprint), datetime.now(UTC))
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


def quarantined(node: str, why: str) -> NotAllowed:
    """How every certificate of a quarantined node is refused."""
    return NotAllowed(
        "NODE_QUARANTINED",
        f"node {node} is quarantined: {why}. Its hospital and the coordinator's operator settle "
        "which machine is the right one; `feddp node release` lets it in again",
    )
