"""`feddp coordinator pause` and `resume`: the emergency stop."""

from typing import Annotated

import typer

from feddp.cli import output
from feddp.cli.options import Dir, Json, ProfileFolder, connect


def pause(
    reason: Annotated[str, typer.Option("--reason", help="Why; everybody who waits is told.")],
    everything: Annotated[bool, typer.Option("--all", help="All jobs; there is no other way yet.")],
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """Stop all work: no order goes out and no round begins until `feddp coordinator resume`.

    What a hospital has accepted goes on to its end and is booked; `feddp job cancel` ends a job.
    It stays so over restarts. An operator's.
    """
    from protos.errors import Malformed

    if not everything:
        raise Malformed("USAGE", "say --all: it is all jobs that are paused")
    with connect(folder, profile) as client:
        made = client.pause_all(reason)
    if as_json:
        output.print_json({"paused": True, **output.as_dict(made)})
        return
    output.line(f"all work is paused since {output.moment(made.since)} by {made.by}: {made.reason}")
    output.line("what hospitals have accepted goes on to its end; go on: feddp coordinator resume")


def resume(folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False) -> None:
    """End a pause; every job goes on where it stands."""
    with connect(folder, profile) as client:
        resumed = client.resume_all()
    if as_json:
        output.print_json({"paused": False, "changed": resumed})
    else:
        output.line("work goes on" if resumed else "nothing was paused")
