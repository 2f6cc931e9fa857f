"""Ledger entries and heads as the wire carries them."""

from typing import Any

from privacy.entries import STATEMENT_FIELDS, Entry, Statement, from_json
from privacy.epochs import Epoch
from privacy.heads import Checkpoint, Head
from privacy.limits import CHANGE_FIELDS, LimitChange, change_of
from protos.feddp.v1 import ledger_pb2, witness_pb2


def entry_to_wire(entry: Entry) -> ledger_pb2.LedgerEntry:
    """An entry, to be sent."""
    ends: dict[str, Any] = {
        "seq": entry.seq,
        "prev_hash": entry.prev_hash,
        "hash": entry.hash,
        "node_signature": entry.node_signature,
    }
    if isinstance(entry.statement, LimitChange):
        return ledger_pb2.LedgerEntry(**_limit_fields(entry.statement), **ends)
    return ledger_pb2.LedgerEntry(**entry.statement.fields(), **ends)


def limit_to_wire(change: LimitChange, signature: bytes) -> ledger_pb2.LedgerEntry:
    """A raise that is in no chain of the receiver's yet, to be sent."""
    return ledger_pb2.LedgerEntry(**_limit_fields(change), node_signature=signature)


def limit_from_wire(message: ledger_pb2.LedgerEntry) -> LimitChange:
    """A raise that arrived.

    Raises:
        Malformed: ENTRY_INVALID, STATEMENT_INVALID.
    """
    return change_of(_statement_fields(message))


def statement_to_wire(
    statement: Statement | LimitChange, signature: bytes
) -> ledger_pb2.LedgerEntry:
    """What is in no chain of the receiver's yet, to be sent."""
    if isinstance(statement, LimitChange):
        return limit_to_wire(statement, signature)
    return ledger_pb2.LedgerEntry(**statement.fields(), node_signature=signature)


def statement_from_wire(message: ledger_pb2.LedgerEntry) -> Statement | LimitChange:
    """What arrived without a place in a chain.

    Raises:
        Malformed: STATEMENT_INVALID or RELEASE_INVALID.
    """
    if message.kind == LimitChange.kind:
        return limit_from_wire(message)
    return Statement(**_statement_fields(message))


def entry_from_wire(message: ledger_pb2.LedgerEntry) -> Entry:
    """An entry that arrived.

    Raises:
        Malformed: ENTRY_INVALID, STATEMENT_INVALID or RELEASE_INVALID.
    """
    return from_json(entry_fields(message))


def entry_fields(message: ledger_pb2.LedgerEntry) -> dict[str, Any]:
    """What arrived, with the names that `privacy.entries.from_json` takes, sound or not."""
    return {
        "seq": message.seq,
        **_statement_fields(message),
        "prev_hash": message.prev_hash,
        "hash": message.hash,
        "node_signature": message.node_signature.hex(),
    }


def _limit_fields(change: LimitChange) -> dict[str, Any]:
    fields = change.fields()
    outer = {name: fields.pop(name) for name in _OUTER}
    return {**outer, "limit": ledger_pb2.LimitChange(**fields)}


_OUTER = ("kind", "account", "node")
"""Fields of a raise that it shares with the other kinds."""


def _statement_fields(message: ledger_pb2.LedgerEntry) -> dict[str, Any]:
    if message.HasField("limit") or message.kind == LimitChange.kind:
        limit = message.limit
        inner = {name: getattr(limit, name) for name in CHANGE_FIELDS if name not in _OUTER}
        return {**{name: getattr(message, name) for name in _OUTER}, **inner}
    values = {name: getattr(message, name) for name in STATEMENT_FIELDS}
    if not message.HasField("noise_multiplier"):
        values["noise_multiplier"] = None
    return values


def head_to_wire(head: Head, signature: bytes = b"") -> witness_pb2.LedgerHead:
    """A head, to be sent."""
    return witness_pb2.LedgerHead(
        account=head.account, seq=head.seq, hash=head.hash, node_signature=signature
    )


def head_from_wire(message: witness_pb2.LedgerHead) -> Head:
    """A head that arrived."""
    return Head(message.account, message.seq, message.hash)


def epoch_to_wire(one: Epoch) -> witness_pb2.CoordinatorEpoch:
    """An epoch, to be sent."""
    return witness_pb2.CoordinatorEpoch(
        **{name: getattr(one, name) for name in Epoch.__dataclass_fields__}
    )


def epoch_from_wire(message: witness_pb2.CoordinatorEpoch) -> Epoch:
    """An epoch that arrived."""
    return Epoch(**{name: getattr(message, name) for name in Epoch.__dataclass_fields__})


def checkpoint_to_wire(one: Checkpoint) -> witness_pb2.LedgerCheckpoint:
    """A checkpoint, to be sent."""
    return witness_pb2.LedgerCheckpoint(
        number=one.number, prev_hash=one.prev_hash, root=one.root, signature=one.signature
    )


def checkpoint_from_wire(message: witness_pb2.LedgerCheckpoint) -> Checkpoint:
    """A checkpoint that arrived."""
    return Checkpoint(message.number, message.prev_hash, message.root, message.signature)
