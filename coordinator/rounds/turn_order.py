"""Several jobs, one set of nodes: who has a node now, and whose turn it is next. Pure.

A node works for one job at a time. Between jobs of one priority the one that has waited longest
goes first, so that each gets its rounds in turn; a higher priority does not wait for a lower one.
"""

import math
from collections.abc import Iterable

from coordinator.rounds.events import Absence
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Reserving, Selecting, Training

BUSY = "BUSY"


def taken(live: LiveJob, others: Iterable[LiveJob], node: str) -> Absence | None:
    """Why `node` cannot work for `live` now, if another job has it or goes first for it."""
    for other in others:
        name = f"job {other.job.name} ({other.job_id})"
        if _holds(other, node) and live.job.priority <= other.job.priority:
            return Absence(node, BUSY, f"works for {name}")
        if _wants(other, node) and _place(other) < _place(live):
            return Absence(node, BUSY, f"is kept for {name}, which goes first")
    return None


def _holds(job: LiveJob, node: str) -> bool:
    match job.phase:
        case Reserving(offers=offers):
            return any(one.node == node for one in offers)
        case Training(round=record):
            return any(one.node == node and not one.silent for one in record.opened)
        case _:
            return False


def _wants(job: LiveJob, node: str) -> bool:
    """Whether the job waits for nodes that are busy, could begin with them, and this is one."""
    phase = job.phase
    if not isinstance(phase, Selecting) or not phase.surveyed:
        return False
    busy = {one.node for one in phase.waiting if one.reason == BUSY}
    could = busy | set(phase.ready)
    return bool(busy) and len(could) >= phase.course.plan.min_participants and node in could


def _place(job: LiveJob) -> tuple[int, float, str]:
    since_s = job.phase.since_s if isinstance(job.phase, Selecting) else math.inf
    return -job.job.priority, since_s, job.job_id
