"""The rules to ask the firewall's people for, as a text that can be sent to them."""

import socket
from dataclasses import dataclass
from typing import Any, Final

from node_agent.connection.proxy import Route, split_address


@dataclass(frozen=True, slots=True)
class Request:
    """What must be let through.

    Attributes:
        source: this machine's address on the way out; empty where it cannot be told.
        host, port: of the coordinator.
        addresses: what its name is here; empty where this machine's DNS does not know it.
        proxy: "host:port" through which it goes; empty for none.
        other: "host:port" of the coordinator's other port; empty where nothing here names it, or
            where it is the same.
        other_is: what that one is for; empty where it is the same.
    """

    source: str
    host: str
    port: int
    addresses: tuple[str, ...]
    proxy: str
    other: str = ""
    other_is: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "direction": "outbound",
            "protocol": "tcp",
            "source": self.source or None,
            "host": self.host,
            "addresses": list(self.addresses),
            "port": self.port,
            "proxy": self.proxy or None,
            "also": [{"address": self.other or None, "for": self.other_is}] * bool(self.other_is),
            "tls_inspection": "exempt",
            "alpn": ["h2"],
            "tls_version_min": "1.3",
            "idle_timeout_s_min": 60,
            "connection_life_s_min": 3600,
        }

    def text(self) -> str:
        """For people."""
        source = self.source or "this machine"
        where = _where(self.host, self.port, self.addresses)
        also = "another port of the coordinator, which its operator names"
        if self.other:
            host, port = split_address(self.other)
            also = _where(host, port, () if self.proxy else _addresses(host, port))
        rule = f"allow OUTBOUND TCP from {source} to {where}"
        if self.proxy:
            rule = f"on the proxy {self.proxy}: allow CONNECT from {source} to {where}"
        return "\n".join(
            (
                f"Please {rule}.",
                *[f"And the same, as a second rule, to {also}: {self.other_is}."]
                * bool(self.other_is),
                "- Outbound only: nothing listens on the machine, and no inbound rule is needed.",
                "- TLS 1.3 with certificates on both sides, HTTP/2 (ALPN h2), from end to end.",
                "- Exempt this destination from TLS inspection: the program trusts the "
                "coordinator's own authority only, and does not speak through an inspection.",
                "- One long-lived connection: idle time-out 60 s or more (it speaks every 5 s), "
                "and no limit below 1 hour on a connection's life.",
                "- What goes through: training orders and models in, noised model updates out. "
                "No patient's record leaves.",
            )
        )


SESSION: Final = "it is for the session, the one that lives long; the token does not name it"
ENROLLMENT: Final = (
    "it is where the node joins, and where it replaces a certificate that ended while it was off"
)


def request_for(route: Route, other: str = "", other_is: str = "") -> Request:
    """What must be let through for a route; looks the name up, and sends nothing.

    Args:
        other, other_is: of the coordinator's other port, as in `Request`.
    """
    host, port = split_address(route.address)
    target = route.proxy or route.address
    addresses = () if route.proxy else _addresses(host, port)
    if other == route.address:
        other = other_is = ""
    return Request(_source(target), host, port, addresses, route.proxy, other, other_is)


def _where(host: str, port: int, addresses: tuple[str, ...]) -> str:
    known = f" (now {', '.join(addresses)})" if addresses else ""
    return f"{host}{known}, TCP port {port}"


def _addresses(host: str, port: int) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(sorted({str(one[4][0]) for one in found} - {host}))


def _source(target: str) -> str:
    """This machine's address towards a target; connecting UDP sends no packet."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            *split_address(target), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return ""
