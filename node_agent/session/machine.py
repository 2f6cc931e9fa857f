"""The agent machine: what a node does next. Pure: no clock, no IO, no randomness.

`step(agent, event, now_s)` gives the next state and the commands that follow. What must outlive
the process is in `state.db`, written by the commands themselves; after a restart the machine is
built again from there (`Restarted`). An answer to a command may come after its attempt was closed
and is then ignored; any other pair that is not in the tables is a bug and raises.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, get_args

from node_agent.session import commands as c
from node_agent.session import events as e
from node_agent.session.attempts import AT_WORK, OPENED, Agent, Attempt, Phase
from protos.errors import InvariantBroken, invariant

WORKER_IDLE_S: Final = 600.0
"""A worker is kept this long between rounds; longer waits pay for starting it again."""

WORKERS_MAX: Final = 2
"""Workers that are alive at once, so that two jobs whose rounds alternate need not start theirs
for each round; only one of them is at work."""


ACCEPTANCE_S: Final = 0.1
"""What is over sooner than this says so only once: the outcome carries the acceptance too."""

Step = tuple[Agent, list[c.Command]]


def step(agent: Agent, event: e.Event, now_s: float) -> Step:
    """One step.

    Raises:
        InvariantBroken: the state does not know such an event.
    """
    general = _GENERAL.get(type(event))
    if general is not None:
        return general(agent, event, now_s)
    if isinstance(event, get_args(e.AttemptEvent)):
        if isinstance(event, e.TickReached) and event.attempt_id in agent.over:
            return _place_free(agent, event, now_s)
        attempt = agent.find(event.attempt_id)
        if attempt is None:
            return agent, []
        handler = _TABLE.get((attempt.phase, type(event)))
        if handler is not None:
            return handler(agent, attempt, event, now_s)
        raise InvariantBroken(f"{type(event).__name__} cannot happen while {attempt.phase.value}")
    raise InvariantBroken(f"{type(event).__name__} is no event of the agent")


def next_tick_s(opened_at_s: float, tick_s: float, now_s: float) -> float:
    """The first multiple of `tick_s` from the opening that is not past."""
    if tick_s <= 0:
        return now_s
    # A clock that was set back while the agent was down must not make it wait for days.
    elapsed_s = max(0.0, now_s - opened_at_s)
    start_s = now_s - elapsed_s
    return start_s + max(1, math.ceil(elapsed_s / tick_s)) * tick_s


# The connection


def _restart(agent: Agent, event: e.Restarted, now_s: float) -> Step:
    invariant(not agent.attempts, "the agent restarts once")
    asked: list[c.Command] = []
    attempts = []
    for kept in event.attempts:
        attempt = Attempt(
            kept.order,
            Phase.FETCHING if kept.state == "reserved" else Phase.HOLDING,
            opened_at_s=kept.opened_at_s,
            tick_s=kept.tick_s,
            digest=kept.digest,
            posted=kept.signature,
            accepted=kept.accepted,
            ordered=False,
        )
        attempts.append(attempt)
        asked.append(
            c.FetchModel(kept.order)
            if attempt.phase is Phase.FETCHING
            else _schedule(attempt, now_s)
        )
    return replace(agent, attempts=tuple(attempts)), asked


def _connected(agent: Agent, event: e.Connected, now_s: float) -> Step:
    held = tuple(one.attempt_id for one in agent.attempts)
    return replace(agent, welcomed=False), [c.SendHello(held)]


def _second(agent: Agent, event: e.SecondOpened, now_s: float) -> Step:
    return agent, [c.SendHello(tuple(one.attempt_id for one in agent.attempts))]


def _disconnected(agent: Agent, event: e.Disconnected, now_s: float) -> Step:
    return replace(agent, welcomed=False), []


def _welcome(agent: Agent, event: e.WelcomeReceived, now_s: float) -> Step:
    agent, asked = replace(agent, welcomed=True), list[c.Command]()
    for attempt_id, outcome in event.closed:
        agent, more = _close(agent, attempt_id, outcome, now_s)
        asked += more
    for attempt in agent.attempts:
        asked += _tell(agent, attempt)
    return _work(agent, asked, now_s)


def _heartbeat(agent: Agent, event: e.HeartbeatDue, now_s: float) -> Step:
    asked: list[c.Command] = [c.SendHeartbeat()] if agent.welcomed else []
    if agent.workers and not agent.is_busy and now_s - agent.idle_since_s >= WORKER_IDLE_S:
        stopped = [c.StopWorker(job_id) for job_id in agent.workers]
        return replace(agent, workers=()), [*asked, *stopped, c.ForgetModels()]
    return agent, asked


def _reconnect(agent: Agent, event: e.Event, now_s: float) -> Step:
    return replace(agent, welcomed=False), [c.Reconnect()]


def _stop(agent: Agent, event: e.StopRequested, now_s: float) -> Step:
    stopped: list[c.Command] = [c.StopWorker(job_id) for job_id in agent.workers]
    return replace(agent, stopping=True, workers=()), stopped


# Orders


def _order(agent: Agent, event: e.OrderReceived, now_s: float) -> Step:
    order = event.order
    if agent.stopping:
        return agent, []
    attempt = agent.find(order.attempt_id)
    due_at_s = now_s + order.deadline_s if order.deadline_s else math.inf
    if attempt is None:
        added = Attempt(order, Phase.JUDGING, due_at_s=due_at_s)
        asked = c.JudgeOrder(order, agent.opened)
        return replace(agent, attempts=(*agent.attempts, added)), [asked]
    if attempt.order != order:
        return agent, [c.ReportConflict(order.attempt_id)]
    agent = agent.having(replace(attempt, due_at_s=due_at_s, ordered=True))
    if attempt.phase in (Phase.SUBMITTING, Phase.TELLING):
        return agent, _tell(agent, attempt)
    if attempt.phase in (Phase.JUDGING, Phase.WITHDRAWING):
        return agent, []
    # The same words until the tick, so that they tell nothing of what the worker does.
    return _work(agent, [c.SendAccepted(order.attempt_id, attempt.accepted)], now_s)


def _unreadable(agent: Agent, event: e.OrderUnreadable, now_s: float) -> Step:
    return agent, [c.SendRefused(event.attempt_id, event.reason, event.message, b"")]


def _reserved(agent: Agent, attempt: Attempt, event: e.OrderReserved, now_s: float) -> Step:
    changed = replace(attempt, phase=Phase.FETCHING, accepted=event.signature)
    due = c.ScheduleAcceptance(attempt.attempt_id, now_s + ACCEPTANCE_S)
    return agent.having(changed), [due, c.FetchModel(attempt.order)]


def _accept(agent: Agent, attempt: Attempt, event: e.AcceptanceDue, now_s: float) -> Step:
    # Judging: it was due for the same order, which has ended since and came again.
    over = attempt.phase in (Phase.JUDGING, Phase.SUBMITTING, Phase.TELLING)
    if over or not agent.welcomed:
        return agent, []
    return agent, [c.SendAccepted(attempt.attempt_id, attempt.accepted)]


def _refused(agent: Agent, attempt: Attempt, event: e.OrderRefused, now_s: float) -> Step:
    said: list[c.Command] = []
    if agent.welcomed:
        said.append(
            c.SendRefused(
                attempt.attempt_id,
                event.reason,
                event.message,
                event.signature,
                event.steps_possible,
            )
        )
    return agent.without(attempt.attempt_id), said


def _spent(agent: Agent, attempt: Attempt, event: e.OrderSpent, now_s: float) -> Step:
    said: list[c.Command] = []
    if agent.welcomed:
        said.append(c.SendNoUpdate(attempt.attempt_id, event.signature))
    return agent.without(attempt.attempt_id), said


# Work


def _ready(agent: Agent, attempt: Attempt, event: e.ModelReady, now_s: float) -> Step:
    return _work(agent.having(replace(attempt, phase=Phase.READY)), [], now_s)


def _impossible(agent: Agent, attempt: Attempt, event: e.WorkImpossible, now_s: float) -> Step:
    if agent.stopping:
        # It was us who stopped the worker; the reservation goes on after the restart.
        return agent, []
    agent = agent.having(replace(attempt, phase=Phase.WITHDRAWING))
    withdraw = c.Withdraw(attempt.order, event.reason, event.message, event.steps_possible)
    return _work(agent, [withdraw], now_s)


def _opened(agent: Agent, attempt: Attempt, event: e.DataOpened, now_s: float) -> Step:
    changed = replace(attempt, phase=Phase.TRAINING, opened_at_s=event.at_s, tick_s=event.tick_s)
    return agent.having(changed), []


def _ended(agent: Agent, attempt: Attempt, event: e.TrainingEnded, now_s: float) -> Step:
    changed = replace(
        attempt,
        phase=Phase.HOLDING,
        digest=event.digest,
        posted=event.signature,
        failure_class=event.failure_class,
    )
    return agent.having(changed), [_schedule(changed, now_s)]


def _tick(agent: Agent, attempt: Attempt, event: e.TickReached, now_s: float) -> Step:
    phase = Phase.SUBMITTING if attempt.digest else Phase.TELLING
    changed = replace(attempt, phase=phase)
    agent = replace(agent.having(changed), idle_since_s=now_s)
    return _work(agent, _tell(agent, changed), now_s)


def _place_free(agent: Agent, event: e.TickReached, now_s: float) -> Step:
    over = tuple(one for one in agent.over if one != event.attempt_id)
    return _work(replace(agent, over=over, idle_since_s=now_s), [], now_s)


def _past(agent: Agent, attempt: Attempt, event: e.TickReached, now_s: float) -> Step:
    """It was due for the same order, which has ended since and came again."""
    return agent, []


def _handed_in(agent: Agent, attempt: Attempt, event: e.Event, now_s: float) -> Step:
    return agent.without(attempt.attempt_id), [c.CloseAttempt(attempt.attempt_id, "post")]


def _vanished(agent: Agent, attempt: Attempt, event: e.UpdateVanished, now_s: float) -> Step:
    changed = replace(attempt, phase=Phase.TELLING, digest="")
    return agent.having(changed), _tell(agent, changed)


def _closed(agent: Agent, event: e.AttemptClosedReceived, now_s: float) -> Step:
    agent, asked = _close(agent, event.attempt_id, event.outcome, now_s)
    return _work(agent, asked, now_s)


def _job_ended(agent: Agent, event: e.JobEndedReceived, now_s: float) -> Step:
    """Only we can void, so what is open here when the job ends was posted there."""
    asked: list[c.Command] = []
    for attempt in agent.attempts:
        if attempt.order.job_id == event.job_id:
            agent, more = _close(agent, attempt.attempt_id, "post", now_s)
            asked += more
    if event.job_id in agent.workers:
        agent = agent.without_worker(event.job_id)
        asked.append(c.StopWorker(event.job_id))
    return _work(agent, [*asked, c.ForgetModels()], now_s)


def _close(agent: Agent, attempt_id: str, outcome: e.Outcome, now_s: float) -> Step:
    attempt = agent.find(attempt_id)
    asked: list[c.Command] = [c.CloseAttempt(attempt_id, outcome)]
    if attempt is None:
        return agent, asked
    asked.append(c.Abandon(attempt_id))
    if attempt.phase in AT_WORK:
        # Also where training is over: a worker that is kept would begin the next one sooner.
        agent = agent.without_worker(attempt.order.job_id)
        asked.append(c.StopWorker(attempt.order.job_id))
    if attempt.phase in OPENED and attempt.tick_s > 0:
        agent = replace(agent, over=(*agent.over, attempt_id))
        asked.append(_schedule(attempt, now_s))
    return agent.without(attempt_id), asked


def _schedule(attempt: Attempt, now_s: float) -> c.ScheduleOutcome:
    at_s = next_tick_s(attempt.opened_at_s, attempt.tick_s, now_s)
    return c.ScheduleOutcome(attempt.attempt_id, at_s)


def _tell(agent: Agent, attempt: Attempt) -> list[c.Command]:
    """Say the outcome, or say it again, if there is one that may be said."""
    if attempt.phase is Phase.SUBMITTING:
        accepted = attempt.accepted
        return [c.UploadAndSubmit(attempt.attempt_id, attempt.digest, attempt.posted, accepted)]
    if attempt.phase is Phase.TELLING and agent.welcomed:
        return [
            c.SendNoUpdate(
                attempt.attempt_id, attempt.posted, attempt.accepted, attempt.failure_class
            )
        ]
    return []


def _work(agent: Agent, asked: list[c.Command], now_s: float) -> Step:
    """Begin an attempt that is ready, if nothing is at work: of those of the highest priority the
    one that came first. One from before a restart waits until its order comes again, as it does
    after each Welcome: it may be closed since, and opening the data would be for nothing."""
    if agent.stopping or agent.is_busy:
        return agent, asked
    ready = [one for one in agent.attempts if one.phase is Phase.READY and one.ordered]
    if not ready:
        return agent, asked
    chosen = max(ready, key=lambda one: one.order.priority)
    kept = agent.without_worker(chosen.order.job_id).workers
    over = kept[: max(0, len(kept) + 1 - WORKERS_MAX)]
    asked = [*asked, *(c.StopWorker(job_id) for job_id in over)]
    agent = agent.having(replace(chosen, phase=Phase.PREPARING))
    workers = (*kept[len(over) :], chosen.order.job_id)
    agent = replace(agent, workers=workers, idle_since_s=now_s)
    return agent, [*asked, c.OpenAndTrain(chosen.order, chosen.due_at_s)]


_GENERAL: Final[dict[type, Callable[[Agent, Any, float], Step]]] = {
    e.Restarted: _restart,
    e.Connected: _connected,
    e.SecondOpened: _second,
    e.Disconnected: _disconnected,
    e.WelcomeReceived: _welcome,
    e.HeartbeatDue: _heartbeat,
    e.DrainReceived: _reconnect,
    e.PolicyChanged: _reconnect,
    e.StopRequested: _stop,
    e.OrderReceived: _order,
    e.OrderUnreadable: _unreadable,
    e.AttemptClosedReceived: _closed,
    e.JobEndedReceived: _job_ended,
}

_TABLE: Final[dict[tuple[Phase, type], Callable[[Agent, Attempt, Any, float], Step]]] = {
    (Phase.JUDGING, e.OrderReserved): _reserved,
    (Phase.JUDGING, e.OrderRefused): _refused,
    (Phase.JUDGING, e.OrderSpent): _spent,
    **{(phase, e.AcceptanceDue): _accept for phase in Phase},
    (Phase.JUDGING, e.TickReached): _past,
    (Phase.FETCHING, e.ModelReady): _ready,
    (Phase.FETCHING, e.WorkImpossible): _impossible,
    (Phase.WITHDRAWING, e.OrderRefused): _refused,
    (Phase.PREPARING, e.WorkImpossible): _impossible,
    (Phase.PREPARING, e.DataOpened): _opened,
    (Phase.TRAINING, e.TrainingEnded): _ended,
    (Phase.HOLDING, e.TickReached): _tick,
    (Phase.SUBMITTING, e.UpdateAcknowledged): _handed_in,
    (Phase.SUBMITTING, e.UpdateRejected): _handed_in,
    (Phase.SUBMITTING, e.UpdateVanished): _vanished,
}
