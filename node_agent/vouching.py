"""Who vouches that no patient is in two accounts: a steward's signature over what they say.

A patient in two accounts would spend both budgets, and neither limit would hold. No program can
see that it is not so; a person of the hospital says it, and stands for it by name.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from privacy.canonical import is_signed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DOMAIN: Final = b"feddp-disjoint-v1\n"


@dataclass(frozen=True, slots=True)
class Vouched:
    """What a steward has signed; JSON-ready with `asdict`.

    Attributes:
        disjoint_patients: why no patient is in two of `accounts`, in the steward's words.
        disjoint_signature: hexadecimal.
    """

    accounts: tuple[str, ...]
    disjoint_patients: str
    disjoint_signed_by: str
    disjoint_signature: str


def vouched_bytes(accounts: Sequence[str], said: str, signed_by: str) -> bytes:
    """What is signed: the accounts that share no patient, in the steward's own words, by name."""
    body = {"accounts": sorted(accounts), "disjoint_patients": said, "signed_by": signed_by}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return DOMAIN + text.encode("ascii")


def sign_vouched(
    key: "Ed25519PrivateKey", accounts: Sequence[str], said: str, signed_by: str
) -> str:
    """The steward's signature, hexadecimal."""
    return key.sign(vouched_bytes(accounts, said, signed_by)).hex()


def is_vouched(
    public_key: str, signature: str, accounts: Sequence[str], said: str, signed_by: str
) -> bool:
    """Whether the key, hexadecimal, has signed exactly this."""
    signed = vouched_bytes(accounts, said, signed_by)
    return is_signed(bytes.fromhex(public_key), signed, bytes.fromhex(signature))
