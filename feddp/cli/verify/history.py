"""Whether a ledger's entries are those that nodes have seen: heads, checkpoints and their roots."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter

from feddp.cli.output import counted
from feddp.cli.verify.restorations import NodePast, coordinator_faults, forks, node_faults
from feddp.cli.verify.witnesses import CHECKPOINTS, Fault, Place, Witnesses
from privacy.entries import GENESIS, Entry, Statement
from privacy.heads import Checkpoint, Head, checkpoint_fault, root_of, short, signed_by
from privacy.releases import Mechanism

Spelling = tuple[Mechanism, float | None, float, int]
"""The fields of a Release; a tuple is made and hashed faster, once an entry."""


@dataclass(slots=True)
class Passing:
    """The entries of a ledger on their way to their verification; what was seen of them is kept.

    Attributes:
        witnesses: the coordinator's, and any number of nodes'.
        counts: account -> its entries, of those that passed.
        hashes: (account, seq) -> hash of the entry, for those that are some witness's head, or
            below a checkpoint.
        posted: account -> how often it has posted each release.
        raises: account -> how many raises of its limit.
        declared: account -> the most patients that an entry with noise declares, and the first
            such entry's seq.
        paid: (account, data set) -> the first post of that data set in that account.
    """

    entries: Iterable[Entry]
    witnesses: Sequence[Witnesses]
    counts: dict[str, int] = field(default_factory=dict)
    hashes: dict[Place, str] = field(default_factory=dict)
    posted: dict[str, Counter[Spelling]] = field(default_factory=dict)
    raises: Counter[str] = field(default_factory=Counter)
    declared: dict[str, tuple[int, int]] = field(default_factory=dict)
    paid: dict[tuple[str, str], int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Entry]:
        counts: defaultdict[str, int] = defaultdict(int)
        posted: defaultdict[str, Counter[Spelling]] = defaultdict(Counter)
        most: defaultdict[str, int] = defaultdict(int)
        self.counts, self.hashes, self.posted = counts, {}, posted
        self.raises, self.declared = Counter(), {}
        paid = self.paid = {}
        seen: defaultdict[int, set[str]] = defaultdict(set)
        for each in self.witnesses:
            for signed in each.heads:
                seen[signed.head.seq].add(signed.head.account)
            for account, seq in chain.from_iterable(each.moved or ()):
                seen[seq].add(account)
            for head in _further(each):
                seen[head.seq].add(head.account)
        for entry in self.entries:
            one = entry.statement
            account = one.account
            counts[account] += 1
            if not isinstance(one, Statement):
                self.raises[account] += 1
            else:
                if one.kind == "post":
                    release = (one.mechanism, one.noise_multiplier, one.sample_rate, one.steps)
                    posted[account][release] += 1
                    if (account, one.dataset) not in paid:
                        paid[account, one.dataset] = entry.seq
                if one.declared_n > most[account] and one.noise_multiplier is not None:
                    most[account] = one.declared_n
                    self.declared[account] = (one.declared_n, entry.seq)
            if entry.seq in seen and account in seen[entry.seq]:
                self.hashes[account, entry.seq] = entry.hash
            yield entry


@dataclass(frozen=True, slots=True)
class PaidTwice:
    """A node's data set, by its name, that has posts in several accounts.

    Attributes:
        posts: (account, its first post of the data set there), by account.
    """

    node: str
    data_set: str
    posts: tuple[tuple[str, int], ...]

    def said(self) -> str:
        """What that means. No fault: agents of 0.1.0 let a data set move, and what an agent does
        not know of, as its ledger went back in time, it cannot refuse."""
        places = ", ".join(f"{account} (first in entry {seq})" for account, seq in self.posts)
        return (
            f"node {self.node}'s data set {self.data_set} has paid from "
            f"{counted(len(self.posts), 'account')}, {places}: if they are the same patients, they "
            "had two budgets, and what was released about them is all of these accounts' epsilons "
            "together. Ask the hospital (docs/budgets.md, Who pays)"
        )


def paid_twice(passed: Passing) -> list[PaidTwice]:
    """Data sets that have paid from several accounts of one node, by node and name."""
    found: defaultdict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    for (account, data_set), seq in sorted(passed.paid.items()):
        if data_set:
            found[account.partition("/")[0], data_set].append((account, seq))
    return [PaidTwice(*key, tuple(posts)) for key, posts in sorted(found.items()) if posts[1:]]


def faults(passed: Passing, keys: Mapping[str, bytes], *, whole: bool) -> list[Fault]:
    """Where entries are not what was seen and signed.

    Args:
        passed: all of them have passed; the first of its witnesses is the coordinator's.
        keys: node -> its raw ledger key.
        whole: the entries are of every account; else heads of other accounts are passed over, and
            roots, which are over all accounts, are not made.
    """
    found: list[Fault] = []
    for one in passed.witnesses:
        found += _heads(one, passed, keys, whole=whole)
        found += _checkpoints(one)
    found += _forks(passed.witnesses)
    kept, *nodes = passed.witnesses
    if whole:
        found += _roots(kept, passed)
        if kept.moved is None and any(one.checkpoints for one in nodes):
            text = "the roots that nodes hold cannot be made: the ledger does not say of what"
            found.append((CHECKPOINTS, 0, f"{text}; export it anew, of all data sets"))
    for one in nodes:
        found += _absent(kept, one)
    return found + _restorations(kept, nodes, passed, whole=whole)


def _further(each: Witnesses) -> Iterator[Head]:
    """Heads that a witness speaks of beside its own."""
    for one in each.restorations:
        yield from one.places
    for past in each.past:
        if isinstance(past.what, Head):
            yield past.what


def _restorations(
    kept: Witnesses, nodes: Sequence[Witnesses], passed: Passing, *, whole: bool
) -> list[Fault]:
    here, key, shown = kept.restorations, kept.coordinator_key, kept.checkpoints
    found = coordinator_faults(here, key, shown, passed.hashes, passed.counts, whole=whole)
    pasts = [
        NodePast(one.source, one.node_key, one.epochs, one.past, one.checkpoints) for one in nodes
    ]
    for one in pasts:
        found += node_faults(one, here, key, shown, passed.hashes, passed.counts, whole=whole)
    return found + forks(pasts)


def _roots(kept: Witnesses, passed: Passing) -> list[Fault]:
    """The first checkpoint whose root is not that of the entries; later ones would say the same.

    The coordinator has signed the root: which accounts it is said to be made of cannot be
    changed, nor any of their entries up to there.
    """
    leaves: dict[str, str] = {}
    reached: dict[str, int] = {}
    for one, moved in zip(kept.checkpoints, kept.moved or (), strict=False):
        found = [
            (account, seq, text)
            for account, seq in moved
            if (text := _misplaced(one.number, account, seq, reached.get(account, -1), passed))
        ]
        if found:
            return found
        for account, seq in moved:
            reached[account] = seq
            digest = passed.hashes[account, seq] if seq else GENESIS
            leaves[account] = Head(account, seq, digest).leaf()
        root = root_of(leaves.values())
        if root != one.root:
            text = (
                f"checkpoint {one.number} was made over other entries than these: the coordinator "
                f"has signed root {short(one.root)}, and the entries at the places that the export "
                f"tells ({counted(len(leaves), 'account')}) make {short(root)}. Entries were left "
                "out or changed, or `moved` of this checkpoint or of one before was. Export the "
                "ledger anew; where it stays, the hospitals' files (--heads) tell which account"
            )
            return [(CHECKPOINTS, one.number, text)]
    return []


def _misplaced(number: int, account: str, seq: int, before: int, passed: Passing) -> str:
    """Why an account cannot have stood at `seq` at checkpoint `number` when it stood at `before`
    last; empty if it can."""
    if seq <= before:
        return (
            f"checkpoint {number} says that this account has moved to entry {seq}, and by the "
            f"checkpoints before it stood at entry {before} already: `moved` was changed, or is "
            "another checkpoint's. Export the ledger anew; where it stays, ask the operator"
        )
    if seq and (account, seq) not in passed.hashes:
        return (
            f"the account had entry {seq}, and {here(passed.counts.get(account, 0))} here, below "
            f"checkpoint {number}. Export the ledger anew; where it stays, entries were taken away"
        )
    return ""


def here(count: int) -> str:
    """How many there are, before "here"."""
    return f"{count or 'none'} {'are' if count > 1 else 'is'}"


def _absent(kept: Witnesses, node: Witnesses) -> list[Fault]:
    """Checkpoints that a node has seen and the coordinator does not show, or signs otherwise."""
    knows = node.coordinator_key or node.checkpoints  # before its first session it knows none
    if kept.coordinator_key and knows and node.coordinator_key != kept.coordinator_key:
        text = (
            f"node {node.source} knows another coordinator's ledger key, "
            f"{short(node.coordinator_key.hex())}, than this one, "
            f"{short(kept.coordinator_key.hex())}"
        )
        return [(CHECKPOINTS, 0, text)]
    newest = max((one.number for one in node.checkpoints), default=0)
    shown = {one.number for one in kept.checkpoints}
    absent = next((one.number for one in node.checkpoints if one.number not in shown), 0)
    if not absent:
        return []
    text = f"node {node.source} has seen checkpoint {newest}, and {here(len(shown))} here"
    return [(CHECKPOINTS, absent, text)]


def _heads(
    seen: Witnesses,
    passed: Passing,
    keys: Mapping[str, bytes],
    *,
    whole: bool,
) -> list[Fault]:
    found: list[Fault] = []
    rewritten: set[str] = set()
    for one in seen.heads:
        head = one.head
        if head.account in rewritten:  # then every later head is another one, too
            continue
        node = head.account.partition("/")[0]
        count = passed.counts.get(head.account, 0)
        digest = passed.hashes.get((head.account, head.seq))
        if not count:
            if whole and head.seq:
                seen_by_node = counted(head.seq, "entry")
                text = f"node {node} has seen {seen_by_node} of this account, and none is here"
                found.append((head.account, head.seq, text))
            continue
        key = keys.get(node, b"")
        if seen.node_key and seen.node_key != key:
            text = (
                f"{seen.source}'s ledger key is {short(seen.node_key.hex())} in its file and "
                f"{short(key.hex())} here"
            )
            found.append((head.account, head.seq, text))
        elif not signed_by(key, head, one.signature):
            text = (
                f"the head that {seen.source} holds, {short(head.hash)}, is not signed by node "
                f"{node}, whose ledger key is {short(key.hex())} here"
            )
            found.append((head.account, head.seq, text))
        elif digest is None:
            text = f"node {node} has seen {counted(head.seq, 'entry')}, and {here(count)} here"
            found.append((head.account, head.seq, text))
        elif digest != head.hash:
            text = (
                f"node {node} has seen another entry {head.seq}, {short(head.hash)}, than the one "
                f"here, {short(digest)}: the history was rewritten, {_since(head, passed, key)}"
            )
            found.append((head.account, head.seq, text))
            rewritten.add(head.account)
    return found


def _since(head: Head, passed: Passing, key: bytes) -> str:
    """From where on, as far as heads tell that its node has signed: an entry that was changed and
    hashed anew looks like any other, and so do those after it."""
    below = sorted(
        (
            (one.head.seq, one)
            for each in passed.witnesses
            for one in each.heads
            if one.head.account == head.account and one.head.seq < head.seq
        ),
        key=itemgetter(0),
        reverse=True,
    )
    for seq, one in below:
        digest = passed.hashes.get((head.account, seq))
        if digest == one.head.hash and signed_by(key, one.head, one.signature):
            first = seq + 1
            said = f"and entry {seq} is as the node has signed it"
            break
    else:
        first, said = 1, "and no earlier head that the node has signed is here"
    between = f"one of the entries {first} to {head.seq}" if first < head.seq else f"entry {first}"
    return f"from {between} on, {said}"


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
                text = (
                    f"{source} and {seen.source} hold different ones, {short(digest)} and "
                    f"{short(one.hash)}: the history was forked"
                )
                found.append((CHECKPOINTS, one.number, text))
                break
    return found
