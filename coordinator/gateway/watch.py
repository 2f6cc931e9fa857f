"""How long the certificate of a gateway that ends TLS still holds, for whoever must renew it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import structlog
from sqlalchemy import Connection

from certs.spiffe import SpiffeId
from coordinator.store import certificates

log = structlog.get_logger(__name__)

SOON_S: Final = 30 * 86_400.0
FORGOTTEN_S: Final = 30 * 86_400.0
"""A certificate that ended longer ago has no gateway any more: its nodes would have been cut off
for a month."""

DO: Final = (
    "run `feddp coordinator gateway --dir DIR --out FOLDER --renew` on the gateway's folder, daily "
    "from a timer, and give the gateway the new files"
)


@dataclass(frozen=True, slots=True)
class GatewayState:
    """The newest certificate that was issued to a gateway.

    Attributes:
        ends_at_s: its end, in seconds since the epoch.
    """

    state: Literal["valid", "ends_soon", "over"]
    ends_at_s: float

    def __str__(self) -> str:
        """What to tell an operator."""
        ends = f"{datetime.fromtimestamp(self.ends_at_s, UTC):%Y-%m-%d %H:%M} UTC"
        if self.state == "over":
            return (
                f"the newest certificate of a gateway that ends TLS is over since {ends}: nobody "
                f"gets through such a gateway; {DO}"
            )
        said = f"the newest certificate of a gateway that ends TLS ends at {ends}"
        return said if self.state == "valid" else f"{said}; {DO}"


def state_of(connection: Connection, trust_domain: str, now_s: float) -> GatewayState | None:
    """The state at `now_s`, in seconds since the epoch; None where there is no such gateway."""
    identity = SpiffeId(trust_domain, "gateway")
    ends_at_s = certificates.ends(connection, identity).get(str(identity))
    if ends_at_s is None or now_s > ends_at_s + FORGOTTEN_S:
        return None
    left_s = ends_at_s - now_s
    state: Literal["valid", "ends_soon", "over"] = "valid"
    if left_s <= SOON_S:
        state = "over" if left_s <= 0 else "ends_soon"
    return GatewayState(state, ends_at_s)


class GatewayWatch:
    """Says in the log, once each, that a gateway's certificate ends soon and that it is over."""

    def __init__(self) -> None:
        self._said: GatewayState | None = None

    def found(self, now: GatewayState | None) -> None:
        """Take what was seen; the first time is the start of the coordinator."""
        if now == self._said:
            return
        self._said = now
        if now is None or now.state == "valid":
            return
        say = log.error if now.state == "over" else log.warning
        say("gateway_certificate", state=now.state, detail=str(now))
