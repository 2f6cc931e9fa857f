"""`feddp profile`: who you are at a coordinator, how you became that, and another certificate in
time."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddp.cli import output
from feddp.cli.groups import noun
from feddp.cli.options import Dir, Json, ProfileFolder, RootFingerprint, RootIsRight

if TYPE_CHECKING:
    from feddp.joining import Joined
    from feddp.profile import Selection

app = noun("Join as a person; look at and renew their certificate.")

_NEXT = {
    "engineer": (
        "feddp job key new",
        "makes the key that signs your jobs; hospitals pin its public half",
    ),
    "privacy-officer": ("feddp budget show", "what each hospital has spent"),
    "operator": ("feddp node list", "every hospital, and whether it is connected"),
}
"""Role -> the command to begin with, and what it is for."""


@app.command()
def join(
    token: Annotated[
        str, typer.Argument(metavar="TOKEN", help="Of `feddp user invite`; works once.")
    ],
    profile: Annotated[
        Path, typer.Option("--profile", metavar="DIR", help="A new folder, for you alone.")
    ],
    fingerprint: RootFingerprint = "",
    yes: RootIsRight = False,
    as_json: Json = False,
) -> None:
    """Redeem an invitation: makes your key here and brings your certificate."""
    from feddp.cli.agent_join import announce
    from feddp.joining import join as join_coordinator

    announce(token, as_json, "user", fingerprint=fingerprint, yes=yes)
    made = join_coordinator(token, profile)
    if as_json:
        output.print_json(
            {
                "name": made.name,
                "roles": list(made.roles),
                "project": made.project,
                "identity": made.identity,
                "address": made.address,
                "folder": str(made.folder),
                "certificate_expires_at": made.expires_at.timestamp(),
                "root_fingerprint": made.root_fingerprint,
            }
        )
        return
    _joined(made)


def _joined(made: "Joined") -> None:
    roles = ", ".join(made.roles)
    output.line(
        f"joined as {made.name} ({roles}; project {made.project}); coordinator {made.address}"
    )
    output.line(
        f"certificate until {output.moment(made.expires_at.timestamp())}; every command warns in "
        "its last 30 days, and `feddp profile renew` gets the next one"
    )
    where = shlex.quote(str(made.folder))
    output.line(f"your key stays in {made.folder}; next, here:")
    output.line(f"  export FEDDP_PROFILE={where}    # or give --profile with each command")
    for command, purpose in (_NEXT[role] for role in made.roles if role in _NEXT):
        output.line(f"  {command:<21} # {purpose}")


@app.command()
def show(folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False) -> None:
    """Whose it is, until when it is valid, and which roots it trusts."""
    from feddp.profile import Selection

    _show(Selection.of(folder, profile), as_json)


@app.command()
def renew(folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False) -> None:
    """Make a new key here and get the next certificate. Copies of the old profile stop working."""
    from feddp.profile import Selection
    from feddp.renewing import renew as renew_profile

    selected = Selection.of(folder, profile)
    renew_profile(selected.load_profile())
    _show(selected, as_json)


def _show(selected: "Selection", as_json: bool) -> None:
    from feddp.renewing import standing

    loaded = selected.load_profile()
    found = standing(loaded)
    if as_json:
        output.print_json(
            {
                "name": loaded.name,
                "identity": found.identity,
                "project": loaded.project,
                "address": loaded.address,
                "folder": str(loaded.folder),
                "certificate_expires_at": found.expires_at.timestamp(),
                "root_fingerprints": list(found.fingerprints),
                "warning": found.warning(),
            }
        )
        return
    output.facts(
        [
            ("name", loaded.name),
            ("identity", found.identity),
            ("project", loaded.project),
            ("coordinator", loaded.address),
            ("folder", str(loaded.folder)),
            ("certificate until", output.moment(found.expires_at.timestamp())),
            *(("trusts root", one) for one in found.fingerprints),
            *(("WARNING", text) for text in [found.warning()] if text),
        ]
    )
