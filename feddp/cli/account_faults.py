"""What an account may not say of itself, whatever its entries are."""

from collections.abc import Mapping
from typing import Any, Final

from feddp.cli.derived import SHOWN_ONLY
from feddp.cli.output import quoted
from privacy.deltas import bound_said, is_too_large
from privacy.filters import Filter, make_filter
from protos.errors import FeddpError, Malformed
from protos.feddp.v1 import budgets_pb2

KNOWN_FIELDS: Final = frozenset(field.name for field in budgets_pb2.BudgetAccount.DESCRIPTOR.fields)


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
