"""One coordinator and as many nodes as a machine can hold, played by few processes."""

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.federation import COORDINATOR, Federation, federation
from benchmarks.measuring import CpuTrace, cpu_s, resident_mib
from benchmarks.null_round import round_s
from benchmarks.results import Result, result
from feddp.client import Client
from node_agent.joining.enrol import join

PROCESSES: Final = 2
WATCHED_S: Final = 20.0
KIB_PER_MIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every node has a certificate, a connection, a session that beats, and a part in each round.

    They share the machine with the coordinator, so that its CPU says more than the time.
    """

    nodes: int
    parameters: int
    rounds: int
    seconds_max: float

    @property
    def disk_bytes(self) -> int:
        """Identities, and each round's updates."""
        return self.nodes * (100_000 + 4 * self.parameters)

    def run(self, case: str) -> list[Result]:
        """Join, connect, stay, and run a job of `rounds` and one that does not count."""
        with federation(0) as running:
            running.names = tuple(f"node-{number}" for number in range(self.nodes))
            _enrol(running)
            coordinator = running.pid(COORDINATOR)
            before_mib = resident_mib(coordinator)
            with _connected(running) as seconds:
                time.sleep(WATCHED_S)
                session_kib = (resident_mib(coordinator) - before_mib) / self.nodes * KIB_PER_MIB
                idle_s = cpu_s(coordinator)
                time.sleep(WATCHED_S)
                idle = 100 * (cpu_s(coordinator) - idle_s) / WATCHED_S
                with CpuTrace(coordinator) as cpu:
                    job_id = running.submit(self.parameters, 1 + self.rounds)
                    job = running.until_ended(job_id, self.seconds_max)
        counted = job.rounds
        spent_s = cpu.between(counted[0].ended_at, counted[-1].ended_at) / self.rounds
        return [
            result(case, "connect_time", seconds, "s"),
            result(case, "memory_per_session", session_kib, "KiB"),
            result(case, "coordinator_idle_cpu", idle, "% of a core"),
            result(case, "round_time", round_s(job, 1), "s"),
            result(case, "coordinator_cpu", spent_s, "s"),
            result(case, "coordinator_cpu_per_node", 1000 * spent_s / self.nodes, "ms"),
        ]


def _enrol(running: Federation) -> None:
    with Client(running.profile()) as client:
        for name in running.names:
            join(client.create_token(name, "edge", 3600).token, running.folder / name)


@contextmanager
def _connected(running: Federation) -> Iterator[float]:
    """Seconds until the last node was in; they stay until the end."""
    folders = [str(running.folder / name) for name in running.names]
    size = math.ceil(len(folders) / PROCESSES)
    address = f"127.0.0.1:{running.profile().address.rpartition(':')[2]}"
    processes = [
        _start(address, share, running.folder / f"fleet-{number}.log")
        for number, share in enumerate(
            folders[first : first + size] for first in range(0, len(folders), size)
        )
    ]
    try:
        yield max(_seconds(process) for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(address: str, folders: Sequence[str], log: Path) -> "subprocess.Popen[str]":
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fleet_node", address, *folders],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def _seconds(process: "subprocess.Popen[str]") -> float:
    assert process.stdout is not None
    said = process.stdout.readline()
    if not said:
        raise RuntimeError("a process of the fleet ended before its nodes were connected")
    return float(said)
