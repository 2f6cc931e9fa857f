"""Rounds whose task does nothing: orders, transfers, journal, fold, both ledgers."""

import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.federation import COORDINATOR, Federation, federation
from benchmarks.floor import Floor, floor_of, kept_floor_s
from benchmarks.fold_floor import fold_floor_s
from benchmarks.measuring import MIB, CpuTrace, forget_peak, peak_mib, resident_mib
from benchmarks.results import Result, result
from protos.feddp.v1.jobs_pb2 import Job

SETTLE_S = 2.0
"""After the last node has connected, until memory is called idle."""

LARGE_BYTES_MIN = 1_000_000
"""A smaller model is neither worth a fold's measure nor a memory's."""


@dataclass(frozen=True, slots=True)
class NullRounds:
    """A job of `warm_up` rounds that do not count and `rounds` that do."""

    nodes: int
    parameters: int
    warm_up: int
    rounds: int
    floor_rounds: int
    seconds_max: float

    @property
    def model_bytes(self) -> int:
        """Of float32 values."""
        return 4 * self.parameters

    @property
    def disk_bytes(self) -> int:
        """At most: each update twice and each model at both ends, for every round."""
        rounds = self.warm_up + self.rounds
        return self.model_bytes * (rounds + 2 + self.nodes * (2 * rounds + 1))

    def run(self, case: str) -> list[Result]:
        """Measure the floors, then the rounds beside them."""
        with tempfile.TemporaryDirectory(prefix="feddp-bench-") as folder:
            floor = floor_of(Path(folder), self.nodes, self.model_bytes, self.floor_rounds)
        kept_s = None
        if self.model_bytes >= LARGE_BYTES_MIN:
            with tempfile.TemporaryDirectory(prefix="feddp-bench-") as folder:
                kept_s = kept_floor_s(Path(folder), self.nodes, self.model_bytes, self.floor_rounds)
        with federation(self.nodes) as running:
            return self._measure(case, running, floor, kept_s)

    def _measure(
        self, case: str, running: Federation, floor: Floor, kept_s: float | None
    ) -> list[Result]:
        time.sleep(SETTLE_S)
        coordinator = running.pid(COORDINATOR)
        agents = [running.pid(name) for name in running.names]
        idle_mib = resident_mib(coordinator)
        for pid in (coordinator, *agents):
            forget_peak(pid)
        with CpuTrace(coordinator) as cpu:
            job_id = running.submit(self.parameters, self.warm_up + self.rounds)
            job = running.until_ended(job_id, self.seconds_max)
            peak = peak_mib(coordinator)
            agent_peak = max(peak_mib(pid) for pid in agents)
        counted = job.rounds[self.warm_up - 1 :]
        cpu_s = cpu.between(counted[0].ended_at, counted[-1].ended_at) / self.rounds
        unit, scale = ("ms", 1000) if self.model_bytes < LARGE_BYTES_MIN else ("s", 1)
        # Beside a small model the constant is all there is.
        model_mib = None if self.model_bytes < LARGE_BYTES_MIN else self.model_bytes / MIB
        value_s = round_s(job, self.warm_up)
        beside_kept = [result(case, "round_time_kept", value_s, "s", kept_s)] if kept_s else []
        return [
            result(case, "round_time", scale * value_s, unit, scale * floor.round_s),
            *beside_kept,
            result(case, "coordinator_cpu", scale * cpu_s, unit, scale * floor.server_cpu_s),
            *self._fold(case, job),
            result(case, "coordinator_idle_memory", idle_mib, "MiB"),
            result(case, "coordinator_peak_over_idle", peak - idle_mib, "MiB", model_mib),
            result(case, "agent_peak_memory", agent_peak, "MiB"),
        ]

    def _fold(self, case: str, job: Job) -> list[Result]:
        if self.model_bytes < LARGE_BYTES_MIN:
            return []
        value_s = statistics.median(one.aggregating_s for one in job.rounds[self.warm_up :])
        floor_s = fold_floor_s(self.nodes, self.parameters)
        return [result(case, "fold_time", value_s, "s", floor_s)]


def round_s(job: Job, warm_up: int) -> float:
    """Median time from one round's end to the next one's, after the rounds that do not count."""
    ended = [one.ended_at for one in job.rounds]
    spans = [after - before for before, after in itertools.pairwise(ended)]
    return statistics.median(spans[warm_up - 1 :])
