"""What the passing of time brings about in a job: looks for nodes, lost nodes, grace, deadlines."""

import time
from typing import Final

import structlog

from coordinator.clock_steps import ClockSteps
from coordinator.rounds import events as e
from coordinator.rounds import participation
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Selecting, Training
from coordinator.sessions import Sessions

log = structlog.get_logger(__name__)

SURVEY_AGAIN_S: Final = 5.0


class PassingTime:
    """Looked at every `TICK_S`. Changes nothing but when a job was last surveyed."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._clock = ClockSteps()

    def clock_was_set(self) -> bool:
        """Whether the clock was set since the last look: moments of before mean nothing then."""
        step_s = self._clock.look()
        if step_s:
            log.warning("clock_stepped", by_s=round(step_s), do="keep the clock set (chrony)")
        return bool(step_s)

    def survey_due(self, live: LiveJob) -> bool:
        """Whether a job that waits for nodes is to look for some again, which counts as done."""
        looking = isinstance(live.phase, Selecting) or live.is_waiting()
        if not looking or time.monotonic() - live.surveyed_at_s < SURVEY_AGAIN_S:
            return False
        live.surveyed_at_s = time.monotonic()
        return True

    def due(self, live: LiveJob, now_s: float) -> list[e.Event]:
        """What has come about in a round by `now_s`, epoch."""
        phase = live.phase
        if not isinstance(phase, Training):
            return []
        due: list[e.Event] = []
        quorum = len(phase.round.received) >= phase.course.plan.min_participants
        for attempt in phase.round.opened:
            if not attempt.silent and self._sessions.lost(attempt.node):
                log.info("node_lost", node=attempt.node, attempt_id=attempt.attempt_id)
                due.append(e.NodeWasLost(attempt.node))
            elif attempt.silent and self._sessions.connected(attempt.node):
                due.append(e.NodeReturned(attempt.node))
            elif (
                quorum
                and not attempt.overdue
                and now_s >= participation.gives_up_at_s(phase, attempt)
            ):
                due.append(e.GracePassed(phase.round.number, attempt.node))
        if now_s >= phase.deadline_at_s and not phase.deadline_passed:
            due.append(e.DeadlinePassed(phase.round.number))
        return due
