"""How the C library's allocator treats what is freed.

By default it gives the room of each chunk of 1 MiB back to the kernel, which then clears the same
pages again for the next one: that costs as much as moving the chunk. And every thread fills an
arena of its own, of which only the last bytes are ever given back.
"""

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""

_MAPPED_BYTES_MIN: Final = 8 << 20
"""Larger pieces are mapped and given back at once; no message is as large."""


def keep_freed(bytes_max: int) -> None:
    """Keep up to so many freed bytes for the next message, in one arena for all threads.

    To be called before a thread is started. A C library that is not glibc is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES_MIN)
        mallopt(_M_TRIM_THRESHOLD, bytes_max)
        mallopt(_M_TOP_PAD, 1 << 20)
