"""What a replica that does not lead knows of the jobs: the leader's journal, as it is committed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from sqlalchemy import Connection

from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import parse_job
from coordinator.replicas.followed_rounds import FollowedRounds
from coordinator.rounds import events as e
from coordinator.rounds.live import job_to_json
from coordinator.rounds.phases import AttemptState, Training
from coordinator.store import booking
from coordinator.store import jobs as job_store
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord
from protos.errors import NotFound
from tests.coordinator.playbook import offer
from tests.coordinator.store_conformance.samples import statement

T = TypeVar("T")
SPEC = b"""
name: followed
task: tabular-classifier
task_config: {learning_rate: 2.0}
dataset: cohort
federation: {rounds: 2}
privacy: {noise_multiplier: 2.0}
"""
NODES = ("a", "b", "c")


class Leader:
    """Commits steps of one job."""

    def __init__(self, database: Database, job_id: str = "j") -> None:
        self.database = database
        self.job_id = job_id
        self.seq = 0
        job = parse_job(SPEC, CoordinatorConfig())
        record = JobRecord(
            *(job_id, "default", "followed", "u", f"r-{job_id}", SPEC, job_to_json(job)),
            *("f" * 64, "running", 0.0),
        )
        database.write_now(lambda c: job_store.add(c, record))
        self.commit(e.JobSubmitted("1" * 64))

    def commit(self, *taken: e.Event) -> None:
        first, self.seq = self.seq, self.seq + len(taken)
        self.database.write_now(lambda c: job_store.append_all(c, self.job_id, first, 100.0, taken))

    def order(self) -> None:
        """Begin the first round, with an attempt of each node."""
        offers = tuple(map(offer, NODES))
        grants = tuple(e.Grant(f"{self.job_id}-{one.node}", one) for one in offers)
        self.commit(e.NodesSurveyed(offers, ()), e.BudgetsReserved(grants, ()))

    def end(self) -> None:
        self.commit(e.CancelRequested("u"))
        self.database.write_now(lambda c: job_store.set_status(c, self.job_id, "cancelled"))


def play(database: Database, scene: Callable[[FollowedRounds], Awaitable[None]]) -> None:
    async def run() -> None:
        await scene(FollowedRounds(database))

    asyncio.run(run())


def test_a_step_is_known_as_soon_as_it_is_committed(database: Database) -> None:
    """A job that it has just met, the attempts of a round, and how each goes on."""
    leader = Leader(database)

    async def scene(followed: FollowedRounds) -> None:
        await followed.catch_up()
        (live,) = followed.running()
        assert not isinstance(live.phase, Training)
        assert followed.models() == {"1" * 64}
        leader.order()
        found, record, attempt = await followed.find("j-a", "a")
        assert (found, record.number, attempt.state) == (live, 1, AttemptState.ORDERED)
        assert isinstance(live.phase, Training)
        assert followed.awaited_attempts() == {"j-a", "j-b", "j-c"}
        leader.commit(e.UpdateReceived("j-a", "2" * 64, 100, b""))
        _, _, attempt = await followed.find("j-a", "a")
        assert (attempt.state, attempt.digest) == (AttemptState.RECEIVED, "2" * 64)
        assert followed.awaited_attempts() == {"j-a", "j-b", "j-c"}, "it is to be averaged"

    play(database, scene)


def test_another_nodes_attempt_is_unknown(database: Database) -> None:
    """As one that nobody has."""
    Leader(database).order()

    async def scene(followed: FollowedRounds) -> None:
        for attempt_id, node in (("j-a", "b"), ("x", "a"), ("", "a")):
            with pytest.raises(NotFound) as unknown:
                await followed.find(attempt_id, node)
            assert unknown.value.reason == "ATTEMPT_UNKNOWN"

    play(database, scene)


def test_a_job_that_has_ended_is_let_go_and_its_attempts_are_still_found(
    database: Database,
) -> None:
    """By the ledger; nothing of it is open, and the other job goes on."""
    gone, stays = Leader(database), Leader(database, "k")
    for leader in (gone, stays):
        leader.order()

    database.write_now(lambda c: booking.book(c, statement("j-a")))

    async def scene(followed: FollowedRounds) -> None:
        await followed.catch_up()
        assert len(followed.running()) == 2
        gone.end()
        await followed.catch_up()
        assert [live.job_id for live in followed.running()] == ["k"]
        assert followed.awaited_attempts() == {"k-a", "k-b", "k-c"}
        live, _, attempt = await followed.find("j-a", "a")
        assert (live.job_id, attempt.is_open) == ("j", False)

    play(database, scene)


def test_many_who_ask_at_once_share_few_reads(database: Database) -> None:
    """Whoever asked before a read began has it; one that asks later waits for the next one."""
    leader = Leader(database)

    async def scene(followed: FollowedRounds) -> None:
        reads = 0
        read = database.read

        async def counted(work: Callable[[Connection], T]) -> T:
            nonlocal reads
            reads += 1
            return await read(work)

        database.read = counted  # type: ignore[method-assign]
        first = asyncio.create_task(followed.catch_up())
        await asyncio.sleep(0)
        leader.order()
        await asyncio.gather(first, *(followed.catch_up() for _ in range(20)))
        assert reads == 2
        assert followed.awaited_attempts()

    play(database, scene)
