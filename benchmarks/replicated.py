"""Null rounds of two coordinators that share a database and a store, beside one that is alone."""

import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.federation import COORDINATOR, START_S_MAX, Federation, federation
from benchmarks.measuring import CpuTrace
from benchmarks.null_round import round_s
from benchmarks.postgresql import postgresql
from benchmarks.results import Result, result
from benchmarks.s3_server import s3_server
from coordinator.installation import init
from feddp.demo.ports import choose_ports
from feddp.demo.processes import Processes

FOLLOWER: Final = "follower"


@dataclass(frozen=True, slots=True)
class Replicated:
    """Nodes dial the coordinator that does not lead, so that every byte passes through both; or,
    with `transfer`, goes no further than to that one, which serves it.

    The floor is one coordinator alone, on SQLite and a folder, with the same nodes and rounds.
    """

    nodes: int
    parameters: int
    warm_up: int
    rounds: int
    seconds_max: float
    transfer: bool = False

    @property
    def disk_bytes(self) -> int:
        """At most: each update three times and each model four times, for every round."""
        rounds = self.warm_up + self.rounds
        return 4 * self.parameters * (3 * self.nodes * rounds + 4 * rounds)

    def run(self, case: str) -> list[Result]:
        """Measure one alone, then two."""
        with federation(self.nodes) as running:
            alone_s, alone_cpu_s, _ = self._measure(running)
        with _replicated(self.nodes, transfer=self.transfer) as running:
            pair_s, leader_cpu_s, follower_cpu_s = self._measure(running)
        return [
            result(case, "round_time", pair_s, "s", alone_s),
            result(case, "leader_cpu", leader_cpu_s, "s", alone_cpu_s),
            result(case, "follower_cpu", follower_cpu_s, "s", alone_cpu_s),
        ]

    def _measure(self, running: Federation) -> tuple[float, float, float]:
        """(seconds of a round, CPU seconds of the leader, of the follower if there is one)."""
        names = [name for name in (COORDINATOR, FOLLOWER) if running.has(name)]
        with ExitStack() as stack:
            traces = [stack.enter_context(CpuTrace(running.pid(name))) for name in names]
            job_id = running.submit(self.parameters, self.warm_up + self.rounds)
            job = running.until_ended(job_id, self.seconds_max)
        counted = job.rounds[self.warm_up - 1 :]
        cpu = [
            trace.between(counted[0].ended_at, counted[-1].ended_at) / self.rounds
            for trace in traces
        ]
        return round_s(job, self.warm_up), cpu[0], sum(cpu[1:])


@contextmanager
def _replicated(nodes: int, *, transfer: bool) -> Iterator[Federation]:
    with (
        tempfile.TemporaryDirectory(prefix="feddp-bench-") as name,
        postgresql() as database,
        s3_server() as store,
    ):
        folder = Path(name)
        dialled, leader = choose_ports(None), choose_ports(None)
        installation = init(
            folder / COORDINATOR,
            "bench.example",
            host="127.0.0.1",
            port=dialled[0],
            enrollment_port=dialled[1],
            health_port=dialled[2],
            database_url=database.new_database(),
        )
        shared = {
            **store.credentials,
            "FEDDP_SERVER__REPLICA_HOST": "127.0.0.1",
            "FEDDP_STORAGE__BLOB_URL": store.new_bucket(),
            "FEDDP_STORAGE__BLOB_ENDPOINT": store.endpoint,
        }
        leads, follows = _transfer_ports() if transfer else ({}, {})
        names = tuple(f"node-{number}" for number in range(nodes))
        made = Federation(folder, installation, names, Processes(folder))
        arguments = ["coordinator", "serve", "--config", str(installation.config)]
        try:
            made.processes.start(COORDINATOR, arguments, shared | _ports(dialled, leader) | leads)
            made.until(lambda: _leads(leader[2]), START_S_MAX, "it did not lead")
            own = {"FEDDP_STORAGE__BLOB_DIR": str(folder / "follower-blobs")}
            made.processes.start(FOLLOWER, arguments, shared | own | follows)
            made.until_answering()
            made.enrol()
            made.start_agents()
            made.until_connected()
            yield made
        finally:
            made.stop()


def _transfer_ports() -> tuple[dict[str, str], dict[str, str]]:
    """The leader's environment and the follower's: nodes are told of the follower alone."""
    ports = choose_ports(None)[:2]
    told = {"FEDDP_SERVER__TRANSFER_ADDRESS": f"127.0.0.1:{ports[1]}"}
    own = [{**told, "FEDDP_SERVER__TRANSFER_PORT": str(port)} for port in ports]
    return own[0], own[1]


def _ports(dialled: tuple[int, int, int], leader: tuple[int, int, int]) -> dict[str, str]:
    """The leader's own, and those that everybody dials, in its environment."""
    return {
        "FEDDP_SERVER__PORT": str(leader[0]),
        "FEDDP_SERVER__ENROLLMENT_PORT": str(leader[1]),
        "FEDDP_SERVER__HEALTH_PORT": str(leader[2]),
        "FEDDP_SERVER__PUBLIC_PORT": str(dialled[0]),
        "FEDDP_SERVER__PUBLIC_ENROLLMENT_PORT": str(dialled[1]),
    }


def _leads(health_port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{health_port}/metrics", timeout=3) as page:
            return "feddp_leading 1.0" in page.read().decode()
    except OSError:
        return False
