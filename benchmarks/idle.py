"""What a coordinator and its agents take while nothing is to be done."""

import time
from dataclasses import dataclass

from benchmarks.federation import COORDINATOR, federation
from benchmarks.measuring import cpu_s, resident_mib
from benchmarks.null_round import SETTLE_S
from benchmarks.results import Result, result


@dataclass(frozen=True, slots=True)
class Idle:
    """`nodes` connected agents, watched for `seconds`: some heartbeats long."""

    nodes: int
    seconds: float

    disk_bytes = 0

    def run(self, case: str) -> list[Result]:
        """The agent that takes most speaks for all."""
        with federation(self.nodes) as running:
            time.sleep(SETTLE_S)
            coordinator = running.pid(COORDINATOR)
            agents = [running.pid(name) for name in running.names]
            share = _cpu_percent([coordinator, *agents], self.seconds)
            return [
                result(case, "agent_idle_memory", max(map(resident_mib, agents)), "MiB"),
                result(case, "agent_idle_cpu", max(share[1:]), "% of a core"),
                result(case, "coordinator_idle_memory", resident_mib(coordinator), "MiB"),
                result(case, "coordinator_idle_cpu", share[0], "% of a core"),
            ]


def _cpu_percent(pids: list[int], seconds: float) -> list[float]:
    began_s, before = time.monotonic(), [cpu_s(pid) for pid in pids]
    time.sleep(seconds)
    elapsed_s = time.monotonic() - began_s
    return [100 * (cpu_s(p) - b) / elapsed_s for p, b in zip(pids, before, strict=True)]
