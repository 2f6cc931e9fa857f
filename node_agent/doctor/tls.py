"""TLS to the coordinator's port: whose certificate came, by whose clock it holds, and HTTP/2."""

import contextlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from node_agent.connection.clock import SET_CLOCK
from node_agent.connection.proxy import Route, split_address
from node_agent.doctor.network import REQUEST, Blocked, connect
from node_agent.doctor.report import Check, skipped, span

NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME: whose a certificate is, whatever the clocks say."""

HOST_MISMATCHES: Final = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

NAMES: Final = ("tls", "http2")
SHOWN_NAMES_MAX: Final = 6


@dataclass(frozen=True, slots=True)
class Shown:
    """What the other end showed.

    Attributes:
        alpn: the protocol that it chose; empty for none.
        version: of TLS, as "TLSv1.3".
        own: whether the certificate chains to the coordinator's root.
        host: whether it is for the name that was dialled.
    """

    leaf: x509.Certificate
    alpn: str
    version: str
    own: bool
    host: bool


def check_tls(route: Route, bundle: bytes) -> tuple[list[Check], Shown | None]:
    """The checks `NAMES`, and what was shown, if there was a handshake.

    Args:
        bundle: the roots that the coordinator must chain to, PEM.
    """
    try:
        shown = _shake_hands(route, bundle)
    except Blocked as blocked:
        (other,) = (name for name in NAMES if name != blocked.check.name)
        return [blocked.check, *skipped("no TLS connection", other)], None
    return [_whose(route, shown), _http2(route, shown)], shown


def clock_by_certificate(shown: Shown, now: datetime) -> Check | None:
    """What the coordinator's certificate says against this machine's clock; None for nothing."""
    if not shown.own:
        return None
    first, last = shown.leaf.not_valid_before_utc, shown.leaf.not_valid_after_utc
    clock = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
    if now < first:
        return Check(
            "clock",
            "failed",
            f"{clock}, {span((first - now).total_seconds())} before the coordinator's certificate "
            f"begins ({first:%Y-%m-%d %H:%M} UTC): the clock is behind",
            SET_CLOCK,
        )
    if now > last:
        return Check(
            "clock",
            "failed",
            f"{clock}, {span((now - last).total_seconds())} after the coordinator's certificate "
            f"ended ({last:%Y-%m-%d %H:%M} UTC): the clock is ahead, or the operator has not "
            "renewed it",
            f"{SET_CLOCK}; if it is right, tell the coordinator's operator",
        )
    return None


def _shake_hands(route: Route, bundle: bytes) -> Shown:
    """Twice: to see what comes, and to see whether it holds."""
    anything = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anything.check_hostname = False
    anything.verify_mode = ssl.CERT_NONE  # to look at what is shown; nothing is said
    der, alpn, version = _handshake(route, anything)
    strict = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    strict.load_verify_locations(cadata=bundle.decode())
    strict.verify_flags |= NO_CHECK_TIME
    own = host = True
    try:
        _handshake(route, strict)
    except ssl.SSLCertVerificationError as error:
        host = False
        own = error.verify_code in HOST_MISMATCHES
    return Shown(x509.load_der_x509_certificate(der), alpn, version, own, host)


def _handshake(route: Route, context: ssl.SSLContext) -> tuple[bytes, str, str]:
    context.set_alpn_protocols(["h2"])
    host, _ = split_address(route.address)
    connection = connect(route)
    try:
        with contextlib.closing(context.wrap_socket(connection, server_hostname=host)) as secured:
            der = secured.getpeercert(binary_form=True) or b""
            return der, secured.selected_alpn_protocol() or "", secured.version() or ""
    except ssl.SSLCertVerificationError:
        raise
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        raise Blocked(_cut(route, "is cut during the TLS handshake")) from None
    except ssl.SSLError as error:
        if error.reason and "NO_APPLICATION_PROTOCOL" in error.reason:
            raise Blocked(_no_http2("the other end refuses HTTP/2")) from None
        speaks = f"{route.address} does not speak TLS ({error.reason or 'no answer that is TLS'})"
        raise Blocked(Check("tls", "failed", speaks, _NOT_TLS)) from None
    except TimeoutError:
        raise Blocked(_cut(route, "gets no answer to its TLS greeting")) from None
    except OSError:
        raise Blocked(_cut(route, "is cut during the TLS handshake")) from None


def _cut(route: Route, how: str) -> Check:
    return Check("tls", "failed", f"the connection to {route.address} {how}", _CUT)


_NOT_TLS: Final = (
    "check host and port of `coordinator` in agent.yaml with its operator; in a network with a "
    "login page (captive portal), which answers for everybody, log in first or ask to be let out "
    "without one"
)
_CUT: Final = (
    "a firewall that looks into TLS cuts it (it may know the name or refuse TLS 1.3), or a gateway "
    f"does not know the name: ask for an exception ({REQUEST}), and the operator for the name"
)


def _whose(route: Route, shown: Shown) -> Check:
    leaf = shown.leaf
    if not shown.own:
        fingerprint = leaf.fingerprint(hashes.SHA256()).hex(":").upper()
        return Check(
            "tls",
            "failed",
            f"another's certificate came instead of the coordinator's: issued by "
            f"{leaf.issuer.rfc4514_string()} for {leaf.subject.rfc4514_string() or 'nobody'}, "
            f"SHA-256 {fingerprint}",
            f"if the issuer is your own network's, its TLS inspection opens the connection, and "
            f"the agent will not speak: ask to exempt {route.address} from it ({REQUEST}); if not, "
            "compare the root's fingerprint with the coordinator's operator, and join anew",
        )
    if not shown.host:
        host, _ = split_address(route.address)
        return Check(
            "tls",
            "failed",
            f"the coordinator's certificate is for {_names(leaf)}, not for {host}",
            "`coordinator` in agent.yaml must be one of these names; else the operator issues a "
            "certificate for this one",
        )
    if shown.version != "TLSv1.3":
        return Check(
            "tls",
            "failed",
            f"{shown.version} was agreed on, and the coordinator takes TLS 1.3 only",
            "a box on the way, or the operator's gateway, holds TLS down: ask for TLS 1.3",
        )
    days = span((leaf.not_valid_after_utc - datetime.now(UTC)).total_seconds())
    return Check("tls", "ok", f"TLS 1.3, the coordinator's own certificate, valid {days} more")


def _http2(route: Route, shown: Shown) -> Check:
    if shown.alpn == "h2":
        return Check("http2", "ok", "HTTP/2 was agreed on (ALPN h2)")
    where = "the box that opens TLS" if not shown.own else "a gateway that ends TLS"
    return _no_http2(f"ALPN was stripped: h2 was offered and {where} chose nothing")


def _no_http2(found: str) -> Check:
    return Check(
        "http2",
        "failed",
        found,
        "the session needs HTTP/2 from end to end: ask for ALPN h2 to be let through, or for the "
        "connection to be passed on unopened",
    )


def _names(leaf: x509.Certificate) -> str:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "no host"
    hosts = [
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    ]
    return ", ".join(hosts[:SHOWN_NAMES_MAX]) or "no host"
