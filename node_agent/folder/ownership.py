"""Whose an agent's files are, told to whoever may not read them.

A file that another user must read is neither missing nor damaged: nobody may be sent to a backup.
"""

import grp
import os
import pwd
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from protos.errors import NotAllowed

KEPT: Final = ("agent.yaml", "identity", "state.db", "spool", "logs")
"""What the agent's user alone reads, in an agent's folder."""


def require_access(folder: Path) -> None:
    """This process may read what the agent keeps in its folder.

    Raises:
        NotAllowed: OTHER_USER, with the command that makes it be the one who may.
    """
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise NotAllowed("OTHER_USER", denied(folder))
    for name in KEPT if folder.is_dir() else ():
        path = folder / name
        needed = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
        if path.exists() and not os.access(path, needed):
            raise NotAllowed("OTHER_USER", denied(path))


def seen_as_another(folder: Path) -> str:
    """Where this process is not the agent's user: that what it finds unreadable may be readable for
    the agent, a sentence without its full stop; else empty."""
    try:
        require_access(folder)
    except NotAllowed:
        return f"as {_me()} sees it: the agent is another user, and may well read it"
    return ""


def denied(path: Path) -> str:
    """Whom a path belongs to, that this process may not read it, and what to run instead."""
    closed, owner = _closed(path), ""
    try:
        found = closed.stat()
    except OSError:
        return f"{path} may not be read by {_me()}; run the command as the user of the agent"
    owner, group = user_name(found.st_uid), _group_name(found.st_gid)
    said = f"{closed} belongs to {owner}, and {_me()} may not read it"
    # The service's folder is root's, with the group of the one user who works in it.
    user = group if owner == "root" and _is_user(group) else owner
    return f"{said}; nothing is wrong with it. Run the command as {user}: `{command_as(user)}`"


def unreadable(path: Path) -> str:
    """Of one of the steward's files: why this process cannot read it, and what to do."""
    closed = _closed(path)
    if closed != path:
        return denied(path)
    found, me = path.stat(), _me()
    owner = user_name(found.st_uid)
    try:
        group = _group_name(path.parent.stat().st_gid)
    except OSError:
        group = _group_name(found.st_gid)
    return (
        f"{path} belongs to {owner} with mode {found.st_mode & 0o7777:04o}, and {me} may not read "
        f"it. For the agent's own user, {owner} runs: `chgrp {group} {path}` and `chmod 640 "
        f"{path}`. Anybody else runs the command as the agent's user, `{command_as(group)}`, or as "
        f"{owner}"
    )


def command_as(user: str) -> str:
    """How a command of the agent is run as another user."""
    return f"sudo -u {user} feddp agent ..."


def user_name(uid: int) -> str:
    """Of a user; the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _me() -> str:
    return user_name(os.geteuid())


def _closed(path: Path) -> Path:
    """The first part of a path that may not be entered; the path itself where all of them may."""
    for one in [*reversed(path.absolute().parents)]:
        if not os.access(one, os.X_OK):
            return one
    return path


def may(found: os.stat_result, uid: int, groups: Iterable[int], bit: int) -> bool:
    """Whether a user has a right on a file; `bit` is the one that others would have it by."""
    if found.st_uid == uid:
        return bool(found.st_mode & bit << 6)
    if found.st_gid in groups:
        return bool(found.st_mode & bit << 3)
    return bool(found.st_mode & bit)


def groups_of(uid: int) -> set[int]:
    """The groups that a user gets at a login, by number."""
    try:
        one = pwd.getpwuid(uid)
    except KeyError:
        return set()
    return {one.pw_gid, *(g.gr_gid for g in grp.getgrall() if one.pw_name in g.gr_mem)}
