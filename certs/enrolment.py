"""The two keys of a node, and how it proves to a coordinator that it holds them."""

import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from certs.keyfiles import (
    load_certificate_key,
    load_ledger_key,
    private_pem,
    save_private_key,
)
from protos.errors import Malformed

__all__ = [
    "check_ledger_key",
    "key_digest",
    "load_certificate_key",
    "load_ledger_key",
    "make_csr",
    "new_key",
    "new_ledger_key",
    "private_pem",
    "prove_ledger_key",
    "public_bytes_of",
    "public_key_of_csr",
    "save_private_key",
    "spoken",
]

CSR_BYTES_MAX = 8 << 10

_PROOF_CONTEXT = b"feddp-join-v1\0"
_SMALL_ORDER = frozenset(
    bytes.fromhex(text)
    for text in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""Ed25519 points of small order, sign bit cleared. Source: libsodium, ge25519_has_small_order."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key for the node's certificate."""
    return ec.generate_private_key(ec.SECP256R1())


def make_csr(key: ec.EllipticCurvePrivateKey, name: str = "") -> bytes:
    """A PKCS#10 request, DER, signed by `key`. The authority writes the names.

    Args:
        name: whose certificate it must be, or none: a token for another name is refused, and not
            used up. Empty to name nobody.
    """
    named = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(named))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def public_key_of_csr(der: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request whose sender holds the private key; all else in it is ignored.

    Raises:
        Malformed: CSR_INVALID.
    """
    if len(der) > CSR_BYTES_MAX:
        raise _csr_invalid(f"is larger than {CSR_BYTES_MAX} bytes")
    try:
        csr = x509.load_der_x509_csr(der)
        key = csr.public_key()
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        raise _csr_invalid("is not a readable PKCS#10 request in DER") from None
    # The key's kind comes first: verifying with a key of the sender's choice may cost much time.
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _csr_invalid("does not carry an ECDSA P-256 key")
    try:
        signed = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm):
        signed = False
    if not signed:
        raise _csr_invalid("is not signed by the key that it carries")
    return key


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo, DER), hexadecimal."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


SPOKEN_DIGITS = 32
"""Of a key's digest that two people compare: nobody finds another key with the same 128 bits."""


def spoken(digest: str) -> str:
    """The part of a key's digest that two people compare, in groups of four digits."""
    return "-".join(digest[at : at + 4] for at in range(0, SPOKEN_DIGITS, 4))


def new_ledger_key() -> ed25519.Ed25519PrivateKey:
    """A fresh Ed25519 key for the node's ledger; it outlives every certificate of the node."""
    return ed25519.Ed25519PrivateKey.generate()


def public_bytes_of(key: ed25519.Ed25519PrivateKey) -> bytes:
    """The raw 32-byte public key."""
    return key.public_key().public_bytes_raw()


def prove_ledger_key(key: ed25519.Ed25519PrivateKey, csr: bytes) -> bytes:
    """Signature that ties the ledger key to this enrolment, and to no other."""
    return key.sign(_PROOF_CONTEXT + csr)


def check_ledger_key(public: bytes, csr: bytes, proof: bytes) -> None:
    """Whether the sender of `csr` holds the ledger key `public` (raw, 32 bytes).

    Raises:
        Malformed: LEDGER_KEY_INVALID.
    """
    if len(public) != 32:
        raise _ledger_key_invalid("is not a raw Ed25519 public key of 32 bytes")
    # Under a key of small order some signatures hold for any message, so that entries signed by
    # it would prove nothing about the node.
    if public[:31] + bytes((public[31] & 0x7F,)) in _SMALL_ORDER:
        raise _ledger_key_invalid("is a weak key, under which anyone could sign")
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(proof, _PROOF_CONTEXT + csr)
    except (ValueError, InvalidSignature):
        raise _ledger_key_invalid("did not sign this request") from None


def _csr_invalid(what: str) -> Malformed:
    return Malformed("CSR_INVALID", f"the certificate request {what}; join again to make a new one")


def _ledger_key_invalid(what: str) -> Malformed:
    return Malformed(
        "LEDGER_KEY_INVALID",
        f"the ledger key {what}; run `feddp agent join` of the same version as the coordinator",
    )
