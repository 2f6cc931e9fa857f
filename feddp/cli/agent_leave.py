"""`feddp agent leave` and `move`: away from a coordinator, with or without another one to go to."""

from pathlib import Path
from typing import Annotated

import typer

from feddp.cli import output
from feddp.cli.options import Json, RootFingerprint, RootIsRight

Folder = Annotated[
    Path, typer.Option("--dir", metavar="DIR", readable=False, help="The agent's folder.")
]


def leave(
    folder: Folder,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without this it is only shown.")
    ] = False,
    forget_ledger: Annotated[
        str,
        typer.Option(
            metavar="NODE",
            help="Remove the ledger and its key too; repeat the node's name to confirm.",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Leave the coordinator: remove what it gave this folder, keep the ledger and the policy.

    Without --yes nothing changes. The agent must be stopped. A ledger that is forgotten cannot be
    had again: what its patients have spent then counts for nobody.
    """
    from node_agent.joining.leaving import leave as leave_coordinator
    from node_agent.joining.leaving import plan
    from protos.errors import Malformed

    found = plan(folder, forget_ledger=bool(forget_ledger))
    if forget_ledger and forget_ledger != found.node:
        raise Malformed(
            "NAME_NEEDED", f"this is node {found.node}: --forget-ledger {found.node} confirms it"
        )
    if yes:
        found = leave_coordinator(folder, forget_ledger=bool(forget_ledger))
    if as_json:
        output.print_json(
            {
                "node": found.node,
                "coordinator": found.coordinator,
                "done": yes,
                "removed": [str(one) for one in found.removed],
                "kept": [str(one) for one in found.kept],
                "unfinished_attempts": found.unfinished,
            }
        )
        return
    went = "removed" if yes else "would be removed"
    for one in found.removed:
        output.line(f"{went}: {one}")
    for one in found.kept:
        output.line(f"stays: {one}")
    if found.unfinished:
        many = output.counted(found.unfinished, "attempt")
        output.line(f"{many} under way {'ended' if yes else 'would end'} without an update")
    if found.coordinator:
        output.line(
            f"the coordinator at {found.coordinator} is not told: ask its operator to run "
            f"`feddp node disable {found.node}`"
        )
        output.line(
            f"to come back, join in this folder with a token of `feddp node token {found.node} "
            f"--rejoin`, after `feddp node enable {found.node}` if it was disabled"
        )
    if not yes:
        output.line("nothing was changed; with --yes it is done")


def move(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="Of the other coordinator.")],
    folder: Folder,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="For the operator's approval, if it needs one.")
    ] = True,
    fingerprint: RootFingerprint = "",
    yes: RootIsRight = False,
    as_json: Json = False,
) -> None:
    """Move to another coordinator under the same name; the ledger stays and goes on to count.

    The agent must be stopped. The token must be for this node's name: the accounts carry it. Until
    the other coordinator has let the node in nothing changes, and the same command goes on.
    """
    from feddp.cli.agent_join import announce, waiting
    from node_agent.joining.leaving import move as move_to

    announce(token, as_json, fingerprint=fingerprint, yes=yes)
    made = move_to(token, folder, pending=waiting(wait, as_json))
    if as_json:
        output.print_json(
            {
                "node": made.node,
                "coordinator": made.coordinator,
                "certificate_expires_at": made.expires_at.timestamp(),
                "root_fingerprint": made.root_fingerprint,
            }
        )
        return
    output.line(f"moved: {made.node} is with the coordinator at {made.coordinator} now")
    output.line("the ledger, its key and the steward's files stay as they were")
    output.line(f"start it: feddp agent run --dir {folder}")
