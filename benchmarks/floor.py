"""The floor of a round: the same bytes by bare gRPC over mTLS, with nothing kept or checked.

The server is a process of its own, as the coordinator is. Every client downloads one model and
uploads one, all at the same time, each over its own connection: in one message where it fits, else
in streams of 1 MiB messages. Clients of large models are processes, as agents are; clients of small
ones are threads of one process, which is faster there.
"""

import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.floor_messages import CHUNK_BYTES
from benchmarks.measuring import cpu_s
from certs.authority import Authority
from certs.enrolment import new_key, private_pem
from certs.spiffe import SpiffeId

KINDS = ("aio", "sync")
PROBE_BYTES_MAX = 50_000_000
WARM_UP_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Floor:
    """What one round costs: median seconds, and CPU seconds of the server."""

    kind: str
    round_s: float
    server_cpu_s: float


def floor_of(folder: Path, nodes: int, message_bytes: int, rounds: int) -> Floor:
    """The faster of an aio and a sync server.

    Models of more than `PROBE_BYTES_MAX` choose the server with models of that size.
    """
    write_credentials(folder)
    probe_bytes = min(message_bytes, PROBE_BYTES_MAX)
    found = [_measured(folder, kind, nodes, probe_bytes, rounds) for kind in KINDS]
    best = min(found, key=lambda one: one.round_s)
    if message_bytes > probe_bytes:
        best = _measured(folder, best.kind, nodes, message_bytes, rounds)
    return best


def kept_floor_s(folder: Path, nodes: int, message_bytes: int, rounds: int) -> float:
    """Median seconds of a round of the least that keeps what it moves: each end writes and digests
    what comes, clients sync an update before they send it, the server syncs it before it
    acknowledges, and then folds all of them and syncs the model. For models sent in streams."""
    write_credentials(folder)
    with ExitStack() as running:
        server = _started(running, "floor_server", "kept", folder, message_bytes)
        port = _line(server)
        clients = [
            _started(running, "floor_client", folder, port, message_bytes, 1, f"client-{number}")
            for number in range(nodes)
        ]
        for client in clients:
            _line(client)
        return statistics.median(_round(clients, then=server) for _ in range(rounds + 1))


def _measured(folder: Path, kind: str, nodes: int, message_bytes: int, rounds: int) -> Floor:
    small = message_bytes <= CHUNK_BYTES
    processes, threads = (1, nodes) if small else (nodes, 1)
    with ExitStack() as running:
        server = _started(running, "floor_server", kind, folder, message_bytes)
        port = _line(server)
        clients = [
            _started(running, "floor_client", folder, port, message_bytes, threads)
            for _ in range(processes)
        ]
        for client in clients:
            _line(client)
        # A large round warms nothing that a smaller one has not.
        for _ in range(WARM_UP_ROUNDS if message_bytes <= PROBE_BYTES_MAX else 0):
            _round(clients)
        cpu_before_s = cpu_s(server.pid)
        seconds = [_round(clients) for _ in range(rounds)]
        cpu = (cpu_s(server.pid) - cpu_before_s) / rounds
    return Floor(kind, statistics.median(seconds), cpu)


def _round(
    clients: "list[subprocess.Popen[str]]", then: "subprocess.Popen[str] | None" = None
) -> float:
    """Seconds until each client has answered, and then the server."""
    began_s = time.perf_counter()
    for group in (clients, [then] if then is not None else []):
        for process in group:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in group:
            _line(process)
    return time.perf_counter() - began_s


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    text = process.stdout.readline().strip()
    if not text:
        raise RuntimeError(f"a process of the floor ended ({process.args!r}); see its error above")
    return text


def _started(running: ExitStack, module: str, *arguments: object) -> "subprocess.Popen[str]":
    """A process that is killed with the stack."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    running.callback(process.wait)
    running.callback(process.kill)
    return process


def write_credentials(folder: Path, hosts: tuple[str, ...] = ("localhost",)) -> None:
    """An authority with a server's and a client's certificate, as PEM files in `folder`."""
    authority = Authority.create(folder / "pki", "bench.example")
    for name, identity, names in (
        ("server", SpiffeId("bench.example", "coordinator"), hosts),
        ("client", SpiffeId("bench.example", "node", "client"), ()),
    ):
        key = new_key()
        issued = authority.issue(
            key.public_key(),
            identity,
            now=datetime.now(UTC),
            lifetime=timedelta(hours=1),
            dns_names=names,
        )
        (folder / f"{name}.crt").write_bytes(issued.chain_pem)
        (folder / f"{name}.key").write_bytes(private_pem(key))
    (folder / "bundle.pem").write_bytes(authority.trust_bundle)
