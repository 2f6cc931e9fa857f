"""What an account may not say of itself, whatever its entries are."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from feddp.cli.output import quoted
from feddp.cli.verify.derived import GUARANTEE_FIELD, SHOWN_ONLY
from feddp.cli.verify.witnesses import Fault, Witnesses
from privacy.canonical import PUBLIC_KEY_BYTES, is_hex
from privacy.deltas import bound_said, is_too_large
from privacy.filters import Filter, make_filter
from protos.errors import FeddpError, Malformed
from protos.feddp.v1 import budgets_pb2

_is_name: Final = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+").fullmatch
"""Of the characters that names have: none begins a line of its own, or looks like another one."""

KNOWN_FIELDS: Final = frozenset(
    field.name for field in budgets_pb2.BudgetAccount.DESCRIPTOR.fields
) - {GUARANTEE_FIELD}


def ledger_key(account: Mapping[str, Any]) -> bytes | None:
    """The node's raw ledger key as an account's row names it, empty before the node has joined;
    None where it names none."""
    key = account["ledger_public_key"]
    if not is_hex(key) or len(key) not in (0, 2 * PUBLIC_KEY_BYTES):
        return None
    return bytes.fromhex(key)


def row_faults(accounts: Sequence[Mapping[str, Any]], kept: Witnesses) -> list[Fault]:
    """Where the rows do not say whose accounts they are, as no entry of theirs need say it.

    Args:
        accounts: BudgetAccount as JSON has it.
        kept: what the coordinator shows; `moved` names accounts that have no entry as well.
    """
    found: list[Fault] = []
    keys: dict[str, tuple[str, bytes]] = {}
    for account in accounts:
        name = str(account["account"])
        node = name.partition("/")[0]
        if not _is_name(name):
            text = "an account is named NODE/NAME: export the ledger anew"
            found.append((name, 0, text))
        elif account["node"] != node:
            text = f"the account says node {quoted(account['node'])}, and it is node {node}'s"
            found.append((name, 0, f"{text} by its name: export the ledger anew"))
        key = ledger_key(account)
        if key is None:
            text = (
                f"the account says ledger_public_key {quoted(account['ledger_public_key'])}, and a "
                f"key is {2 * PUBLIC_KEY_BYTES} lower-case hexadecimal digits: export it anew"
            )
            found.append((name, 0, text))
            continue
        first, known = keys.setdefault(node, (name, key))
        if known != key:
            text = (
                f"the account says ledger_public_key {quoted(key.hex())}, and account {first} of "
                f"the same node {quoted(known.hex())}: a node has one for ever. Compare both with "
                "the node's own file, `feddp agent ledger heads --json`"
            )
            found.append((name, 0, text))
    return found + _without_row({str(one["account"]) for one in accounts}, kept)


def _without_row(names: set[str], kept: Witnesses) -> list[Fault]:
    """Accounts that a checkpoint was made over and that have no row: taken out, or renamed."""
    missing: dict[str, int] = {}
    for one, moved in zip(kept.checkpoints, kept.moved or (), strict=False):
        for account, _ in moved:
            if account not in names:
                missing.setdefault(account, one.number)
    return [
        (
            account,
            0,
            f"checkpoint {number} was made over this account, and it is not among the accounts "
            "here: it was taken out, or has another name. Export the ledger anew",
        )
        for account, number in missing.items()
    ]


def account_fault(
    account: Mapping[str, Any], declared: Mapping[str, tuple[int, int]]
) -> tuple[int, str] | None:
    """The first such fault and the entry that shows it, 0 for none of them.

    Args:
        account: BudgetAccount as JSON has it; its filter can be made.
        declared: account -> the most patients that an entry with noise declares, and its seq.
    """
    for name in account:
        if name not in KNOWN_FIELDS | SHOWN_ONLY:
            return 0, (
                f"the account has a field {quoted(name)}, which no ledger of this version has, so "
                "that nothing here proves it; take no figure from it. Export the ledger anew; if a "
                "newer coordinator wrote the field, verify with that version of feddp"
            )
    declared_n, seq = declared.get(str(account["account"]), (0, 0))
    delta = account["delta"]
    if declared_n and is_too_large(delta, declared_n):
        return seq, (
            f"the account's delta is {delta:g}, and this entry declares {declared_n} patients, for "
            f"whom delta must be {bound_said(declared_n)}: at 1/n or more, the records of one of n "
            "might be given away whole. If the hospital's policy says this delta too, no limit of "
            "the account is a guarantee, and its data steward opens a new one"
        )
    return None


def first_filter(account: Mapping[str, Any]) -> Filter:
    """An account's filter before its first entry.

    Raises:
        Malformed: ACCOUNT_INVALID, no account can count as it says.
    """
    names = ("filter", "rdp_order", "epsilon_limit_highest", "delta")
    kind, order, limit, delta = (account[name] for name in names)
    try:
        return make_filter(kind, order, limit, delta)
    except FeddpError as error:
        terms = ", ".join(f"{name} {quoted(account[name])}" for name in names)
        raise Malformed(
            "ACCOUNT_INVALID",
            f"account {quoted(account['account'])} says {terms}, and no account can count so: "
            f"{error.message} Compare the four with `feddp agent status` at the hospital, and "
            "export the ledger anew",
        ) from None
