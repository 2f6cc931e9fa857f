"""How the holder of an older key shows that a newer one is its own."""

import secrets
import time
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec

from protos.errors import Malformed, Unauthenticated

CHALLENGE_S: Final = 120
"""How long a nonce is good for: the time to sign it, on a slow machine behind a slow line."""

CERTIFICATE_BYTES_MAX: Final = 16 << 10

_REJOIN: Final = b"feddp-rejoin-v1\0"
_RECOVER: Final = b"feddp-recover-v1\0"
_RANDOM_BYTES, _TIME_BYTES, _MAC_BYTES = 16, 8, 32
_NONCE_BYTES: Final = _RANDOM_BYTES + _TIME_BYTES + _MAC_BYTES
_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())


class Challenges:
    """Nonces that need no memory: whoever asks for a million of them fills nothing here.

    A nonce is random bytes and the moment it was given, under a key of this process. The same one
    may come again within its time: then the same request gets the same answer, and no other
    request has a signature over it.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def new(self, now_s: float | None = None) -> bytes:
        """A nonce."""
        moment = int(time.time() if now_s is None else now_s)
        body = secrets.token_bytes(_RANDOM_BYTES) + moment.to_bytes(_TIME_BYTES)
        return body + self._mac(body).finalize()

    def check(self, nonce: bytes, now_s: float | None = None) -> None:
        """Return if this process gave `nonce` a short while ago.

        Raises:
            Unauthenticated: CHALLENGE_EXPIRED.
        """
        body, mac = nonce[:-_MAC_BYTES], nonce[-_MAC_BYTES:]
        given = int.from_bytes(body[_RANDOM_BYTES:])
        now = time.time() if now_s is None else now_s
        try:
            if len(nonce) != _NONCE_BYTES or not 0 <= now - given < CHALLENGE_S + 1:
                raise InvalidSignature
            self._mac(body).verify(mac)
        except InvalidSignature:
            raise Unauthenticated(
                "CHALLENGE_EXPIRED",
                "the challenge is not of this coordinator, or older than two minutes; ask again",
            ) from None

    def _mac(self, body: bytes) -> hmac.HMAC:
        mac = hmac.HMAC(self._key, hashes.SHA256())
        mac.update(body)
        return mac


def prove_rejoin(key: ec.EllipticCurvePrivateKey, csr: bytes) -> bytes:
    """Signature by a node's present key over its request to join again."""
    return key.sign(_REJOIN + csr, _ALGORITHM)


def prove_recovery(key: ec.EllipticCurvePrivateKey, nonce: bytes, csr: bytes) -> bytes:
    """Signature by the key of an ended certificate over a challenge and a request."""
    return key.sign(_recovery(nonce, csr), _ALGORITHM)


def proves_rejoin(leaf: x509.Certificate, csr: bytes, proof: bytes) -> bool:
    """Whether whoever asks with `csr` holds the key of `leaf`."""
    return _is_signed(leaf, _REJOIN + csr, proof)


def check_recovery(leaf: x509.Certificate, nonce: bytes, csr: bytes, proof: bytes) -> None:
    """Return if whoever asks with `csr` holds the key of `leaf`.

    Raises:
        Unauthenticated: RECOVERY_PROOF_INVALID.
    """
    if not _is_signed(leaf, _recovery(nonce, csr), proof):
        raise Unauthenticated(
            "RECOVERY_PROOF_INVALID",
            "the request is not signed by the key of the certificate that it names; join again "
            "with a new token",
        )


def leaf_of(chain: bytes) -> x509.Certificate:
    """The first certificate in a PEM chain that a stranger sent.

    Raises:
        Malformed: CERTIFICATE_INVALID.
    """
    try:
        if len(chain) > CERTIFICATE_BYTES_MAX:
            raise ValueError
        return x509.load_pem_x509_certificates(chain)[0]
    except (ValueError, IndexError, x509.InvalidVersion):
        raise Malformed(
            "CERTIFICATE_INVALID", "the certificate in the request is not readable PEM"
        ) from None


def _recovery(nonce: bytes, csr: bytes) -> bytes:
    return _RECOVER + bytes((len(nonce),)) + nonce + csr


def _is_signed(leaf: x509.Certificate, message: bytes, proof: bytes) -> bool:
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return False
    try:
        key.verify(proof, message, _ALGORITHM)
    except InvalidSignature:
        return False
    return True
