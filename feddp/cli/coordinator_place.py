"""Which coordinator of this machine a command is about: a file, a folder, or the environment."""

import os
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The coordinator.yaml of the installation."),
]
Folder = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="Its folder instead. Default: $FEDDP_DIR."),
]


def config_path(config: Path | None, folder: Path | None) -> Path:
    """The configuration that the options or the environment select.

    Raises:
        Malformed: CONFIG_MISSING.
        NotFound: INSTALLATION_MISSING.
        WrongPhase: RESTORE_UNFINISHED.
    """
    if config is not None:
        return config
    from feddp.profile import CONFIG_NAME, DIR_VARIABLE, installation_in
    from protos.errors import Malformed, NotFound

    if folder is None and (text := os.environ.get(DIR_VARIABLE)):
        folder = Path(text)
    if folder is None:
        raise Malformed(
            "CONFIG_MISSING", "which coordinator? Give --config FILE or --dir DIR, or set FEDDP_DIR"
        )
    try:
        return installation_in(folder) / CONFIG_NAME
    except NotFound:
        # Where a restore was cut off its configuration may not be there yet.
        from coordinator.restoring.marker import refuse_unfinished

        refuse_unfinished(folder / CONFIG_NAME)
        raise
