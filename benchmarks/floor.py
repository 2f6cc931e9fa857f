"""The floor of a round: the same bytes by bare gRPC over mTLS, with nothing kept or checked.

Each of the clients downloads one message and uploads one, all at the same time; the server is a
process of its own, as the coordinator is.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc

from certs.authority import Authority
from certs.credentials import channel_credentials, server_credentials
from certs.enrolment import new_key, private_pem
from certs.spiffe import SpiffeId

PATH = "/floor.Floor/Exchange"


def floor_round_s(folder: Path, nodes: int, message_bytes: int, rounds: int) -> float:
    """Median seconds of one round."""
    credentials = _credentials(folder)
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.floor", str(folder), str(message_bytes)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        return _measure(credentials, port, nodes, message_bytes, rounds)
    finally:
        server.terminate()
        server.wait()


def _measure(
    credentials: grpc.ChannelCredentials, port: int, nodes: int, message_bytes: int, rounds: int
) -> float:
    channels = [grpc.secure_channel(f"localhost:{port}", credentials) for _ in range(nodes)]
    calls: list[Any] = [channel.unary_unary(PATH) for channel in channels]
    payload = os.urandom(message_bytes)

    def exchange(number: int) -> None:
        assert len(calls[number](b"")) == message_bytes
        calls[number](payload)

    seconds = []
    with ThreadPoolExecutor(nodes) as pool:
        for _ in range(rounds + 3):
            began_s = time.perf_counter()
            list(pool.map(exchange, range(nodes)))
            seconds.append(time.perf_counter() - began_s)
    for channel in channels:
        channel.close()
    return statistics.median(seconds[3:])


def _credentials(folder: Path) -> grpc.ChannelCredentials:
    authority = Authority.create(folder / "pki", "bench.example")
    for name, identity, hosts in (
        ("server", SpiffeId("bench.example", "coordinator"), ("localhost",)),
        ("client", SpiffeId("bench.example", "node", "client"), ()),
    ):
        key = new_key()
        issued = authority.issue(
            key.public_key(),
            identity,
            now=datetime.now(UTC),
            lifetime=timedelta(hours=1),
            dns_names=hosts,
        )
        (folder / f"{name}.crt").write_bytes(issued.chain_pem)
        (folder / f"{name}.key").write_bytes(private_pem(key))
    (folder / "bundle.pem").write_bytes(authority.trust_bundle)
    return channel_credentials(
        authority.trust_bundle,
        (folder / "client.key").read_bytes(),
        (folder / "client.crt").read_bytes(),
    )


async def _serve(folder: Path, message_bytes: int) -> None:
    payload = os.urandom(message_bytes)

    async def exchange(request: bytes, _context: object) -> bytes:
        return b"" if request else payload

    handler: Any = grpc.unary_unary_rpc_method_handler(exchange)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("floor.Floor", {"Exchange": handler})]
    )
    credentials = server_credentials(
        (folder / "server.crt").read_bytes(),
        (folder / "server.key").read_bytes(),
        (folder / "bundle.pem").read_bytes(),
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
