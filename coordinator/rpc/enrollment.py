"""Enrollment: a token becomes a certificate, and an ended certificate its successor."""

import time
from datetime import UTC, datetime, timedelta

import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection

from certs.authority import Authority, IssuedCertificate
from certs.enrolment import check_ledger_key, key_digest, public_key_of_csr, spoken
from certs.peer import Peer
from certs.proofs import Challenges, check_recovery, leaf_of, proves_rejoin
from certs.registry import CertificateRecord, superseded
from certs.rotation import check_names
from certs.spiffe import SpiffeId
from certs.tokens import hash_secret
from coordinator.identities import Identities
from coordinator.quarantine import Quarantine, quarantined
from coordinator.rpc.gate import Context
from coordinator.rpc.renewal import Next, next_certificate
from coordinator.rpc.users import Joined, join_user
from coordinator.store import certificates, joins, people
from coordinator.store.database import Database
from protos.errors import NotAllowed, Unauthenticated, WrongPhase
from protos.feddp.v1 import enrollment_pb2 as pb
from protos.feddp.v1 import enrollment_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)

ASK_AGAIN_S = 2.0
"""For a machine that waits to be let in."""


class EnrollmentService(pb_grpc.EnrollmentServicer):
    """Serves the enrolment port.

    Args:
        address: "host:port" of the mTLS port.
        lifetime: of a node's certificate.
        recovery: how long after its end a certificate may still be replaced; zero for never.

    Attributes:
        authority: what issues now.
    """

    def __init__(
        self,
        database: Database,
        authority: Authority,
        identities: Identities,
        address: str,
        lifetime: timedelta,
        recovery: timedelta,
        quarantine: Quarantine,
    ) -> None:
        self.authority = authority
        self._database = database
        self._identities = identities
        self._address = address
        self._lifetime = lifetime
        self._recovery = recovery
        self._quarantine = quarantine
        self._challenges = Challenges()

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        """See enrollment.proto."""
        # 1. Whoever asks holds both keys.
        key = public_key_of_csr(request.csr)
        check_ledger_key(request.ledger_public_key, request.csr, request.ledger_key_proof)
        digest = key_digest(key)
        secret_hash = hash_secret(request.secret)
        now = datetime.now(UTC)

        def redeem(connection: Connection) -> tuple[people.Redemption, bytes]:
            # 2. The token is this key's, and nobody else's.
            won = people.redeem(connection, secret_hash, digest, now.timestamp())
            identity = SpiffeId(self.authority.trust_domain, "node", won.node)
            check_names(request.csr, identity)
            # 3. A name keeps its ledger key, and no other name gets that.
            if won.ledger_public_key not in (b"", request.ledger_public_key):
                raise NotAllowed(
                    "LEDGER_KEY_CHANGED",
                    f"node {won.node} joined before with another ledger key; join again in its own "
                    "folder (or restore that from a backup), so that its budgets stay with it",
                )
            if won.chain:
                return won, won.chain
            if not won.ledger_public_key:
                people.require_own_ledger_key(connection, won.node, request.ledger_public_key)
            # 4. A known name needs its old key, or a person who has heard the steward.
            known = bool(won.ledger_public_key)
            strange = known and (
                won.quarantined or not _is_same(connection, identity, digest, request)
            )
            if strange and won.approval != "confirmed":
                joins.wait(connection, secret_hash, confirming=True)
                return won, b""
            if won.approval in ("needed", *joins.WAITING):
                joins.wait(connection, secret_hash, confirming=False)
                return won, b""
            # 5. Issued, registered, kept for a lost reply, in one transaction.
            issued = self._issue(key, identity, now)
            if strange:
                certificates.revoke(connection, identity)
            certificates.add(connection, issued, digest)
            people.enrol(
                connection,
                secret_hash,
                won.node,
                request.ledger_public_key,
                issued.chain_pem,
                now.timestamp() if won.approval else None,
            )
            return won, issued.chain_pem

        won, chain = await self._database.write(redeem)
        if not chain:
            if won.approval not in joins.WAITING:  # it asks every two seconds
                log.warning(
                    "join_waits",
                    node=won.node,
                    key=spoken(digest),
                    do="compare the key with what the hospital sees, then `feddp node approve` or "
                    "`feddp node reject`",
                )
            raise WrongPhase(
                "JOIN_PENDING",
                f"the coordinator's operator must let this machine in as {won.node}; its key is "
                f"{spoken(digest)}",
                retry_after_s=ASK_AGAIN_S,
            )
        await self._identities.reload()
        log.info("node_enrolled", node=won.node, node_class=won.node_class, key=spoken(digest))
        return pb.JoinResponse(
            certificate_chain=chain,
            trust_bundle=self.authority.trust_bundle,
            spiffe_id=f"spiffe://{self.authority.trust_domain}/node/{won.node}",
            node=won.node,
            node_class=won.node_class,
            coordinator_address=self._address,
        )

    async def JoinUser(self, request: pb.JoinUserRequest, context: Context) -> pb.JoinUserResponse:
        """See enrollment.proto."""
        key = public_key_of_csr(request.csr)
        secret_hash, now = hash_secret(request.secret), datetime.now(UTC)

        def redeem(connection: Connection) -> Joined:
            return join_user(connection, self.authority, secret_hash, request.csr, key, now)

        joined = await self._database.write(redeem)
        await self._identities.reload()
        log.warning(
            "user_joined",
            user=joined.user.name,
            roles=sorted(joined.user.roles),
            key=spoken(key_digest(key)),
        )
        return pb.JoinUserResponse(
            certificate_chain=joined.chain,
            trust_bundle=self.authority.trust_bundle,
            spiffe_id=str(joined.identity),
            user=joined.user.name,
            roles=sorted(joined.user.roles),
            coordinator_address=self._address,
            project=joined.user.project,
        )

    def _issue(
        self, key: ec.EllipticCurvePublicKey, identity: SpiffeId, now: datetime
    ) -> IssuedCertificate:
        return self.authority.issue(key, identity, now=now, lifetime=self._lifetime)

    async def Challenge(
        self, request: pb.ChallengeRequest, context: Context
    ) -> pb.ChallengeResponse:
        """See enrollment.proto."""
        return pb.ChallengeResponse(nonce=self._challenges.new(), server_time_s=time.time())

    async def Recover(self, request: pb.RecoverRequest, context: Context) -> pb.RecoverResponse:
        """See enrollment.proto."""
        self._check_enabled()
        # 1. Whoever asks holds the new key, and the key of the certificate that it shows.
        self._challenges.check(request.nonce)
        key = public_key_of_csr(request.csr)
        leaf = leaf_of(request.certificate)
        check_recovery(leaf, request.nonce, request.csr, request.proof)
        now = datetime.now(UTC)
        fingerprint = leaf.fingerprint(hashes.SHA256()).hex()
        found = await self._database.read(lambda c: certificates.find(c, fingerprint))
        # 2. That certificate is a node's, and nothing but its end stands against it.
        if found is None or found.spiffe_id.kind != "node":
            raise Unauthenticated(
                "CERTIFICATE_UNKNOWN",
                "the certificate is not in this coordinator's registry; join again with a new "
                "token",
            )
        self._check_recoverable(found, now)
        check_names(request.csr, found.spiffe_id)

        # 3. From here on as a renewal.
        def recover(connection: Connection) -> Next:
            return next_certificate(
                connection, self.authority, fingerprint, found.spiffe_id, key, now, self._lifetime
            )

        issued = await self._database.write(recover)
        await self._identities.reload()
        log.warning(
            "certificate_recovered",
            node=found.spiffe_id.name,
            generation=issued.renewed.generation,
            ended_at=found.not_after.isoformat(),
            again=not issued.is_new,
        )
        return pb.RecoverResponse(
            certificate_chain=issued.renewed.chain,
            generation=issued.renewed.generation,
            trust_bundle=self.authority.trust_bundle,
        )

    def _check_enabled(self) -> None:
        if not self._recovery:
            raise NotAllowed(
                "RECOVERY_DISABLED",
                "this coordinator replaces no certificate that has ended; ask its operator for a "
                "new token, and join again in the same folder",
            )

    def _check_recoverable(self, found: CertificateRecord, now: datetime) -> None:
        identity = found.spiffe_id
        if found.revoked:
            raise Unauthenticated(
                "CERTIFICATE_REVOKED",
                f"the certificate of {identity} was revoked; ask the operator, then join again "
                "with a new token",
            )
        if found.superseded:
            self._quarantine.seen(Peer(found.fingerprint, identity, found.not_after))
            raise superseded(identity)
        if self._identities.is_disabled(identity.name):
            raise NotAllowed(
                "NODE_DISABLED", f"node {identity.name} is disabled at the coordinator"
            )
        if why := self._identities.quarantine_of(identity.name):
            raise quarantined(identity.name, why)
        if now > found.not_after + self._recovery:
            raise NotAllowed(
                "RECOVERY_TOO_LATE",
                f"the certificate of {identity} ended on {found.not_after:%Y-%m-%d}, more than "
                f"{self._recovery.days} days ago; ask the operator for a new token, and join again "
                "in the same folder",
            )


def _is_same(
    connection: Connection, identity: SpiffeId, digest: str, request: pb.JoinRequest
) -> bool:
    """Whether a machine that joins again holds the key of a certificate that still stands.

    An agent of 0.1.0 asks with that key itself.
    """
    known = certificates.live(connection, identity)
    if digest in known.values():
        return True
    if not request.former_certificate:
        return False
    leaf = leaf_of(request.former_certificate)
    stands = leaf.fingerprint(hashes.SHA256()).hex() in known
    return stands and proves_rejoin(leaf, request.csr, request.former_key_proof)
