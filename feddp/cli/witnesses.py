"""Checkpoints and countersigned heads: whether a ledger is the one that its nodes have seen."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.entries import Entry
from privacy.heads import Checkpoint, Head, checkpoint_fault, signed_by
from privacy.wire import checkpoint_from_wire, head_from_wire
from protos.errors import Malformed

if TYPE_CHECKING:
    from protos.feddp.v1 import budgets_pb2

Fault = tuple[str, int, str]
"""(account, seq or number of the checkpoint, what is wrong)."""

CHECKPOINTS = "(checkpoints)"


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
        coordinator_key: raw; empty if there is none yet.
        node_key: raw ledger key, of a node's own file; empty for the coordinator's.
    """

    source: str
    heads: Sequence[SignedHead] = ()
    checkpoints: Sequence[Checkpoint] = ()
    coordinator_key: bytes = b""
    node_key: bytes = b""

    def said(self) -> str:
        """How much is proven, for people."""
        accounts = {one.head.account for one in self.heads}
        return (
            f"{len(self.checkpoints)} checkpoints, heads of {len(accounts)} accounts countersigned "
            "by their nodes"
        )

    def export(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return {
            "coordinator_ledger_key": self.coordinator_key.hex(),
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
                }
                for one in self.checkpoints
            ],
        }


def from_message(message: "budgets_pb2.ListCheckpointsResponse") -> Witnesses:
    """What the coordinator keeps."""
    return Witnesses(
        source="the coordinator",
        heads=[
            SignedHead(head_from_wire(one), one.node_signature) for one in message.countersigned
        ],
        checkpoints=[checkpoint_from_wire(one) for one in message.checkpoints],
        coordinator_key=message.coordinator_ledger_key,
    )


def from_json(value: Mapping[str, Any], source: str) -> Witnesses:
    """What `export` or `feddp agent ledger heads --json` gave.

    Raises:
        KeyError, TypeError, ValueError: it is neither.
    """
    return Witnesses(
        source=source,
        heads=[
            SignedHead(
                Head(str(one["account"]), int(one["seq"]), str(one["hash"])),
                bytes.fromhex(one["node_signature"]),
            )
            for one in value["heads"]
        ],
        checkpoints=[
            Checkpoint(
                int(one["number"]),
                str(one["prev_hash"]),
                str(one["root"]),
                bytes.fromhex(one["signature"]),
            )
            for one in value["checkpoints"]
        ],
        coordinator_key=bytes.fromhex(value["coordinator_ledger_key"]),
        node_key=bytes.fromhex(value.get("ledger_public_key", "")),
    )


def from_node_file(path: Path) -> Witnesses:
    """What `feddp agent ledger heads --json` printed at a node.

    Raises:
        Malformed: FILE_UNREADABLE, HEADS_INVALID.
    """
    try:
        content = json.loads(path.read_bytes())
        return from_json(content, str(content["node"]))
    except OSError as error:
        raise Malformed("FILE_UNREADABLE", f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Malformed(
            "HEADS_INVALID", f"{path} is not what `feddp agent ledger heads --json` prints"
        ) from None


@dataclass(slots=True)
class Passing:
    """The entries of a ledger on their way to their verification; what was seen of them is kept.

    Attributes:
        witnesses: the coordinator's, and any number of nodes'.
        counts: account -> its entries, of those that passed.
        hashes: (account, seq) -> hash of the entry, for those that are some witness's head.
    """

    entries: Iterable[Entry]
    witnesses: Sequence[Witnesses]
    counts: dict[str, int] = field(default_factory=dict)
    hashes: dict[tuple[str, int], str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Entry]:
        counts: defaultdict[str, int] = defaultdict(int)
        self.counts, self.hashes = counts, {}
        seen: defaultdict[int, set[str]] = defaultdict(set)
        for each in self.witnesses:
            for one in each.heads:
                seen[one.head.seq].add(one.head.account)
        for entry in self.entries:
            account = entry.statement.account
            counts[account] += 1
            if entry.seq in seen and account in seen[entry.seq]:
                self.hashes[account, entry.seq] = entry.hash
            yield entry


def faults(passed: Passing, keys: Mapping[str, bytes], *, whole: bool) -> list[Fault]:
    """Where entries are not what was seen and signed.

    Args:
        passed: all of them have passed.
        keys: node -> its raw ledger key.
        whole: the entries are of every account; else heads of other accounts are passed over.
    """
    found: list[Fault] = []
    for one in passed.witnesses:
        found += _heads(one, passed, keys, whole=whole)
        found += _checkpoints(one)
    return found + _forks(passed.witnesses)


def _heads(
    seen: Witnesses,
    passed: Passing,
    keys: Mapping[str, bytes],
    *,
    whole: bool,
) -> list[Fault]:
    found: list[Fault] = []
    for one in seen.heads:
        head = one.head
        node = head.account.partition("/")[0]
        count = passed.counts.get(head.account, 0)
        digest = passed.hashes.get((head.account, head.seq))
        if not count:
            if whole and head.seq:
                text = f"node {node} has seen {head.seq} entries of this account, and none is here"
                found.append((head.account, head.seq, text))
            continue
        key = keys.get(node, b"")
        if seen.node_key and seen.node_key != key:
            found.append((head.account, head.seq, f"{seen.source}'s ledger key is another one"))
        elif not signed_by(key, head, one.signature):
            text = f"the head that {seen.source} holds is not signed by node {node}"
            found.append((head.account, head.seq, text))
        elif digest is None:
            text = f"node {node} has seen {head.seq} entries, and {count} are here"
            found.append((head.account, head.seq, text))
        elif digest != head.hash:
            text = f"node {node} has seen another entry {head.seq}: the history was rewritten"
            found.append((head.account, head.seq, text))
    return found


def _checkpoints(seen: Witnesses) -> list[Fault]:
    before: Checkpoint | None = None
    for one in seen.checkpoints:
        text = checkpoint_fault(before, one, seen.coordinator_key)
        if text:
            return [(CHECKPOINTS, one.number, f"{text} ({seen.source})")]
        before = one
    return []


def _forks(witnesses: Sequence[Witnesses]) -> list[Fault]:
    """Two checkpoints of one number that are not the same: the coordinator has signed both."""
    found: list[Fault] = []
    known: dict[int, tuple[str, str]] = {}
    for seen in witnesses:
        for one in seen.checkpoints:
            source, digest = known.setdefault(one.number, (seen.source, one.hash))
            if digest != one.hash:
                text = f"{source} and {seen.source} hold different ones: the history was forked"
                found.append((CHECKPOINTS, one.number, text))
                break
    return found
