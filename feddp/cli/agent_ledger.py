"""`feddp agent ledger`: the node's own ledger, and what it has seen of the coordinator's."""

from pathlib import Path
from typing import Annotated

import typer

from feddp.cli import output
from feddp.cli.groups import noun
from feddp.cli.options import Json

app = noun("The node's own ledger: heads for officers, copies, disputes.")

Folder = Annotated[
    Path, typer.Option("--dir", metavar="DIR", readable=False, help="The agent's folder.")
]


@app.command()
def heads(folder: Folder, as_json: Json = False) -> None:
    """What this node has seen of the coordinator's ledger, signed; for `budget verify --heads`."""
    from node_agent.ledger.copies import heads as seen_heads

    found = seen_heads(folder)
    if as_json:
        output.print_json(found)
        return
    output.table(
        ("ACCOUNT", "ENTRIES SEEN", "LAST HASH"),
        [(one["account"], str(one["seq"]), one["hash"][:16] + "…") for one in found["heads"]],
    )
    output.line(
        f"{output.counted(len(found['checkpoints']), 'checkpoint')} of the coordinator seen"
    )
    for one in found["disputes"]:
        output.line(f"DISPUTED: {one['account']}, coordinator's entry {one['seq']}: {one['text']}")


@app.command("export")
def export_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes.")],
    folder: Folder,
    as_json: Json = False,
) -> None:
    """Copy the ledger to a file, to keep elsewhere; the agent may run meanwhile.

    Keep identity/ledger.key with it: the ledger is this key's, and no other can go on with it.
    """
    from node_agent.ledger.copies import export

    entries = export(folder, file)
    if as_json:
        output.print_json({"file": str(file), "entries": entries})
    else:
        output.line(
            f"{output.counted(entries, 'entry')} copied to {file}; keep identity/ledger.key with it"
        )


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` wrote.")],
    folder: Folder,
    as_json: Json = False,
) -> None:
    """Put a copy in the place of this folder's ledger; nothing that it holds may be missing there.

    What was spent since the copy was made is read again from the coordinator's ledger, where this
    node has signed it, before the next order.
    """
    from node_agent.ledger.copies import restore

    entries = restore(folder, file)
    if as_json:
        output.print_json({"file": str(file), "entries": entries})
    else:
        output.line(f"the ledger of {folder} has {output.counted(entries, 'entry')} now")


@app.command()
def settle(
    account: Annotated[
        str,
        typer.Argument(
            metavar="ACCOUNT",
            help="As `feddp agent status` names it, with or without the node, or '*'.",
        ),
    ],
    folder: Folder,
    as_json: Json = False,
) -> None:
    """End a dispute: orders are judged again, and the coordinator's chain is taken as it is now.

    For the data steward, once both ledgers were compared. This node's own ledger goes on to count
    for its patients; posts of its own that it lacks are booked. The agent must be stopped. A
    dispute because policy.yaml lacks the account ends by itself when the account is put back.
    """
    from node_agent.ledger.copies import settle as settle_dispute

    found = settle_dispute(folder, account)
    if as_json:
        output.print_json({"account": found.account, "seq": found.seq, "text": found.text})
    else:
        output.line(f"settled: {found.account}, coordinator's entry {found.seq}: {found.text}")
