"""Offline check of exported ledger chains: nothing but the entries, the limits and the keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from privacy.balance import Balance
from privacy.entries import GENESIS, Entry, Statement, entry_hash, signature_ok
from privacy.filters import Filter
from protos.errors import FeddpError


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one entry; `seq` is the position where it was found in its chain."""

    account: str
    seq: int
    text: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Attributes:
        problems: the first bad entry of each account that has one. What follows it in the same
            account is not looked at: a chain is only as good as its first broken link.
        unattested: posts without the node's signature (booked because the outcome stayed
            unknown, or not signed yet). A charge needs no proof, so this is no failure.
        counts: entries by kind, and "open" reservations.
        heads: account -> (seq, hash) of its last entry. A chain that was cut short at its end is
            itself valid: compare the head with the node's own ledger.
        balances: account -> what its entries add up to.
    """

    problems: tuple[Problem, ...]
    unattested: tuple[Problem, ...]
    counts: Mapping[str, int]
    heads: Mapping[str, tuple[int, str]]
    balances: Mapping[str, Balance]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(slots=True)
class _Chain:
    """One account while it is being read."""

    node: str
    balance: Balance
    seq: int = 0
    hash: str = GENESIS
    ended: dict[str, str] = field(default_factory=dict)


def verify(
    entries: Sequence[Entry],
    filters: Mapping[str, Filter],
    public_keys: Mapping[str, bytes],
) -> Verification:
    """Check chains, signatures, resolutions and limits of every account in `entries`.

    Args:
        entries: any number of accounts, mixed; each account's own in chain order.
        filters: account -> the filter that its budget was created with.
        public_keys: node -> its raw Ed25519 ledger key, 32 bytes.
    """
    chains: dict[str, _Chain] = {}
    bad: dict[str, Problem] = {}
    unattested: list[Problem] = []
    counts = {"reserve": 0, "post": 0, "void": 0}
    for entry in entries:
        statement = entry.statement
        account = statement.account
        counts[statement.kind] += 1
        if account in bad:
            continue
        if account not in filters:
            bad[account] = Problem(account, entry.seq, "no budget is known for this account")
            continue
        chain = chains.setdefault(account, _Chain(statement.node, Balance(filters[account])))
        text = (
            _chain_fault(chain, entry)
            or _signature_fault(entry, public_keys)
            or _book(chain, statement)
        )
        if text:
            bad[account] = Problem(account, chain.seq + 1, text)
            continue
        chain.seq, chain.hash = entry.seq, entry.hash
        if statement.kind == "post" and not entry.node_signature:
            text = f"attempt {statement.attempt_id} is posted without the node's signature"
            unattested.append(Problem(account, entry.seq, text))
    counts["open"] = sum(len(chain.balance.pending) for chain in chains.values())
    return Verification(
        problems=tuple(bad.values()),
        unattested=tuple(unattested),
        counts=counts,
        heads={name: (chain.seq, chain.hash) for name, chain in chains.items()},
        balances={name: chain.balance for name, chain in chains.items()},
    )


def _chain_fault(chain: _Chain, entry: Entry) -> str | None:
    expected = chain.seq + 1
    if entry.seq != expected:
        return f"entry {expected} is missing, repeated or out of place: found {entry.seq}"
    if entry.prev_hash != chain.hash:
        return f"prev_hash is not the hash of entry {chain.seq}"
    if entry.hash != entry_hash(entry.seq, entry.prev_hash, entry.statement):
        return "the hash does not fit the entry: a field was changed"
    if entry.statement.node != chain.node:
        return f"the account belongs to node {chain.node}, the entry to {entry.statement.node}"
    return None


def _signature_fault(entry: Entry, public_keys: Mapping[str, bytes]) -> str | None:
    statement = entry.statement
    if not entry.node_signature:
        if statement.kind == "void":
            return f"attempt {statement.attempt_id} is void without the node's signature"
        return None
    public_key = public_keys.get(statement.node)
    if public_key is None:
        return f"the entry is signed and no ledger key of node {statement.node} is known"
    if not signature_ok(public_key, statement, entry.node_signature):
        return f"the signature is not node {statement.node}'s over this statement"
    return None


def _book(chain: _Chain, statement: Statement) -> str | None:
    """Apply the statement to the chain's balance; in a chain even a repetition is a fault."""
    attempt_id = statement.attempt_id
    if attempt_id in chain.ended:
        return f"attempt {attempt_id} had already ended in {chain.ended[attempt_id]}"
    is_open = any(one.attempt_id == attempt_id for one in chain.balance.pending)
    if statement.kind == "reserve" and is_open:
        return f"attempt {attempt_id} is reserved twice"
    try:
        balance = chain.balance.apply(statement)
    except FeddpError as error:
        return error.message
    if statement.kind != "reserve":
        chain.ended[attempt_id] = statement.kind
    # `ended` holds the history; sets that grow with it would be copied at every entry.
    chain.balance = replace(balance, posted=frozenset(), voided=frozenset())
    return None
