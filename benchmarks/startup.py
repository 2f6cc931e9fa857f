"""From starting a coordinator and its agents to the first orders of a job that waits."""

import statistics
import time
from dataclasses import dataclass

from benchmarks.federation import Federation, federation
from benchmarks.results import Result, result

SMALL_PARAMETERS = 10_000
QUIET_S = 4.0
"""Nobody asks the coordinator anything for so long after the start."""

FIRST_ROUND_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Startup:
    """Everything starts at once, `times` times, and finds a job submitted."""

    nodes: int
    times: int

    disk_bytes = 0

    def run(self, case: str) -> list[Result]:
        """Median of the starts."""
        with federation(self.nodes) as running:
            seconds = [self._start(running) for _ in range(self.times)]
        return [result(case, "start_to_first_orders", statistics.median(seconds), "s")]

    def _start(self, running: Federation) -> float:
        running.stop()
        running.start_coordinator()
        running.until_answering()
        job_id = running.submit(SMALL_PARAMETERS, rounds=1)
        running.stop()
        began = time.time()
        running.start_coordinator()
        running.start_agents()
        time.sleep(QUIET_S)
        first = running.until_ended(job_id, FIRST_ROUND_S_MAX).rounds[0]
        ordered_at = first.started_at + first.reserving_s
        return ordered_at - began
