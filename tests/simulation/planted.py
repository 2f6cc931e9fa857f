"""Bugs that a correct simulation must catch: each swaps one function for a wrong one.

Nothing of this is in the product; a test plants each in turn and reads the invariant's name.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from coordinator.rounds import answers, averaging, effects
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import (
    Aggregating,
    Attempt,
    AttemptState,
    RoundRecord,
    Training,
)
from protos.feddp.v1 import federation_pb2 as pb
from tests.simulation import planted_rounds as rounds
from tests.simulation.network import Reply
from tests.simulation.planted_limits import PLANTED_LIMITS, RARE
from tests.simulation.planted_nodes import PLANTED_AT_NODES
from tests.simulation.stores import MemoryBooks
from tests.simulation.world import World

Plant = Callable[[World], None]


SEEDS_TO_CATCH = 600
"""The first seed that catches ends the search. What one seed in a hundred catches is missed by
all of these once in four hundred times."""

SEEDS_TO_CATCH_A_RAISE = 50


@dataclass(frozen=True)
class Planted:
    """A bug, the invariants by one of which it must be called, and within how many seeds."""

    plant: Plant
    caught_by: tuple[str, ...]
    seeds: int = SEEDS_TO_CATCH


def never_survey_again(world: World) -> None:
    """Below quorum nobody is asked and nobody is named."""
    coordinator, answer, asked = world.coordinator, world.coordinator.answer, set[str]()

    def bad(books: Any, live: LiveJob, command: c.InsideCommand) -> e.Event | None:
        if isinstance(command, c.Survey):
            if live.job_id in asked:
                return None
            asked.add(live.job_id)
        return answer(books, live, command)

    coordinator.answer = bad  # type: ignore[assignment]


def commands_before_commit(world: World) -> None:
    """Orders go out while the reservations are still on their way to the disk."""
    coordinator = world.coordinator

    def reserve(books: Any, live: LiveJob, command: c.ReserveBudgets) -> Any:
        event = made(books, live, command)
        for grant in event.grants if event is not None else ():
            attempt = Attempt(grant.attempt_id, grant.offer, 0.0)
            phase = Training(live.phase.course, RoundRecord(command.round, 0.0), 0.0)
            order = effects.work_order(live, phase, attempt, coordinator.blobs)  # type: ignore[arg-type]
            coordinator.send(grant.offer.node, pb.CoordinatorMessage(work_order=order))
        return event

    made = world.swap(answers, "reserve", reserve)


def reply_before_durable(world: World) -> None:
    """The node is told that its update is safe before it is."""
    coordinator, submit_update = world.coordinator, world.coordinator.submit_update

    def bad(
        node: str,
        attempt_id: str,
        digest: str,
        signature: bytes,
        reply: Reply,
        accepted: bytes = b"",
    ) -> None:
        if coordinator.find(attempt_id, node)[2].is_open:
            coordinator.acknowledge(attempt_id, digest, reply)
        submit_update(node, attempt_id, digest, signature, lambda value: None, accepted)

    coordinator.submit_update = bad  # type: ignore[method-assign]


def retry_is_charged_again(world: World) -> None:
    """The same bytes, sent again, are booked under a fresh id."""
    coordinator, submit_update = world.coordinator, world.coordinator.submit_update

    def bad(
        node: str,
        attempt_id: str,
        digest: str,
        signature: bytes,
        reply: Reply,
        accepted: bytes = b"",
    ) -> None:
        _, _, attempt = coordinator.find(attempt_id, node)
        submit_update(node, attempt_id, digest, signature, reply, accepted)
        if attempt.digest == digest:
            statement = coordinator.store.reserved(attempt_id)
            again = replace(statement, attempt_id=coordinator.new_attempt_id())

            def work() -> None:
                with coordinator.store.transaction() as connection:
                    books = MemoryBooks(connection)  # type: ignore[arg-type]
                    books.book(again)
                    books.flush()
                world.checker.central_changed()

            coordinator.commit(work, lambda _: None)

    coordinator.submit_update = bad  # type: ignore[method-assign]


def damaged_update_counts(world: World) -> None:
    """Updates are taken unseen."""
    world.coordinator.is_sound = lambda digest: True  # type: ignore[method-assign]


def another_nodes_update_counts(world: World) -> None:
    """Nobody looks whose attempt it is, nor who signed."""
    coordinator = world.coordinator

    def find(attempt_id: str, node: str) -> Any:
        live = coordinator.job(coordinator.store.reserved(attempt_id).job_id)
        return live, *(live.attempt(attempt_id) or ())

    def no_signature(books: Any, attempt_id: str, kind: str, signature: bytes) -> None:
        resolve(books, attempt_id, kind, b"" if kind == "post" else signature)

    resolve = world.swap(MemoryBooks, "resolve", no_signature)
    coordinator.find = find  # type: ignore[method-assign]
    coordinator.check = lambda *_: None  # type: ignore[method-assign]


def stale_update_counts(world: World) -> None:
    """An update that comes too late is taken for the node's attempt of the round under way."""
    coordinator = world.coordinator
    upload, submit_update = coordinator.upload, coordinator.submit_update

    def current(node: str, attempt_id: str) -> str:
        live, _, attempt = coordinator.find(attempt_id, node)
        if not attempt.is_open and attempt.state is not AttemptState.RECEIVED:
            for other in live.rounds()[-1].opened:
                if other.node == node:
                    return other.attempt_id
        return attempt_id

    def bad_upload(node: str, attempt_id: str, digest: str, reply: Reply) -> None:
        upload(node, current(node, attempt_id), digest, reply)

    def bad(
        node: str,
        attempt_id: str,
        digest: str,
        signature: bytes,
        reply: Reply,
        accepted: bytes = b"",
    ) -> None:
        mine = current(node, attempt_id)
        if mine == attempt_id:
            submit_update(node, attempt_id, digest, signature, reply, accepted)
        else:
            live = coordinator.find(mine, node)[0]
            coordinator.blobs.updates.setdefault(mine, set()).add(digest)
            coordinator.take(live, e.UpdateReceived(mine, digest, 40, b""))

    world.faults.rates["call_late"] = 0.3
    coordinator.upload = bad_upload  # type: ignore[method-assign]
    coordinator.submit_update = bad  # type: ignore[method-assign]


def update_is_left_out(world: World) -> None:
    """The fold takes no more updates than it needs."""

    def bad(live: LiveJob, phase: Aggregating, blobs: Any) -> Any:
        kept = phase.round.received[: phase.course.plan.min_participants]
        return fold(live, replace(phase, round=replace(phase.round, attempts=kept)), blobs)

    fold = world.swap(averaging, "fold", bad)


HANGS = ("ends-or-waits", "ledgers-agree")

PLANTED: dict[str, Planted] = {
    "charge_twice": Planted(rounds.charge_twice, ("resolved-once",)),
    "limit_ignores_pending": Planted(rounds.limit_ignores_pending, ("limit",)),
    "void_without_proof": Planted(rounds.void_without_proof, ("void-is-unopened",)),
    "charge_forgotten_at_close": Planted(rounds.charge_forgotten_at_close, ("resolved-once",)),
    "attempt_id_reused": Planted(rounds.attempt_id_reused, ("own-id", "charged-once")),
    "journal_forgets": Planted(rounds.journal_forgets, ("reload-equals-memory",)),
    "fold_below_quorum": Planted(rounds.fold_below_quorum, ("quorum",)),
    "refused_update_counts": Planted(rounds.refused_update_counts, ("quorum",)),
    "deadline_never_passes": Planted(rounds.deadline_never_passes, ("deadline",)),
    "lost_order_is_never_sent_again": Planted(rounds.lost_order_is_never_sent_again, HANGS),
    "restart_resumes_nothing": Planted(rounds.restart_resumes_nothing, HANGS),
    "never_survey_again": Planted(never_survey_again, ("ends-or-waits",)),
    "commands_before_commit": Planted(commands_before_commit, ("reserved-first",)),
    "reply_before_durable": Planted(reply_before_durable, ("durable-before-reply",)),
    "retry_is_charged_again": Planted(
        retry_is_charged_again, ("charged-once", "acknowledged-is-final")
    ),
    "damaged_update_counts": Planted(damaged_update_counts, ("quorum",)),
    "another_nodes_update_counts": Planted(another_nodes_update_counts, ("quorum",)),
    "stale_update_counts": Planted(stale_update_counts, ("quorum",)),
    "update_is_left_out": Planted(update_is_left_out, ("nothing-lost",)),
    "turn_commits_without_its_entries": Planted(
        rounds.turn_commits_without_its_entries, ("resolved-once", "charged-once")
    ),
    "booked_before_the_turn_fails": Planted(
        rounds.booked_before_the_turn_fails, ("charged-once", "resolved-once")
    ),
    "grace_below_quorum": Planted(rounds.grace_below_quorum, ("quorum",)),
    "orders_mere_noise": Planted(rounds.orders_mere_noise, ("noise-of-the-plan",)),
    "resume_forgets_what_it_spent": Planted(
        rounds.resume_forgets_what_it_spent, ("journal-equals-ledger", "charged-once")
    ),
    "resume_forsakes_nodes": Planted(rounds.resume_forsakes_nodes, HANGS[:1]),
    "resume_retrains": Planted(rounds.resume_retrains, ("acknowledged-is-final",)),
    "steps_booked_differ_from_ordered": Planted(
        rounds.steps_booked_differ_from_ordered, ("ledgers-agree",)
    ),
    "taken_is_ignored": Planted(rounds.taken_is_ignored, ("takes-turns",)),
    "each_waits_for_the_other": Planted(rounds.each_waits_for_the_other, ("takes-turns",)),
    **{name: Planted(plant, names) for name, (plant, names) in PLANTED_AT_NODES.items()},
    **{
        name: Planted(plant, names, SEEDS_TO_CATCH if name in RARE else SEEDS_TO_CATCH_A_RAISE)
        for name, (plant, names) in PLANTED_LIMITS.items()
    },
}
