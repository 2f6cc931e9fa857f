"""What a worker takes from itself before it sees data: the network, and most writing of files.

Both need no privilege and hold for whatever the process loads or starts afterwards. Where a kernel
does not know them, or a container forbids them, the worker works all the same and its log says so.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PR_SET_NO_NEW_PRIVS: Final = 38
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_TSYNC: Final = 1
RET_ALLOW: Final = 0x7FFF0000
RET_ERRNO: Final = 0x00050000
X32_BIT: Final = 0x40000000
AF_UNIX: Final = 1

LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K

IO_URING_SETUP: Final = 425
"""Through its rings sockets are made without the system call; the number is every machine's."""

ARCHITECTURES: Final = {"x86_64": (0xC000003E, 41, 317), "aarch64": (0xC00000B7, 198, 277)}
"""machine -> (audit number, number of `socket`, number of `seccomp`)."""

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
CREATE_RULESET_VERSION: Final = 1
RULE_PATH_BENEATH: Final = 1
WRITE_FILE: Final = 1 << 1
TRUNCATE: Final = 1 << 14
"""From version 3."""
REFER: Final = 1 << 13
"""From version 2."""
CHANGES: Final = WRITE_FILE | sum(1 << bit for bit in range(4, 13))
"""Writing a file, and making or removing anything."""


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def without_network() -> bool:
    """Take every kind of socket but those of this machine's own files, from all threads for good.

    Returns:
        Whether the kernel does it from now on.
    """
    known = ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return False
    audit, socket, seccomp = known
    instructions = [
        (LOAD_WORD, 0, 0, 4),  # the architecture
        (JUMP_EQUAL, 0, 7, audit),  # a call by another table: refused
        (LOAD_WORD, 0, 0, 0),  # the call's number
        (JUMP_AT_LEAST, 5, 0, X32_BIT),
        (JUMP_EQUAL, 4, 0, IO_URING_SETUP),
        (JUMP_EQUAL, 0, 2, socket),
        (LOAD_WORD, 0, 0, 16),  # the first argument's low half: the family
        (JUMP_EQUAL, 0, 1, AF_UNIX),
        (RETURN, 0, 0, RET_ALLOW),
        (RETURN, 0, 0, RET_ERRNO | errno.EACCES),
    ]
    code = b"".join(struct.pack("=HBBI", *one) for one in instructions)
    held = ctypes.create_string_buffer(code, len(code))
    program = _Filter(len(instructions), ctypes.addressof(held))
    call = ctypes.CDLL(None, use_errno=True)
    if call.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    done: int = call.syscall(
        seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program)
    )
    return done == 0


def landlock_version() -> int:
    """What the kernel's Landlock can do; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    found: int = ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)
    return max(0, found)


def writing_only_beneath(folders: Sequence[Path]) -> bool:
    """Make every file read-only for this thread, and those that it starts, but in some folders.

    Call it before any other thread is there: the others keep what they may.

    Returns:
        Whether the kernel does it from now on.
    """
    version = landlock_version()
    if version == 0:
        return False
    changes = CHANGES | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    call = ctypes.CDLL(None, use_errno=True)
    attributes = struct.pack("=Q", changes)
    ruleset: int = call.syscall(CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        # Devices take what is written to them; nothing is made there.
        _allow(call, ruleset, Path("/dev"), changes & (WRITE_FILE | TRUNCATE))
        for folder in (*folders, Path("/dev/shm")):  # noqa: S108 - torch shares memory there
            _allow(call, ruleset, folder, changes)
        if call.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        done: int = call.syscall(RESTRICT_SELF, ruleset, 0)
        return done == 0
    finally:
        os.close(ruleset)


def _allow(call: ctypes.CDLL, ruleset: int, folder: Path, changes: int) -> None:
    """What is not there is not allowed either."""
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        call.syscall(
            ADD_RULE, ruleset, RULE_PATH_BENEATH, struct.pack("=Qi", changes, descriptor), 0
        )
    finally:
        os.close(descriptor)
