"""What every kind of ledger statement shares: the domain of its bytes, bounds, signatures."""

import re
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protos.errors import Malformed

DOMAIN: Final = b"feddp-ledger-v1\n"
GENESIS: Final = "0" * 64
SIGNATURE_BYTES: Final = 64
PUBLIC_KEY_BYTES: Final = 32
TEXT_MAX: Final = 256
COUNT_MAX: Final = 2**63 - 1

_is_hex: Final = re.compile("[0-9a-f]*").fullmatch


def is_signed(public_key: bytes, canonical: bytes, signature: bytes) -> bool:
    """Whether the 32 raw bytes of `public_key` signed exactly these bytes."""
    try:
        _public_key(public_key).verify(signature, canonical)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=1024)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)


def is_hex(text: object) -> bool:
    """Whether it is lower-case hexadecimal, of any length."""
    return isinstance(text, str) and _is_hex(text) is not None


def bytes_of_hex(text: object) -> bytes:
    """What lower-case hexadecimal says; of the same bytes there is no other spelling.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(text, str) or not is_hex(text) or len(text) % 2:
        raise ValueError("keys and signatures are lower-case hexadecimal digits")
    return bytes.fromhex(text)


def check_text(name: str, value: object, length_min: int, length_max: int = TEXT_MAX) -> None:
    """Refuse what no field of a statement may hold.

    Raises:
        Malformed: STATEMENT_INVALID.
    """
    if not isinstance(value, str) or not length_min <= len(value) <= length_max:
        raise invalid(f"{name} is {length_min} to {length_max} characters")
    if not value.isascii() and any("\ud800" <= one <= "\udfff" for one in value):
        raise invalid(f"{name} is not text that UTF-8 can hold")


def invalid(what: str) -> Malformed:
    """STATEMENT_INVALID, with what a statement must be."""
    return Malformed("STATEMENT_INVALID", f"This is no ledger statement: {what}.")
