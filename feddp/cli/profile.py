"""`feddp profile`: who you are at a coordinator, and another certificate in time."""

from typing import TYPE_CHECKING

import typer

from feddp.cli import output
from feddp.cli.options import Dir, Json, ProfileFolder

if TYPE_CHECKING:
    from feddp.profile import Selection

app = typer.Typer(help="Look at and renew the certificate of a person.", no_args_is_help=True)


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
            ("coordinator", loaded.address),
            ("folder", str(loaded.folder)),
            ("certificate until", output.moment(found.expires_at.timestamp())),
            *(("trusts root", one) for one in found.fingerprints),
            *(("WARNING", text) for text in [found.warning()] if text),
        ]
    )
