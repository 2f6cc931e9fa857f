"""The round machine: what a job does next. Pure: no clock, no IO, no randomness.

`step(phase, event, now_s)` gives the next phase and the commands that follow. The driver journals
the event with its ledger commands in one transaction, then carries out the rest. A pair of phase
and event that is not in the table is a bug and raises; events that may honestly arrive late are
listed as ignored.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds.phases import (
    Aggregating,
    Attempt,
    AttemptState,
    Closing,
    Course,
    Ended,
    Phase,
    Plan,
    Publishing,
    Reserving,
    RoundRecord,
    Selecting,
    Training,
    current_round,
)
from protos.errors import InvariantBroken, invariant

Step = tuple[Phase, list[c.Command]]


def start(plan: Plan, event: e.JobSubmitted, now_s: float) -> Step:
    """The first step of a job."""
    return Selecting(Course(plan, event.initial_model, event.initial_model), now_s), [c.Survey()]


def step(phase: Phase, event: e.Event, now_s: float) -> Step:
    """One step.

    Raises:
        InvariantBroken: the phase does not know such an event.
    """
    handler = _TABLE.get((type(phase), type(event)))
    if handler is not None:
        return handler(phase, event, now_s)
    if type(event) in _IGNORED[type(phase)]:
        return phase, []
    raise InvariantBroken(f"{type(event).__name__} cannot happen while {type(phase).__name__}")


def resume(phase: Phase) -> list[c.Command]:
    """What must be asked for again after a restart: the commands that `phase` waits upon."""
    match phase:
        case Selecting():
            return [c.Survey()]
        case Reserving():
            return [_reserve(phase.course, phase.offers)]
        case Training():
            again: list[c.Command] = [c.SendOrder(a.attempt_id) for a in phase.round.opened]
            if phase.topping_up:
                again.append(c.ReserveBudgets(phase.round.number, phase.topping_up, 0))
            return again
        case Aggregating():
            return [c.FoldUpdates(phase.round.number)]
        case Publishing():
            return [_publish(phase)]
        case Closing():
            return [c.WriteAnswer(len(phase.course.done))]
        case Ended():
            return [c.EndJob()]


def _reserve(course: Course, offers: tuple[e.Offer, ...]) -> c.ReserveBudgets:
    return c.ReserveBudgets(course.next_round, offers, course.plan.min_participants)


def _publish(phase: Publishing) -> c.PublishModel:
    return c.PublishModel(phase.round.number, phase.round.model, bool(phase.status))


def _can_never(course: Course, usable: set[str], absences: tuple[e.Absence, ...]) -> bool:
    """Whether spent budgets alone keep the job below quorum for good."""
    spent = {a.node for a in absences if a.reason == "BUDGET" and a.for_good} - usable
    others = {a.node for a in absences} - spent
    need = course.plan.min_participants
    return len(usable | others) < need <= len(usable | others | spent)


def _end(
    course: Course,
    status: str,
    message: str,
    now_s: float,
    unfinished: RoundRecord | None = None,
) -> Step:
    """End the job; open attempts are posted whole, since what became of them is unknown."""
    closed, charges = _close_open(unfinished, now_s) if unfinished else (None, [])
    if status == "budget_exhausted" and course.done:
        return Closing(course, status, message, closed), [*charges, c.WriteAnswer(len(course.done))]
    return Ended(course, status, message, now_s, "", closed), [*charges, c.EndJob()]


def _close_open(record: RoundRecord, now_s: float) -> tuple[RoundRecord, list[c.Command]]:
    """Close what is open: the outcome is unknown, so it is booked as released."""
    asked: list[c.Command] = []
    for attempt in record.opened:
        state = AttemptState.LOST if attempt.silent else AttemptState.LATE
        record = record.with_attempt(
            replace(
                attempt,
                state=state,
                ended_at_s=now_s,
                reason="OFFLINE" if attempt.silent else "DEADLINE",
                message="was not heard from when the round closed"
                if attempt.silent
                else "had not answered when the round closed",
            )
        )
        asked.append(c.PostCharge(attempt.attempt_id, b""))
        asked.append(c.NotifyClosed(attempt.attempt_id, attempt.node, "post"))
    return record, asked


def _cancel(phase: Phase, event: e.CancelRequested, now_s: float) -> Step:
    invariant(not isinstance(phase, Ended), "an ended job cannot be cancelled")
    message = f"cancelled by {event.by}; what was spent stays booked"
    return _end(phase.course, "cancelled", message, now_s, current_round(phase))


def _fail(phase: Phase, event: e.StepFailed, now_s: float) -> Step:
    return _end(phase.course, "failed", event.message, now_s, current_round(phase))


# Selecting


def _survey_again(phase: Selecting, event: e.Event, now_s: float) -> Step:
    return phase, [c.Survey()]


def _select(phase: Selecting, event: e.NodesSurveyed, now_s: float) -> Step:
    course = phase.course
    if len(event.offers) >= course.plan.min_participants:
        following = Reserving(course, now_s, event.offers, event.absences)
        return following, [_reserve(course, event.offers)]
    if _can_never(course, {o.node for o in event.offers}, event.absences):
        return _end(course, "budget_exhausted", _exhausted(event.absences), now_s)
    offers = len(event.offers)
    return replace(phase, waiting=event.absences, offers=offers, surveyed=True), []


def _exhausted(absences: tuple[e.Absence, ...]) -> str:
    names = ", ".join(sorted(a.node for a in absences if a.reason == "BUDGET"))
    return f"the privacy budget of {names} does not allow another round, and too few nodes remain"


# Reserving


def _begin_training(phase: Reserving, event: e.BudgetsReserved, now_s: float) -> Step:
    course, number = phase.course, phase.course.next_round
    if not event.grants:
        return Selecting(course, now_s, event.refused), [c.Survey()]
    record = RoundRecord(
        number,
        started_at_s=phase.since_s,
        reserved_at_s=now_s,
        attempts=_attempts(event.grants, now_s),
        left_out=phase.left_out + event.refused,
    )
    following = Training(course, record, now_s + course.plan.deadline_s)
    return following, [c.SendOrder(a.attempt_id) for a in record.attempts]


def _attempts(grants: tuple[e.Grant, ...], now_s: float) -> tuple[Attempt, ...]:
    return tuple(Attempt(g.attempt_id, g.offer, now_s) for g in grants)


# Training


def _accepted(phase: Training, event: e.OrderWasAccepted, now_s: float) -> Step:
    attempt = phase.round.attempt(event.attempt_id)
    if attempt is None or attempt.state is not AttemptState.ORDERED:
        return phase, []
    changed = replace(attempt, state=AttemptState.ACCEPTED)
    following = replace(phase, round=phase.round.with_attempt(changed))
    return following, [c.KeepSignature(event.attempt_id, event.signature)]


def _resolve(phase: Training, attempt_id: str, now_s: float, **changes: Any) -> Training | None:
    """The phase with an open attempt resolved, or None when it was resolved before."""
    attempt = phase.round.attempt(attempt_id)
    if attempt is None or not attempt.is_open:
        return None
    changed = replace(attempt, silent=False, ended_at_s=now_s, **changes)
    return replace(phase, round=phase.round.with_attempt(changed))


def _refused(phase: Training, event: e.OrderWasRefused, now_s: float) -> Step:
    resolved = _resolve(
        phase,
        event.attempt_id,
        now_s,
        state=AttemptState.REFUSED,
        reason=event.reason,
        message=event.message,
    )
    if resolved is None:
        return phase, []
    return _advance(resolved, now_s, [c.VoidCharge(event.attempt_id, event.signature)])


def _received(phase: Training, event: e.UpdateReceived, now_s: float) -> Step:
    resolved = _resolve(
        phase,
        event.attempt_id,
        now_s,
        state=AttemptState.RECEIVED,
        digest=event.digest,
        update_bytes=event.update_bytes,
    )
    if resolved is None:
        return phase, []
    return _advance(resolved, now_s, [c.PostCharge(event.attempt_id, event.signature)])


def _no_update(phase: Training, event: e.NoUpdateReceived, now_s: float) -> Step:
    resolved = _resolve(
        phase,
        event.attempt_id,
        now_s,
        state=AttemptState.NO_UPDATE,
        reason=event.reason,
        message=event.message,
    )
    if resolved is None:
        return phase, []
    return _advance(resolved, now_s, [c.PostCharge(event.attempt_id, event.signature)])


def _lost(phase: Training, event: e.NodeWasLost, now_s: float) -> Step:
    record = phase.round
    for attempt in record.opened:
        if attempt.node == event.node and not attempt.silent:
            record = record.with_attempt(replace(attempt, silent=True))
    if record is phase.round:
        return phase, []
    return _advance(replace(phase, round=record), now_s, [])


def _returned(phase: Training, event: e.NodeReturned, now_s: float) -> Step:
    record, again = phase.round, list[c.Command]()
    for attempt in record.opened:
        if attempt.node == event.node:
            record = record.with_attempt(replace(attempt, silent=False))
            again.append(c.SendOrder(attempt.attempt_id))
    return _advance(replace(phase, round=record), now_s, again)


def _deadline(phase: Training, event: e.DeadlinePassed, now_s: float) -> Step:
    if event.round != phase.round.number or phase.deadline_passed:
        return phase, []
    return _advance(replace(phase, deadline_passed=True), now_s, [])


def _restarted(phase: Training, event: e.CoordinatorRestarted, now_s: float) -> Step:
    deadline_at_s = now_s + phase.course.plan.deadline_s
    return replace(phase, deadline_at_s=deadline_at_s, deadline_passed=False), []


def _advance(phase: Training, now_s: float, asked: list[c.Command]) -> Step:
    """Leave for Aggregating with quorum and nobody to wait for; look for more nodes below it."""
    record, need = phase.round, phase.course.plan.min_participants
    heard = [a for a in record.opened if not a.silent]
    if len(record.received) >= need and (not heard or phase.deadline_passed):
        closed, charges = _close_open(record, now_s)
        following = Aggregating(phase.course, replace(closed, trained_at_s=now_s))
        return following, [*asked, *charges, c.FoldUpdates(record.number)]
    short = len(record.received) + len(heard) < need or phase.deadline_passed
    if not short:
        return replace(phase, waiting=()), asked
    waiting = tuple(
        _why(a) for a in _latest(record).values() if a.state is not AttemptState.RECEIVED
    )
    surveys: list[c.Command] = [] if phase.topping_up else [c.Survey()]
    return replace(phase, waiting=waiting), [*asked, *surveys]


def _latest(record: RoundRecord) -> dict[str, Attempt]:
    """Each node's newest attempt at the round."""
    return {a.node: a for a in record.attempts}


def _why(attempt: Attempt) -> e.Absence:
    if attempt.silent:
        return e.Absence(attempt.node, "OFFLINE", "is not connected; its order is open")
    if attempt.is_open:
        return e.Absence(attempt.node, "TRAINING", "has not answered its order yet")
    return e.Absence(attempt.node, attempt.reason, attempt.message)


def _top_up(phase: Training, event: e.NodesSurveyed, now_s: float) -> Step:
    """Below quorum: order further nodes, and nodes whose first attempt gave nothing."""
    record, plan = phase.round, phase.course.plan
    heard = [a for a in record.opened if not a.silent]
    if phase.topping_up or (
        len(record.received) + len(heard) >= plan.min_participants and not phase.deadline_passed
    ):
        return phase, []
    offers = tuple(o for o in event.offers if _may_try(record, o.node, plan))
    if offers:
        asked = c.ReserveBudgets(record.number, offers, 0)
        return replace(phase, topping_up=offers), [asked]
    held = {a.node for a in (*record.received, *record.opened)}
    absences = tuple(a for a in event.absences if a.node not in held)
    if _can_never(phase.course, held, absences):
        return _end(phase.course, "budget_exhausted", _exhausted(absences), now_s, record)
    known = {a.node for a in phase.waiting}
    added = tuple(a for a in absences if a.node not in known)
    return replace(phase, waiting=phase.waiting + added), []


def _may_try(record: RoundRecord, node: str, plan: Plan) -> bool:
    tries = [a for a in record.attempts if a.node == node]
    settled = all(a.state is AttemptState.NO_UPDATE for a in tries)
    return settled and len(tries) < plan.attempts_per_round


def _topped_up(phase: Training, event: e.BudgetsReserved, now_s: float) -> Step:
    attempts = _attempts(event.grants, now_s)
    record = replace(phase.round, attempts=phase.round.attempts + attempts)
    refused = tuple(a for a in event.refused if a not in phase.waiting)
    following = replace(
        phase,
        round=record,
        topping_up=(),
        waiting=phase.waiting + refused,
        deadline_at_s=now_s + phase.course.plan.deadline_s if attempts else phase.deadline_at_s,
        deadline_passed=phase.deadline_passed and not attempts,
    )
    return following, [c.SendOrder(a.attempt_id) for a in attempts]


# Aggregating, Publishing, Closing


def _folded(phase: Aggregating, event: e.UpdatesFolded, now_s: float) -> Step:
    invariant(event.round == phase.round.number, "the fold belongs to another round")
    plan = phase.course.plan
    settled_rounds = phase.course.settled_rounds + 1 if event.settled else 0
    record = replace(
        phase.round,
        folded_at_s=now_s,
        model=event.digest,
        model_bytes=event.model_bytes,
        drift=event.drift,
        drift_noise=event.drift_noise,
    )
    status = ""
    if settled_rounds >= plan.convergence_patience:
        status = "converged"
    elif record.number >= plan.rounds_planned:
        status = "completed"
    course = replace(phase.course, settled_rounds=settled_rounds)
    following = Publishing(course, record, status)
    return following, [_publish(following)]


def _published(phase: Publishing, event: e.ModelPublished, now_s: float) -> Step:
    invariant(event.round == phase.round.number, "the publication belongs to another round")
    record = replace(phase.round, published_at_s=now_s)
    course = replace(phase.course, model=record.model, done=(*phase.course.done, record))
    if not phase.status:
        return Selecting(course, now_s), [c.Survey()]
    invariant(event.answer is not None, "the last round publishes an answer")
    said = {
        "converged": "the model stopped moving",
        "completed": "the planned rounds are done",
    }[phase.status]
    return Ended(course, phase.status, said, now_s, event.answer or ""), [c.EndJob()]


def _answered(phase: Closing, event: e.AnswerWritten, now_s: float) -> Step:
    ended = Ended(phase.course, phase.status, phase.message, now_s, event.digest, phase.unfinished)
    return ended, [c.EndJob()]


Handler = Callable[[Any, Any, float], Step]

_TABLE: dict[tuple[type[Phase], type[e.Event]], Handler] = {
    (Selecting, e.NodesSurveyed): _select,
    (Selecting, e.NodeReturned): _survey_again,
    (Selecting, e.NodeWasLost): _survey_again,
    (Reserving, e.BudgetsReserved): _begin_training,
    (Training, e.OrderWasAccepted): _accepted,
    (Training, e.OrderWasRefused): _refused,
    (Training, e.UpdateReceived): _received,
    (Training, e.NoUpdateReceived): _no_update,
    (Training, e.NodeWasLost): _lost,
    (Training, e.NodeReturned): _returned,
    (Training, e.DeadlinePassed): _deadline,
    (Training, e.CoordinatorRestarted): _restarted,
    (Training, e.NodesSurveyed): _top_up,
    (Training, e.BudgetsReserved): _topped_up,
    (Aggregating, e.UpdatesFolded): _folded,
    (Publishing, e.ModelPublished): _published,
    (Closing, e.AnswerWritten): _answered,
    **{
        (phase, e.CancelRequested): _cancel
        for phase in (Selecting, Reserving, Training, Aggregating, Publishing, Closing)
    },
    **{
        (phase, e.StepFailed): _fail
        for phase in (Selecting, Reserving, Training, Aggregating, Publishing, Closing)
    },
}

_NODES: frozenset[type[e.Event]] = frozenset({e.NodeReturned, e.NodeWasLost, e.NodesSurveyed})
_RETRIES: frozenset[type[e.Event]] = frozenset(
    {e.OrderWasAccepted, e.OrderWasRefused, e.UpdateReceived, e.NoUpdateReceived, e.DeadlinePassed}
)
_RESULTS: frozenset[type[e.Event]] = frozenset(
    {e.BudgetsReserved, e.UpdatesFolded, e.ModelPublished, e.AnswerWritten}
)
_AGAIN: frozenset[type[e.Event]] = frozenset({e.CoordinatorRestarted})

# Events that may honestly arrive after the phase they were meant for.
_IGNORED: dict[type[Phase], frozenset[type[e.Event]]] = {
    Selecting: _RETRIES | _AGAIN,
    Reserving: _RETRIES | _NODES | _AGAIN,
    Training: frozenset(),
    Aggregating: _RETRIES | _NODES | _AGAIN,
    Publishing: _RETRIES | _NODES | _AGAIN,
    Closing: _RETRIES | _NODES | _AGAIN,
    Ended: _RETRIES | _NODES | _AGAIN | _RESULTS | frozenset({e.CancelRequested, e.StepFailed}),
}
