"""Checkpoints and countersigned heads, as the coordinator or a node keeps them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from feddp.cli.output import counted
from feddp.cli.verify import known_fields as fields
from feddp.cli.verify import restorations as restored
from feddp.cli.verify.known_fields import require_known
from feddp.cli.verify.restorations import RESTORATIONS, Past, Restoration, listed
from privacy.canonical import bytes_of_hex
from privacy.entries import Entry
from privacy.epochs import Epoch
from privacy.heads import Checkpoint, Head, head_of
from privacy.wire import checkpoint_from_wire, head_from_wire

if TYPE_CHECKING:
    from protos.feddp.v1 import budgets_pb2

Fault = tuple[str, int, str]
"""(account, seq or number of the checkpoint, what is wrong)."""

Place = tuple[str, int]
"""An account and its seq: that of its last entry at some moment, 0 before the first."""

CHECKPOINTS = "(checkpoints)"
EVERY_ACCOUNT = "*"
"""What a node's file calls all accounts at once, where it disputes a checkpoint."""

NODE_FILES = "(node files)"
ACCOUNTS = "(accounts)"
_OF_NO_ACCOUNT = {NODE_FILES: "the nodes' files", ACCOUNTS: "the accounts and witnesses"}


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head and its node's signature."""

    head: Head
    signature: bytes


@dataclass(frozen=True, slots=True)
class Witnesses:
    """What proves a ledger's history, as the coordinator keeps it or as one node has seen it.

    Attributes:
        source: for people: "the coordinator", or a node's name.
        heads: countersigned, by account and seq.
        checkpoints: in order, from the first.
        moved: for each checkpoint, what its root is made of, as far as it differs from the one
            before: where the accounts stood that are new or have moved on. None where this is not
            known, as in a node's file.
        coordinator_key: raw; empty if there is none yet.
        node_key: raw ledger key, of a node's own file; empty for the coordinator's.
        restorations: of the coordinator, in order, as it shows them itself.
        epochs: those that a node has seen, by date.
        past: what a node has seen of histories that restorations have ended.
    """

    source: str
    heads: Sequence[SignedHead] = ()
    checkpoints: Sequence[Checkpoint] = ()
    moved: Sequence[Sequence[Place]] | None = None
    coordinator_key: bytes = b""
    node_key: bytes = b""
    restorations: Sequence[Restoration] = ()
    epochs: Sequence[Epoch] = ()
    past: Sequence[Past] = ()

    def said(self) -> str:
        """How much is proven, for people."""
        accounts = {one.head.account for one in self.heads}
        return (
            f"{counted(len(self.checkpoints), 'checkpoint')}, heads of "
            f"{counted(len(accounts), 'account')} countersigned by their nodes"
        )

    def export(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        told = [restored.export(one) for one in self.restorations]
        return {
            "coordinator_ledger_key": self.coordinator_key.hex(),
            **({"restorations": told} if told else {}),
            "heads": [
                {
                    "account": one.head.account,
                    "seq": one.head.seq,
                    "hash": one.head.hash,
                    "node_signature": one.signature.hex(),
                }
                for one in self.heads
            ],
            "checkpoints": [
                {
                    "number": one.number,
                    "prev_hash": one.prev_hash,
                    "root": one.root,
                    "signature": one.signature.hex(),
                    **moved,
                }
                for one, moved in zip(self.checkpoints, self._moved_json(), strict=True)
            ],
        }

    def _moved_json(self) -> list[dict[str, Any]]:
        if self.moved is None:
            return [{} for _ in self.checkpoints]
        return [
            {"moved": [{"account": account, "seq": seq} for account, seq in places]}
            for places in self.moved
        ]


def from_message(
    message: "budgets_pb2.ListCheckpointsResponse",
    accounts: Iterable[str],
    entries: Iterable[Entry],
) -> Witnesses:
    """What the coordinator keeps.

    A leaf tells nothing of its account, so that it is looked for among the heads of `accounts` and
    `entries`, which are all. One that is not found is left out: its root cannot be made then, and
    the check says so.
    """
    wanted = {leaf for one in message.leaves for leaf in one.added}
    known: dict[bytes, Place] = {}
    if wanted:
        starts = (Head(account) for account in accounts)
        for head in chain(starts, map(head_of, entries)):
            leaf = bytes.fromhex(head.leaf())
            if leaf in wanted:
                known[leaf] = (head.account, head.seq)
    complete = len(message.leaves) == len(message.checkpoints)
    return Witnesses(
        source="the coordinator",
        heads=[
            SignedHead(head_from_wire(one), one.node_signature) for one in message.countersigned
        ],
        checkpoints=[checkpoint_from_wire(one) for one in message.checkpoints],
        moved=(
            [sorted(known[leaf] for leaf in one.added if leaf in known) for one in message.leaves]
            if complete
            else None
        ),
        coordinator_key=message.coordinator_ledger_key,
        restorations=restored.from_message(message),
    )


def from_json(value: Mapping[str, Any], source: str) -> Witnesses:
    """What `export` or `feddp agent ledger heads --json` gave.

    Raises:
        Malformed: FIELD_UNKNOWN, something in it has a field that none of this version has.
        KeyError, TypeError, ValueError: it is neither.
    """
    checkpoints = listed(value["checkpoints"])
    for one in listed(value["heads"]):
        require_known(one, fields.SIGNED_HEAD, fields.head_said(one))
    for one in checkpoints:
        what = fields.checkpoint_said(one)
        require_known(one, fields.CHECKPOINT | {"moved"}, what)
        for at in listed(one.get("moved", [])):
            require_known(at, fields.PLACE, fields.head_said(at, f"{what}: moved"))
    told = [one for one in checkpoints if "moved" in one]
    if told and len(told) != len(checkpoints):
        raise ValueError("some checkpoints do not say what their roots are made of")
    return Witnesses(
        source=source,
        heads=[
            SignedHead(
                Head(str(one["account"]), whole_number(one["seq"]), str(one["hash"])),
                bytes_of_hex(one["node_signature"]),
            )
            for one in listed(value["heads"])
        ],
        checkpoints=[
            Checkpoint(
                whole_number(one["number"]),
                str(one["prev_hash"]),
                str(one["root"]),
                bytes_of_hex(one["signature"]),
            )
            for one in checkpoints
        ],
        moved=(
            [
                [(str(at["account"]), whole_number(at["seq"])) for at in listed(one["moved"])]
                for one in told
            ]
            if told or not checkpoints
            else None
        ),
        coordinator_key=bytes_of_hex(value["coordinator_ledger_key"]),
        node_key=bytes_of_hex(value.get("ledger_public_key", "")),
        # Exports and files of before restorations were declared have none of these.
        restorations=[
            restored.restoration_of(one) for one in listed(value.get("restorations", []))
        ],
        epochs=[restored.epoch_of(one) for one in listed(value.get("epochs", []))],
        past=restored.past_of(value["before"]) if "before" in value else (),
    )


def whole_number(value: Any) -> int:
    """A whole number as it is; what `int` would make one of is a TypeError."""
    if type(value) is not int:
        raise TypeError("a whole number was to be here")
    return value


def of_accounts(found: Witnesses, names: Iterable[str]) -> Witnesses:
    """What speaks of some accounts alone: a root is over all of them, so that none can be made."""
    wanted = set(names)
    return replace(
        found,
        heads=[one for one in found.heads if one.head.account in wanted],
        moved=None,
        restorations=[restored.of_accounts(one, wanted) for one in found.restorations],
    )


def place_said(account: str, seq: int) -> str:
    """Where a fault is, for people: what `account` and `seq` of it stand for.

    Args:
        account: "NODE/NAME", or what stands there for a fault of none.
        seq: of the entry, or the number of the checkpoint; 0 for a fault of no single one.
    """
    if account in (CHECKPOINTS, EVERY_ACCOUNT):
        return f"checkpoint {seq}" if seq else "the checkpoints"
    if account == RESTORATIONS:
        return f"restoration {seq}" if seq else "the restorations"
    what = _OF_NO_ACCOUNT.get(account, f"account {account}")
    return f"{what}, entry {seq}" if seq else what
