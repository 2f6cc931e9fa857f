"""A steward of the tests, who vouches."""

from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.enrolment import public_bytes_of
from node_agent.ledger.vouching import sign_vouched

NAME = "roe"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def vouched(
    paid_by: Mapping[str, Sequence[str]], said: str = "two clinics, since 2026-01-01"
) -> dict[str, Any]:
    """What a policy with these accounts, and their data sets, says of their patients, signed."""
    return {"stewards": [steward()], **signed(paid_by, said)}


def steward() -> dict[str, str]:
    """The line under `stewards:`."""
    return {"name": NAME, "public_key": public_bytes_of(KEY).hex()}


def signed(paid_by: Mapping[str, Sequence[str]], said: str) -> dict[str, Any]:
    """The words, the data sets of each account, by whom, and the signature."""
    return {
        "disjoint_patients": said,
        "disjoint_data_sets": {account: list(names) for account, names in paid_by.items()},
        "disjoint_signed_by": NAME,
        "disjoint_signature": sign_vouched(KEY, paid_by, said, NAME),
    }
