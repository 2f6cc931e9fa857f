"""Renewal: a certificate in use becomes its successor."""

from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Connection

from certs.authority import Authority
from certs.enrolment import key_digest, public_key_of_csr
from certs.rotation import check_names
from coordinator.identities import Identities
from coordinator.rpc.gate import Context, peer
from coordinator.store import certificates
from coordinator.store.certificates import Renewed
from coordinator.store.database import Database
from protos.feddp.v1 import renewal_pb2 as pb
from protos.feddp.v1 import renewal_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)


class RenewalService(pb_grpc.RenewalServicer):
    """Serves nodes whose certificates come to their end."""

    def __init__(
        self,
        database: Database,
        authority: Authority,
        identities: Identities,
        lifetime: timedelta,
    ) -> None:
        self._database = database
        self._authority = authority
        self._identities = identities
        self._lifetime = lifetime

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        """See renewal.proto."""
        seen = peer()
        # 1. The key is the sender's, and the request names nobody else.
        key = public_key_of_csr(request.csr)
        check_names(request.csr, seen.spiffe_id)
        digest = key_digest(key)

        def renew(connection: Connection) -> tuple[Renewed, int, bool]:
            # 2. The caller's certificate is still the newest in use; the key is new, or asks again.
            before = certificates.answered_before(
                connection, seen.fingerprint, seen.spiffe_id, digest
            )
            if before is not None:
                return before, 0, False
            # 3. The same identity, whatever the request says; registered with the next number.
            issued = self._authority.issue(
                key, seen.spiffe_id, now=datetime.now(UTC), lifetime=self._lifetime
            )
            generation = certificates.add(connection, issued, digest, answered=True)
            dropped = certificates.drop_unused(connection, seen.fingerprint, issued.fingerprint)
            return Renewed(issued.fingerprint, generation, issued.chain_pem), dropped, True

        renewed, dropped, is_new = await self._database.write(renew)
        # 4. Known here before the node can show it.
        await self._identities.reload()
        log.info(
            "certificate_renewed",
            node=seen.spiffe_id.name,
            generation=renewed.generation,
            again=not is_new,
        )
        if dropped:
            log.warning(
                "unused_certificate_replaced",
                node=seen.spiffe_id.name,
                generation=renewed.generation,
                do="if the node's folder was not restored from a backup, ask the hospital whether "
                "a copy of it runs somewhere",
            )
        return pb.RenewResponse(certificate_chain=renewed.chain, generation=renewed.generation)
