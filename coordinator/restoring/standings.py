"""How a node stands, signed by its coordinator, to be kept outside the database.

Some of these let a node in again. Whoever can add lines to a file must not be able to make one, so
that each carries a signature by the ledger key, which also covers when it was so: an old one that
is written down again changes nothing.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.store.standings import NodeStanding
from privacy.canonical import is_signed

STANDING_DOMAIN: Final = b"feddp-node-standing-v1\n"


@dataclass(frozen=True, slots=True)
class SignedStanding:
    """How one node stood.

    Attributes:
        at_ms: when this was read in the database, in milliseconds since 1970.
        signature: Ed25519 by the coordinator's ledger key over `canonical`.
    """

    standing: NodeStanding
    at_ms: int
    signature: bytes = b""

    def canonical(self) -> bytes:
        """The bytes that the coordinator signs."""
        body = {
            "at_ms": self.at_ms,
            "disabled": self.standing.disabled,
            "node": self.standing.node,
            "quarantine": self.standing.quarantine,
        }
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return STANDING_DOMAIN + text.encode("ascii")

    def is_signed_by(self, ledger_public_key: bytes) -> bool:
        """Whether the coordinator with this raw ledger key said so."""
        return is_signed(ledger_public_key, self.canonical(), self.signature)


def sign(key: Ed25519PrivateKey, standing: NodeStanding, at_ms: int) -> SignedStanding:
    """That a node stood so."""
    unsigned = SignedStanding(standing, at_ms)
    return replace(unsigned, signature=key.sign(unsigned.canonical()))


def newest(found: Iterable[SignedStanding]) -> dict[str, SignedStanding]:
    """The last word on each node, whatever the order; of two of one moment, the one that shuts it
    out."""
    last: dict[str, SignedStanding] = {}
    for one in found:
        name = one.standing.node
        if name not in last or _order(one) > _order(last[name]):
            last[name] = one
    return last


def _order(one: SignedStanding) -> tuple[int, bool]:
    return one.at_ms, one.standing.is_shut_out
