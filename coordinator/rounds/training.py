"""Training: nodes work, and the round waits for the right ones."""

from dataclasses import replace
from typing import Any

from coordinator.rounds import commands as c
from coordinator.rounds import ending, participation, selecting
from coordinator.rounds import events as e
from coordinator.rounds.ending import Step
from coordinator.rounds.phases import (
    CUT_OFF,
    Aggregating,
    Attempt,
    AttemptState,
    Ended,
    Plan,
    RoundRecord,
    Selecting,
    Training,
)

REORDERS_MAX = 3
"""Times that a node is ordered again at once, with the steps that it says it can do."""

NODE_BUDGET_REASONS = frozenset(
    {
        "BUDGET_REFUSED",
        "EPSILON_PER_JOB",
        "EPSILON_PER_PURPOSE",
        "EPSILON_PER_PROJECT",
        "TARGET_EXCEEDED",
    }
)
"""Refusals by which a node's own ledger says that it can pay no further round of this job."""

UNTIL_IT_RETURNS = frozenset(
    {"APPROVAL_NEEDED", "APPROVAL_REFUSED", "ORDER_UNSIGNED", "ENGINEER_UNKNOWN"}
)
"""Refusals that somebody at the hospital takes back. The node says Hello again then; asking sooner
would fill both ledgers with orders and refusals."""


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
        steps_possible=event.steps_possible,
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
    return _advance(resolved, now_s, _post(event))


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
    return _advance(resolved, now_s, _post(event))


def _post(event: e.UpdateReceived | e.NoUpdateReceived) -> list[c.Command]:
    signed = [c.KeepSignature(event.attempt_id, event.accepted)] if event.accepted else []
    return [*signed, c.PostCharge(event.attempt_id, event.signature)]


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


def grace_passed(phase: Training, event: e.GracePassed, now_s: float) -> Step:
    record = phase.round
    if event.round != record.number:
        return phase, []
    for attempt in record.opened:
        if attempt.node == event.node and not attempt.overdue:
            record = record.with_attempt(replace(attempt, overdue=True))
    if record is phase.round:
        return phase, []
    return _advance(replace(phase, round=record), now_s, [])


def restarted(phase: Training, event: e.CoordinatorRestarted, now_s: float) -> Step:
    record = phase.round
    for attempt in record.attempts:
        # None is later than now, unless the clock was set back.
        began_s, ended_s = min(attempt.ordered_at_s, now_s), min(attempt.ended_at_s, now_s)
        overdue = attempt.overdue and not attempt.is_open
        record = record.with_attempt(
            replace(attempt, ordered_at_s=began_s, ended_at_s=ended_s, overdue=overdue)
        )
    following = replace(
        phase,
        round=record,
        deadline_at_s=now_s + phase.course.plan.deadline_s,
        deadline_passed=False,
        counted_from_s=now_s,
    )
    return following, []


def resumed(phase: Ended, event: e.ResumeRequested, now_s: float) -> Step:
    """A failed job goes on from its last published model and the updates that it holds; what it
    has spent stays spent. In place of those that it holds no more it goes on with the others, or
    orders their nodes again."""
    if phase.status != "failed":
        return phase, []
    course, record = phase.course, phase.unfinished
    for attempt in record.received if record is not None else ():
        if attempt.attempt_id in event.lost:
            gone = replace(
                attempt,
                state=AttemptState.LOST,
                digest="",
                reason="UPDATE_LOST",
                message="had handed in an update whose file the coordinator has lost since",
            )
            record = record.with_attempt(gone) if record is not None else None
    if record is not None and record.received:
        # It was not their nodes' fault that these came to nothing: they may try again.
        for attempt in record.attempts:
            if attempt.state in CUT_OFF:
                record = record.with_attempt(replace(attempt, excused=True))
        again = Training(course, record, now_s + course.plan.deadline_s, counted_from_s=now_s)
        return _advance(again, now_s, [])
    cut = (record,) if record else ()
    course = replace(course, abandoned=(*course.abandoned, *cut))
    return Selecting(course, now_s), [c.Survey()]


def _advance(phase: Training, now_s: float, asked: list[c.Command]) -> Step:
    """Leave for Aggregating with quorum and nobody to wait for; look for more nodes below it."""
    record, plan = phase.round, phase.course.plan
    need, have = plan.min_participants, len(record.received)
    heard = [a for a in record.opened if not a.silent]
    awaited = [a for a in heard if not a.overdue]
    again = _fewer_steps(record)
    full = 0 < plan.participants <= have
    if have >= need and (full or phase.deadline_passed or not (awaited or again)):
        closed, charges = ending.close_open(record, now_s, full=full)
        following = Aggregating(phase.course, replace(closed, trained_at_s=now_s))
        return following, [*asked, *charges, c.FoldUpdates(record.number)]
    short = have + len(heard) < need or phase.deadline_passed
    if not short:
        surveys: list[c.Command] = [c.Survey()] if again and not phase.topping_up else []
        return replace(phase, waiting=()), [*asked, *surveys]
    surveys = [] if phase.topping_up else [c.Survey()]
    return replace(phase, waiting=_missing(record)), [*asked, *surveys]


def _fewer_steps(record: RoundRecord) -> set[str]:
    """Nodes that could take part with fewer steps than they were ordered."""
    return {
        a.node
        for a in _latest(record).values()
        if a.state is AttemptState.REFUSED and a.steps_possible > 0
    }


def _latest(record: RoundRecord) -> dict[str, Attempt]:
    """Each node's newest attempt at the round."""
    return {a.node: a for a in record.attempts}


def _missing(record: RoundRecord) -> tuple[e.Absence, ...]:
    """Whose attempts have not given the round an update, and why."""
    newest = _latest(record).values()
    return tuple(_why(a) for a in newest if a.state is not AttemptState.RECEIVED)


def _why(attempt: Attempt) -> e.Absence:
    if attempt.silent:
        return e.Absence(attempt.node, "OFFLINE", "is not connected; its order is open")
    if attempt.is_open:
        return e.Absence(attempt.node, "TRAINING", "has not answered its order yet")
    reason = "BUDGET" if attempt.reason in NODE_BUDGET_REASONS else attempt.reason
    return e.Absence(attempt.node, reason, attempt.message, for_good=reason == "BUDGET")


def top_up(phase: Training, event: e.NodesSurveyed, now_s: float) -> Step:
    """Below quorum: order further nodes, and nodes whose first attempt gave nothing, as many as are
    missing. At any time: order those again that can do fewer steps than they were ordered."""
    record, plan = phase.round, phase.course.plan
    heard = [a for a in record.opened if not a.silent]
    again = _fewer_steps(record)
    enough = len(record.received) + len(heard) >= plan.min_participants
    if phase.topping_up or (enough and not phase.deadline_passed and not again):
        return phase, []
    offers = tuple(o for o in event.offers if _may_try(record, o.node, plan, now_s))
    only_again = enough and not phase.deadline_passed
    if only_again:
        offers = tuple(o for o in offers if o.node in again)
    counted_on = len(record.received) + (0 if phase.deadline_passed else len(heard))
    offers = participation.choose_more(phase.course, record, offers, counted_on, again)
    if only_again and not offers:
        # They cannot be ordered now; the round does not wait for them.
        return _without(phase, again, now_s)
    if offers:
        asked = c.ReserveBudgets(record.number, offers, 0)
        return replace(phase, topping_up=offers), [asked]
    held = {a.node for a in (*record.received, *record.opened)}
    broke = tuple(_why(a) for a in _latest(record).values() if a.reason in NODE_BUDGET_REASONS)
    others = tuple(a for a in event.absences if a.node not in held)
    absences = (*broke, *others)
    # Whoever works has its say first: an order that it refuses is voided, not charged.
    nobody_answers = not heard or phase.deadline_passed
    if nobody_answers and ending.never_again(phase.course, held, absences):
        return ending.end_job(
            phase.course, "budget_exhausted", ending.exhausted_message(absences), now_s, record
        )
    # What the survey says of a node is newer than how its last attempt ended; but no node is kept
    # for a round that could not order it.
    newer = (
        a for a in others if a.reason != participation.BUSY or _may_try(record, a.node, plan, now_s)
    )
    missing = {a.node: a for a in (*_missing(record), *newer, *broke)}
    return replace(phase, waiting=tuple(missing.values())), []


def _without(phase: Training, nodes: set[str], now_s: float) -> Step:
    """Go on without the nodes that could only have done fewer steps."""
    record = phase.round
    for attempt in _latest(record).values():
        if attempt.node in nodes:
            record = record.with_attempt(replace(attempt, steps_possible=0))
    return _advance(replace(phase, round=record), now_s, [])


def _may_try(record: RoundRecord, node: str, plan: Plan, now_s: float) -> bool:
    """Whether a node may be ordered again in this round."""
    tries = [a for a in record.attempts if a.node == node]
    charged = [a for a in tries if a.state is AttemptState.NO_UPDATE or a.state in CUT_OFF]
    refused = [a for a in tries if a.state is AttemptState.REFUSED]
    if len(charged) + len(refused) < len(tries):
        return False  # it works, or its part is done
    if any(a.reason in NODE_BUDGET_REASONS for a in refused):
        return False
    last = refused[-1] if refused else None
    if last and last.steps_possible > 0 and len(refused) <= REORDERS_MAX:
        return True
    if last and not last.excused:
        waits = last.reason in UNTIL_IT_RETURNS or last.reason.startswith("MANDATE_")
        if waits or now_s - last.ended_at_s < plan.refused_again_s:
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
