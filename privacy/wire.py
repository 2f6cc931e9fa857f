"""Ledger entries and heads as the wire carries them."""

from privacy.entries import STATEMENT_FIELDS, Entry, from_json
from privacy.heads import Checkpoint, Head
from protos.feddp.v1 import ledger_pb2, witness_pb2


def entry_to_wire(entry: Entry) -> ledger_pb2.LedgerEntry:
    """An entry, to be sent."""
    return ledger_pb2.LedgerEntry(
        seq=entry.seq,
        **entry.statement.fields(),
        prev_hash=entry.prev_hash,
        hash=entry.hash,
        node_signature=entry.node_signature,
    )


def entry_from_wire(message: ledger_pb2.LedgerEntry) -> Entry:
    """An entry that arrived.

    Raises:
        Malformed: ENTRY_INVALID, STATEMENT_INVALID or RELEASE_INVALID.
    """
    values = {name: getattr(message, name) for name in STATEMENT_FIELDS}
    if not message.HasField("noise_multiplier"):
        values["noise_multiplier"] = None
    ends = {"prev_hash": message.prev_hash, "hash": message.hash}
    signature = message.node_signature.hex()
    return from_json({"seq": message.seq, **values, **ends, "node_signature": signature})


def head_to_wire(head: Head, signature: bytes = b"") -> witness_pb2.LedgerHead:
    """A head, to be sent."""
    return witness_pb2.LedgerHead(
        account=head.account, seq=head.seq, hash=head.hash, node_signature=signature
    )


def head_from_wire(message: witness_pb2.LedgerHead) -> Head:
    """A head that arrived."""
    return Head(message.account, message.seq, message.hash)


def checkpoint_to_wire(one: Checkpoint) -> witness_pb2.LedgerCheckpoint:
    """A checkpoint, to be sent."""
    return witness_pb2.LedgerCheckpoint(
        number=one.number, prev_hash=one.prev_hash, root=one.root, signature=one.signature
    )


def checkpoint_from_wire(message: witness_pb2.LedgerCheckpoint) -> Checkpoint:
    """A checkpoint that arrived."""
    return Checkpoint(message.number, message.prev_hash, message.root, message.signature)
