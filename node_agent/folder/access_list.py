"""A POSIX access list that lets one further user into a folder, as `setfacl -m u:NAME:rwx` does.

Written here because the `acl` package is not on every machine, and one list of four fixed entries
and a user is all that is needed. The layout is Linux's `posix_acl_xattr.h`.
"""

import errno
import os
import struct
from pathlib import Path
from typing import Final

NAME: Final = "system.posix_acl_access"
VERSION: Final = 2
_HEAD: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_OWNER, _USER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_UNDEFINED: Final = 0xFFFFFFFF
_ALL: Final = 7


def is_offered(path: Path | int) -> bool:
    """Whether the file system that holds a path has access lists."""
    try:
        os.getxattr(path, NAME)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def let_in(folder: Path | int, uid: int) -> None:
    """Let a user, besides a folder's owner and group, read, write and enter it; nobody else.

    Any list of before is replaced. Uid 0 needs none: only takes that of before away.

    Raises:
        OSError
    """
    if uid == 0:
        try:
            os.removexattr(folder, NAME)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
        return
    entries = [
        (_OWNER, _ALL, _UNDEFINED),
        (_USER, _ALL, uid),
        (_GROUP, _ALL, _UNDEFINED),
        (_MASK, _ALL, _UNDEFINED),
        (_OTHER, 0, _UNDEFINED),
    ]
    text = _HEAD.pack(VERSION) + b"".join(_ENTRY.pack(*one) for one in entries)
    os.setxattr(folder, NAME, text)
