"""Options that several commands share."""

import re
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from feddp.cli.output import note

if TYPE_CHECKING:
    from feddp.client import Client

json_wanted: ContextVar[bool] = ContextVar("json_wanted", default=False)
"""Whether the command was asked for JSON, and stderr is for errors alone."""

Dir = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        metavar="DIR",
        help="Installation on this machine: the folder of `coordinator init`, or of a demo with "
        "--keep. Default: $FEDDP_DIR.",
    ),
]
ProfileFolder = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FOLDER",
        help="A profile for a coordinator on another machine. Default: $FEDDP_PROFILE.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON only; errors are JSON on stderr.")]
DataSet = Annotated[
    str, typer.Option("--dataset", metavar="D", help="Only accounts that pay for this data set.")
]


def connect(folder: Path | None, profile: Path | None) -> "Client":
    """A client for the installation that the options or the environment select.

    Raises:
        FeddpError: no installation is selected, or its profile cannot be read.
    """
    from feddp.profile import Selection

    selected = Selection.of(folder, profile).load_profile()
    from feddp.client import Client

    client = Client(selected)
    # Programs that asked for JSON find it in `feddp profile show --json`.
    if not json_wanted.get():
        from feddp.renewing import standing

        if warning := standing(selected).warning():
            note(f"warning: {warning}")
    return client


RootFingerprint = Annotated[
    str,
    typer.Option(
        "--fingerprint",
        metavar="HEX",
        help="SHA-256 of the coordinator's root, as its operator told it by another way: "
        "joins that one only, and does not ask.",
    ),
]
RootIsRight = Annotated[
    bool, typer.Option("--yes", help="Do not ask at a terminal whether the root is the one.")
]

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}


def life_of_token(text: str, option: str) -> int:
    """For how many seconds a token may be redeemed.

    Raises:
        Malformed: TTL_INVALID.
    """
    from protos.errors import Malformed

    found = re.fullmatch(r"(\d{1,7})([smhd]?)", text)
    if found is None:
        raise Malformed("TTL_INVALID", f"{option} {text[:20]!a} is no time; write 30m, 24h or 7d")
    seconds = int(found[1]) * _UNITS_S[found[2]]
    if seconds > 7 * 86400:
        raise Malformed("TTL_INVALID", f"{option} {text} is too long: a token lives 7 days at most")
    return seconds
