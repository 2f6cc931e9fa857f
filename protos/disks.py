"""Whether an error says that a disk takes no more, whoever raised it."""

import errno
from typing import Any, Final, Literal

Trouble = Literal["full", "failing"]

_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_FULL_SQLITE: Final = frozenset({"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"})
"""The second is what opening a database in WAL mode gives when there is no room for its index."""

_FULL_POSTGRESQL: Final = "53100"
"""SQLSTATE disk_full."""


def disk_trouble(error: BaseException) -> Trouble | None:
    """What an error says of the disk.

    Returns:
        "full": no room or quota is left. "failing": SQLite could not read or write, and does not
        say why. None: it is no matter of the disk.

    Takes the driver's error out of SQLAlchemy's, and looks at names and codes alone, so that no
    database's library is loaded to ask.
    """
    cause: Any = getattr(error, "orig", None) or error
    name = str(getattr(cause, "sqlite_errorname", ""))
    if name in _FULL_SQLITE or getattr(cause, "sqlstate", None) == _FULL_POSTGRESQL:
        return "full"
    if name.startswith("SQLITE_IOERR"):
        return "failing"
    full = isinstance(cause, OSError) and cause.errno in _FULL_ERRNOS
    return "full" if full else None
