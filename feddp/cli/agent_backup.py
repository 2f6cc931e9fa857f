"""`feddp agent backup` and `restore`: a whole agent in one file, and back."""

from pathlib import Path
from typing import Annotated

import typer

from feddp.cli import output
from feddp.cli.options import Json

Folder = Annotated[
    Path, typer.Option("--dir", metavar="DIR", readable=False, help="The agent's folder.")
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="One file, its owner's alone.")]


def backup(file: File, folder: Folder, as_json: Json = False) -> None:
    """Write keys, ledger, configuration and the steward's files to one file; the agent may run.

    Whoever has the file can be this node: keep it as you keep its key. Records, models and logs are
    not in it.
    """
    from node_agent.folder.backup import backup as write_backup

    names = write_backup(folder, file)
    if as_json:
        output.print_json({"file": str(file), "holds": names})
    else:
        output.line(f"{file} holds {', '.join(names)}; it can be this node: lock it away")


def restore(file: File, folder: Folder, as_json: Json = False) -> None:
    """Make an agent's folder from a backup; the folder must be new.

    The agent then refuses orders until it has read what it signed since the backup was made. A
    certificate that was renewed since shuts the node out: before the agent runs, join again in the
    folder (--again) with a token of `feddp node token NAME --rejoin`, and the steward's word.
    """
    from node_agent.folder.backup import restore as read_backup

    names = read_backup(file, folder)
    if as_json:
        output.print_json({"dir": str(folder), "holds": names})
    else:
        output.line(f"{folder} holds {', '.join(names)}")
        output.line(f"start it: feddp agent run --dir {folder}")
