"""Bugs of the round machine, the turns and the ledger that a correct simulation must catch; see
`planted.py`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from coordinator.rounds import commands as c
from coordinator.rounds import effects, machine, noise_plan, planner, training, turn_order, turns
from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import (
    Aggregating,
    AttemptState,
    Ended,
    Phase,
    RoundRecord,
    Selecting,
    Training,
)
from coordinator.store.booking import _Kept
from privacy.ledger import Statement, append
from tests.simulation.node_side import Node
from tests.simulation.process import Work
from tests.simulation.stores import MemoryBooks
from tests.simulation.world import World

Step = Callable[[Phase, e.Event, float], Any]
Resolve = Callable[[MemoryBooks, str, str, bytes], None]


def _stepping(world: World, instead: Callable[[Step, Phase, e.Event, float], Any]) -> None:
    """Each step of a job goes through `instead`, in turns and in replays."""
    step = machine.step
    world.swap(machine, "step", lambda phase, event, now_s: instead(step, phase, event, now_s))


def _resolving(world: World, instead: Callable[[Resolve], Resolve]) -> None:
    """Each post and void goes through `instead`."""
    world.swap(MemoryBooks, "resolve", instead(MemoryBooks.resolve))


# The ledger


def charge_twice(world: World) -> None:
    """Every charge is booked a second time."""

    def bad(books: MemoryBooks, attempt_id: str, kind: str, signature: bytes) -> None:
        resolve(books, attempt_id, kind, signature)
        books.flush()
        store, statement = books.connection, store_reserved(books, attempt_id).resolved(kind)  # type: ignore[arg-type]
        entry = append(statement, store.chain(statement.account)[-1], signature)
        store.write_entry(entry)
        kept = books._kept[statement.account]
        books._kept[statement.account] = _Kept(kept.balance, entry.seq, entry.hash)
        store.write_account(statement.account, books._kept[statement.account])

    resolve = world.swap(MemoryBooks, "resolve", bad)


def store_reserved(books: MemoryBooks, attempt_id: str) -> Statement:
    """The statement that an attempt was reserved with."""
    statement: Statement = books.connection.reserved(attempt_id)
    return statement


def limit_ignores_pending(world: World) -> None:
    """Open reservations are not counted against the limit, here and at the planner.

    It matters where two jobs share a node, as those of different priorities may.
    """

    def bad(books: MemoryBooks, statement: Statement, signature: bytes = b"") -> None:
        if statement.kind != "reserve":
            book(books, statement, signature)
            return
        books.expect(account_names=[statement.account])
        account, held = statement.account, books._kept[statement.account].balance.pending
        kept = books._kept[account]
        books._kept[account] = replace(kept, balance=replace(kept.balance, pending=()))
        book(books, statement, signature)
        kept = books._kept[account]
        pending = (*held, *kept.balance.pending)
        books._kept[account] = replace(kept, balance=replace(kept.balance, pending=pending))

    def over_budget(facts: Any, account: Any, steward: Any, cost_units: int) -> Any:
        bare = replace(account, balance=replace(account.balance, pending=()))
        return judge(replace(facts, account=bare), bare, steward, cost_units)

    book = world.swap(MemoryBooks, "book", bad)
    judge = world.swap(planner, "_over_budget", over_budget)
    taken_is_ignored(world)
    world.checker.liveness.takes_turns = lambda statement: None  # type: ignore[method-assign]
    for node in world.nodes.values():
        node.steward._limit = 1.5


def void_without_proof(world: World) -> None:
    """A silent node's charge is given back without its word."""

    def instead(resolve: Resolve) -> Resolve:
        return lambda books, attempt_id, kind, signature: resolve(
            books, attempt_id, kind if signature else "void", signature
        )

    _resolving(world, instead)


def charge_forgotten_at_close(world: World) -> None:
    """What was open when a round closed is never booked."""

    def instead(resolve: Resolve) -> Resolve:
        def bad(books: MemoryBooks, attempt_id: str, kind: str, signature: bytes) -> None:
            if signature:
                resolve(books, attempt_id, kind, signature)

        return bad

    _resolving(world, instead)


def turn_commits_without_its_entries(world: World) -> None:
    """Each tenth turn writes its steps and forgets what it has booked."""
    count = [0]

    def bad(books: MemoryBooks) -> None:
        if books._written:
            count[0] += 1
            if count[0] % 10 == 0:
                books._written.clear()
        flush(books)

    flush = world.swap(MemoryBooks, "flush", bad)


def booked_before_the_turn_fails(world: World) -> None:
    """The ledger is written outside the transaction of the step."""

    def bad(books: MemoryBooks) -> None:
        flush(books)
        books.connection._undo.clear()  # type: ignore[attr-defined]

    flush = world.swap(MemoryBooks, "flush", bad)
    world.faults.rates["database_fails"] = 0.1


def attempt_id_reused(world: World) -> None:
    """The nodes of a turn share one id."""
    new_attempt_id, coordinator = world.coordinator.new_attempt_id, world.coordinator
    last: list[Any] = [-1.0, ""]

    def bad() -> str:
        if last[0] != world.now_s:
            last[:] = [world.now_s, new_attempt_id()]
        return str(last[1])

    coordinator.new_attempt_id = bad  # type: ignore[method-assign]


def steps_booked_differ_from_ordered(world: World) -> None:
    """The order that a node gets asks for more steps than were reserved."""

    def bad(live: Any, number: int, grant: e.Grant) -> Statement:
        statement: Statement = reserve_statement(live, number, grant)
        return replace(statement, steps=statement.steps + 1) if statement.steps else statement

    def work_order(*args: Any) -> Any:
        effects.reserve_statement = bad
        try:
            return made(*args)
        finally:
            effects.reserve_statement = reserve_statement

    reserve_statement = effects.reserve_statement
    made = world.swap(effects, "work_order", work_order)


# The journal


def journal_forgets(world: World) -> None:
    """One event in ten changes memory only."""
    tables, count = turns.job_store, [0]

    def bad(store: Any, job_id: str, first_seq: int, at_s: float, taken: Sequence[e.Event]) -> None:
        kept = []
        for event in taken:
            count[0] += 1
            if count[0] % 10:
                kept.append(event)
        append_all(store, job_id, first_seq, at_s, kept)

    append_all = world.swap(tables, "append_all", bad)


# The machine


def _lowered(world: World, need: Callable[[RoundRecord, e.Event, int], int]) -> None:
    """Rounds close with fewer updates than the job asks for."""

    def instead(step: Step, phase: Phase, event: e.Event, now_s: float) -> Any:
        if not isinstance(phase, Training):
            return step(phase, event, now_s)
        course = phase.course
        least = need(phase.round, event, course.plan.min_participants)
        lowered = replace(course, plan=replace(course.plan, min_participants=least))
        following, asked = step(replace(phase, course=lowered), event, now_s)
        if isinstance(following, Training | Aggregating):
            following = replace(following, course=course)
        return following, asked

    _stepping(world, instead)


def fold_below_quorum(world: World) -> None:
    """The round closes with whoever is there."""
    _lowered(world, lambda record, event, need: 1)


def refused_update_counts(world: World) -> None:
    """An attempt that came to nothing counts towards the quorum."""

    def need(record: RoundRecord, event: e.Event, least: int) -> int:
        return least - sum(a.state is AttemptState.NO_UPDATE for a in record.attempts)

    _lowered(world, need)


def grace_below_quorum(world: World) -> None:
    """A round gives a node up for its slowness although it needs it, and closes."""

    def due(phase: Training) -> list[e.Event]:
        found = asked(phase)
        if phase.round.received:
            for attempt in phase.round.opened:
                if coordinator.given_up(phase, attempt, True):
                    found.append(e.GracePassed(phase.round.number, attempt.node))
        return found

    coordinator = world.coordinator
    asked = coordinator.due
    coordinator.due = due  # type: ignore[method-assign]
    _lowered(world, lambda record, event, need: 1 if isinstance(event, e.GracePassed) else need)


def deadline_never_passes(world: World) -> None:
    """A round waits for ever for a node that is there and says nothing."""

    def instead(step: Step, phase: Phase, event: e.Event, now_s: float) -> Any:
        if isinstance(event, e.DeadlinePassed):
            return phase, []
        return step(phase, event, now_s)

    _stepping(world, instead)
    silent = world.nodes["a"]
    silent._judge = lambda _order, _opened: silent_for_ever(silent)  # type: ignore[method-assign]


def silent_for_ever(node: Node) -> Work:
    """A node that is there and never answers."""
    yield node.sleep(1e6)


def resume_retrains(world: World) -> None:
    """A job that is resumed begins its round anew, and what it held is trained again."""

    def instead(step: Step, phase: Phase, event: e.Event, now_s: float) -> Any:
        if isinstance(event, e.ResumeRequested) and isinstance(phase, Ended):
            cut = (phase.unfinished,) if phase.unfinished else ()
            course = replace(phase.course, abandoned=(*phase.course.abandoned, *cut))
            return Selecting(course, now_s), [c.Survey()]
        return step(phase, event, now_s)

    _stepping(world, instead)


def resume_forgets_what_it_spent(world: World) -> None:
    """Rounds that were cut off before a job was resumed are not counted as its spending."""
    world.swap(LiveJob, "attempted", LiveJob.rounds)
    world.faults.rates["order_failed"] = 0.1


def orders_mere_noise(world: World) -> None:
    """After an attempt that came to nothing a node is ordered with whatever is left of a target."""
    world.swap(noise_plan, "NOISE_OVER_PLAN_MAX", 1e9)
    world.faults.rates["worker_died"] = 0.3


def resume_forsakes_nodes(world: World) -> None:
    """Whose attempt was cut off when a job failed is never ordered again in that round."""
    world.swap(training, "CUT_OFF", frozenset())
    # A node that comes back is sent its order again, and the job fails over that in mid-round.
    world.faults.rates.update(stream_broken=0.2, order_failed=0.1)


def lost_order_is_never_sent_again(world: World) -> None:
    """A node that comes back does not hear of its open attempts, nor after a restart."""
    resume = machine.resume

    def instead(step: Step, phase: Phase, event: e.Event, now_s: float) -> Any:
        following, asked = step(phase, event, now_s)
        if isinstance(event, e.NodeReturned):
            asked = [one for one in asked if not isinstance(one, c.SendOrder)]
        return following, asked

    _stepping(world, instead)
    world.swap(
        machine,
        "resume",
        lambda phase: [one for one in resume(phase) if not isinstance(one, c.SendOrder)],
    )


def restart_resumes_nothing(world: World) -> None:
    """After a restart nobody asks again for what was asked for before it."""
    world.swap(machine, "resume", lambda phase: [])


# Several jobs


def taken_is_ignored(world: World) -> None:
    """Every job has every node."""
    world.swap(turn_order, "taken", lambda live, others, node: None)


def each_waits_for_the_other(world: World) -> None:
    """A node is kept for any other job that wants it."""

    def bad(live: Any, others: Any, node: str) -> e.Absence | None:
        others = list(others)
        for other in others:
            if isinstance(other.phase, Selecting) and other.phase.surveyed:
                return e.Absence(node, "BUSY", f"is kept for {other.job_id}")
        found: e.Absence | None = taken(live, others, node)
        return found

    taken = world.swap(turn_order, "taken", bad)
