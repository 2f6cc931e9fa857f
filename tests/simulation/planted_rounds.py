"""Bugs of the round machine, the ledger and the store that a correct simulation must catch; see
`planted.py`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Aggregating, AttemptState, Phase, RoundRecord, Training
from privacy.ledger import Balance, Statement
from tests.simulation.world import World


def charge_twice(world: World) -> None:
    """Every charge is booked a second time."""
    store = world.coordinator.store
    resolve = store.resolve

    def bad(attempt_id: str, kind: Any, signature: bytes) -> None:
        resolve(attempt_id, kind, signature)
        statement = store.reserved(attempt_id).resolved(kind)
        store.write_entry(store.read_account(statement.account), statement, signature)

    store.resolve = bad  # type: ignore[method-assign]


def limit_ignores_pending(world: World) -> None:
    """Open reservations are not counted against the limit, here and at the planner."""
    store = world.coordinator.store
    read_account = store.read_account

    def without_pending(account: str) -> Any:
        known = read_account(account)
        return replace(known, balance=replace(known.balance, pending=()))

    def survey(live: LiveJob, survey: Any = world.coordinator.survey) -> e.Event | None:
        store.read_account = without_pending  # type: ignore[method-assign]
        event = survey(live)
        store.read_account = read_account  # type: ignore[method-assign]
        return event

    def bad(balance: Balance, statement: Statement) -> Balance:
        if statement.kind != "reserve":
            return balance.apply(statement)
        after = replace(balance, pending=()).apply(statement)
        return replace(after, pending=(*balance.pending, *after.pending))

    world.coordinator.survey = survey  # type: ignore[method-assign]
    store.apply = bad


def void_without_proof(world: World) -> None:
    """A silent node's charge is given back without its word."""
    book = world.coordinator.book

    def bad(command: c.Command) -> None:
        if isinstance(command, c.PostCharge) and not command.signature:
            command = c.VoidCharge(command.attempt_id, b"")
        book(command)

    world.coordinator.book = bad  # type: ignore[method-assign]


def charge_forgotten_at_close(world: World) -> None:
    """What was open when a round closed is never booked."""
    book = world.coordinator.book

    def bad(command: c.Command) -> None:
        if not isinstance(command, c.PostCharge) or command.signature:
            book(command)

    world.coordinator.book = bad  # type: ignore[method-assign]


def attempt_id_reused(world: World) -> None:
    """The nodes of a round share one id."""
    world.coordinator.new_attempt_id = (  # type: ignore[method-assign]
        lambda live, offer: f"{live.job_id}.{live.phase.course.next_round}"
    )


def journal_forgets(world: World) -> None:
    """One event in ten changes memory only."""
    coordinator, count = world.coordinator, [0]
    journal = coordinator.journal

    def bad(live: LiveJob, now_s: float, event: e.Event) -> None:
        count[0] += 1
        if count[0] % 10:
            journal(live, now_s, event)

    coordinator.journal = bad  # type: ignore[method-assign]


def _lowered(world: World, need: Callable[[RoundRecord, int], int]) -> None:
    step = world.coordinator.step

    def bad(phase: Phase, event: e.Event, now_s: float) -> Any:
        if not isinstance(phase, Training):
            return step(phase, event, now_s)
        course = phase.course
        least = need(phase.round, course.plan.min_participants)
        lowered = replace(course, plan=replace(course.plan, min_participants=least))
        following, asked = step(replace(phase, course=lowered), event, now_s)
        if isinstance(following, Training | Aggregating):
            following = replace(following, course=course)
        return following, asked

    world.coordinator.step = bad


def fold_below_quorum(world: World) -> None:
    """The round closes with whoever is there."""
    _lowered(world, lambda record, need: 1)


def refused_update_counts(world: World) -> None:
    """An attempt that came to nothing counts towards the quorum."""

    def need(record: RoundRecord, least: int) -> int:
        return least - sum(a.state is AttemptState.NO_UPDATE for a in record.attempts)

    _lowered(world, need)


def deadline_never_passes(world: World) -> None:
    """A round waits for ever for a node that is there and says nothing."""
    step = world.coordinator.step

    def bad(phase: Phase, event: e.Event, now_s: float) -> Any:
        if isinstance(event, e.DeadlinePassed):
            return phase, []
        return step(phase, event, now_s)

    world.coordinator.step = bad


def lost_order_is_never_sent_again(world: World) -> None:
    """A node that comes back does not hear of its open attempts, nor after a restart."""
    step, resume = world.coordinator.step, world.coordinator.resume

    def bad(phase: Phase, event: e.Event, now_s: float) -> Any:
        following, asked = step(phase, event, now_s)
        if isinstance(event, e.NodeReturned):
            asked = [one for one in asked if not isinstance(one, c.SendOrder)]
        return following, asked

    world.coordinator.step = bad
    world.coordinator.resume = lambda phase: [
        one for one in resume(phase) if not isinstance(one, c.SendOrder)
    ]


def restart_resumes_nothing(world: World) -> None:
    """After a restart nobody asks again for what was asked for before it."""
    world.coordinator.resume = lambda phase: []
