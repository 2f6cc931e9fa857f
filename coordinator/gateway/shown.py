"""Whose certificate a gateway was shown, where it ends TLS in front of the coordinator.

The gateway speaks TLS on with a certificate of its own (`spiffe://TRUST_DOMAIN/gateway`) and says
in `x-forwarded-client-cert` whose it was shown. Nobody else's header is read: from everybody else
the certificate of the connection counts, whatever they say. Of the header only fingerprints are
taken, and looked up in the registry; Envoy does not escape the URIs in it, so that a name could be
made to say anything.

Behind a second proxy (`server.gateway_sidecar`) there are two elements: what the gateway says of
the client, and then what the second one says of the gateway. Never one, never three: who could add
or remove one would choose who they are.
"""

import re
from collections.abc import Iterable
from typing import Final

from protos.errors import Unauthenticated

HEADER: Final = "x-forwarded-client-cert"
# Envoy writes the URI of its own certificate first, which no setting leaves out; a gateway's of
# this authority has one. Nothing else is taken before the fingerprint.
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
    found = _fingerprint(_only_value(metadata))
    if found is None:
        raise Unauthenticated(
            "FORWARDED_IDENTITY",
            f"the gateway must say in one {HEADER} whose certificate it was shown: it requires a "
            "client certificate, and replaces the header (Envoy: SANITIZE_SET)",
        )
    return found


def forwarded_fingerprints(metadata: Metadata) -> tuple[str, str]:
    """(the client's, the gateway's) SHA-256 of certificates, hexadecimal, as a second proxy says it
    behind the gateway.

    Args:
        metadata: of an rpc that came over the second proxy's own connection.

    Raises:
        Unauthenticated: FORWARDED_IDENTITY, the header has not exactly two elements that each
            begin with one fingerprint. A comma always parts elements: no certificate of this
            authority has one in its names.
    """
    elements = [one.strip(" ") for one in _only_value(metadata).split(",")]
    found = [_fingerprint(one) for one in elements]
    if len(found) != 2 or found[0] is None or found[1] is None:
        raise Unauthenticated(
            "FORWARDED_IDENTITY",
            f"{HEADER} must have two elements, the client's and then the gateway's: the gateway "
            "replaces the header (Envoy: SANITIZE_SET), the proxy behind it adds to it "
            "(APPEND_FORWARD), and both require a client certificate",
        )
    return found[0], found[1]


def _only_value(metadata: Metadata) -> str:
    values = [value for key, value in metadata if key == HEADER]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""


def _fingerprint(element: str) -> str | None:
    match = _FIRST.match(element)
    if match is None or _FURTHER.search(element, match.end(1)):
        return None
    return match[1]
