"""The folder of an agent that has joined: configuration and identity, and who works on it."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Final

from node_agent.folder.config import AgentConfig, Folder, load_config
from node_agent.joining.identity import Identity, load_identity
from protos.errors import Conflict, Limited, Malformed, WrongPhase

LOCK_TRIES: Final = 10
LOCK_WAIT_S: Final = 0.1


def read_folder(folder: Folder, *, to_read: bool = False) -> tuple[AgentConfig, Identity]:
    """Configuration and identity, which belong together.

    Args:
        to_read: as `load_identity` has it.

    Raises:
        NotFound: NOT_JOINED.
        Malformed: CONFIG_INVALID, IDENTITY_INVALID, IDENTITY_MISMATCH.
        WrongPhase: MOVE_CUT_SHORT.
    """
    require_not_moving(folder)
    config, identity = load_config(folder), load_identity(folder.identity, to_read=to_read)
    if (config.node, config.trust_domain) != (identity.node, identity.spiffe_id.trust_domain):
        raise Malformed(
            "IDENTITY_MISMATCH",
            f"{folder.agent_yaml} is for node {config.node} of {config.trust_domain} and the "
            f"certificate for {identity.spiffe_id}; restore the one that does not belong here",
        )
    return config, identity


def require_not_moving(folder: Folder) -> None:
    """No move to another coordinator was cut short while it changed this folder.

    Raises:
        WrongPhase: MOVE_CUT_SHORT.
    """
    if os.path.isdir(folder.former):  # False also where this user may not look
        raise WrongPhase(
            "MOVE_CUT_SHORT",
            f"a move of {folder.root} to another coordinator was cut short; end it by the same "
            "command with the same token, `feddp agent move TOKEN`, which goes on, or puts the "
            "former coordinator's part back if it is refused",
        )


def require_writable(folder: Folder) -> None:
    """The folder's file system takes writes, if the folder is there.

    Raises:
        Limited: DISK_READ_ONLY.
    """
    if folder.root.is_dir() and os.statvfs(folder.root).f_flag & os.ST_RDONLY:
        raise Limited(
            "DISK_READ_ONLY",
            f"{folder.root} is read-only, and this has to write there; nothing was changed. A disk "
            "that fails is made so by the kernel (see `dmesg`). What only reads works all the "
            "same: `feddp agent backup FILE` saves everything to another disk",
        )


@contextlib.contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Hold the folder; the kernel lets go of it when the process ends, however it ends.

    Raises:
        Conflict: AGENT_RUNNING.
        Limited: DISK_READ_ONLY.
    """
    require_writable(folder)
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for left in reversed(range(LOCK_TRIES)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if left == 0:
                    raise Conflict(
                        "AGENT_RUNNING",
                        f"an agent runs on {folder.root} already; stop it first, or use it",
                    ) from None
                # Someone may only be looking, as `status` does.
                time.sleep(LOCK_WAIT_S)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Folder) -> bool:
    """Whether an agent runs on the folder."""
    try:
        descriptor = os.open(folder.lock, os.O_RDONLY)  # on a read-only disk too
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
