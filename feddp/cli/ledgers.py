"""Where a ledger comes from: the database, a coordinator, or an exported file; and its check."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from feddp.cli.output import as_dict
from feddp.cli.witnesses import Witnesses, faults, from_json, from_message
from privacy import ledger
from privacy.filters import Filter, make_filter
from privacy.wire import entry_fields
from protos.errors import FeddpError, Malformed

if TYPE_CHECKING:
    from feddp.client import Client
    from feddp.profile import Selection


@dataclass(frozen=True, slots=True)
class Ledger:
    """Entries and accounts, wherever they came from.

    Attributes:
        entries: of any number of accounts, each account's in chain order.
        accounts: BudgetAccount as JSON has it; `ledger_public_key` is hexadecimal.
        filters: account -> its filter.
        public_keys: node -> its raw Ed25519 ledger key.
        witnesses: checkpoints, and heads that nodes have countersigned.
    """

    entries: list[ledger.Entry]
    accounts: list[dict[str, Any]]
    filters: Mapping[str, Filter]
    public_keys: Mapping[str, bytes]
    witnesses: Witnesses = field(default_factory=lambda: Witnesses("the coordinator"))

    def export(self) -> dict[str, Any]:
        """What `budget ledger --json` prints and `budget verify FILE` takes."""
        return {
            "entries": [ledger.to_json(entry) for entry in self.entries],
            "accounts": self.accounts,
            "witnesses": self.witnesses.export(),
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
        _entries(stored_entries(installation))
        raise
    accounts = [as_dict(account) for account in view.accounts]
    witnesses = from_message(view.witnesses)
    return Ledger(list(view.entries), accounts, view.filters, view.public_keys, witnesses)


def from_client(client: "Client", data_set: str) -> Ledger:
    """The ledger as of the first answer, though a running job books on between the answers.

    Raises:
        Tampered: the coordinator holds an entry that it cannot have written.
    """
    accounts = [as_dict(account) for account in client.accounts(data_set)]
    witnesses = from_message(client.checkpoints())
    values = [entry_fields(entry) for entry in client.ledger(data_set)]
    before = {account["account"]: account["entries"] for account in accounts}
    grown = {
        one.account: before.get(one.account, 0)
        for one in client.accounts(data_set)
        if one.entries > before.get(one.account, 0)
    }
    # An account that did not grow is compared whole: more entries than it says are a fault.
    kept = [one for one in values if one["seq"] <= grown.get(one["account"], one["seq"])]
    return _of(_entries(kept), accounts, witnesses)


def from_file(path: Path) -> Ledger:
    """What `budget ledger --json` printed.

    Raises:
        Malformed: FILE_UNREADABLE, EXPORT_INVALID.
        Tampered: an entry or an account is not one that was ever printed.
    """
    try:
        content = json.loads(path.read_bytes())
        values, accounts = list(content["entries"]), list(content["accounts"])
    except OSError as error:
        raise Malformed("FILE_UNREADABLE", f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Malformed(
            "EXPORT_INVALID", f"{path} is not what `feddp budget ledger --json` prints"
        ) from None
    if not all(isinstance(value, dict) for value in (*values, *accounts)):
        raise Malformed("EXPORT_INVALID", f"{path} is not what `feddp budget ledger --json` prints")
    entries = _entries(values)
    try:
        # An export of 0.1.0 has none.
        kept = content.get("witnesses", Witnesses("").export())
        return _checked_accounts(_of(entries, accounts, from_json(kept, "the coordinator")))
    except (FeddpError, ValueError, TypeError, KeyError) as error:
        raise Tampered("(accounts)", 0, f"an account is not one: {_said(error)}") from None


def _entries(values: Iterable[dict[str, Any]]) -> list[ledger.Entry]:
    found = []
    for number, value in enumerate(values, start=1):
        try:
            found.append(ledger.from_json(value))
        except (FeddpError, ValueError, TypeError, KeyError) as error:
            raise Tampered(*_named(value, number), _said(error)) from None
    return found


def _checked_accounts(found: Ledger) -> Ledger:
    for account in found.accounts:
        for name, kind in _ACCOUNT_FIELDS.items():
            if type(account[name]) is not kind:
                raise TypeError(name)
    return found


_ACCOUNT_FIELDS = {"entries": int, "posted_units": int, "guarantee": bool, "head_hash": str}


class Tampered(FeddpError):
    """The first thing in a ledger that no coordinator wrote: (account, seq, text)."""

    def __init__(self, account: str, seq: int, text: str) -> None:
        super().__init__("LEDGER_DAMAGED", f"account {account}, entry {seq}: {text}")
        self.problem = (account, seq, text)


def _named(fields: dict[str, Any], number: int) -> tuple[str, int]:
    """The account and seq that an entry claims, or its place in the file."""
    seq = fields.get("seq")
    return str(fields.get("account", "(unknown)"))[:127], seq if type(seq) is int else number


def _said(error: Exception) -> str:
    return error.message if isinstance(error, FeddpError) else f"{type(error).__name__}"


def _of(
    entries: list[ledger.Entry], accounts: list[dict[str, Any]], witnesses: Witnesses
) -> Ledger:
    filters = {
        str(account["account"]): make_filter(
            account["filter"],
            account["rdp_order"],
            account["epsilon_limit_highest"],
            account["delta"],
        )
        for account in accounts
    }
    keys = {
        str(account["node"]): bytes.fromhex(account["ledger_public_key"])
        for account in accounts
        if account["ledger_public_key"]
    }
    return Ledger(entries, accounts, filters, keys, witnesses)


MANY_ENTRIES: Final = 20_000
"""From so many on, starting processes for the signatures (0.3 s) pays."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a verification found.

    Attributes:
        problems: (account, seq, text), the first of each account.
        unattested: posts without the node's signature; a charge needs no proof.
        counts: entries by kind, and "open" reservations.
    """

    problems: list[tuple[str, int, str]]
    unattested: int
    counts: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check(found: Ledger, nodes: Sequence[Witnesses] = (), *, whole: bool = True) -> Check:
    """Verify every chain, that each account says of itself what its chain adds up to, and that it
    is all that the coordinator's nodes have countersigned.

    Args:
        nodes: what nodes hold themselves.
        whole: the ledger is all of it, not that of one data set.
    """
    cores = os.cpu_count() or 1
    result = ledger.verify(
        found.entries,
        found.filters,
        found.public_keys,
        processes=cores if len(found.entries) >= MANY_ENTRIES else 1,
    )
    problems = [(one.account, one.seq, one.text) for one in result.problems]
    broken = {account for account, _, _ in problems}
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
            ]
        seen.add(name)
    witnesses = [found.witnesses, *nodes]
    problems += faults(found.entries, found.public_keys, witnesses, whole=whole)
    return Check(problems, len(result.unattested), result.counts)


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
        return [f"the account says {account['entries']} entries, {seq} are here"]
    if digest != account["head_hash"]:
        return ["the account names another last entry than this one"]
    if posted != account["posted_units"]:
        return [f"the account says {account['posted_units']} posted units, its entries {posted}"]
    if guarantee != account["guarantee"]:
        return ["the account says otherwise than its entries whether it has a guarantee"]
    shown = (balance.filter if balance else first).epsilon_limit
    if account["epsilon_limit"] > shown:
        return [
            f"the account says a limit of {account['epsilon_limit']:g}, and its entries raise it to"
            f" {shown:g} at most"
        ]
    return []
