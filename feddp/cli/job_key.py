"""`feddp job key`: the key with which an engineer signs jobs."""

from typing import TYPE_CHECKING

from feddp.cli import output
from feddp.cli.groups import noun
from feddp.cli.options import Dir, Json, ProfileFolder

if TYPE_CHECKING:
    from feddp.profile import Profile

app = noun("The key that signs your jobs; hospitals pin its public half.")


_BESIDE = (
    "the key lies in the coordinator's installation {folder}: whoever has that disk can sign "
    "orders that hospitals take. Fit for a trial on one machine; else make it on your own: "
    "`feddp job key new --profile FOLDER`, and have the hospitals pin that one"
)


@app.command()
def new(folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False) -> None:
    """Make the key of this profile; `submit` and `resume` sign with it from now on.

    Give the public half to the data stewards by another way than the coordinator: by mail, by
    phone, in person. Whoever holds the key file can ask for work in your name: make it on your own
    machine, with --profile, and not on the coordinator's.
    """
    from feddp.profile import Selection, installation_around
    from feddp.signing import KEY_FILE, PUBLIC_FILE, make_key

    selected = Selection.of(folder, profile).load_profile()
    public = make_key(selected.folder)
    around = installation_around(selected.folder)
    warning = _BESIDE.format(folder=around) if around is not None else ""
    if as_json:
        output.print_json(
            {
                "name": selected.name,
                "public_key": public,
                "file": str(selected.folder / KEY_FILE),
                "public_file": str(selected.folder / PUBLIC_FILE),
                "warning": warning,
            }
        )
        return
    output.line(f"{selected.folder / KEY_FILE} is your key, readable by its owner alone")
    output.line(f"{selected.folder / PUBLIC_FILE} is for the hospitals; in their policy.yaml:")
    _lines(selected, public)
    if warning:
        output.note(f"WARNING: {warning}")


@app.command()
def show(folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False) -> None:
    """The public half of this profile's key, as a data steward pins it."""
    from feddp.profile import Selection
    from feddp.signing import public_key

    selected = Selection.of(folder, profile).load_profile()
    public = public_key(selected.folder)
    if as_json:
        output.print_json({"name": selected.name, "public_key": public})
        return
    _lines(selected, public)


def _lines(selected: "Profile", public: str) -> None:
    output.line("who_may_ask:")
    output.line("  engineers:")
    of = f'{{name: {selected.name}, public_key: "{public}", projects: [{selected.project}]}}'
    output.line(f"    - {of}")
