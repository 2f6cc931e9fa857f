"""How it is told that a node's own ledger is not there, or cannot be read: never as a new one."""

import sqlite3
from pathlib import Path

from protos.errors import Malformed, NotFound

PUT_BACK = (
    "with the agent stopped: `feddp agent ledger import FILE`, or all of a backup into a new "
    "folder: `feddp agent restore`"
)


def ledger_missing(path: Path) -> NotFound:
    """Why an agent without its ledger does not run."""
    return NotFound(
        "LEDGER_MISSING",
        f"{path} is {absence(path)}: it holds what this node's patients have "
        f"spent, and a new one would forget it. Put a copy in its place, {PUT_BACK}",
    )


def ledger_moved(path: Path) -> NotFound:
    """Why an agent whose ledger was taken away while it ran does not go on."""
    return NotFound(
        "LEDGER_MISSING",
        f"{path} was moved away, removed or replaced while the agent ran: what it books would be "
        "forgotten when it ends. Put the file back, state.db-wal beside it if there is one, and "
        f"start the agent; if it is gone, put a copy in its place, {PUT_BACK}",
    )


def absence(path: Path) -> str:
    """What is wrong with a ledger that is not there. Joining writes the tables before the file has
    its name, so that one without them is never a new one."""
    if not path.exists():
        return "missing"
    if path.stat().st_size == 0:
        return "empty (no bytes, as a power cut may leave a file)"
    return "empty (a database that holds no ledger)"


def ledger_damaged(path: Path) -> Malformed:
    """Why a ledger that cannot be read is not gone on with."""
    return Malformed(
        "LEDGER_INVALID",
        f"{path} is no ledger that can be read: it is damaged, or another file. It holds what this "
        "node's patients have spent: move it away and keep it, and put a copy in its place, "
        f"{PUT_BACK}",
    )


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is wrong; not its disk, its owner, or another process."""
    return str(getattr(error, "sqlite_errorname", "")).startswith(
        ("SQLITE_NOTADB", "SQLITE_CORRUPT")
    )
