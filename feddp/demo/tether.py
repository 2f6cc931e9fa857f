"""A process that the demo started ends with the demo, however the demo ends."""

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "FEDDP_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def tie_to_parent() -> None:
    """Ask the kernel to end this process with its parent, if the parent asked for that.

    The child does it to itself: code between fork and exec is unsafe in a parent with threads,
    and a client of gRPC has threads. Outside Linux only an orderly end of the demo stops it.
    """
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the request was made.
    if os.getppid() != int(parent):
        sys.exit(1)
