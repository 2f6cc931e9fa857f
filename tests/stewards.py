"""A steward of the tests, who vouches."""

from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.enrolment import public_bytes_of
from node_agent.vouching import sign_vouched

NAME = "roe"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def vouched(*accounts: str, said: str = "two clinics, since 2026-01-01") -> dict[str, Any]:
    """What a policy with these accounts says of their patients, signed."""
    return {"stewards": [steward()], **signed(accounts, said)}


def steward() -> dict[str, str]:
    """The line under `stewards:`."""
    return {"name": NAME, "public_key": public_bytes_of(KEY).hex()}


def signed(accounts: Sequence[str], said: str) -> dict[str, str]:
    """The words, by whom, and the signature."""
    return {
        "disjoint_patients": said,
        "disjoint_signed_by": NAME,
        "disjoint_signature": sign_vouched(KEY, accounts, said, NAME),
    }
