"""Checkpoints over the heads of all accounts, and what nodes have countersigned. Every function
runs inside the caller's transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, Row, select

from coordinator.store.ledger import entry_of
from coordinator.store.schema import accounts, checkpoints, countersignatures, entries
from privacy.entries import Entry
from privacy.heads import Checkpoint, Head, sign_checkpoint, signed_by
from protos.errors import Malformed, WrongPhase


@dataclass(frozen=True, slots=True)
class Countersigned:
    """A head with its node's signature."""

    head: Head
    signature: bytes


def heads(connection: Connection, node: str | None = None) -> list[Head]:
    """Every account's head, or those of one node, by name."""
    wanted = select(accounts.c.account, accounts.c.entries, accounts.c.head_hash)
    if node is not None:
        wanted = wanted.where(accounts.c.node == node)
    return [Head(*row) for row in connection.execute(wanted.order_by(accounts.c.account))]


def newest(connection: Connection) -> tuple[Checkpoint, list[str]] | None:
    """The newest checkpoint and its leaves; None before the first."""
    row = connection.execute(
        select(checkpoints).order_by(checkpoints.c.number.desc()).limit(1)
    ).one_or_none()
    return None if row is None else (_checkpoint(row), row.leaves.decode().split())


def is_behind(connection: Connection) -> bool:
    """Whether an account has moved on since the newest checkpoint."""
    found = newest(connection)
    return found is None or found[1] != sorted(head.leaf() for head in heads(connection))


def renew(connection: Connection, key: Ed25519PrivateKey, now_s: float) -> None:
    """Make a checkpoint, unless the newest one says already where every account stands."""
    if not is_behind(connection):
        return
    leaves = sorted(head.leaf() for head in heads(connection))
    before = newest(connection)
    made = sign_checkpoint(key, before[0] if before else None, leaves)
    connection.execute(
        checkpoints.insert().values(
            number=made.number,
            prev_hash=made.prev_hash,
            root=made.root,
            signature=made.signature,
            leaves="\n".join(leaves).encode(),
            made_at=now_s,
        )
    )


def after(connection: Connection, number: int, most: int) -> list[Checkpoint]:
    """At most so many of the checkpoints after one, in order."""
    rows = connection.execute(
        select(checkpoints)
        .where(checkpoints.c.number > number)
        .order_by(checkpoints.c.number)
        .limit(most)
    )
    return [_checkpoint(row) for row in rows]


def countersign(
    connection: Connection, node: str, public_key: bytes, signed: Sequence[Countersigned]
) -> None:
    """Keep a node's signatures over heads of its own accounts; the same again changes nothing.

    Raises:
        Malformed: SIGNATURE_INVALID.
        WrongPhase: HEAD_UNKNOWN, no such entry is in the account's chain.
    """
    for one in signed:
        head = one.head
        if not signed_by(public_key, head, one.signature):
            raise Malformed(
                "SIGNATURE_INVALID", f"the signature over {head.account}'s head is not {node}'s"
            )
        found = connection.execute(
            select(entries.c.hash).where(
                entries.c.account == head.account,
                entries.c.seq == head.seq,
                entries.c.node == node,
            )
        ).scalar_one_or_none()
        if found != head.hash:
            raise WrongPhase(
                "HEAD_UNKNOWN", f"entry {head.seq} of account {head.account} is another one here"
            )
        kept = connection.execute(
            select(countersignatures.c.seq).where(
                countersignatures.c.account == head.account, countersignatures.c.seq == head.seq
            )
        ).one_or_none()
        if kept is None:
            connection.execute(
                countersignatures.insert().values(
                    account=head.account,
                    seq=head.seq,
                    hash=head.hash,
                    node_signature=one.signature,
                )
            )


def all_of(connection: Connection) -> list[Checkpoint]:
    """Every checkpoint, in order."""
    rows = connection.execute(select(checkpoints).order_by(checkpoints.c.number))
    return [_checkpoint(row) for row in rows]


def leaves_added(connection: Connection) -> list[list[bytes]]:
    """Under each checkpoint, in order, the leaves that were not under the one before."""
    found: list[list[bytes]] = []
    before: set[str] = set()
    for leaves in connection.execute(
        select(checkpoints.c.leaves).order_by(checkpoints.c.number)
    ).scalars():
        now = set(leaves.decode().split())
        found.append([bytes.fromhex(leaf) for leaf in sorted(now - before)])
        before = now
    return found


def countersigned(connection: Connection) -> list[Countersigned]:
    """Every countersigned head, by account and seq."""
    rows = connection.execute(
        select(countersignatures).order_by(countersignatures.c.account, countersignatures.c.seq)
    )
    return [Countersigned(Head(row.account, row.seq, row.hash), row.node_signature) for row in rows]


POSTS_TOLD = 16
"""A ledger that went back in time lacks its newest posts; reports may overtake each other."""


def signed_last(connection: Connection, account: str) -> tuple[Countersigned | None, list[Entry]]:
    """What its node has signed last of an account: the head, and the newest posts after it."""
    row = connection.execute(
        select(countersignatures)
        .where(countersignatures.c.account == account)
        .order_by(countersignatures.c.seq.desc())
        .limit(1)
    ).one_or_none()
    head = None
    if row is not None:
        head = Countersigned(Head(row.account, row.seq, row.hash), row.node_signature)
    newest = connection.execute(
        select(entries)
        .where(
            entries.c.account == account,
            entries.c.seq > (head.head.seq if head else 0),
            entries.c.kind == "post",
            entries.c.node_signature != b"",
        )
        .order_by(entries.c.seq.desc())
        .limit(POSTS_TOLD)
    )
    return head, [entry_of(one) for one in newest]


def _checkpoint(row: Row[Any]) -> Checkpoint:
    return Checkpoint(row.number, row.prev_hash, row.root, row.signature)
