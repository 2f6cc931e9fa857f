"""That a coordinator was restored from a backup, signed by itself.

A coordinator whose database is put back shows less than nodes have seen. An *epoch* declares it:
when, from a backup of when, and where checkpoints and accounts stood in that backup. Nodes then
take it for what it is, hand in what was lost, and never again listen to a copy from before; a
coordinator that goes back without one is disputed. docs/ledger.md gives the bytes.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.canonical import COUNT_MAX, is_hex
from privacy.entries import GENESIS, is_signed
from privacy.heads import Checkpoint, root_of, short

EPOCH_DOMAIN: Final = b"feddp-coordinator-epoch-v1\n"

FIRST: Final = 1
"""The epoch of a coordinator that was never restored; nothing is signed about it."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One restoration.

    Attributes:
        number: 2 for the first restoration in this history, then one more each time.
        restored_at_s: seconds since 1970; later than that of the epoch before. Of two epochs the
            later one counts, also where neither follows the other: a coordinator that is restored
            from the same backup twice cannot know of the first time.
        backup_made_at_s: when what the backup holds was read.
        checkpoint_number, checkpoint_hash: the newest checkpoint in the backup; 0 and GENESIS for
            none.
        heads_root: `privacy.heads.root_of` the leaves of every account's head in the backup.
        prev_hash: `hash` of the epoch before; GENESIS for the first restoration.
        signature: Ed25519 by the coordinator's ledger key over `canonical`.
    """

    number: int
    restored_at_s: int
    backup_made_at_s: int
    checkpoint_number: int
    checkpoint_hash: str
    heads_root: str
    prev_hash: str
    signature: bytes = b""

    def canonical(self) -> bytes:
        """The bytes that the coordinator signs."""
        body = {
            "backup_made_at_s": self.backup_made_at_s,
            "checkpoint_hash": self.checkpoint_hash,
            "checkpoint_number": self.checkpoint_number,
            "heads_root": self.heads_root,
            "number": self.number,
            "prev_hash": self.prev_hash,
            "restored_at_s": self.restored_at_s,
        }
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return EPOCH_DOMAIN + text.encode("ascii")

    @property
    def hash(self) -> str:
        """BLAKE3 of the canonical bytes, hexadecimal."""
        return blake3(self.canonical()).hexdigest()

    @property
    def backup_made(self) -> str:
        """The moment of the backup, in words."""
        return moment(self.backup_made_at_s)

    @property
    def restored(self) -> str:
        """The moment of the restoration, in words."""
        return moment(self.restored_at_s)


def moment(at_s: float) -> str:
    """Seconds since 1970 as a date and a time of day, UTC."""
    try:
        return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # what somebody signed need not be a date
        return f"second {at_s} since 1970"


def sign_epoch(
    key: Ed25519PrivateKey,
    before: Epoch | None,
    checkpoint: Checkpoint | None,
    leaves: Iterable[str],
    *,
    restored_at_s: float,
    backup_made_at_s: float,
) -> Epoch:
    """The epoch that follows `before` (None: the first restoration).

    Args:
        checkpoint: the newest in the backup.
        leaves: of every account's head in the backup.
    """
    earliest = 0 if before is None else before.restored_at_s + 1
    unsigned = Epoch(
        number=FIRST + 1 if before is None else before.number + 1,
        restored_at_s=max(int(restored_at_s), earliest),
        backup_made_at_s=int(backup_made_at_s),
        checkpoint_number=0 if checkpoint is None else checkpoint.number,
        checkpoint_hash=GENESIS if checkpoint is None else checkpoint.hash,
        heads_root=root_of(leaves),
        prev_hash=GENESIS if before is None else before.hash,
    )
    return replace(unsigned, signature=key.sign(unsigned.canonical()))


def line_of(epochs: Iterable[Epoch], latest: Epoch | None) -> list[Epoch]:
    """The restorations of the history in which `latest` stands, in order; [] for None."""
    by_hash = {one.hash: one for one in epochs}
    found: list[Epoch] = []
    while latest is not None:
        found.append(latest)
        latest = by_hash.get(latest.prev_hash)
    return found[::-1]


def made_after(line: Sequence[Epoch], checkpoint_number: int) -> str:
    """The `hash` of the restoration after which a history made a checkpoint; GENESIS: before the
    first. Two histories have one checkpoint of a number in common if this is the same in both.

    Args:
        line: as `line_of` gives it.
    """
    return next(
        (one.hash for one in reversed(line) if checkpoint_number > one.checkpoint_number), GENESIS
    )


def parting(one: Sequence[Epoch], other: Sequence[Epoch]) -> int:
    """The number of the last checkpoint that two histories have in common: each went on otherwise
    from where the first restoration that is not the other's found it, or a later one of an older
    backup. COUNT_MAX for one and the same history.
    """
    pairs = zip(one, other, strict=False)
    same = next(
        (at for at, (a, b) in enumerate(pairs) if a.hash != b.hash), min(len(one), len(other))
    )
    apart = (epoch.checkpoint_number for epoch in (*one[same:], *other[same:]))
    return min(apart, default=COUNT_MAX)


def epochs_fault(epochs: Sequence[Epoch], public_key: bytes) -> str:
    """Why these are not all restorations of one history, in order; empty when they are.

    Args:
        public_key: the coordinator's raw ledger key.
    """
    before: Epoch | None = None
    for one in epochs:
        if text := _form_fault(one):
            return text
        number = FIRST + 1 if before is None else before.number + 1
        if one.number != number:
            return f"epoch {number} is missing, repeated or out of place: found {one.number}"
        if one.prev_hash != (GENESIS if before is None else before.hash):
            return f"epoch {number} does not follow the one before it"
        if before is not None and one.restored_at_s <= before.restored_at_s:
            return f"epoch {number} is not later than the one before it"
        if before is not None and not _goes_on(before, one):
            return f"epoch {number} is of a backup that holds less than epoch {before.number} found"
        if not is_signed(public_key, one.canonical(), one.signature):
            return (
                f"epoch {number} is not signed by the coordinator's ledger key "
                f"{short(public_key.hex())}"
            )
        before = one
    return ""


def _goes_on(before: Epoch, one: Epoch) -> bool:
    """Whether a backup of what was restored by `before` may hold what `one` says: every checkpoint
    that was there stays there."""
    if one.checkpoint_number == before.checkpoint_number:
        return one.checkpoint_hash == before.checkpoint_hash
    return one.checkpoint_number > before.checkpoint_number


def _form_fault(one: Epoch) -> str:
    """Why this is no epoch, whoever signed it: what no store could keep."""
    counts = (one.number, one.restored_at_s, one.backup_made_at_s, one.checkpoint_number)
    hashes = (one.checkpoint_hash, one.heads_root, one.prev_hash)
    if all(0 <= each <= COUNT_MAX for each in counts) and all(
        is_hex(each) and len(each) == len(GENESIS) for each in hashes
    ):
        return ""
    return "an epoch has a number, a time or a hash that is none"
