"""`feddp demo`: four hospitals train one model on this machine."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where everything of the demo goes.")
    ] = Path("feddp-demo"),
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result there, too.")
    ] = None,
    port_base: Annotated[
        int | None,
        typer.Option(
            min=1024, max=65533, metavar="N", help="Ports N, N+1, N+2; else three free ones."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights; never of noise.")] = 0,
    split_seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the split into train and test rows.")
    ] = 43,
    epsilon: Annotated[
        float | None,
        typer.Option(
            metavar="E", help="Limit of each hospital's account, and the target; 2 without it."
        ),
    ] = None,
    delta: Annotated[float, typer.Option(metavar="D", help="The delta that goes with it.")] = 1e-5,
    no_dp: Annotated[
        bool, typer.Option("--no-dp", help="Without noise, booked as without a guarantee.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the coordinator's and the agents' folders.")
    ] = False,
) -> None:
    """Four hospitals train a heart-disease model; leaves model, metrics, epsilon and a report."""
    from feddp.demo.runner import Settings, run
    from protos.errors import Malformed

    if no_dp and epsilon is not None:
        raise Malformed("USAGE", "--no-dp trains without noise and has no epsilon; leave one out")
    if json_file is not None:
        parent = json_file.absolute().parent
        # The demo makes its own folder; any other has to be there.
        if str(json_file) == "-" or not (parent.is_dir() or parent == folder.absolute()):
            raise Malformed("USAGE", f"--json {json_file}: name a file in a folder that exists")
    settings = Settings(
        folder=folder,
        json_file=json_file,
        port_base=port_base,
        seed=seed,
        split_seed=split_seed,
        epsilon=2.0 if epsilon is None else epsilon,
        delta=delta,
        private=not no_dp,
        keep=keep,
    )
    code = run(settings)
    if code:
        raise typer.Exit(code)
