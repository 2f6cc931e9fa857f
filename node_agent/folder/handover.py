"""Who owns what in an agent's folder, and how its files are handed to them.

Root does it in folders that the agent's user and the steward may write, at any moment: so no path
below the agent's folder is followed through a link, and each part is opened, looked at and given
away by its descriptor.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node_agent.folder import access_list
from node_agent.folder.config import Folder
from protos.errors import Conflict

FOLDER_MODE: Final = 0o3770
"""The service's group may make files in the folder, and nobody may remove another one's: so the
agent cannot put a policy of its own in the place of the steward's. What an editor of the steward's
makes anew there gets the service's group, so that the agent can read it."""

STEWARD_MODE: Final = 0o640

# O_NONBLOCK: a pipe in the place of a file must not hold root up.
_OPENED: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PASSED: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Owner:
    """Who a path is given to, and its mode; `mode` 0 leaves that as it is.

    Attributes:
        guest: a user who may make files there too, by the folder's access list; empty for nobody.
    """

    path: Path
    user: str
    group: str
    mode: int
    guest: str = ""

    def __str__(self) -> str:
        mode = f"{self.mode:04o}" if self.mode else "mode as it is"
        guest = f", and {self.guest} may make files there (access list)" if self.guest else ""
        return f"{self.user}:{self.group} {mode} {self.path}{guest}"


def owners(root: Path, user: str, group: str, steward: str) -> list[Owner]:
    """Who shall own what in an agent's folder.

    The steward owns the two files that say what is allowed, root the folder, and the service's user
    the rest: IT acts as that user (`sudo -u feddp feddp agent ...`), so that no command leaves a
    file there that the agent cannot write. The steward gets into the folder by its access list and
    not by the service's group, which may be given the records to read.

    Raises:
        Conflict: LINK_IN_FOLDER, before anything is given to anybody.
    """
    folder = Folder(root)
    _require_no_link(root)
    guest = "" if steward == "root" else steward
    found = [
        Owner(folder.root, "root", group, FOLDER_MODE, guest),
        Owner(folder.agent_yaml, user, group, STEWARD_MODE),
        Owner(folder.policy_yaml, steward, group, STEWARD_MODE),
        Owner(folder.datasets_yaml, steward, group, STEWARD_MODE),
    ]
    for part in (folder.identity, folder.spool, folder.logs):
        found.append(Owner(part, user, group, 0o700))
        if not part.is_symlink():
            found += [Owner(one, user, group, 0) for one in sorted(part.rglob("*"))]
    for name in ("state.db", "state.db-wal", "state.db-shm", "agent.lock"):
        found.append(Owner(folder.root / name, user, group, 0o600))
    present = []
    for one in found:
        try:
            kind = one.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        _require_own(one.path, kind)
        present.append(one)
    return present


def hand_over(
    root: Path, given: list[Owner], uid_of: Callable[[str], int], gid_of: Callable[[str], int]
) -> None:
    """Give each its owner, group, mode and guest. What has gone meanwhile is passed by.

    Raises:
        Conflict: LINK_IN_FOLDER, a link or a second name was put in a place since `owners` looked.
        OSError
    """
    with _folder(root) as top:
        for one in given:
            try:
                with _part(top, one.path, root) as descriptor:
                    _give(descriptor, one, uid_of(one.user), gid_of(one.group))
                    if one.path == root and access_list.is_offered(descriptor):
                        access_list.let_in(descriptor, uid_of(one.guest or "root"))
            except FileNotFoundError:
                continue


def _give(descriptor: int, one: Owner, uid: int, gid: int) -> None:
    found = os.fstat(descriptor)
    _require_own(one.path, found)
    os.fchown(descriptor, uid, gid)
    if one.mode:
        os.fchmod(descriptor, one.mode)


def _require_own(path: Path, found: os.stat_result) -> None:
    """A file or folder that lies here and nowhere else."""
    if stat.S_ISDIR(found.st_mode):
        return
    if not stat.S_ISREG(found.st_mode):
        raise _in_the_way(path, "is a link" if stat.S_ISLNK(found.st_mode) else "is no plain file")
    if found.st_nlink > 1:
        raise _in_the_way(path, f"has {found.st_nlink} names (hard links)")


def _in_the_way(path: Path, what: str) -> Conflict:
    return Conflict(
        "LINK_IN_FOLDER",
        f"{path} {what}, and what lies elsewhere is not given to anybody: look at it and at who "
        "made it, put a file or folder of its own in its place (another disk: mount it there), and "
        "run this again",
    )


def _require_no_link(root: Path) -> None:
    if root.is_symlink():
        raise Conflict(
            "LINK_IN_FOLDER", f"{root} is a link; name the folder itself: {root.resolve()}"
        )


@contextmanager
def _folder(root: Path) -> Iterator[int]:
    _require_no_link(root)
    descriptor = os.open(root, _OPENED | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _part(top: int, path: Path, root: Path) -> Iterator[int]:
    """A path below the folder, opened name by name and never through a link."""
    *way, last = path.relative_to(root).parts or (".",)
    parent = os.dup(top)
    try:
        for name in way:
            inner = os.open(name, _PASSED, dir_fd=parent)
            os.close(parent)
            parent = inner
        descriptor = os.open(last, _OPENED, dir_fd=parent)
    except FileNotFoundError:
        raise
    except OSError:
        if _is_through_a_link(path, root):
            raise _in_the_way(path, "is a link, or lies behind one") from None
        raise
    finally:
        os.close(parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_through_a_link(path: Path, root: Path) -> bool:
    return any(one.is_symlink() for one in (path, *path.parents) if one.is_relative_to(root))
