"""Enrollment: a token becomes a certificate."""

from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Connection

from certs.authority import Authority
from certs.enrolment import check_ledger_key, key_digest, public_key_of_csr
from certs.spiffe import SpiffeId
from certs.tokens import hash_secret
from coordinator.identities import Identities
from coordinator.rpc.gate import Context
from coordinator.store import certificates, people
from coordinator.store.database import Database
from protos.errors import NotAllowed
from protos.feddp.v1 import enrollment_pb2 as pb
from protos.feddp.v1 import enrollment_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)


class EnrollmentService(pb_grpc.EnrollmentServicer):
    """Serves the enrolment port."""

    def __init__(
        self,
        database: Database,
        authority: Authority,
        identities: Identities,
        address: str,
        lifetime: timedelta,
    ) -> None:
        self._database = database
        self._authority = authority
        self._identities = identities
        self._address = address
        self._lifetime = lifetime

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        """See enrollment.proto."""
        key = public_key_of_csr(request.csr)
        check_ledger_key(request.ledger_public_key, request.csr, request.ledger_key_proof)
        digest = key_digest(key)
        secret_hash = hash_secret(request.secret)
        now = datetime.now(UTC)

        def redeem(connection: Connection) -> tuple[people.Redemption, bytes]:
            won = people.redeem(connection, secret_hash, digest, now.timestamp())
            if won.ledger_public_key not in (b"", request.ledger_public_key):
                raise NotAllowed(
                    "LEDGER_KEY_CHANGED",
                    f"node {won.node} joined before with another ledger key; join again in its own "
                    "folder (or restore that from a backup), so that its budgets stay with it",
                )
            if won.chain:
                return won, won.chain
            issued = self._authority.issue(
                key,
                SpiffeId(self._authority.trust_domain, "node", won.node),
                now=now,
                lifetime=self._lifetime,
            )
            certificates.add(connection, issued, digest)
            people.enrol(
                connection, secret_hash, won.node, request.ledger_public_key, issued.chain_pem
            )
            return won, issued.chain_pem

        won, chain = await self._database.write(redeem)
        await self._identities.reload()
        log.info("node_enrolled", node=won.node, node_class=won.node_class)
        return pb.JoinResponse(
            certificate_chain=chain,
            trust_bundle=self._authority.trust_bundle,
            spiffe_id=f"spiffe://{self._authority.trust_domain}/node/{won.node}",
            node=won.node,
            node_class=won.node_class,
            coordinator_address=self._address,
        )
