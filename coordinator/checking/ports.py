"""Whether the coordinator's ports can be opened, and who has those that cannot."""

import contextlib
import errno
import http.client
import json
import socket
import ssl
from typing import Final

from certs.authority import Authority
from coordinator.config.config import CoordinatorConfig
from coordinator.server_certificate import read_pair
from protos.errors import FeddpError

ANSWER_S_MAX: Final = 3.0
_EVERY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where it listens, to ask there


def ports_found(config: CoordinatorConfig) -> list[tuple[str, bool, str]]:
    """(key, whether nothing is in the way, what was found) of each port."""
    server = config.server
    found = []
    runs = False
    transfer = ((server.host, server.transfer_port, "server.transfer_port"),)
    for host, port, name in (
        (server.host, server.port, "server.port"),
        (server.host, server.enrollment_port, "server.enrollment_port"),
        *(transfer if server.transfer_port else ()),
        (server.health_host, server.health_port, "server.health_port"),
    ):
        if (fault := _fault(host, port)) is None:
            found.append((name, True, f"port {port} is free"))
            continue
        is_health = name == "server.health_port"
        own = runs and _is_alive(host, port) if is_health else _shows_ours(host, port, config)
        runs = runs or own
        if own:
            how = "" if is_health else " with its own certificate"
            text = f"port {port} is this coordinator's, which runs and answers there{how}"
            found.append((name, True, text))
        else:
            who = (
                "another program holds it, or a coordinator of another installation"
                if fault.errno == errno.EADDRINUSE
                else "this user may not, or the address is not this machine's"
            )
            text = f"port {port} cannot be opened now ({fault.strerror}): {who}"
            found.append((name, False, text))
    return found


def _fault(host: str, port: int) -> OSError | None:
    """Why a port cannot be opened; None if it can."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _shows_ours(host: str, port: int, config: CoordinatorConfig) -> bool:
    """Whether who listens has a certificate of this installation: the one in its folder, or, as one
    that was replaced since is still shown, another one of its authority."""
    with contextlib.suppress(FeddpError):
        chain, _ = read_pair(config)
        if shown(host, port, None) == ssl.PEM_cert_to_DER_cert(_first(chain)):
            return True
        bundle = Authority.load(config.storage.pki_dir).trust_bundle
        return bool(shown(host, port, bundle))
    return False


def _first(chain: bytes) -> str:
    end = "-----END CERTIFICATE-----"
    return chain.decode().partition(end)[0] + end


def shown(host: str, port: int, bundle: bytes | None, server_name: str | None = None) -> bytes:
    """The certificate that comes, DER; empty for none, and for one that `bundle` does not vouch
    for. Nothing is said but, to a gateway, the name that is asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if bundle is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=bundle.decode())
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((_EVERY.get(host, host), port), ANSWER_S_MAX) as connection,
            context.wrap_socket(connection, server_hostname=server_name) as secured,
        ):
            return secured.getpeercert(binary_form=True) or b""
    except (OSError, ValueError):
        return b""


def _is_alive(host: str, port: int) -> bool:
    """Whether a health page answers as a coordinator's."""
    connection = http.client.HTTPConnection(_EVERY.get(host, host), port, timeout=ANSWER_S_MAX)
    try:
        connection.request("GET", "/health")
        return bool(json.loads(connection.getresponse().read(4096)) == {"status": "alive"})
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
