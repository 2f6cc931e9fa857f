"""When a certificate is replaced by its successor, and what a request for one may ask for."""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from certs.authority import CLOCK_SKEW
from certs.spiffe import SpiffeId
from protos.errors import Malformed

REMAINING = 3
"""Renewal begins when a third of the life remains: 56 hours of 168 to get through in."""

JITTER = 10
"""Nodes that joined together ask up to a tenth of that earlier, each at its own moment."""


def life_of(leaf: x509.Certificate) -> timedelta:
    """From a certificate's issue to its end; its validity also begins `CLOCK_SKEW` earlier."""
    return leaf.not_valid_after_utc - leaf.not_valid_before_utc - CLOCK_SKEW


def renewal_due_at(leaf: x509.Certificate) -> datetime:
    """When to ask for the successor; a function of the certificate alone, so that whoever reads
    it knows."""
    third = life_of(leaf) / REMAINING
    # The serial number is random, so the fingerprint spreads the nodes evenly.
    drawn = int.from_bytes(leaf.fingerprint(hashes.SHA256())[:4]) / 2**32
    return leaf.not_valid_after_utc - third * (1 + drawn / JITTER)


def check_names(csr_der: bytes, identity: SpiffeId) -> None:
    """Refuse a readable request that asks for names other than those of `identity`.

    The authority would not write them, but an honest agent does not ask for them either.

    Args:
        csr_der: as `public_key_of_csr` has accepted it.

    Raises:
        Malformed: CSR_NAMES.
    """
    csr = x509.load_der_x509_csr(csr_der)
    try:
        subject = [(part.oid, part.value) for part in csr.subject]
        extensions = csr.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise _names(identity, "its names cannot be read") from None
    if subject not in ([], [(NameOID.COMMON_NAME, identity.name)]):
        raise _names(identity, "its subject is another")
    try:
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return
    # Compared as a whole: what a URI might be made to say by a comma or a line break, it is not.
    if names != [x509.UniformResourceIdentifier(str(identity))]:
        raise _names(identity, f"it asks for {len(names)} alternative names that are not just its")


def _names(identity: SpiffeId, what: str) -> Malformed:
    return Malformed(
        "CSR_NAMES",
        f"the certificate request of {identity} may name nobody else, and {what}; ask without "
        "names, the authority writes them",
    )
