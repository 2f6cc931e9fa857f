"""Offline check of exported ledger chains: nothing but the entries, the limits and the keys."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from privacy.balance import Balance, Pending, conflict, cost_within, unknown
from privacy.entries import GENESIS, Entry, Statement, StatementText, is_signed
from privacy.filters import Filter
from privacy.limits import LimitChange, fault_of
from privacy.signature_pool import SignaturePool
from protos.errors import FeddpError


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one entry; `seq` is the position where it was found in its chain."""

    account: str
    seq: int
    text: str


class Place(NamedTuple):
    """Where an entry stands."""

    account: str
    seq: int


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Attributes:
        problems: the first bad entry of each account that has one. What follows it in the same
            account is not looked at: a chain is only as good as its first broken link.
        unattested: posts without the node's signature (booked because the outcome stayed
            unknown, or not signed yet). A charge needs no proof, so this is no failure.
        bare_reserves: reservations without the node's signature, of attempts whose post has one.
            The node signs both (docs/ledger.md says when one may be late), so this is no failure
            and worth a question.
        unsigned_reserves: how many reservations are without it, these among them. Each counts
            against the limit all the same, until a void that is signed.
        counts: entries by kind, and "open" reservations.
        heads: account -> (seq, hash) of its last entry. A chain that was cut short at its end is
            itself valid: compare the head with the node's own ledger.
        balances: account -> what its entries add up to.
    """

    problems: tuple[Problem, ...]
    unattested: tuple[Place, ...]
    counts: Mapping[str, int]
    heads: Mapping[str, tuple[int, str]]
    balances: Mapping[str, Balance]
    bare_reserves: tuple[Place, ...] = ()
    unsigned_reserves: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


IsSigned = Callable[[int, bytes, bytes, bytes], bool]
"""(place among the entries, public key, canonical bytes, signature) -> whether they belong."""


@dataclass(slots=True)
class _Chain:
    """One account while it is being read.

    Attributes:
        filter: with the limit that is in force after the entries so far.
        limits: how many limit entries there were.
        open: its open reservations, in their order, without their digests; `open_units` is their
            sum.
        ended: how each attempt that is over ended.
        bare: seq of the reservation of each attempt whose reservation is not signed.
        reserves: the statement and the text of each open attempt's reservation.
    """

    node: str
    filter: Filter
    limits: int = 0
    seq: int = 0
    hash: str = GENESIS
    posted_units: int = 0
    guarantee: bool = True
    open: dict[str, Pending] = field(default_factory=dict)
    open_units: int = 0
    ended: dict[str, str] = field(default_factory=dict)
    bare: dict[str, int] = field(default_factory=dict)
    reserves: dict[str, tuple[Statement, StatementText]] = field(default_factory=dict)

    def balance(self) -> Balance:
        """What the entries so far add up to."""
        held = tuple(
            one._replace(digest=self.reserves[one.attempt_id][1].digest())
            for one in self.open.values()
        )
        return Balance(self.filter, self.posted_units, held, guarantee=self.guarantee)


def verify(
    entries: Iterable[Entry],
    filters: Mapping[str, Filter],
    public_keys: Mapping[str, bytes],
    *,
    processes: int = 1,
) -> Verification:
    """Check chains, signatures, resolutions and limits of every account in `entries`.

    Args:
        entries: any number of accounts, mixed; each account's own in chain order. Not kept, and
            read twice where a signature is wrong: an iterable that can begin anew.
        filters: account -> its filter, at the limit from which its chain starts: the highest
            before the first limit entry.
        public_keys: node -> its raw Ed25519 ledger key, 32 bytes.
        processes: that check signatures beside this one; with 1, this one does. The answer is
            the same. As always with `multiprocessing`, the main module must be importable.
    """
    if processes == 1:
        return _fold(entries, filters, public_keys, lambda _, *signed: is_signed(*signed))
    with SignaturePool(processes) as pool:

        def later(place: int, public_key: bytes, canonical: bytes, signature: bytes) -> bool:
            pool.add(place, public_key, canonical, signature)
            return True

        found = _fold(entries, filters, public_keys, later)
        wrong = pool.wrong()
    if not wrong:
        return found
    # Rare, and then an account ends at its first wrong signature: once more, now knowing them.
    # What was not given to the pool stands behind another fault, and is not looked at again.
    return _fold(entries, filters, public_keys, lambda place, *_: place not in wrong)


def _fold(
    entries: Iterable[Entry],
    filters: Mapping[str, Filter],
    public_keys: Mapping[str, bytes],
    signed: IsSigned,
) -> Verification:
    chains: dict[str, _Chain] = {}
    bad: dict[str, Problem] = {}
    unattested: list[Place] = []
    bare_reserves: list[Place] = []
    counts = {"reserve": 0, "post": 0, "void": 0, "limit": 0}
    for place, entry in enumerate(entries):
        statement = entry.statement
        account = statement.account
        counts[statement.kind] += 1
        if account in bad:
            continue
        if account not in filters:
            bad[account] = Problem(account, entry.seq, "no budget is known for this account")
            continue
        chain = chains.get(account)
        if chain is None:
            chain = chains[account] = _Chain(statement.node, filters[account])
        if isinstance(statement, LimitChange):
            text = _take_limit(chain, place, entry, statement, public_keys, signed)
            if text:
                bad[account] = Problem(account, chain.seq + 1, text)
            continue
        written = _written(chain, statement)
        digest = written.entry_hash(statement.kind, entry.seq, entry.prev_hash)
        text = (
            _chain_fault(chain, entry, digest)
            or _signature_fault(place, entry, statement, written, public_keys, signed)
            or _book(chain, statement, written)
        )
        if text:
            bad[account] = Problem(account, chain.seq + 1, text)
            continue
        chain.seq, chain.hash = entry.seq, entry.hash
        if not entry.node_signature:
            if statement.kind == "post":
                unattested.append(Place(account, entry.seq))
            elif statement.kind == "reserve":
                chain.bare[statement.attempt_id] = entry.seq
        elif chain.bare and statement.kind == "post" and statement.attempt_id in chain.bare:
            bare_reserves.append(Place(account, chain.bare[statement.attempt_id]))
    counts["open"] = sum(len(chain.open) for chain in chains.values())
    return Verification(
        problems=tuple(bad.values()),
        unattested=tuple(unattested),
        counts=counts,
        heads={name: (chain.seq, chain.hash) for name, chain in chains.items()},
        balances={name: chain.balance() for name, chain in chains.items()},
        bare_reserves=tuple(bare_reserves),
        unsigned_reserves=sum(len(chain.bare) for chain in chains.values()),
    )


def _written(chain: _Chain, statement: Statement) -> StatementText:
    """The statement's text: that of its reservation, where it says the same."""
    reserve = chain.reserves.get(statement.attempt_id)
    if reserve is not None and statement.continues(reserve[0]):
        return reserve[1]
    return statement.text()


def _take_limit(
    chain: _Chain,
    place: int,
    entry: Entry,
    change: LimitChange,
    public_keys: Mapping[str, bytes],
    signed: IsSigned,
) -> str | None:
    """Go on with a raised limit, or say why that entry is none."""
    text = _chain_fault(chain, entry, change.entry_hash(entry.seq, entry.prev_hash))
    if text:
        return text
    key, signature = public_keys.get(change.node), entry.node_signature
    if not signature:
        return "the limit is raised without the node's signature"
    if key is None:
        return f"the entry is signed and no ledger key of node {change.node} is known"
    if not signed(place, key, change.canonical(), signature):
        return f"the signature is not node {change.node}'s over this statement"
    text = fault_of(change, chain.filter, chain.limits)
    if text:
        return text
    chain.filter = change.raised()
    chain.limits += 1
    chain.seq, chain.hash = entry.seq, entry.hash
    return None


def _chain_fault(chain: _Chain, entry: Entry, digest: str) -> str | None:
    """`digest`: what the entry's hash must be."""
    expected = chain.seq + 1
    if entry.seq != expected:
        return f"entry {expected} is missing, repeated or out of place: found {entry.seq}"
    if entry.prev_hash != chain.hash:
        return f"prev_hash is not the hash of entry {chain.seq}"
    if entry.hash != digest:
        return "the hash does not fit the entry: a field was changed"
    if entry.statement.node != chain.node:
        return f"the account belongs to node {chain.node}, the entry to {entry.statement.node}"
    return None


def _signature_fault(
    place: int,
    entry: Entry,
    statement: Statement,
    written: StatementText,
    public_keys: Mapping[str, bytes],
    signed: IsSigned,
) -> str | None:
    if not entry.node_signature:
        if statement.kind == "void":
            return f"attempt {statement.attempt_id} is void without the node's signature"
        return None
    public_key = public_keys.get(statement.node)
    if public_key is None:
        return f"the entry is signed and no ledger key of node {statement.node} is known"
    if not signed(place, public_key, written.canonical(statement.kind), entry.node_signature):
        return f"the signature is not node {statement.node}'s over this statement"
    return None


def _book(chain: _Chain, statement: Statement, written: StatementText) -> str | None:
    """Apply the statement to the chain's balance; in a chain even a repetition is a fault."""
    attempt_id = statement.attempt_id
    if attempt_id in chain.ended:
        return f"attempt {attempt_id} had already ended in {chain.ended[attempt_id]}"
    own = chain.open.get(attempt_id)
    if statement.kind == "reserve":
        if own is not None:
            return f"attempt {attempt_id} is reserved twice"
        try:
            units = cost_within(chain.filter, chain.posted_units + chain.open_units, statement)
        except FeddpError as error:
            return error.message
        chain.open[attempt_id] = Pending(attempt_id, units, "", statement.mechanism != "none")
        chain.reserves[attempt_id] = statement, written
        chain.open_units += units
        return None
    if own is None:
        return unknown(attempt_id).message
    if chain.reserves[attempt_id][1] is not written:
        return conflict(attempt_id).message
    del chain.open[attempt_id], chain.reserves[attempt_id]
    chain.open_units -= own.units
    chain.ended[attempt_id] = statement.kind
    if statement.kind == "post":
        chain.posted_units += own.units
        chain.guarantee = chain.guarantee and own.accounted
    return None
