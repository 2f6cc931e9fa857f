"""Renewal: a certificate in use becomes its successor."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection

from certs.authority import PERSON_LIFETIME, Authority
from certs.enrolment import key_digest, public_key_of_csr
from certs.rotation import check_names
from certs.spiffe import SpiffeId
from coordinator.identities import Identities
from coordinator.rpc.gate import Context, peer
from coordinator.store import certificates
from coordinator.store.certificates import Renewed
from coordinator.store.database import Database
from protos.feddp.v1 import renewal_pb2 as pb
from protos.feddp.v1 import renewal_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Next:
    """A certificate that follows another.

    Attributes:
        dropped: how many gave way to it that nobody had used.
        is_new: False for what a lost reply had said already.
    """

    renewed: Renewed
    dropped: int
    is_new: bool


def next_certificate(
    connection: Connection,
    authority: Authority,
    fingerprint: str,
    identity: SpiffeId,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    lifetime: timedelta,
) -> Next:
    """Issue the next generation, or give again what the same key was given.

    Args:
        fingerprint: of the certificate that it follows.

    Raises:
        Unauthenticated, Conflict: as `certificates.answered_before`.
    """
    digest = key_digest(key)
    before = certificates.answered_before(connection, fingerprint, identity, digest)
    if before is not None:
        return Next(before, 0, False)
    issued = authority.issue(key, identity, now=now, lifetime=lifetime)
    generation = certificates.add(connection, issued, digest, answered=True)
    dropped = certificates.drop_unused(connection, fingerprint, issued.fingerprint)
    return Next(Renewed(issued.fingerprint, generation, issued.chain_pem), dropped, True)


class RenewalService(pb_grpc.RenewalServicer):
    """Serves nodes and people whose certificates come to their end.

    Attributes:
        authority: what issues now.
    """

    def __init__(
        self,
        database: Database,
        authority: Authority,
        identities: Identities,
        lifetime: timedelta,
    ) -> None:
        self.authority = authority
        self._database = database
        self._identities = identities
        self._lifetime = lifetime

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        """See renewal.proto."""
        seen = peer()
        # 1. The key is the sender's, and the request names nobody else.
        key = public_key_of_csr(request.csr)
        check_names(request.csr, seen.spiffe_id)
        lifetime = self._lifetime if seen.spiffe_id.kind == "node" else PERSON_LIFETIME

        # 2. The caller's certificate is still the newest in use; the key is new, or asks again.
        # 3. The same identity, whatever the request says; registered with the next number.
        def renew(connection: Connection) -> Next:
            now = datetime.now(UTC)
            return next_certificate(
                connection, self.authority, seen.fingerprint, seen.spiffe_id, key, now, lifetime
            )

        issued = await self._database.write(renew)
        renewed = issued.renewed
        # 4. Known here before its owner can show it.
        await self._identities.reload()
        log.info(
            "certificate_renewed",
            identity=str(seen.spiffe_id),
            node=seen.spiffe_id.name,
            generation=renewed.generation,
            again=not issued.is_new,
        )
        if issued.dropped:
            log.warning(
                "unused_certificate_replaced",
                node=seen.spiffe_id.name,
                generation=renewed.generation,
                do="if the node's folder was not restored from a backup, ask the hospital whether "
                "a copy of it runs somewhere",
            )
        return pb.RenewResponse(
            certificate_chain=renewed.chain,
            generation=renewed.generation,
            trust_bundle=self.authority.trust_bundle,
        )

    async def Confirm(self, request: pb.ConfirmRequest, context: Context) -> pb.ConfirmResponse:
        """See renewal.proto."""
        seen = peer()

        def use(connection: Connection) -> None:
            certificates.put_in_use(connection, seen.fingerprint, seen.spiffe_id)

        await self._database.write(use)
        await self._identities.reload()
        generation = self._identities.generation(seen)
        log.info("certificate_in_use", identity=str(seen.spiffe_id), generation=generation)
        return pb.ConfirmResponse(generation=generation)
