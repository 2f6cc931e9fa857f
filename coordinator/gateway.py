"""Whose certificate a gateway was shown, where it ends TLS in front of the coordinator.

The gateway speaks TLS on with a certificate of its own (`spiffe://TRUST_DOMAIN/gateway`) and says
in `x-forwarded-client-cert` whose it was shown. Nobody else's header is read: from everybody else
the certificate of the connection counts, whatever they say. Of the header only the fingerprint is
taken, and looked up in the registry; Envoy does not escape the URIs in it, so that a name could be
made to say anything.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from protos.errors import Unauthenticated

HEADER: Final = "x-forwarded-client-cert"
# Envoy writes its own URI first, which is ours.
_FIRST: Final = re.compile(r"(?:By=spiffe://[a-z0-9._-]+/gateway;)?Hash=([0-9a-f]{64})(?:;|\Z)")
_FURTHER: Final = re.compile(r"[,;]\s*(?:Hash|By)=", re.IGNORECASE)

Metadata = Iterable[tuple[str, str | bytes]]


def forwarded_fingerprint(metadata: Metadata) -> str:
    """SHA-256 of the client's certificate, hexadecimal, as the gateway says it.

    Args:
        metadata: of an rpc that came over a gateway's own connection.

    Raises:
        Unauthenticated: FORWARDED_IDENTITY, there is no header, more than one, or one that speaks
            of more than one certificate, as that of a gateway does which appends to what it gets.
    """
    values = [value for key, value in metadata if key == HEADER]
    text = values[0] if len(values) == 1 and isinstance(values[0], str) else ""
    match = _FIRST.match(text)
    if match is None or _FURTHER.search(text, match.end(1)):
        raise Unauthenticated(
            "FORWARDED_IDENTITY",
            f"the gateway must say in one {HEADER} whose certificate it was shown: it requires a "
            "client certificate, and replaces the header (Envoy: SANITIZE_SET)",
        )
    return match[1]


SOON_S: Final = 14 * 86_400


def ending(not_after_s: float, now_s: float) -> str:
    """What to say of the newest certificate that a gateway has; empty while it is good for long."""
    if not not_after_s or not_after_s - now_s > SOON_S:
        return ""
    when = f"{datetime.fromtimestamp(not_after_s, UTC):%Y-%m-%d %H:%M} UTC"
    ended = not_after_s <= now_s
    return (
        f"the gateway's certificate {'ended' if ended else 'ends'} at {when}"
        + (": the coordinator refuses all that comes through it" if ended else "")
        + "; make another with `feddp coordinator gateway`, restart both. If no gateway ends TLS "
        "any more, nothing is to be done"
    )
