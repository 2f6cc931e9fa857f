"""Jobs that want the same nodes take turns, rounds close, and nobody waits without a reason."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from coordinator.rounds.phases import Ended, Phase, Selecting, Training
from privacy.ledger import Statement
from tests.simulation.truth import Broken

if TYPE_CHECKING:
    from tests.simulation.world import World

OVERDUE_S = 90.0
"""Several slow commits in a row."""

SETTLED_S = 60.0
"""After the last fault, until every stream has broken or is sound."""

TURN_S = 600.0
"""Every round of another job that goes first, each with the longest deadline."""

IDLE_S = 60.0
"""Many surveys."""

SHARED_S = 60.0
"""Two jobs may reach for a node at once; not when one of them has had it for so long."""


class Liveness:
    """Follows each job's phase as its journal has it."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._overdue_since_s: dict[str, float] = {}
        self._held_since_s: dict[tuple[str, str], float] = {}
        self._able_since_s: dict[str, float] = {}
        self._idle_since_s = 0.0

    def look(self, shadows: Mapping[str, Phase]) -> None:
        """Nothing waits for long without a reason."""
        self._rounds_close(shadows)
        self._jobs_begin(shadows)

    def _jobs_begin(self, shadows: Mapping[str, Phase]) -> None:
        """A job whose nodes are there begins; jobs that want the same nodes take turns."""
        world, now_s = self._world, self._world.now_s
        healthy = now_s > world.faults.until_s + SETTLED_S and world.coordinator.serving
        able, at_work = [], False
        for job_id, phase in shadows.items():
            if isinstance(phase, Ended):
                continue
            if not isinstance(phase, Selecting):
                at_work = at_work or _works(phase)
                continue
            busy = {one.node for one in phase.waiting if one.reason == "BUSY"}
            there = {*phase.ready, *busy}
            if phase.surveyed and len(there) >= phase.course.plan.min_participants:
                able.append(job_id)
        for job_id in [one for one in self._able_since_s if one not in able or not healthy]:
            del self._able_since_s[job_id]
        for job_id in able if healthy else ():
            if now_s - self._able_since_s.setdefault(job_id, now_s) > TURN_S:
                raise Broken("takes-turns", f"{job_id} never gets the nodes that are there")
        if at_work or not able or not healthy:
            self._idle_since_s = now_s
        elif now_s - self._idle_since_s > IDLE_S:
            raise Broken("takes-turns", f"nobody works, and {', '.join(able)} wait for each other")

    def _rounds_close(self, shadows: Mapping[str, Phase]) -> None:
        """After its deadline a round closes, or says for whom it waits."""
        coordinator, now_s = self._world.coordinator, self._world.now_s
        for job_id, phase in shadows.items():
            overdue = (
                coordinator.serving
                and isinstance(phase, Training)
                and (_has_quorum(phase) or not phase.waiting)
                and coordinator.clock() > phase.deadline_at_s
            )
            since_s = self._overdue_since_s.setdefault(job_id, now_s)
            if not overdue:
                del self._overdue_since_s[job_id]
            elif now_s - since_s > OVERDUE_S:
                raise Broken("deadline", f"{job_id} waits and does not say for whom")

    def takes_turns(self, statement: Statement) -> None:
        """A node works for one job at a time, unless a job of a higher priority needs it."""
        world = self._world
        jobs = world.specs
        for (job_id, node), since_s in self._held_since_s.items():
            if node != statement.node or job_id == statement.job_id:
                continue
            outranked = jobs[statement.job_id].priority > jobs[job_id].priority
            if not outranked and world.now_s - since_s > SHARED_S:
                text = f"{node} works for {job_id} and is ordered by {statement.job_id}"
                raise Broken("takes-turns", text)

    def follow(self, job_id: str, phase: Phase) -> None:
        """Note since when the job has each of its nodes."""
        opened = phase.round.opened if isinstance(phase, Training) else ()
        nodes = {one.node for one in opened if not one.silent}
        held = self._held_since_s
        for key in [one for one in held if one[0] == job_id and one[1] not in nodes]:
            del held[key]
        for node in nodes:
            held.setdefault((job_id, node), self._world.now_s)


def _has_quorum(phase: Training) -> bool:
    return len(phase.round.received) >= phase.course.plan.min_participants


def _works(phase: Phase) -> bool:
    """Whether a job that has begun a round does something."""
    if not isinstance(phase, Training) or not phase.waiting:
        return True
    return any(not one.silent for one in phase.round.opened)
