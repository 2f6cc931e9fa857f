"""Where chains stand: heads that nodes countersign, and checkpoints over the heads of all accounts.

A chain that was cut at its end or written anew from some entry is valid in itself. What finds that
out is a witness who remembers: each node keeps the head that it has seen of each of its accounts,
accepts only what continues it, and countersigns. A *checkpoint* is one signed line about all
accounts together, numbered and chained, so that a coordinator that tells two nodes two histories
has signed both; nodes keep them, and officers compare. docs/ledger.md gives the bytes.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.entries import GENESIS, Entry, entry_hash

HEAD_DOMAIN: Final = b"feddp-ledger-head-v1\n"
CHECKPOINT_DOMAIN: Final = b"feddp-ledger-checkpoint-v1\n"
TERMS_DOMAIN: Final = b"feddp-ledger-terms-v1\n"
LIMIT_DOMAIN: Final = b"feddp-ledger-limit-in-force-v1\n"


@dataclass(frozen=True, slots=True)
class Head:
    """An account's newest entry; seq 0 and GENESIS before the first."""

    account: str
    seq: int = 0
    hash: str = GENESIS

    def canonical(self) -> bytes:
        """The bytes that a node countersigns."""
        return HEAD_DOMAIN + _json({"account": self.account, "seq": self.seq, "hash": self.hash})

    def leaf(self) -> str:
        """BLAKE3 of the canonical bytes, hexadecimal: tells others nothing of the account."""
        return blake3(self.canonical()).hexdigest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the coordinator says of all accounts at one moment.

    Attributes:
        number: from 1.
        prev_hash: `hash` of the checkpoint before; GENESIS for the first.
        root: `root_of` the leaves of every account's head.
        signature: Ed25519 by the coordinator's ledger key over `canonical`.
    """

    number: int
    prev_hash: str
    root: str
    signature: bytes = b""

    def canonical(self) -> bytes:
        """The bytes that the coordinator signs, and each node that has seen it."""
        body = {"number": self.number, "prev_hash": self.prev_hash, "root": self.root}
        return CHECKPOINT_DOMAIN + _json(body)

    @property
    def hash(self) -> str:
        """BLAKE3 of the canonical bytes, hexadecimal."""
        return blake3(self.canonical()).hexdigest()


@dataclass(frozen=True, slots=True)
class Terms:
    """What the patients of an account were promised at first, by its node's own ledger.

    Attributes:
        filter: "gdp" or "rdp".
        epsilon_limit_highest: the limit from which the node's own chain starts.
    """

    account: str
    filter: str
    rdp_order: int
    delta: float
    epsilon_limit_highest: float

    def canonical(self) -> bytes:
        """The bytes that a node signs."""
        return TERMS_DOMAIN + _json(asdict(self))


@dataclass(frozen=True, slots=True)
class LimitInForce:
    """The limit that a node's own ledger admits by; a lowered one is in no entry.

    Attributes:
        raises: how many the node has recorded: what it said before another one is of the past.
    """

    account: str
    epsilon_limit: float
    raises: int

    def canonical(self) -> bytes:
        """The bytes that a node signs."""
        return LIMIT_DOMAIN + _json(asdict(self))


Signed = Head | Checkpoint | Terms | LimitInForce
"""What is signed besides entries."""


def root_of(leaves: Iterable[str]) -> str:
    """BLAKE3, hexadecimal, over the leaves in their alphabetic order, each followed by a line
    feed."""
    return blake3("".join(f"{leaf}\n" for leaf in sorted(leaves)).encode()).hexdigest()


def sign_checkpoint(
    key: Ed25519PrivateKey, before: Checkpoint | None, leaves: Iterable[str]
) -> Checkpoint:
    """The checkpoint that follows `before` (None: the first)."""
    number, prev_hash = (1, GENESIS) if before is None else (before.number + 1, before.hash)
    unsigned = Checkpoint(number, prev_hash, root_of(leaves))
    return replace(unsigned, signature=key.sign(unsigned.canonical()))


def signed_by(public_key: bytes, what: Signed, signature: bytes) -> bool:
    """Whether the 32 raw bytes of `public_key` signed exactly this."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, what.canonical())
    except (InvalidSignature, ValueError):
        return False
    return True


def fault_after(head: Head, entry: Entry) -> str:
    """Why an entry does not continue the chain that stands at `head`; empty when it does."""
    if entry.statement.account != head.account:
        return f"the entry belongs to account {entry.statement.account}"
    if entry.seq != head.seq + 1:
        return f"entry {head.seq + 1} is missing, repeated or out of place: found {entry.seq}"
    if entry.prev_hash != head.hash:
        return f"entry {entry.seq} does not follow the entry {head.seq} that was seen before it"
    if entry.hash != entry_hash(entry.seq, entry.prev_hash, entry.statement):
        return f"the hash of entry {entry.seq} does not fit it: a field was changed"
    return ""


def head_of(entry: Entry) -> Head:
    """Where a chain stands whose newest entry is this one."""
    return Head(entry.statement.account, entry.seq, entry.hash)


def checkpoint_fault(before: Checkpoint | None, one: Checkpoint, public_key: bytes) -> str:
    """Why a checkpoint does not follow the one before it; empty when it does."""
    number, prev_hash = (1, GENESIS) if before is None else (before.number + 1, before.hash)
    if one.number != number:
        return f"checkpoint {number} is missing, repeated or out of place: found {one.number}"
    if one.prev_hash != prev_hash:
        return (
            f"checkpoint {number} does not follow the one that was seen before it: it names "
            f"{short(one.prev_hash)} as that one's hash, which is {short(prev_hash)}"
        )
    if not signed_by(public_key, one, one.signature):
        return (
            f"checkpoint {number} is not signed by the coordinator's ledger key "
            f"{short(public_key.hex())}"
        )
    return ""


def short(digest: str) -> str:
    """A hash or key in a sentence: enough of it to tell two apart."""
    return f"{digest[:16]}…" if digest else "(none)"


def _json(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode("ascii")
