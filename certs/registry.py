"""Who gets in: the rule that every rpc applies to its caller's certificate."""

from dataclasses import dataclass
from datetime import datetime

from certs.peer import Peer
from certs.spiffe import SpiffeId
from protos.errors import Unauthenticated


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A certificate as the coordinator's registry has it; looked up by fingerprint.

    Attributes:
        fingerprint: SHA-256 of the certificate's DER, hexadecimal.
        not_before: first moment of validity, aware.
        not_after: last moment of validity, aware.
        revoked: refused for ever.
        generation: 1 for the first certificate of an identity, one more with each renewal.
        superseded: a later generation was seen in use; refused for ever.
        superseded_at_s: since when, in seconds since the epoch.
    """

    fingerprint: str
    spiffe_id: SpiffeId
    not_before: datetime
    not_after: datetime
    revoked: bool
    generation: int = 1
    superseded: bool = False
    superseded_at_s: float = 0.0


def admit(peer: Peer, record: CertificateRecord | None, now: datetime) -> None:
    """Return if `peer` may speak at `now`; what it may ask for is decided elsewhere.

    The handshake does not make this redundant: a resumed TLS session does not check the
    certificate again, and a live stream outlives it.

    Args:
        peer: as `peer_of` read it from the connection.
        record: what the registry has under the peer's fingerprint, None for nothing.
        now: aware.

    Raises:
        Unauthenticated: CERTIFICATE_UNKNOWN, CERTIFICATE_REVOKED, CERTIFICATE_NOT_YET_VALID,
            CERTIFICATE_EXPIRED, CERTIFICATE_SUPERSEDED.
    """
    if (
        record is None
        or record.fingerprint != peer.fingerprint
        or record.spiffe_id != peer.spiffe_id
    ):
        raise Unauthenticated(
            "CERTIFICATE_UNKNOWN",
            f"the certificate of {peer.spiffe_id} is not in this coordinator's registry; enrol "
            "again with a new token",
        )
    if record.revoked:
        raise revoked(peer.spiffe_id)
    if record.superseded:
        raise superseded(peer.spiffe_id)
    if now < record.not_before:
        raise Unauthenticated(
            "CERTIFICATE_NOT_YET_VALID",
            f"the certificate of {peer.spiffe_id} is valid from {record.not_before:%Y-%m-%d %H:%M} "
            "UTC; check the coordinator's clock",
        )
    last = min(record.not_after, peer.not_after)
    if now > last:
        raise Unauthenticated(
            "CERTIFICATE_EXPIRED",
            f"the certificate of {peer.spiffe_id} ended at {last:%Y-%m-%d %H:%M} UTC; "
            "check the clocks of both machines, or enrol again with a new token",
        )


def revoked(identity: SpiffeId) -> Unauthenticated:
    """How a certificate is refused that an operator has revoked."""
    return Unauthenticated(
        "CERTIFICATE_REVOKED",
        f"the certificate of {identity} was revoked; ask the operator, then enrol again with a new "
        "token",
    )


def superseded(identity: SpiffeId) -> Unauthenticated:
    """How a certificate is refused once its successor was seen in use."""
    return Unauthenticated(
        "CERTIFICATE_SUPERSEDED",
        f"a newer certificate of {identity} is in use; stop whatever still uses this one, a copy "
        "or a restored backup of the node's folder, and ask the operator",
    )
