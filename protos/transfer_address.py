"""Which address for the bytes of models and updates an agent dials on its coordinator's word.

The hospital has written down one host that its agent connects to. What a coordinator tells must
stay within it: the same host, or a name under it, whose owner is the same. Anything else would let
a coordinator have agents knock at any door inside the hospital.
"""

import ipaddress
import re
from typing import Final

ADDRESS_MAX: Final = 259
"""A DNS name of 253 characters, and the port."""

_PORT_MAX: Final = 65535
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def follows(address: str, host: str) -> bool:
    """Whether "HOST:PORT" names `host`, or a name under it.

    Args:
        host: the coordinator's, without brackets.
    """
    if len(address) > ADDRESS_MAX:
        return False
    named, _, port = address.lower().rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) <= _PORT_MAX):
        return False
    own = host.lower().removesuffix(".")
    if named.startswith("[") and named.endswith("]"):
        return _ip(named[1:-1]) is not None and _ip(named[1:-1]) == _ip(own)
    if _ip(named) is not None or _ip(own) is not None:
        return ":" not in named and _ip(named) == _ip(own)
    return bool(_NAME.fullmatch(named)) and (named == own or named.endswith(f".{own}"))


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
