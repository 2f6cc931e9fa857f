"""Who vouches that no patient is in two accounts: a steward's signature over what they say.

A patient in two accounts would spend both budgets, and neither limit would hold. No program can
see that it is not so; a person of the hospital says it, and stands for it by name. They look at
data sets, so each account is signed with those that pay from it: another data set, or one that
moves, is something that nobody has looked at.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from privacy.canonical import is_signed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DOMAIN: Final = b"feddp-disjoint-v2\n"
"""v1 was over the accounts' names alone; such a signature counts no more."""

PaidBy = Mapping[str, Collection[str]]
"""account -> the data sets that pay from it."""


@dataclass(frozen=True, slots=True)
class Vouched:
    """What a steward has signed; JSON-ready with `asdict`.

    Attributes:
        disjoint_data_sets: each account with its data sets.
        disjoint_patients: why no patient is in two of the accounts, in the steward's words.
        disjoint_signature: hexadecimal.
    """

    disjoint_data_sets: dict[str, list[str]]
    disjoint_patients: str
    disjoint_signed_by: str
    disjoint_signature: str


def vouched_bytes(paid_by: PaidBy, said: str, signed_by: str) -> bytes:
    """What is signed: the accounts that share no patient and the data sets of each, the steward's
    own words, and by whom."""
    body = {
        "accounts": {account: sorted(names) for account, names in paid_by.items()},
        "disjoint_patients": said,
        "signed_by": signed_by,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return DOMAIN + text.encode("ascii")


def sign_vouched(key: "Ed25519PrivateKey", paid_by: PaidBy, said: str, signed_by: str) -> str:
    """The steward's signature, hexadecimal."""
    return key.sign(vouched_bytes(paid_by, said, signed_by)).hex()


def is_vouched(public_key: str, signature: str, paid_by: PaidBy, said: str, signed_by: str) -> bool:
    """Whether the key, hexadecimal, has signed exactly this."""
    signed = vouched_bytes(paid_by, said, signed_by)
    return is_signed(bytes.fromhex(public_key), signed, bytes.fromhex(signature))
