"""The spans of a job's rounds. They are made from what the journal says of a round once it is over,
so that a restart, or another replica, leaves no hole and tells nothing twice."""

from collections import OrderedDict
from contextlib import AbstractContextManager
from typing import Final

from coordinator.rounds import commands as c
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Course, RoundRecord
from protos import tracing
from protos.tracing import Place

ANSWERS_MAX: Final = 4096
"""Attempts under way whose nodes have said where their own spans are."""

_PARENTS: Final = {c.FoldUpdates: "aggregating", c.PublishLast: "publishing"}
_NAMES: Final = {c.FoldUpdates: "fold", c.PublishLast: "publish"}


def place_of(job_id: str, course: Course, number: int) -> Place | None:
    """A round's first span; None where nothing is traced."""
    return tracing.of_round(job_id, number, len(course.abandoned))


def order_place(live: LiveJob, number: int, attempt_id: str) -> Place | None:
    """The span of an attempt, under which its node hangs its own."""
    root = place_of(live.job_id, live.phase.course, number)
    return None if root is None else root.named("order", attempt_id)


class RoundTraces:
    """What is known of rounds under way that no journal holds: where nodes keep their spans."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, Place] = OrderedDict()

    def heard(self, live: LiveJob, number: int, attempt_id: str, traceparent: str) -> Place | None:
        """Keep what a node says first of its own spans of an attempt, and give back what it says
        now: only a span of this round's trace is believed, as a node could name any."""
        root = place_of(live.job_id, live.phase.course, number)
        said = tracing.parse(traceparent)
        if root is None or said is None or said.trace_id != root.trace_id:
            return None
        self._answers.setdefault(attempt_id, said)
        while len(self._answers) > ANSWERS_MAX:
            self._answers.popitem(last=False)
        return said

    def serving(
        self, name: str, live: LiveJob, number: int, attempt_id: str, node: str, traceparent: str
    ) -> AbstractContextManager[Place | None]:
        """The span of a call in which a node hands something in."""
        said = self.heard(live, number, attempt_id, traceparent)
        return tracing.span(
            name,
            order_place(live, number, attempt_id),
            {"attempt_id": attempt_id, "node": node},
            links=[said] if said is not None else [],
        )

    def doing(self, live: LiveJob, command: c.Command) -> AbstractContextManager[Place | None]:
        """The span of a command that takes a while; for the others none, but their log lines say
        the round's."""
        course = live.phase.course
        root = place_of(live.job_id, course, course.next_round)
        name = _NAMES.get(type(command))
        if root is None or name is None:
            return tracing.within(root)
        return tracing.span(name, root.named(_PARENTS[type(command)]), {"job_id": live.job_id})

    def over(
        self, job_id: str, course: Course, done: RoundRecord, outcome: str, now_s: float
    ) -> None:
        """Tell of a round that was published, or cut off at `now_s`."""
        root = place_of(job_id, course, done.number)
        if root is None:
            return
        about: dict[str, str | int] = {"job_id": job_id, "round": done.number}
        moments = (
            ("reserving", done.reserved_at_s),
            ("training", done.trained_at_s),
            ("aggregating", done.folded_at_s),
            ("publishing", done.published_at_s),
        )
        began_s = done.started_at_s
        for name, ended_s in moments:
            times_s = began_s, ended_s or now_s
            tracing.record(name, root.named(name), root, times_s, about, failed=not ended_s)
            if not ended_s:
                break
            began_s = ended_s
        for one in done.attempts:
            said = self._answers.pop(one.attempt_id, None)
            tracing.record(
                "order",
                root.named("order", one.attempt_id),
                root.named("training"),
                (one.ordered_at_s, one.ended_at_s or now_s),
                {"attempt_id": one.attempt_id, "node": one.node, "outcome": one.state.value},
                links=[said] if said is not None else [],
            )
        times_s = done.started_at_s, done.published_at_s or now_s
        cut = not done.published_at_s
        tracing.record("round", root, None, times_s, {**about, "outcome": outcome}, failed=cut)
