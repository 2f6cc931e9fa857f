"""Certificates that a restored registry does not have: issued after the backup was made, lost with
what came after it.

Their signature is ours and their owner may be honest; whether they were revoked since, nobody here
knows. A node that shows one is shut out, and the certificate is registered with that: once a person
has asked the hospital, `feddp node release` lets in this one certificate, and it renews itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection

from certs.authority import CLOCK_SKEW, Authority, IssuedCertificate
from certs.enrolment import key_digest, spoken
from certs.spiffe import SpiffeId
from coordinator.store import certificates, epochs, joins, people
from privacy.epochs import Epoch

SLACK_S: Final = 1.0
"""A certificate's first moment is in whole seconds."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A node's certificate, as it was shown on a connection that TLS has let in."""

    fingerprint: str
    identity: SpiffeId
    leaf: x509.Certificate

    @property
    def issued_at_s(self) -> float:
        """When the authority signed it, in seconds since the epoch; it is valid from before."""
        return (self.leaf.not_valid_before_utc + CLOCK_SKEW).timestamp()

    def why(self, epoch: Epoch) -> str:
        """Why its node is shut out, for both sides."""
        return (
            f"its certificate {spoken(self.fingerprint)} was issued after the backup of "
            f"{epoch.backup_made} from which the coordinator was restored, and nobody knows here "
            "whether it was revoked since. The hospital reads out the certificate that `feddp "
            "agent status` shows; if it is this one, the operator releases the node"
        )


def window_of(lost: Lost, restored: Sequence[Epoch]) -> Epoch | None:
    """The restoration that lost a certificate; None for one that this coordinator never issued,
    or knew and has dropped."""
    for one in reversed(restored):
        if one.backup_made_at_s - SLACK_S <= lost.issued_at_s <= one.restored_at_s + SLACK_S:
            return one
    return None


def shut_out(connection: Connection, authority: Authority, lost: Lost) -> str:
    """Register a lost certificate and quarantine its node; gives why, or nothing where the node is
    unknown, never joined before the backup, disabled, revoked or quarantined already, or where the
    certificate is registered by now."""
    epoch = window_of(lost, epochs.all_of(connection))
    name = lost.identity.name
    known = {one.name: one.status for one in people.all_nodes(connection)}
    if (
        epoch is None
        or lost.identity.kind != "node"
        or known.get(name) != "enrolled"
        or str(lost.identity) in certificates.revoked_identities(connection)
        or certificates.find(connection, lost.fingerprint) is not None
        or not joins.quarantine(connection, name, why := lost.why(epoch))
    ):
        return ""
    certificates.add(connection, _issued(authority, lost), _digest(lost))
    # It is in use, or nobody could show it: what was issued before it is used up.
    certificates.put_in_use(connection, lost.fingerprint, lost.identity)
    return why


def _issued(authority: Authority, lost: Lost) -> IssuedCertificate:
    leaf = lost.leaf
    return IssuedCertificate(
        chain_pem=leaf.public_bytes(serialization.Encoding.PEM),
        fingerprint=lost.fingerprint,
        serial=f"{leaf.serial_number:x}",
        spiffe_id=lost.identity,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        # Of an authority that is gone nothing is said, as of certificates of 0.1.0.
        issuer=authority.issuer if _key_id(leaf) == _own_key_id(authority.issuing) else "",
    )


def _digest(lost: Lost) -> str:
    key = lost.leaf.public_key()
    return key_digest(key) if isinstance(key, ec.EllipticCurvePublicKey) else ""


def _key_id(leaf: x509.Certificate) -> bytes | None:
    try:
        found = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return None
    return found.value.key_identifier


def _own_key_id(issuing: x509.Certificate) -> bytes:
    return issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def lost_of(pem: bytes, identity: SpiffeId) -> Lost:
    """The certificate behind a connection."""
    leaf = x509.load_pem_x509_certificate(pem)
    return Lost(leaf.fingerprint(hashes.SHA256()).hex(), identity, leaf)
