"""Whether others on this machine may read keys and tables, or write to them."""

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

from sqlalchemy.engine import make_url

from coordinator.config.config import CoordinatorConfig
from coordinator.store.diagnosis import sqlite_file
from coordinator.store.engines import is_sqlite

Found = tuple[Literal["ok", "note", "warning"], str, str]
"""(level, subject, text)."""

OPERATOR_KEY: Final = "operator/key.pem"
NAMED_MAX: Final = 6


def permissions_found(config_path: Path, config: CoordinatorConfig) -> Iterator[Found]:
    """A warning for what anybody on this machine can do, a note for what a group can.

    Not an error: there are volumes whose every file shows the same permissions, and nobody else.
    """
    secret, changed = _looked_at(config_path, config)
    is_fine = True
    for who, read, write, search in (
        ("anybody on this machine", stat.S_IROTH, stat.S_IWOTH, stat.S_IXOTH),
        ("their group", stat.S_IRGRP, stat.S_IWGRP, stat.S_IXGRP | stat.S_IXOTH),
    ):
        is_group = search != stat.S_IXOTH
        bits = "g-rwx" if is_group else "o-rwx"
        for may, paths in (
            ("read", [one for one in secret if _is_open(one, read, search)]),
            ("write to", [one for one in changed if _is_open(one, write, search)]),
        ):
            if not paths:
                continue
            is_fine = False
            text = f"{who} may {may} {_named(paths)}: `chmod {bits}` takes that away"
            if is_group:
                yield "note", "permissions", f"{text}, if somebody else is in that group"
            else:
                yield "warning", "permissions", text
    if is_fine:
        yield "ok", "permissions", "keys and tables are their owner's alone"


def _looked_at(config_path: Path, config: CoordinatorConfig) -> tuple[list[Path], list[Path]]:
    """(what others should not read, what they should not write to); folders by their entries."""
    storage, folder = config.storage, config_path.parent
    keys = sorted(storage.pki_dir.rglob("*.key"))
    keys += [one for one in (config.server.ssl_key, folder / OPERATOR_KEY) if one]
    tables, folders = [], {folder, storage.pki_dir, *(one.parent for one in keys)}
    if is_sqlite(storage.database_url):
        file = sqlite_file(storage.database_url)
        tables = [file, *(file.with_name(file.name + end) for end in ("-wal", "-shm"))]
        folders.add(file.parent)
    secret = [*keys, *tables, storage.blob_dir]
    if _holds_password(config_path, config):
        secret.append(config_path)
    changed = [*sorted(folders), config_path, storage.blob_dir, storage.revocations_file]
    changed += [*keys, *tables, *sorted(storage.pki_dir.rglob("*.crt"))]
    return list(dict.fromkeys(secret)), list(dict.fromkeys(changed))


def _holds_password(config_path: Path, config: CoordinatorConfig) -> bool:
    """Whether the database's password stands in the file, and not in the environment."""
    password = make_url(config.storage.database_url).password
    try:
        return bool(password) and str(password) in unquote(config_path.read_text())
    except (OSError, ValueError):
        return False


def _is_open(path: Path, permission: int, search: int) -> bool:
    """Whether it is there, has a permission, and can be reached through every folder above."""
    try:
        found = path.resolve()
        mode = found.stat().st_mode
        ways = [one.stat().st_mode for one in found.parents]
    except OSError:
        return False
    if stat.S_ISDIR(mode):
        if not mode & search:
            return False
        if mode & stat.S_ISVTX:
            return False  # nobody takes away what somebody else has put there
    return bool(mode & permission) and all(way & search for way in ways)


def _named(paths: Sequence[Path]) -> str:
    more = len(paths) - NAMED_MAX
    named = ", ".join(map(str, paths[:NAMED_MAX]))
    return f"{named} and {more} more" if more > 0 else named
