"""Whether nodes find what they were told: names in the server's certificate, and the way to the
address for the bytes of models and updates, as far as it can be tried from here."""

import socket
from collections.abc import Iterator
from typing import Final, Literal

from cryptography import x509

from certs.authority import Authority
from coordinator.checking.ports import shown
from coordinator.config.config import CoordinatorConfig
from coordinator.server_certificate import hosts_of, names_and_addresses, read_pair
from protos.errors import FeddpError

Found = tuple[Literal["ok", "note", "warning"], str, str]
"""(level, key, text)."""

ADDRESS: Final = "server.transfer_address"


def names_found(config: CoordinatorConfig) -> Iterator[Found]:
    """A warning for each host that nodes are told and the server's certificate does not show.

    Not more than that: a gateway that ends TLS shows a certificate of its own to nodes.
    """
    server = config.server
    try:
        leaf = x509.load_pem_x509_certificates(read_pair(config)[0])[0]
        named, addresses = hosts_of(leaf)
    except (FeddpError, ValueError, x509.ExtensionNotFound):
        return  # said already
    told = {
        "server.public_host": server.public_host,
        "server.public_enrollment_host": server.public_enrollment_host,
        ADDRESS: server.transfer_host,
    }
    for key, host in told.items():
        if not host or covers(host, named, addresses):
            continue
        if server.ssl_cert is not None:
            what = f"ask for one with that name, for {server.ssl_cert}"
        elif key == ADDRESS:
            yield "note", key, f"the next start adds {host} to the server's certificate"
            continue
        else:
            what = (
                "renewing keeps its names, so say one of them, or give server.ssl_cert a "
                "certificate under this installation's authority"
            )
        text = (
            f"{host} is not in the server's certificate, so that nodes which dial it refuse it, "
            f"unless a gateway ends their TLS under that name: {what}"
        )
        yield "warning", key, text


def covers(host: str, named: list[str], addresses: list[str]) -> bool:
    """Whether a certificate that shows these names and addresses is a host's."""
    (names, numbers) = names_and_addresses([host.strip("[]")])
    if numbers:
        return numbers[0] in addresses
    name = names[0].lower()
    wild = f"*.{name.partition('.')[2]}"
    return any(one.lower() in (name, wild) for one in named)


def way_found(config: CoordinatorConfig) -> Iterator[Found]:
    """What answers at the transfer address. Nothing here is an error: from another place it may be
    otherwise, and nodes that do not reach it use the connection that they have."""
    server = config.server
    if not (host := server.transfer_host):
        return
    port = int(server.transfer_address.rpartition(":")[2])
    at = f"{host}:{port}"
    meanwhile = "until then nodes use the connection that they have"
    try:
        bundle = Authority.load(config.storage.pki_dir).trust_bundle
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except FeddpError:
        return  # said already
    except (OSError, UnicodeError):
        text = f"{host} has no address in the DNS that this machine asks: enter it; {meanwhile}"
        yield "warning", ADDRESS, text
        return
    if not shown(host, port, None, server_name=host):
        yield (
            "note",
            ADDRESS,
            f"nobody answers at {at} from here, as before the first start, or where a firewall "
            f"lets only others through; {meanwhile}",
        )
    elif shown(host, port, bundle, server_name=host):
        yield "ok", ADDRESS, f"{at} answers with a certificate of this installation"
    else:
        yield (
            "warning",
            ADDRESS,
            f"{at} answers with a certificate of somebody else: lead it to server.transfer_port, "
            f"and have no gateway or proxy end TLS on the way; {meanwhile}",
        )
