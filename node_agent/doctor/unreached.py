"""Why a join made no connection: one look at the way, for its error. Nothing is sent."""

from datetime import UTC, datetime
from typing import Final

from certs.tokens import JoinToken
from node_agent.connection.proxy import Route
from node_agent.doctor.network import Blocked, connect
from node_agent.doctor.tls import check_tls, clock_by_certificate

_TCP: Final = {
    False: "ask the coordinator's operator whether it runs; for the firewall, `feddp agent doctor "
    "--token TOKEN --firewall-request` prints what to ask for; where this network goes out by a "
    "proxy, name it by --proxy",
    True: "check the proxy's host and port, in --proxy or in the variable that names it",
}
"""Whether there is a proxy -> what to do where the way ends before TLS."""


def found_on_the_way(token: JoinToken, route: Route) -> str:
    """Where the way ends, whose certificate came, by whose clock it holds, and what to do: without
    the full stop; empty where nothing was found."""
    try:
        connect(route).close()
    except Blocked as blocked:
        # What the check itself says of the rest is for those who have an agent.yaml.
        do = blocked.check.do if blocked.check.name == "proxy" else _TCP[bool(route.proxy)]
        return f"{blocked.check.found}: {do}"
    checks, shown = check_tls(route, token.root_pem)
    if shown is not None and not shown.own:
        return (
            f"{checks[0].found}. It does not chain to the root that the token names (SHA-256 "
            f"{token.fingerprint}): either the token is another coordinator's, then ask for a new "
            f"one, or a TLS inspection opens the connection, then ask to exempt {route.address} "
            "from it. Nothing was sent"
        )
    if shown is not None and (clock := clock_by_certificate(shown, datetime.now(UTC))):
        return f"{clock.found}: {clock.do}"
    return next((one.found for one in checks if one.result == "failed"), "")
