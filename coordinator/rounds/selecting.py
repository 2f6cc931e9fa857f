"""Selecting and Reserving: who takes part in the next round."""

from dataclasses import replace

from coordinator.rounds import commands as c
from coordinator.rounds import ending, participation
from coordinator.rounds import events as e
from coordinator.rounds.ending import Step
from coordinator.rounds.phases import Attempt, Course, Reserving, RoundRecord, Selecting, Training


def reserve_command(course: Course, offers: tuple[e.Offer, ...]) -> c.ReserveBudgets:
    return c.ReserveBudgets(course.next_round, offers, course.plan.min_participants)


def survey_again(phase: Selecting, event: e.Event, now_s: float) -> Step:
    return phase, [c.Survey()]


def restarted(phase: Selecting, event: e.CoordinatorRestarted, now_s: float) -> Step:
    """The job has looked for nodes since now at the latest: a clock that was set back must not make
    it the last of all for days."""
    return replace(phase, since_s=min(phase.since_s, now_s)), []


def select(phase: Selecting, event: e.NodesSurveyed, now_s: float) -> Step:
    course = phase.course
    waits_for_busy = now_s - phase.since_s < course.plan.busy_wait_s and any(
        one.reason == participation.BUSY for one in event.absences
    )
    enough = len(event.offers) >= course.plan.min_participants
    if enough and not waits_for_busy:
        chosen, others = participation.choose(course, event.offers)
        following = Reserving(course, now_s, chosen, event.absences + others)
        return following, [reserve_command(course, chosen)]
    if not enough and ending.never_again(course, {o.node for o in event.offers}, event.absences):
        return ending.end_job(
            course, "budget_exhausted", ending.exhausted_message(event.absences), now_s
        )
    ready = tuple(one.node for one in event.offers)
    return replace(phase, waiting=event.absences, ready=ready, surveyed=True), []


def begin_training(phase: Reserving, event: e.BudgetsReserved, now_s: float) -> Step:
    course, number = phase.course, phase.course.next_round
    if not event.grants:
        return Selecting(course, now_s, event.refused), [c.Survey()]
    record = RoundRecord(
        number,
        started_at_s=phase.since_s,
        reserved_at_s=now_s,
        attempts=attempts_of(event.grants, now_s),
        left_out=phase.left_out + event.refused,
    )
    following = Training(course, record, now_s + course.plan.deadline_s)
    return following, [c.SendOrder(a.attempt_id) for a in record.attempts]


def attempts_of(grants: tuple[e.Grant, ...], now_s: float) -> tuple[Attempt, ...]:
    return tuple(Attempt(g.attempt_id, g.offer, now_s) for g in grants)
