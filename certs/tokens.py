"""Join tokens: one string that brings a new machine, or a person, to their coordinator, safely, in
one paste."""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from protos.errors import Malformed

Kind = Literal["node", "user"]
"""Whom a token lets in; as in a SPIFFE ID."""

PREFIX = "feddp1."
"""Of a node's token. Names the layout of the payload; another layout gets another number."""

USER_PREFIX = "feddp1u."
"""Of a person's token: the same layout."""

SECRET_BYTES = 32

_PREFIXES: Final[dict[Kind, str]] = {"node": PREFIX, "user": USER_PREFIX}
_MADE_BY: Final[dict[Kind, str]] = {
    "node": "feddp node token NAME",
    "user": "feddp user invite NAME",
}
_CHECKSUM_BYTES = 8
_SECRET = re.compile(r"[A-Za-z0-9_-]{22,255}")
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]{1,249}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})")


def new_secret() -> str:
    """A fresh single-use secret of 256 random bits, as text."""
    return secrets.token_urlsafe(SECRET_BYTES)


def hash_secret(secret: str) -> str:
    """SHA-256 of `secret`, hexadecimal: all that the coordinator stores.

    A secret is 256 random bits, so a slow hash would add nothing.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a joining machine needs: where to go, whom to believe, and its right to join.

    Attributes:
        address: "host:port" of the enrolment port.
        secret: single-use; at least 128 random bits as unpadded base64url. Never shown.
        root_der: the authority's root certificate. The machine trusts this root and no other, so
            it makes no connection that it cannot verify.
        kind: whether a node or a person joins with it.

    Raises:
        Malformed: TOKEN_INVALID.
    """

    address: str
    secret: str = field(repr=False)
    root_der: bytes = field(repr=False)
    kind: Kind = "node"

    def __post_init__(self) -> None:
        match = _ADDRESS.fullmatch(self.address)
        if match is None or not 1 <= int(match[1]) <= 65535:
            raise _invalid(f"its address {self.address[:80]!a} is not host:port", self.kind)
        if not _SECRET.fullmatch(self.secret):
            raise _invalid("its secret is not 22 to 255 base64url characters", self.kind)
        _certificate(self.root_der, self.kind)

    @property
    def root_pem(self) -> bytes:
        """The root as `channel_credentials` takes it."""
        return _certificate(self.root_der, self.kind).public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root in colon-separated hexadecimal, for people to compare."""
        return _certificate(self.root_der, self.kind).fingerprint(hashes.SHA256()).hex(":").upper()

    def secret_hash(self) -> str:
        """`hash_secret` of the secret."""
        return hash_secret(self.secret)

    def encode(self) -> str:
        """The token as one string without spaces. Whoever has it can join: show it once."""
        address, secret = self.address.encode(), self.secret.encode()
        payload = bytes((len(address), len(secret))) + address + secret + self.root_der
        prefix = _PREFIXES[self.kind]
        text = base64.urlsafe_b64encode(payload + _checksum(payload, prefix)).decode()
        return prefix + text.rstrip("=")

    @classmethod
    def parse(cls, text: str, kind: Kind = "node") -> "JoinToken":
        """Read what `encode` wrote; blanks and line breaks that a paste added are ignored.

        Args:
            kind: of the token that is wanted.

        Raises:
            Malformed: TOKEN_INVALID; TOKEN_FOR_NODE, TOKEN_FOR_PERSON, it is of the other kind. The
                message never holds a part of the token.
        """
        joined = "".join(text.split())
        prefix = _PREFIXES[kind]
        if not joined.startswith(prefix):
            for other, its_prefix in _PREFIXES.items():
                if joined.startswith(its_prefix):
                    raise of_other_kind(other)
            raise _invalid(f"it does not start with {prefix}", kind)
        payload = _payload(joined.removeprefix(prefix), kind)
        address_end = 2 + payload[0]
        secret_end = address_end + payload[1]
        try:
            address, secret = (
                payload[2:address_end].decode(),
                payload[address_end:secret_end].decode(),
            )
        except UnicodeDecodeError:
            raise _invalid("its contents have another layout", kind) from None
        return cls(address, secret, payload[secret_end:], kind)


def of_other_kind(kind: Kind) -> Malformed:
    """How a token is refused that lets in a `kind`, where the other one joins."""
    if kind == "node":
        return Malformed(
            "TOKEN_FOR_NODE",
            "this token lets in a node, not a person: a hospital joins with it by `feddp agent "
            "join TOKEN --dir DIR`; ask the operator for an invitation of your own (`feddp user "
            "invite NAME`)",
        )
    return Malformed(
        "TOKEN_FOR_PERSON",
        "this token invites a person, not a node: they join with it by `feddp profile join TOKEN "
        "--profile DIR`; ask the operator for a node's token (`feddp node token NAME`)",
    )


def _payload(encoded: str, kind: Kind) -> bytes:
    """The payload, once the checksum over it holds."""
    try:
        data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except ValueError:
        raise _invalid("it is cut off or holds a character that does not belong", kind) from None
    payload, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    # Decoding skips foreign characters and takes several spellings of the same bytes; only the
    # one that `encode` writes is a token.
    canonical = base64.urlsafe_b64encode(data).decode().rstrip("=") == encoded
    if len(payload) < 2 or checksum != _checksum(payload, _PREFIXES[kind]) or not canonical:
        raise _invalid("it is cut off or a character has changed", kind)
    return payload


def _checksum(payload: bytes, prefix: str) -> bytes:
    """Finds accidents, not attacks: whoever can forge a token can also forge this."""
    return hashlib.sha256(prefix.encode() + payload).digest()[:_CHECKSUM_BYTES]


def _certificate(der: bytes, kind: Kind) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion):
        raise _invalid("it holds no readable root certificate", kind) from None


def _invalid(what: str, kind: Kind) -> Malformed:
    return Malformed(
        "TOKEN_INVALID",
        f"this is not a whole join token: {what}; copy it again, from {_PREFIXES[kind]} to its "
        f"last character, or ask the operator for a new one (`{_MADE_BY[kind]}`)",
    )
