"""What an idle agent gives back to a machine that has other work; nothing where it cannot.

Starting runs some 20 MiB of library code once: relocation, self-tests, modules that only declare.
The kernel keeps pages of code mapped until memory is short, and takes them last. A job's transfers
leave freed heap behind, and run code that waiting does not need.
"""

import asyncio
import contextlib
import ctypes
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

SETTLED_S: Final = 1.5
"""After the start: the session is open and what was published is sent."""

AGAIN_S: Final = 60.0
_MADV_DONTNEED: Final = 4
_SMAPS: Final = Path("/proc/self/smaps")


async def keep_small() -> None:
    """Give memory back once the agent has settled, and from time to time."""
    wait_s = SETTLED_S
    while True:
        await asyncio.sleep(wait_s)
        trim_heaps()
        forget_code()
        wait_s = AGAIN_S


def trim_heaps() -> None:
    """Return freed heap to the kernel."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def forget_code() -> None:
    """Unmap the pages of code; those that are run again come back from the page cache."""
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with contextlib.suppress(OSError):
        for start, size in unwritten_code(_SMAPS.read_text().splitlines()):
            madvise(start, size, _MADV_DONTNEED)


def unwritten_code(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of each mapped file's code that this process never wrote to.

    A page that was written to, by a relocation or a debugger, exists nowhere else and must stay.
    """
    found: tuple[int, int] | None = None
    for line in smaps:
        field, *rest = line.split()
        if not field.endswith(":"):
            # "start-end mode offset device inode path": the head of a mapping
            start, _, end = field.partition("-")
            is_code = rest[0] == "r-xp" and len(rest) > 4 and rest[4].startswith("/")
            found = (int(start, 16), int(end, 16) - int(start, 16)) if is_code else None
        elif field == "Anonymous:" and rest[0] == "0" and found is not None:
            yield found
