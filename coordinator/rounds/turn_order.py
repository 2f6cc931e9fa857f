"""Several jobs, one set of nodes: who has a node now, and whose turn it is next. Pure.

A node works for one job at a time. Between jobs of one priority the one that has waited longest
goes first, so that each gets its rounds in turn; a higher priority does not wait for a lower one.
"""

import math
from collections.abc import Iterable

from coordinator.rounds.events import Absence
from coordinator.rounds.live import LiveJob
from coordinator.rounds.participation import BUSY
from coordinator.rounds.phases import Reserving, Selecting, Training


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
    """Whether the job waits for nodes that are busy, could go on with them, and this is one."""
    match job.phase:
        case Selecting(surveyed=True, waiting=waiting, ready=ready):
            busy, others = _busy(waiting), set(ready)
            wanted = busy | others
        case Training(waiting=waiting, round=record):
            # Of a round below its quorum; what it has, or is being worked at, it need not get.
            at_work = {one.node for one in record.opened if not one.silent}
            busy, others = _busy(waiting), at_work | {one.node for one in record.received}
            wanted = busy
        case _:
            return False
    enough = len(busy | others) >= job.phase.course.plan.min_participants
    return bool(busy) and enough and node in wanted


def _busy(waiting: Iterable[Absence]) -> set[str]:
    return {one.node for one in waiting if one.reason == BUSY}


def _place(job: LiveJob) -> tuple[int, float, str]:
    since_s = math.inf
    match job.phase:
        case Selecting(since_s=since_s):
            pass
        case Training(round=record):
            # Else two others that take turns would keep it from ever ending its round.
            since_s = record.started_at_s
    return -job.job.priority, since_s, job.job_id
