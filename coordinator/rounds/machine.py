"""The round machine: what a job does next. Pure: no clock, no IO, no randomness.

`step(phase, event, now_s)` gives the next phase and the commands that follow. The driver journals
the event with its ledger commands in one transaction, then carries out the rest. A pair of phase
and event that is not in the table is a bug and raises; events that may honestly arrive late are
listed as ignored.
"""

from collections.abc import Callable
from typing import Any

from coordinator.rounds import commands as c
from coordinator.rounds import ending, publishing, selecting, training
from coordinator.rounds import events as e
from coordinator.rounds.ending import Step
from coordinator.rounds.phases import (
    Aggregating,
    Closing,
    Course,
    Ended,
    Phase,
    Plan,
    Publishing,
    Reserving,
    Selecting,
    Training,
)
from protos.errors import InvariantBroken


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
            return [selecting.reserve_command(phase.course, phase.offers)]
        case Training():
            again: list[c.Command] = [c.SendOrder(a.attempt_id) for a in phase.round.opened]
            if phase.topping_up:
                again.append(c.ReserveBudgets(phase.round.number, phase.topping_up, 0))
            return again
        case Aggregating():
            return [c.FoldUpdates(phase.round.number)]
        case Publishing():
            return [publishing.publish_command(phase)]
        case Closing():
            return [c.WriteAnswer(len(phase.course.done))]
        case Ended():
            return [c.EndJob()]


Handler = Callable[[Any, Any, float], Step]

_TABLE: dict[tuple[type[Phase], type[e.Event]], Handler] = {
    (Selecting, e.NodesSurveyed): selecting.select,
    (Selecting, e.NodeReturned): selecting.survey_again,
    (Selecting, e.NodeWasLost): selecting.survey_again,
    (Selecting, e.CoordinatorRestarted): selecting.restarted,
    (Reserving, e.BudgetsReserved): selecting.begin_training,
    (Training, e.OrderWasAccepted): training.accepted,
    (Training, e.OrderWasRefused): training.refused,
    (Training, e.UpdateReceived): training.received,
    (Training, e.NoUpdateReceived): training.no_update,
    (Training, e.NodeWasLost): training.lost,
    (Training, e.NodeReturned): training.returned,
    (Training, e.DeadlinePassed): training.deadline,
    (Training, e.GracePassed): training.grace_passed,
    (Training, e.CoordinatorRestarted): training.restarted,
    (Training, e.NodesSurveyed): training.top_up,
    (Training, e.BudgetsReserved): training.topped_up,
    (Aggregating, e.UpdatesFolded): publishing.folded,
    (Publishing, e.ModelPublished): publishing.published,
    (Closing, e.AnswerWritten): publishing.answered,
    (Ended, e.ResumeRequested): training.resumed,
    **{
        (phase, e.CancelRequested): ending.cancel
        for phase in (Selecting, Reserving, Training, Aggregating, Publishing, Closing)
    },
    **{
        (phase, e.StepFailed): ending.fail
        for phase in (Selecting, Reserving, Training, Aggregating, Publishing, Closing)
    },
    **{
        (phase, e.CoordinatorRestored): ending.restored
        for phase in (Selecting, Reserving, Training, Aggregating, Publishing, Closing)
    },
}

_NODES: frozenset[type[e.Event]] = frozenset({e.NodeReturned, e.NodeWasLost, e.NodesSurveyed})
_RETRIES: frozenset[type[e.Event]] = frozenset(
    {
        e.OrderWasAccepted,
        e.OrderWasRefused,
        e.UpdateReceived,
        e.NoUpdateReceived,
        e.DeadlinePassed,
        e.GracePassed,
    }
)
_RESULTS: frozenset[type[e.Event]] = frozenset(
    {e.BudgetsReserved, e.UpdatesFolded, e.ModelPublished, e.AnswerWritten}
)
_AGAIN: frozenset[type[e.Event]] = frozenset({e.CoordinatorRestarted, e.ResumeRequested})

# Events that may honestly arrive after the phase they were meant for.
_IGNORED: dict[type[Phase], frozenset[type[e.Event]]] = {
    Selecting: _RETRIES | frozenset({e.ResumeRequested}),
    Reserving: _RETRIES | _NODES | _AGAIN,
    Training: frozenset({e.ResumeRequested}),
    Aggregating: _RETRIES | _NODES | _AGAIN,
    Publishing: _RETRIES | _NODES | _AGAIN,
    Closing: _RETRIES | _NODES | _AGAIN,
    Ended: _RETRIES | _NODES | _AGAIN | _RESULTS | frozenset({e.CancelRequested, e.StepFailed}),
}
