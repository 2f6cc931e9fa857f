"""The rule to ask the firewall's people for, as a text that can be sent to them."""

import socket
from dataclasses import dataclass
from typing import Any

from node_agent.proxy import Route, split_address


@dataclass(frozen=True, slots=True)
class Request:
    """What must be let through.

    Attributes:
        source: this machine's address on the way out; empty where it cannot be told.
        host, port: of the coordinator.
        addresses: what its name is here; empty where this machine's DNS does not know it.
        proxy: "host:port" through which it goes; empty for none.
    """

    source: str
    host: str
    port: int
    addresses: tuple[str, ...]
    proxy: str

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
            "tls_inspection": "exempt",
            "alpn": ["h2"],
            "tls_version_min": "1.3",
            "idle_timeout_s_min": 60,
            "connection_life_s_min": 3600,
        }

    def text(self) -> str:
        """For people."""
        source = self.source or "this machine"
        known = f" (now {', '.join(self.addresses)})" if self.addresses else ""
        where = f"{self.host}{known}, TCP port {self.port}"
        rule = f"allow OUTBOUND TCP from {source} to {where}"
        if self.proxy:
            rule = f"on the proxy {self.proxy}: allow CONNECT from {source} to {where}"
        return "\n".join(
            (
                f"Please {rule}.",
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


def request_for(route: Route) -> Request:
    """What must be let through for a route; looks the name up, and sends nothing."""
    host, port = split_address(route.address)
    target = route.proxy or route.address
    addresses = () if route.proxy else _addresses(host, port)
    return Request(_source(target), host, port, addresses, route.proxy)


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
