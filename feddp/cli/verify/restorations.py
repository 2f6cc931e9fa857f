"""Restorations of the coordinator: what an export says of them, what nodes' files know, and which
of what nodes have seen they explain."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feddp.cli.output import counted
from feddp.cli.verify import known_fields as fields
from feddp.cli.verify.json_windows import once
from feddp.cli.verify.known_fields import require_known
from privacy.canonical import COUNT_MAX, bytes_of_hex
from privacy.entries import is_signed
from privacy.epochs import Epoch, epochs_fault, line_of, parting
from privacy.heads import Checkpoint, Head, root_of, short, signed_by
from privacy.wire import epoch_from_wire, head_from_wire

if TYPE_CHECKING:
    from protos.feddp.v1 import budgets_pb2

Fault = tuple[str, int, str]
"""(account, seq or number, what is wrong)."""

RESTORATIONS = "(restorations)"


@dataclass(frozen=True, slots=True)
class Restoration:
    """One restoration, as the coordinator shows it.

    Attributes:
        places: where each account stood in the backup.
        reconciled: account -> seq of its newest entry when its node had handed it in.
    """

    epoch: Epoch
    places: Sequence[Head] = ()
    reconciled: Mapping[str, int] | None = None

    def stood(self) -> dict[str, int]:
        """account -> where it stood."""
        return {one.account: one.seq for one in reversed(self.places)}

    def place(self, account: str) -> int:
        """Where one account stood; 0 for one that the backup does not have."""
        return next((one.seq for one in self.places if one.account == account), 0)

    def said(self) -> str:
        """In one line for people."""
        done, stood = self.reconciled or {}, self.stood()
        handed = {account: seq - stood.get(account, 0) for account, seq in sorted(done.items())}
        parts = [
            f"{counted(count, 'entry')} of {account} {'was' if count == 1 else 'were'} handed in "
            "again"
            for account, count in handed.items()
        ]
        waiting = sorted({one.account for one in self.places} - done.keys())
        parts += [f"{account} is not handed in yet" for account in waiting]
        return (
            f"epoch {self.epoch.number}: restored at {self.epoch.restored}, from a backup of "
            f"{self.epoch.backup_made}: {'; '.join(parts) or 'it held no account'}"
        )


@dataclass(frozen=True, slots=True)
class Past:
    """What a node has seen of a history that a restoration has ended.

    Attributes:
        signature: the node's over a head, the coordinator's over a checkpoint.
        since_s: `restored_at_s` of the latest epoch that the node had seen then; 0 for none.
    """

    what: Head | Checkpoint
    signature: bytes
    since_s: int


def from_message(message: "budgets_pb2.ListCheckpointsResponse") -> list[Restoration]:
    """As the coordinator keeps them."""
    return [
        Restoration(
            epoch_from_wire(one.epoch),
            [head_from_wire(at) for at in one.places],
            {at.account: at.seq for at in one.reconciled},
        )
        for one in message.restorations
    ]


def epoch_json(one: Epoch) -> dict[str, Any]:
    """As `epoch_of` takes it."""
    names = (name for name in Epoch.__dataclass_fields__ if name != "signature")
    return {**{name: getattr(one, name) for name in names}, "signature": one.signature.hex()}


def export(one: Restoration) -> dict[str, Any]:
    """As `restoration_of` takes it."""
    done = sorted((one.reconciled or {}).items())
    return {
        **epoch_json(one.epoch),
        "places": [{"account": at.account, "seq": at.seq, "hash": at.hash} for at in one.places],
        "reconciled": [{"account": account, "seq": seq} for account, seq in done],
    }


def epoch_of(value: Mapping[str, Any]) -> Epoch:
    """Of an export or a node's file.

    Raises:
        Malformed: FIELD_UNKNOWN.
        KeyError, TypeError, ValueError: it is none.
    """
    return Epoch(
        _whole(value["number"]),
        _whole(value["restored_at_s"]),
        _whole(value["backup_made_at_s"]),
        _whole(value["checkpoint_number"]),
        str(value["checkpoint_hash"]),
        str(value["heads_root"]),
        str(value["prev_hash"]),
        bytes_of_hex(value["signature"]),
    )


def restoration_of(value: Mapping[str, Any]) -> Restoration:
    """Of an export. Raises as `epoch_of`."""
    what = fields.epoch_said(value)
    require_known(value, fields.EPOCH | {"places", "reconciled"}, what)
    for name, known in (("places", fields.HEAD), ("reconciled", fields.PLACE)):
        for at in listed(value[name]):
            require_known(at, known, fields.head_said(at, f"{what}: {name}"))
    return Restoration(
        epoch_of(value),
        [
            Head(str(at["account"]), _whole(at["seq"]), str(at["hash"]))
            for at in listed(value["places"])
        ],
        once([(_name(at["account"]), _whole(at["seq"])) for at in listed(value["reconciled"])]),
    )


def past_of(value: Mapping[str, Any]) -> list[Past]:
    """`before` of a node's file. Raises as `epoch_of`."""
    require_known(value, {"heads", "checkpoints"}, "before")
    for one in listed(value["heads"]):
        require_known(one, fields.SIGNED_HEAD | fields.PAST, fields.head_said(one, "before: head"))
    for one in listed(value["checkpoints"]):
        what = f"before: {fields.checkpoint_said(one)}"
        require_known(one, fields.CHECKPOINT | fields.PAST, what)
    heads = [
        Past(
            Head(str(one["account"]), _whole(one["seq"]), str(one["hash"])),
            bytes_of_hex(one["node_signature"]),
            _whole(one["since_s"]),
        )
        for one in listed(value["heads"])
    ]
    checkpoints = []
    for one in listed(value["checkpoints"]):
        signature = bytes_of_hex(one["signature"])
        made = Checkpoint(_whole(one["number"]), str(one["prev_hash"]), str(one["root"]), signature)
        checkpoints.append(Past(made, signature, _whole(one["since_s"])))
    return [*heads, *checkpoints]


def of_accounts(one: Restoration, wanted: Collection[str]) -> Restoration:
    """What speaks of some accounts alone."""
    done = {name: seq for name, seq in (one.reconciled or {}).items() if name in wanted}
    return Restoration(one.epoch, [at for at in one.places if at.account in wanted], done)


def listed(value: Any) -> list[Any]:
    """A list as it is; anything else that could be gone through is a TypeError."""
    if not isinstance(value, list):
        raise TypeError("a list was to be here")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name was to be here")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise TypeError("a whole number was to be here")
    return value


def coordinator_faults(
    restorations: Sequence[Restoration],
    key: bytes,
    checkpoints: Iterable[Checkpoint],
    hashes: Mapping[tuple[str, int], str],
    counts: Mapping[str, int],
    *,
    whole: bool,
) -> list[Fault]:
    """Where restorations are not signed, not chained, or not of these entries.

    Args:
        key: the coordinator's raw ledger key.
        hashes: (account, seq) -> hash of the entry, for every place.
        counts: account -> its entries.
        whole: the entries are of every account; else the roots cannot be made.
    """
    if text := epochs_fault([one.epoch for one in restorations], key):
        return [(RESTORATIONS, 0, text)]
    shown = {one.number: one.hash for one in checkpoints}
    for one in restorations:
        epoch = one.epoch
        number, digest = epoch.checkpoint_number, epoch.checkpoint_hash
        if number and shown.get(number) != digest:
            text = f"epoch {epoch.number} names another checkpoint {number} than the one here"
            return [(RESTORATIONS, epoch.number, text)]
        for at in one.places:
            if at.seq and hashes.get((at.account, at.seq)) != at.hash:
                text = (
                    f"epoch {epoch.number} says that the backup ended with entry {at.seq}, "
                    f"{short(at.hash)}, and that is not the entry here"
                )
                return [(at.account, at.seq, text)]
        stood = one.stood()
        for account, seq in (one.reconciled or {}).items():
            place = stood.get(account, 0)
            if not place <= seq <= counts.get(account, 0):
                text = (
                    f"epoch {epoch.number} says that its node had handed it in at entry {seq}, and "
                    f"the backup had {place}, and {counts.get(account, 0)} are here"
                )
                return [(account, seq, text)]
        if whole and root_of(at.leaf() for at in one.places) != epoch.heads_root:
            text = (
                f"epoch {epoch.number} was signed over other places than the export tells: they "
                "were changed, or an account was left out"
            )
            return [(RESTORATIONS, epoch.number, text)]
    return []


@dataclass(frozen=True, slots=True)
class NodePast:
    """What one node's file says of restorations.

    Attributes:
        source: the node.
        epochs: every one that it has seen, by date.
        past: what it has seen of histories that they ended.
        checkpoints: those of the present history.
    """

    source: str
    node_key: bytes
    epochs: Sequence[Epoch]
    past: Sequence[Past]
    checkpoints: Sequence[Checkpoint]


def node_faults(
    node: NodePast,
    restorations: Sequence[Restoration],
    key: bytes,
    checkpoints: Iterable[Checkpoint],
    hashes: Mapping[tuple[str, int], str],
    counts: Mapping[str, int],
    *,
    whole: bool,
) -> list[Fault]:
    """Where a node's file knows restorations that are not here, or has seen what none of those that
    it knows explains.

    Args:
        counts: account -> its entries here.
        whole: the entries are of every account; else what is said of others is passed over.
    """
    found: list[Fault] = []
    known, here = {one.hash for one in node.epochs}, {one.epoch.hash for one in restorations}
    latest = max(
        (one.epoch.restored_at_s for one in restorations if one.epoch.hash in known), default=0
    )
    for one in node.epochs:
        if not is_signed(key, one.canonical(), one.signature):
            text = f"epoch {one.number} in node {node.source}'s file is not the coordinator's"
            found.append((RESTORATIONS, one.number, text))
        elif one.hash not in here and one.restored_at_s > latest:
            text = (
                f"node {node.source} has seen epoch {one.number}, restored at {one.restored}, and "
                "it is not here: this is the ledger of an older copy of the coordinator"
            )
            found.append((RESTORATIONS, one.number, text))
    shown = {one.number: one.hash for one in checkpoints}
    for past in node.past:
        ended = _ended(past.since_s, node.epochs, restorations)
        what = past.what
        if isinstance(what, Checkpoint):
            if not signed_by(key, what, past.signature):
                text = f"it is not signed by the coordinator ({node.source})"
                found.append((RESTORATIONS, what.number, f"checkpoint {what.number}: {text}"))
            elif ended and what.number > ended.checkpoint_number:
                continue
            elif shown.get(what.number) != what.hash:
                text = (
                    f"node {node.source} has seen another checkpoint {what.number}, which no "
                    "restoration that it knows explains"
                )
                found.append((RESTORATIONS, what.number, text))
            continue
        if not what.seq or (not whole and what.account not in counts):
            continue
        if not signed_by(node.node_key, what, past.signature):
            text = f"the head that {node.source} held before a restoration is not signed by it"
            found.append((what.account, what.seq, text))
        elif ended and what.seq > ended.place(what.account):
            # One that follows it counts as well: then the node has handed in to that.
            by = ended.by.epoch
            later = (one for one in restorations if one.epoch.number >= by.number)
            if not any(what.account in (one.reconciled or {}) for one in later):
                text = (
                    f"node {node.source} had seen entry {what.seq} before the restoration at "
                    f"{by.restored}; {counts.get(what.account, 0)} entries are here, and "
                    "the node has not handed in the rest. It does so at its next session: export "
                    "the ledger anew after that"
                )
                found.append((what.account, what.seq, text))
        elif hashes.get((what.account, what.seq)) != what.hash:
            text = (
                f"node {node.source} has seen another entry {what.seq}, {short(what.hash)}, before "
                "a restoration whose backup held it: the history was rewritten"
            )
            found.append((what.account, what.seq, text))
    return found


@dataclass(frozen=True, slots=True)
class _Ended:
    """Where a history that a node has seen and the one here went on otherwise.

    Attributes:
        by: the first restoration here that is not of that history.
        checkpoint_number: of the last checkpoint that both have.
        is_branch: that history had a restoration that is not here. Where accounts stood in it
            nobody tells; all that its node knows is handed in.
    """

    by: Restoration
    checkpoint_number: int
    is_branch: bool

    def place(self, account: str) -> int:
        """Up to which entry of an account both are the same for certain."""
        return 0 if self.is_branch else self.by.place(account)


def _ended(
    since_s: int, epochs: Sequence[Epoch], restorations: Sequence[Restoration]
) -> _Ended | None:
    """None where the history did not end, or by a restoration that the node does not know."""
    line = line_of(epochs, next((one for one in epochs if one.restored_at_s == since_s), None))
    there, known = ({one.hash for one in some} for some in (line, epochs))
    first = next((one for one in restorations if one.epoch.hash not in there), None)
    if first is None or first.epoch.hash not in known:
        return None
    here = [one.epoch for one in restorations]
    is_branch = not there <= {one.hash for one in here}
    return _Ended(first, parting(line, here), is_branch)


def forks(nodes: Sequence[NodePast]) -> list[Fault]:
    """Two nodes that have seen two checkpoints of one number in one history, ended or not."""
    found: list[Fault] = []
    seen: dict[tuple[int, int], tuple[str, str]] = {}
    for node in nodes:
        present = max((one.restored_at_s for one in node.epochs), default=0)
        held = [(present, one) for one in node.checkpoints]
        held += [(p.since_s, p.what) for p in node.past if isinstance(p.what, Checkpoint)]
        for since_s, one in held:
            source, digest = seen.setdefault((since_s, one.number), (node.source, one.hash))
            if digest != one.hash:
                text = (
                    f"{source} and {node.source} hold different ones of number {one.number}, "
                    f"{short(digest)} and {short(one.hash)}: the history was forked"
                )
                found.append((RESTORATIONS, one.number, text))
                break
    return found
