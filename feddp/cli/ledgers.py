"""Where a ledger comes from: the database or a coordinator (a file: `exports`); and its check."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from feddp.cli.output import as_dict, counted
from feddp.cli.verify.account_faults import account_fault, first_filter, ledger_key, row_faults
from feddp.cli.verify.derived import GUARANTEE_FIELD, exported, figure_fault, filter_said
from feddp.cli.verify.history import PaidTwice, Passing, faults, here, paid_twice
from feddp.cli.verify.node_files import Behind, NodeFile, backing, file_faults
from feddp.cli.verify.witnesses import Witnesses, from_message, of_accounts, place_said
from privacy import ledger
from privacy.filters import Filter
from privacy.heads import short
from privacy.wire import entry_fields
from protos.errors import FeddpError, Malformed

if TYPE_CHECKING:
    from feddp.client import Client
    from feddp.profile import Selection
    from protos.feddp.v1 import budgets_pb2


@dataclass(frozen=True, slots=True)
class Ledger:
    """Entries and accounts, wherever they came from.

    Attributes:
        entries: of any number of accounts, each account's in chain order. To be gone through any
            number of times, and not held in memory where they come from a file.
        entries_about: how many they are; not exact where they come from a file.
        accounts: BudgetAccount as JSON has it; `ledger_public_key` is hexadecimal.
        filters: account -> its filter.
        public_keys: node -> its raw Ed25519 ledger key.
        witnesses: checkpoints, and heads that nodes have countersigned.
    """

    entries: Iterable[ledger.Entry]
    entries_about: int
    accounts: list[dict[str, Any]]
    filters: Mapping[str, Filter]
    public_keys: Mapping[str, bytes]
    witnesses: Witnesses = field(default_factory=lambda: Witnesses("the coordinator"))

    def export(self) -> dict[str, Any]:
        """What `budget ledger --json` prints and `budget verify FILE` takes.

        The entries come last: who reads them needs the accounts, and reads the file once.
        """
        return {
            "accounts": [exported(one) for one in self.accounts],
            "witnesses": self.witnesses.export(),
            "entries": [ledger.to_json(entry) for entry in self.entries],
        }


def read(selection: "Selection", data_set: str) -> Ledger:
    """From the database beside --dir, running or stopped; through the coordinator otherwise.

    Raises:
        Tampered: an entry is none that a coordinator wrote.
    """
    installation = selection.installation()
    if installation is None:
        from feddp.client import Client

        with Client(selection.load_profile()) as client:
            return from_client(client, data_set)
    from coordinator.offline import ledger as read_database
    from coordinator.offline import stored_entries

    try:
        view = read_database(installation, data_set or None)
        if not all(isinstance(entry.node_signature, bytes) for entry in view.entries):
            raise Malformed("LEDGER_DAMAGED", "the database holds a signature that is not bytes")
    except (FeddpError, ValueError, TypeError) as error:
        if isinstance(error, FeddpError) and not isinstance(error, Malformed):
            raise
        # Which row it was is told by the same parser that reads an export.
        for number, value in enumerate(stored_entries(installation), start=1):
            entry_of(value, number)
        raise
    accounts = [_row_of(account) for account in view.accounts]
    entries = list(view.entries)
    witnesses = _witnesses(view.witnesses, accounts, entries, data_set)
    return Ledger(entries, len(entries), accounts, view.filters, view.public_keys, witnesses)


def from_client(client: "Client", data_set: str) -> Ledger:
    """The ledger as of the first answer, though a running job books on between the answers.

    Raises:
        Tampered: the coordinator holds an entry that it cannot have written.
    """
    # First, so that no checkpoint is over what is booked after the accounts were read.
    kept = client.checkpoints()
    accounts = [_row_of(account) for account in client.accounts(data_set)]
    values = [entry_fields(entry) for entry in client.ledger(data_set)]
    before = {account["account"]: account["entries"] for account in accounts}
    grown = {
        one.account: before.get(one.account, 0)
        for one in client.accounts(data_set)
        if one.entries > before.get(one.account, 0)
    }
    # An account that did not grow is compared whole: more entries than it says are a fault.
    then = [one for one in values if one["seq"] <= grown.get(one["account"], one["seq"])]
    entries = [entry_of(value, number) for number, value in enumerate(then, start=1)]
    witnesses = _witnesses(kept, accounts, entries, data_set)
    return ledger_of(entries, len(entries), accounts, witnesses)


def _row_of(account: "budgets_pb2.BudgetAccount") -> dict[str, Any]:
    """An account as JSON has it, but for its guarantee: that is taken from its entries alone."""
    return {name: value for name, value in as_dict(account).items() if name != GUARANTEE_FIELD}


def _witnesses(
    message: "budgets_pb2.ListCheckpointsResponse",
    accounts: list[dict[str, Any]],
    entries: list[ledger.Entry],
    data_set: str,
) -> Witnesses:
    """Those of all accounts; of one data set's, only their heads: no root can be made of them."""
    names = [str(account["account"]) for account in accounts]
    found = from_message(message, names, entries)
    return of_accounts(found, names) if data_set else found


def entry_of(value: dict[str, Any], number: int) -> ledger.Entry:
    """The entry that was written as `value`, the ledger's `number`-th.

    Raises:
        Tampered: it is none.
    """
    try:
        return ledger.from_json(value)
    except (FeddpError, ValueError, TypeError, KeyError) as error:
        raise Tampered(*_named(value, number), said(error)) from None


class Tampered(FeddpError):
    """The first thing in a ledger that no coordinator wrote: (account, seq, text)."""

    def __init__(self, account: str, seq: int, text: str) -> None:
        super().__init__("LEDGER_DAMAGED", f"{place_said(account, seq)}: {text}")
        self.problem = (account, seq, text)


def _named(fields: dict[str, Any], number: int) -> tuple[str, int]:
    """The account and seq that an entry claims, or its place in the file."""
    seq = fields.get("seq")
    return str(fields.get("account", "(unknown)"))[:127], seq if type(seq) is int else number


def said(error: Exception) -> str:
    """An error in words for people; nothing of its own text where it is not ours."""
    if isinstance(error, FeddpError):
        return error.message
    if isinstance(error, KeyError):
        return "a field is missing"
    return "a field is of another kind than it must be"


def ledger_of(
    entries: Iterable[ledger.Entry],
    entries_about: int,
    accounts: list[dict[str, Any]],
    witnesses: Witnesses,
) -> Ledger:
    """A ledger whose accounts are as JSON has them."""
    filters = {str(account["account"]): first_filter(account) for account in accounts}
    keys = {
        str(account["account"]).partition("/")[0]: key
        for account in accounts
        if (key := ledger_key(account))
    }
    return Ledger(entries, entries_about, accounts, filters, keys, witnesses)


MANY_ENTRIES: Final = 20_000
"""From so many on, starting processes for the signatures (0.3 s) pays."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a verification found.

    Attributes:
        problems: (account, seq, text), the first of each account.
        unattested: posts without the node's signature; a charge needs no proof.
        counts: entries by kind, and "open" reservations.
        entries: how many there are.
        bare_reserves: reservations without it, of attempts whose post has one.
        unsigned_reserves: reservations without it, these among them.
        behind: account -> how far nodes' files stand behind it; empty where something is wrong.
        paid_twice: data sets that have paid from several accounts of their node.
    """

    problems: list[tuple[str, int, str]]
    unattested: int
    counts: Mapping[str, int]
    entries: int = 0
    bare_reserves: int = 0
    behind: Mapping[str, Behind] = field(default_factory=dict)
    paid_twice: Sequence[PaidTwice] = ()
    unsigned_reserves: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check(found: Ledger, nodes: Sequence[NodeFile] = (), *, whole: bool = True) -> Check:
    """Verify every chain, that each account says of itself what its chain adds up to, and that it
    is all that the coordinator's nodes have countersigned.

    Args:
        nodes: what nodes hold themselves, of files.
        whole: the ledger is all of it, not that of one data set.
    """
    cores = os.cpu_count() or 1
    witnesses = [found.witnesses, *(one.seen for one in nodes)]
    passing = Passing(found.entries, witnesses)
    result = ledger.verify(
        passing,
        found.filters,
        found.public_keys,
        processes=cores if found.entries_about >= MANY_ENTRIES else 1,
    )
    problems = row_faults(found.accounts, found.witnesses)
    problems += [
        (str(account["account"]), *fault)
        for account in found.accounts
        if (fault := account_fault(account, passing.declared))
    ]
    problems += [(one.account, one.seq, one.text) for one in result.problems]
    # Before sums: an account with another limit than its node's has other sums as well.
    problems += file_faults(nodes, found.accounts, found.public_keys, passing.raises, whole=whole)
    broken = {one.account for one in result.problems}
    seen: set[str] = set()
    for account in found.accounts:
        name = str(account["account"])
        if name in seen:
            problems.append((name, 0, "the account is listed twice"))
        elif name not in broken:
            seq, digest = result.heads.get(name, (0, ledger.GENESIS))
            bad_seq = seq + 1 if seq < account["entries"] else seq
            problems += [
                (name, bad_seq, text)
                for text in _differences(account, result, found.filters[name], seq, digest)
                or [figure_fault(account, result.balances.get(name), passing.posted.get(name, {}))]
                if text
            ]
        seen.add(name)
    problems += faults(passing, found.public_keys, whole=whole)
    return Check(
        problems,
        len(result.unattested),
        result.counts,
        sum(passing.counts.values()),
        len(result.bare_reserves),
        {} if problems else backing(found.accounts, found.witnesses, nodes, found.public_keys),
        paid_twice(passing),
        result.unsigned_reserves,
    )


def _differences(
    account: dict[str, Any], result: ledger.Verification, first: Filter, seq: int, digest: str
) -> list[str]:
    """Where an account's own figures are not those of its chain; the first is enough.

    Args:
        first: the account's filter before its first entry.
    """
    balance = result.balances.get(str(account["account"]))
    posted = balance.posted_units if balance else 0
    guarantee = balance.guarantee if balance else True
    if seq != account["entries"]:
        return [f"the account says {counted(account['entries'], 'entry')}, {here(seq)} here"]
    if digest != account["head_hash"]:
        return [
            f"the account names {short(account['head_hash'])} as its last entry's hash, and this "
            f"one's is {short(digest)}"
        ]
    if posted != account["posted_units"]:
        return [
            f"the account says {account['posted_units']} posted units, its entries {posted} by "
            f"its filter ({filter_said(balance.filter if balance else first)})"
        ]
    if guarantee != account["guarantee"]:
        return [
            f"the account says guarantee {account['guarantee']}, and its entries {guarantee}: it "
            "is lost for ever with the first post of mechanism none"
        ]
    shown = (balance.filter if balance else first).epsilon_limit
    if not account["epsilon_limit"] <= shown:  # nor is it NaN
        return [
            f"the account says a limit of {account['epsilon_limit']:g}, and its entries raise it to"
            f" {shown:g} at most"
        ]
    return []
