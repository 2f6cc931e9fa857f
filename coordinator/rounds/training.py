"""Training: nodes work, and the round waits for the right ones."""

from dataclasses import replace
from typing import Any

from coordinator.rounds import commands as c
from coordinator.rounds import ending, selecting
from coordinator.rounds import events as e
from coordinator.rounds.ending import Step
from coordinator.rounds.phases import (
    Aggregating,
    Attempt,
    AttemptState,
    Plan,
    RoundRecord,
    Training,
)

NODE_BUDGET_REASONS = frozenset({"BUDGET_REFUSED", "EPSILON_PER_JOB", "TARGET_EXCEEDED"})
"""Refusals by which a node's own ledger says that it can pay no further round of this job."""


def accepted(phase: Training, event: e.OrderWasAccepted, now_s: float) -> Step:
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


def refused(phase: Training, event: e.OrderWasRefused, now_s: float) -> Step:
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


def received(phase: Training, event: e.UpdateReceived, now_s: float) -> Step:
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


def no_update(phase: Training, event: e.NoUpdateReceived, now_s: float) -> Step:
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


def lost(phase: Training, event: e.NodeWasLost, now_s: float) -> Step:
    record = phase.round
    for attempt in record.opened:
        if attempt.node == event.node and not attempt.silent:
            record = record.with_attempt(replace(attempt, silent=True))
    if record is phase.round:
        return phase, []
    return _advance(replace(phase, round=record), now_s, [])


def returned(phase: Training, event: e.NodeReturned, now_s: float) -> Step:
    record, again = phase.round, list[c.Command]()
    for attempt in record.attempts:
        if attempt.node != event.node:
            continue
        if attempt.is_open:
            record = record.with_attempt(replace(attempt, silent=False))
            again.append(c.SendOrder(attempt.attempt_id))
        elif not attempt.excused:
            record = record.with_attempt(replace(attempt, excused=True))
    return _advance(replace(phase, round=record), now_s, again)


def deadline(phase: Training, event: e.DeadlinePassed, now_s: float) -> Step:
    if event.round != phase.round.number or phase.deadline_passed:
        return phase, []
    return _advance(replace(phase, deadline_passed=True), now_s, [])


def restarted(phase: Training, event: e.CoordinatorRestarted, now_s: float) -> Step:
    deadline_at_s = now_s + phase.course.plan.deadline_s
    return replace(phase, deadline_at_s=deadline_at_s, deadline_passed=False), []


def _advance(phase: Training, now_s: float, asked: list[c.Command]) -> Step:
    """Leave for Aggregating with quorum and nobody to wait for; look for more nodes below it."""
    record, need = phase.round, phase.course.plan.min_participants
    heard = [a for a in record.opened if not a.silent]
    if len(record.received) >= need and (not heard or phase.deadline_passed):
        closed, charges = ending.close_open(record, now_s)
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
    reason = "BUDGET" if attempt.reason in NODE_BUDGET_REASONS else attempt.reason
    return e.Absence(attempt.node, reason, attempt.message, for_good=reason == "BUDGET")


def top_up(phase: Training, event: e.NodesSurveyed, now_s: float) -> Step:
    """Below quorum: order further nodes, and nodes whose first attempt gave nothing."""
    record, plan = phase.round, phase.course.plan
    heard = [a for a in record.opened if not a.silent]
    if phase.topping_up or (
        len(record.received) + len(heard) >= plan.min_participants and not phase.deadline_passed
    ):
        return phase, []
    offers = tuple(o for o in event.offers if _may_try(record, o.node, plan, now_s))
    if offers:
        asked = c.ReserveBudgets(record.number, offers, 0)
        return replace(phase, topping_up=offers), [asked]
    held = {a.node for a in (*record.received, *record.opened)}
    broke = tuple(_why(a) for a in _latest(record).values() if a.reason in NODE_BUDGET_REASONS)
    absences = (*broke, *(a for a in event.absences if a.node not in held))
    if ending.never_again(phase.course, held, absences):
        return ending.end_job(
            phase.course, "budget_exhausted", ending.exhausted_message(absences), now_s, record
        )
    known = {a.node for a in phase.waiting}
    added = tuple(a for a in absences if a.node not in known)
    return replace(phase, waiting=phase.waiting + added), []


def _may_try(record: RoundRecord, node: str, plan: Plan, now_s: float) -> bool:
    """Whether a node may be ordered again in this round."""
    tries = [a for a in record.attempts if a.node == node]
    charged = [a for a in tries if a.state is AttemptState.NO_UPDATE]
    refused = [a for a in tries if a.state is AttemptState.REFUSED]
    if len(charged) + len(refused) < len(tries):
        return False  # it works, or its part is done
    if any(a.reason in NODE_BUDGET_REASONS for a in refused):
        return False
    last = refused[-1] if refused else None
    if last and not last.excused and now_s - last.ended_at_s < plan.refused_again_s:
        return False
    counted = sum(not a.excused for a in charged)
    return counted < plan.attempts_per_round and len(charged) < plan.attempts_per_round_max


def topped_up(phase: Training, event: e.BudgetsReserved, now_s: float) -> Step:
    attempts = selecting.attempts_of(event.grants, now_s)
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
