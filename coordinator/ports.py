"""The gRPC ports: with which options they are opened, and what is said where one is taken."""

import ipaddress
from typing import Final

import grpc

from coordinator.rpc.gate import Gate
from protos.errors import Malformed

DRAIN_S: Final = 5.0

MESSAGE_BYTES_MAX: Final = 4 << 20
"""A chunk is 1 MiB, and a Hello grows with the data sets' columns."""

ENROLMENT_MESSAGE_BYTES_MAX: Final = 64 << 10
"""Whoever sends it is a stranger. A request for a certificate is 8 KiB, a former chain 16 KiB."""

OPTIONS: Final[list[tuple[str, int]]] = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", 1_000),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.experimental.tcp_max_read_buffer_size", 64 << 10),
    ("grpc.so_reuseport", 0),
]
"""So that a session survives a quiet network, a second coordinator cannot share the port, and gRPC
buffers no more of an upload than the message that is being read: its probe of the bandwidth would
let each sender fill some 10 MiB, and each connection that has once sent a model would hold 1 MiB
ready for the next."""


def server_behind(gate: Gate, message_bytes_max: int = MESSAGE_BYTES_MAX) -> grpc.aio.Server:
    """A server whose every rpc passes the gate; it has no port yet."""
    options = [*OPTIONS, ("grpc.max_receive_message_length", message_bytes_max)]
    return grpc.aio.server(interceptors=[gate], options=options)


def bind(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials
) -> None:
    """Have a server listen once it starts.

    Raises:
        Malformed: PORT_IN_USE.
    """
    try:
        server.add_secure_port(joined(host, port), credentials)
    except RuntimeError:
        raise Malformed(
            "PORT_IN_USE",
            f"port {port} on {host} cannot be opened; another program may hold it: choose another "
            "in the configuration, or stop that program",
        ) from None


def joined(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    try:
        brackets = ipaddress.ip_address(host).version == 6
    except ValueError:
        brackets = False
    return f"[{host}]:{port}" if brackets else f"{host}:{port}"
