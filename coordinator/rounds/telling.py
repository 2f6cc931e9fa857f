"""Logs, counts and traces what turns have changed, once it is on the disk."""

import structlog

from coordinator.observing.metrics import Metrics
from coordinator.observing.round_traces import RoundTraces, place_of
from coordinator.rounds import participation
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Ended, Phase, RoundRecord
from coordinator.rounds.turns import Turn
from protos import tracing

log = structlog.get_logger(__name__)


class Telling:
    """What operators learn of rounds: log lines, metrics and spans."""

    def __init__(self, metrics: Metrics, traces: RoundTraces) -> None:
        self._metrics = metrics
        self._traces = traces

    def tell(self, live: LiveJob, turn: Turn) -> None:
        """Tell of a turn that was committed; phases that it only passed are left out."""
        for kind, number in turn.booked.items():
            self._metrics.ledger_entries(kind, number)
        for attempt_id in turn.unbooked:
            log.error(
                "charge_not_booked",
                job_id=live.job_id,
                attempt_id=attempt_id,
                do="the ledger of its account is damaged, and the charge stays reserved there; run "
                "`feddp budget verify` and restore the database from a backup",
            )
        if turn.taken:
            with tracing.within(place_of(live.job_id, turn.phase.course, _round_of(turn.phase))):
                self._tell_changes(live, turn.taken[0].before, turn.phase)

    def _tell_changes(self, live: LiveJob, before: Phase, phase: Phase) -> None:
        if type(before) is not type(phase):
            log.info(
                "job_phase",
                job_id=live.job_id,
                phase=type(phase).__name__.lower(),
                round=_round_of(phase),
            )
        if isinstance(phase, Ended) and not isinstance(before, Ended):
            log.info("job_ended", job_id=live.job_id, status=phase.status, message=phase.message)
            if phase.unfinished is not None:
                cut = phase.unfinished
                self._traces.over(live.job_id, phase.course, cut, phase.status, phase.ended_at_s)
        for done in phase.course.done[len(before.course.done) :]:
            self._count_round(done)
            self._traces.over(live.job_id, phase.course, done, "published", done.published_at_s)
            if done.number % participation.LEFT_OUT_ROUNDS == 0:
                for warning in participation.warnings(phase.course):
                    log.warning("hospital_left_out", job_id=live.job_id, detail=warning)

    def _count_round(self, done: RoundRecord) -> None:
        self._metrics.round_ended("published")
        self._metrics.round_phase("reserving", done.reserved_at_s - done.started_at_s)
        self._metrics.round_phase("training", done.trained_at_s - done.reserved_at_s)
        self._metrics.round_phase("aggregating", done.folded_at_s - done.trained_at_s)
        self._metrics.round_phase("publishing", done.published_at_s - done.folded_at_s)


def _round_of(phase: Phase) -> int:
    """The round that is under way, or was last."""
    return len(phase.course.done) + (0 if isinstance(phase, Ended) else 1)
