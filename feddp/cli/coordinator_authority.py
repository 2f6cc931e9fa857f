"""`feddp coordinator ca-rollover` and `reissue`: one authority after another, and a profile whose
certificate has ended."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddp.cli import output
from feddp.cli.groups import noun
from feddp.cli.options import Json

if TYPE_CHECKING:
    from coordinator.rollover import Rollover

app = noun("Replace the certificate authority: begin, switch, finish.")

Folder = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The coordinator's folder.")]
Force = Annotated[bool, typer.Option("--force", help="Also if somebody is shut out by it.")]

NEXT = {
    "settled": "no rollover is under way",
    "begun": "the next authority's root is given out with each renewal; when nobody is behind: "
    "`feddp coordinator ca-rollover switch`",
    "switched": "the new authority issues and the former is still trusted; when nobody is behind: "
    "`feddp coordinator ca-rollover finish`",
}


@app.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """Where the rollover stands, and who would be shut out by its next step."""
    from coordinator import rollover

    _show(rollover.status(_found(folder)), as_json)


@app.command()
def begin(folder: Folder, as_json: Json = False) -> None:
    """Make the next authority. Nodes and people learn its root with their next renewal."""
    from coordinator import rollover

    _show(rollover.begin(_found(folder)), as_json)


@app.command()
def switch(folder: Folder, force: Force = False, as_json: Json = False) -> None:
    """Let the next authority issue, the server's certificate first. Make open join tokens anew."""
    from coordinator import rollover

    _show(rollover.switch(_found(folder), force=force), as_json)


@app.command()
def finish(folder: Folder, force: Force = False, as_json: Json = False) -> None:
    """End the trust in the former authority and remove its keys."""
    from coordinator import rollover

    _show(rollover.finish(_found(folder), force=force), as_json)


def reissue(folder: Folder, as_json: Json = False) -> None:
    """Give the operator's profile a new key and certificate, also after the old one has ended."""
    from coordinator.installation import reissue_operator

    made = reissue_operator(_found(folder))
    if as_json:
        output.print_json({"profile": str(made)})
        return
    output.line(f"a new certificate is in {made}; a running coordinator knows it within 10 s")


def _found(folder: Path) -> Path:
    from feddp.profile import installation_in

    return installation_in(folder)


def _show(found: "Rollover", as_json: bool) -> None:
    if as_json:
        behind = [{"identity": name, "certificate_expires_at": end} for name, end in found.behind]
        output.print_json({"phase": found.phase, "behind": behind, "roots": list(found.roots)})
        return
    output.facts(
        [
            ("phase", found.phase),
            ("next", NEXT[found.phase]),
            *(("root", one) for one in found.roots),
            *(("behind", f"{name}, {_until(end)}") for name, end in found.behind),
        ]
    )


def _until(end_s: float) -> str:
    moment = output.moment(end_s)
    if end_s > time.time():
        return f"until {moment}"
    return f"ended {moment}: its agent is off, and may still come back"
