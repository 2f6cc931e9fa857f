"""What a coordinator's answer must hold before a certificate in it is believed."""

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from certs.spiffe import Kind, SpiffeId
from protos.errors import Malformed

ROOTS_MAX: Final = 4
"""In a bundle: the present one and the next, with room."""


def bundle_roots(bundle: bytes) -> list[x509.Certificate]:
    """The roots in a bundle.

    Raises:
        Malformed: BUNDLE_INVALID.
    """
    try:
        return x509.load_pem_x509_certificates(bundle)
    except (ValueError, x509.InvalidVersion):
        raise Malformed("BUNDLE_INVALID", "the trust bundle is not readable PEM") from None


def check_issued(
    chain: bytes,
    roots: Sequence[x509.Certificate],
    key: ec.EllipticCurvePublicKey,
    kind: Kind = "node",
) -> tuple[SpiffeId, x509.Certificate]:
    """Whom a coordinator's answer is for, and their certificate, if that holds.

    Args:
        roots: any of which may have signed the issuing authority.
        kind: what the certificate must be for.

    Raises:
        Malformed: CERTIFICATE_INVALID; the message is a clause that says what is wrong.
    """
    try:
        leaf, issuing = x509.load_pem_x509_certificates(chain)
        leaf.verify_directly_issued_by(issuing)
        authority = issuing.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        raise _invalid("its certificate does not chain to the trusted root") from None
    if not any(_signed(root, issuing) for root in roots):
        raise _invalid("its certificate does not chain to the trusted root")
    if not authority:
        raise _invalid("its certificate was issued by one that may not issue any")
    if leaf.public_key() != key:
        raise _invalid("its certificate is for another key")
    return identity_of(leaf, kind), leaf


def check_bundle(bundle: bytes, trusted: bytes) -> list[x509.Certificate]:
    """The roots of a new bundle, if it may take the place of the trusted one.

    It holds one that is trusted already: who controls that one could have issued anything anyway,
    and an answer that got mixed up locks nobody out.

    Raises:
        Malformed: CERTIFICATE_INVALID; the message is a clause.
    """
    try:
        roots, known = bundle_roots(bundle), bundle_roots(trusted)
    except Malformed:
        raise _invalid("its trust bundle is not readable PEM") from None
    if not 1 <= len(roots) <= ROOTS_MAX or not any(root in known for root in roots):
        raise _invalid("its trust bundle holds no root that is trusted here")
    return roots


def _signed(root: x509.Certificate, issuing: x509.Certificate) -> bool:
    try:
        issuing.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _invalid(what: str) -> Malformed:
    return Malformed("CERTIFICATE_INVALID", what)


def identity_of(leaf: x509.Certificate, kind: Kind) -> SpiffeId:
    """The node, or the user, that a certificate names.

    Raises:
        Malformed: IDENTITY_INVALID, SPIFFE_INVALID.
    """
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        raise Malformed("IDENTITY_INVALID", "the certificate does not name one identity") from None
    spiffe_id = SpiffeId.parse(uri)
    if spiffe_id.kind != kind:
        raise Malformed("IDENTITY_INVALID", f"the certificate is for {spiffe_id}, not for a {kind}")
    return spiffe_id
