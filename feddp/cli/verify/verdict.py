"""What `feddp budget verify` says of a check to people."""

from collections.abc import Sequence
from typing import Final

from feddp.cli import output
from feddp.cli.ledgers import Check, Ledger
from feddp.cli.output import counted
from feddp.cli.verify.node_files import NodeFile, nodes_said
from feddp.cli.verify.witnesses import place_said

WHAT_TO_DO: Final = (
    "Export it anew and verify again: a file can be damaged, or older than a node's. What stays BAD"
    " goes to the operator and to the hospital that the account's name begins with"
)


def roots_checked(found: Ledger, result: Check, *, whole: bool) -> bool:
    """Whether the checkpoints' roots were made from the entries: there are some, of known places.

    Args:
        whole: the ledger is all of it, not that of one data set.
    """
    return whole and bool(found.witnesses.checkpoints) and found.witnesses.moved is not None


def print_check(found: Ledger, result: Check, files: Sequence[NodeFile], *, whole: bool) -> None:
    """Everything that was checked, what nobody can check, and what is wrong."""
    if result.counts:  # else it could not be read, and nothing was checked
        _print_checked(found, result, files, whole=whole)
    for account, seq, text in result.problems:
        output.line(f"BAD: {place_said(account, seq)}: {text}")
    output.line(_verdict(files) if result.ok else f"the ledger does NOT verify. {WHAT_TO_DO}")


def _verdict(files: Sequence[NodeFile]) -> str:
    """That it verifies, and what that leaves open where no node's file was there."""
    if files:
        return "the ledger verifies"
    return (
        "the ledger verifies by itself. No node's file was given (--heads): that this is the "
        "ledger which the nodes have seen, and by which keys they sign, is the coordinator's word"
    )


def _print_checked(found: Ledger, result: Check, files: Sequence[NodeFile], *, whole: bool) -> None:
    counts = ", ".join(f"{number} {kind}" for kind, number in result.counts.items())
    entries, accounts = counted(result.entries, "entry"), counted(len(found.accounts), "account")
    output.line(f"{entries} of {accounts}: {counts}")
    output.line("checked: hash chain, node signatures, one end per attempt, never above the limit")
    output.line("in force, each account's figures; two people's and the node's signatures on each")
    output.line("raise. An account's filter, order, delta and first limit are the coordinator's")
    output.line("word, unless its node's file is here: compare them with the hospital's policy")
    nodes = {str(one["node"]) for one in found.accounts}
    beside = f", beside {nodes_said(files, nodes)}" if files else ""
    output.line(f"and {found.witnesses.said()}{beside}")
    for name, one in result.behind.items():
        output.line(f"behind {name}: {one.said(_entries_of(found, name))}")
    for restoration in found.witnesses.restorations:
        output.line(restoration.said())
    for paid in result.paid_twice:
        output.line(f"NOTE: {paid.said()}")
    if not found.witnesses.heads and result.entries:
        output.line(f"NOTE: {_uncountersigned(files)}")
    if result.entries and not roots_checked(found, result, whole=whole):
        output.line(f"NOTE: {_unchecked(found, whole=whole)}")
    if result.unattested:
        posts = _bare(result.unattested, "post")
        output.line(f"{posts} (no fault)")
    if result.unsigned_reserves:
        unsigned = _bare(result.unsigned_reserves, "reservation")
        output.line(f"{unsigned}; each counts until a signed void (no fault)")
    if result.bare_reserves:
        reserves = _bare(result.bare_reserves, "reservation")
        whose = "whose post does" if result.bare_reserves == 1 else "whose posts do"
        output.line(f"of these {reserves}, {whose} (no fault; ask why)")


def _bare(count: int, what: str) -> str:
    rest = "carries no signature of its node" if count == 1 else "carry no signature of their nodes"
    return f"{counted(count, what)} {rest}"


def _uncountersigned(files: Sequence[NodeFile]) -> str:
    """What it means that the coordinator shows no countersignature: with files, and without."""
    held = {one.head.account for file in files for one in file.seen.heads}
    if held:
        return (
            "the ledger itself holds no node's countersignature. The heads that are in the files "
            f"given, of {counted(len(held), 'account')}, are signed and were compared; ask the "
            "operator why the coordinator lacks them"
        )
    if files:
        return (
            "no node has countersigned any of this: neither the ledger nor the files given hold a "
            "head. Print the files anew once the nodes have had a session"
        )
    return "no node has countersigned any of this; ask the hospitals for --heads"


def _entries_of(found: Ledger, name: str) -> int:
    return next((int(a["entries"]) for a in found.accounts if a["account"] == name), 0)


def _unchecked(found: Ledger, *, whole: bool) -> str:
    """Why no root was made from the entries."""
    if not found.witnesses.checkpoints:
        return "there is no checkpoint: that no account was left out is not shown"
    if not whole:
        return "roots were not checked: they are over all accounts, and these are one data set's"
    return (
        "roots were NOT checked: the export does not say what they are made of; an account, or the "
        "end of one, may have been left out. Export it anew, of all data sets"
    )
