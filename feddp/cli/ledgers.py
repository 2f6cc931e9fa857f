"""Where a ledger comes from: the database, a coordinator, or an exported file; and its check."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddp.cli.output import as_dict
from privacy import ledger
from privacy.filters import Filter, make_filter
from protos.errors import Malformed

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
    """

    entries: list[ledger.Entry]
    accounts: list[dict[str, Any]]
    filters: Mapping[str, Filter]
    public_keys: Mapping[str, bytes]

    def export(self) -> dict[str, Any]:
        """What `budget ledger --json` prints and `budget verify FILE` takes."""
        return {
            "entries": [ledger.to_json(entry) for entry in self.entries],
            "accounts": self.accounts,
        }


def read(selection: "Selection", data_set: str) -> Ledger:
    """From the database beside --dir, running or stopped; through the coordinator otherwise."""
    installation = selection.installation()
    if installation is None:
        from feddp.client import Client

        with Client(selection.load_profile()) as client:
            return from_client(client, data_set)
    from coordinator.offline import ledger as read_database

    view = read_database(installation, data_set or None)
    accounts = [as_dict(account) for account in view.accounts]
    return Ledger(list(view.entries), accounts, view.filters, view.public_keys)


def from_client(client: "Client", data_set: str) -> Ledger:
    """Accounts first, so that entries written in between are not missed."""
    accounts = [as_dict(account) for account in client.accounts(data_set)]
    entries = [ledger.from_json(as_dict(entry)) for entry in client.ledger(data_set)]
    return _of(entries, accounts)


def from_file(path: Path) -> Ledger:
    """What `budget ledger --json` printed.

    Raises:
        Malformed: EXPORT_INVALID, or what is wrong with an entry.
    """
    try:
        content = json.loads(path.read_bytes())
        values, accounts = list(content["entries"]), list(content["accounts"])
        entries = [ledger.from_json(value) for value in values]
        return _of(entries, [dict(account) for account in accounts])
    except OSError as error:
        raise Malformed("FILE_UNREADABLE", f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Malformed(
            "EXPORT_INVALID", f"{path} is not what `feddp budget ledger --json` prints"
        ) from None


def _of(entries: list[ledger.Entry], accounts: list[dict[str, Any]]) -> Ledger:
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
    return Ledger(entries, accounts, filters, keys)


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


def check(found: Ledger) -> Check:
    """Verify every chain, and that none is shorter than its account says."""
    result = ledger.verify(found.entries, found.filters, found.public_keys)
    problems = [(one.account, one.seq, one.text) for one in result.problems]
    broken = {account for account, _, _ in problems}
    for account in found.accounts:
        name, entries = str(account["account"]), int(account["entries"])
        seq, digest = result.heads.get(name, (0, ledger.GENESIS))
        if name in broken:
            continue
        if seq < entries:
            problems.append((name, seq + 1, f"the account says {entries} entries, {seq} are here"))
        elif seq == entries and entries and digest != account["head_hash"]:
            problems.append((name, seq, "the account names another last entry than this one"))
    return Check(problems, len(result.unattested), result.counts)
