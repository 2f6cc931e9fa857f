"""Ports of loopback for servers that one process names to another before they listen."""

import contextlib
import itertools
import os
import random
import socket
from typing import Final

from protos.errors import Malformed

_LOOPBACK: Final = "127.0.0.1"
_RANGE: Final = range(20_000, 32_768)
"""Below the ports that a kernel gives to outgoing connections, any of which could take one between
its choice and the server's start (Linux: ip_local_port_range, from 32768)."""

_turns = itertools.count(random.Random(os.getpid()).randrange(len(_RANGE)))


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on.

    A process comes to the same port again only after all others, and two processes begin far from
    each other: what was chosen and does not listen yet, or not now, is not chosen again.

    Raises:
        Malformed: PORT_IN_USE: so many are not free.
    """
    found: list[int] = []
    for _ in _RANGE:
        port = _RANGE[next(_turns) % len(_RANGE)]
        if _is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise Malformed(
        "PORT_IN_USE",
        f"no {count} ports of {_LOOPBACK} from {_RANGE.start} to {_RANGE.stop - 1} are free: end "
        "programs that hold them",
    )


def choose_ports(base: int | None) -> tuple[int, int, int]:
    """Ports for gRPC, enrolment and health: `base` and the two after it, or three free ones.

    Raises:
        Malformed: PORT_IN_USE.
    """
    if base is None:
        port, enrollment_port, health_port = free_ports(3)
        return port, enrollment_port, health_port
    for port in (base, base + 1, base + 2):
        if not _is_free(port):
            raise Malformed(
                "PORT_IN_USE",
                f"port {port} on {_LOOPBACK} is in use; choose another --port-base, or leave it "
                "out to take free ports",
            )
    return base, base + 1, base + 2


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            listener.bind((_LOOPBACK, port))
            listener.listen()
            return True
    return False


def is_listening(port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((_LOOPBACK, port), timeout=1.0):
            return True
    except OSError:
        return False
