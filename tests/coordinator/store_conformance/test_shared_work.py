"""Work that a replica does for whoever leads: what is offered, taken, answered and believed."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from coordinator.blobs import BlobStore
from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import parse_job
from coordinator.replicas import shared_work
from coordinator.replicas.followed_rounds import FollowedRounds
from coordinator.replicas.shared_work import SharedWork, WorkTaker, work_of
from coordinator.rounds import averaging, machine
from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob, job_from_json, job_to_json, plan_of, replay
from coordinator.rounds.phases import Aggregating, Publishing
from coordinator.store import jobs as job_store
from coordinator.store import leases
from coordinator.store import shared_work as kept
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord
from coordinator.store.shared_work import Checked
from protos.content import INLINE_BYTES, digest_of
from protos.errors import Malformed, Unavailable
from tests.coordinator.playbook import offer

T = TypeVar("T")
LARGE = INLINE_BYTES + 1
SPEC = b"""
name: shared
task: tabular-classifier
task_config: {learning_rate: 2.0}
dataset: cohort
federation: {rounds: 3}
privacy: {noise_multiplier: 2.0}
"""
MADE = e.UpdatesFolded(1, "9" * 64, LARGE, None, None, False, None)


def aggregating(database: Database, digest: str = "2", size: int = LARGE) -> LiveJob:
    """A job of three nodes that have all handed in, as its journal has it."""
    job = parse_job(SPEC, CoordinatorConfig())
    record = JobRecord(
        "j", "default", "shared", "u", "r", SPEC, job_to_json(job), "f" * 64, "running", 0.0
    )
    offers = tuple(map(offer, "abc"))
    steps: list[e.Event] = [
        e.JobSubmitted("1" * 64),
        e.NodesSurveyed(offers, ()),
        e.BudgetsReserved(tuple(e.Grant(f"j-{one.node}", one) for one in offers), ()),
        *(e.UpdateReceived(f"j-{node}", digest * 64, size, b"") for node in "abc"),
    ]
    database.write_now(lambda inside: job_store.add(inside, record))
    database.write_now(lambda inside: job_store.append_all(inside, "j", 0, 100.0, steps))
    phase, count = replay(plan_of(job_from_json(record.resolved)), [(100.0, one) for one in steps])
    assert isinstance(phase, Aggregating)
    return LiveJob(record, job, phase, count)


@pytest.fixture
def other(url: str) -> Iterator[Database]:
    """The other replica's connections."""
    with closing(Database(url)) as opened:
        yield opened


@pytest.fixture
def averaged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs that were averaged; the files are not there."""
    seen: list[str] = []

    def fold(live: LiveJob, *_: object) -> e.UpdatesFolded:
        seen.append(live.job_id)
        return MADE

    monkeypatch.setattr(averaging, "fold", fold)
    return seen


def taker(database: Database, folder: Path) -> WorkTaker:
    return WorkTaker(database, BlobStore(folder), FollowedRounds(database), "other")


async def with_help(work: WorkTaker, asked: Awaitable[T]) -> T:
    """What the leader gets while a replica looks for work."""
    waiting = asyncio.ensure_future(asked)
    while not waiting.done():
        await work.take()
    return await waiting


async def shared(leader: Database, live: LiveJob) -> e.UpdatesFolded | None:
    """What the leader gets."""
    assert isinstance(live.phase, Aggregating)
    return await SharedWork(leader).average(live, live.phase)


def test_a_round_is_averaged_by_whoever_takes_its_jobs_lease(
    database: Database, other: Database, tmp_path: Path, averaged: list[str]
) -> None:
    """The leader has the answer, the lease is free again, and what was done is not offered."""
    live, work = aggregating(database), taker(other, tmp_path)

    assert asyncio.run(with_help(work, shared(database, live))) == MADE
    assert averaged == ["j"]
    assert not database.read_now(lambda inside: kept.is_held(inside, "j"))
    assert not database.read_now(kept.offers)
    database.write_now(lambda inside: kept.forget(inside, "j"))
    assert isinstance(live.phase, Aggregating)
    named = work_of(live, live.phase)
    assert database.read_now(lambda inside: kept.made(inside, "j", named)) is None


def test_what_nobody_takes_up_is_withdrawn_and_not_offered_for_a_while(
    database: Database, tmp_path: Path, averaged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica alone loses a second once, not in each round; small updates are never offered."""
    monkeypatch.setattr(shared_work, "TAKEN_UP_S", 0.05)
    live = aggregating(database)
    leader = SharedWork(database)

    async def play() -> None:
        assert isinstance(live.phase, Aggregating)
        assert await leader.average(live, live.phase) is None
        assert not database.read_now(kept.offers)
        monkeypatch.setattr(database, "write", None)  # another offer would use it
        assert await leader.average(live, live.phase) is None

    asyncio.run(play())
    asyncio.run(taker(database, tmp_path).take())
    assert averaged == []


def test_where_every_replica_is_at_work_the_next_round_is_offered_again(
    database: Database,
    other: Database,
    tmp_path: Path,
    averaged: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are busy with another job: the leader averages this one, and is not alone."""
    monkeypatch.setattr(shared_work, "TAKEN_UP_S", 0.05)
    live, work = aggregating(database), taker(other, tmp_path)
    other.write_now(lambda inside: kept.take(inside, "another", "other"))
    leader = SharedWork(database)

    async def play() -> e.UpdatesFolded | None:
        assert isinstance(live.phase, Aggregating)
        assert await leader.average(live, live.phase) is None
        monkeypatch.setattr(shared_work, "TAKEN_UP_S", 30.0)
        return await with_help(work, leader.average(live, live.phase))

    assert asyncio.run(play()) == MADE


def test_small_updates_are_averaged_where_they_are(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask another takes longer."""
    live = aggregating(database, size=INLINE_BYTES)
    monkeypatch.setattr(database, "write", None)
    assert asyncio.run(shared(database, live)) is None


def test_a_replica_that_knows_other_inputs_does_not_answer(
    database: Database, other: Database, tmp_path: Path, averaged: list[str]
) -> None:
    """Nor is an answer to other inputs taken, as of a round that was resumed with other updates."""
    live = aggregating(database)
    assert isinstance(live.phase, Aggregating)
    named = work_of(live, live.phase)
    database.write_now(lambda inside: kept.offer(inside, "j", "0" * 64))
    asyncio.run(taker(other, tmp_path).take())
    assert averaged == []
    lease = other.write_now(lambda inside: kept.take(inside, "j", "other"))
    assert lease is not None
    other.write_now(lambda inside: kept.hand_over(inside, lease, "j", named, MADE))
    assert database.read_now(lambda inside: kept.made(inside, "j", named)) is None
    assert list(database.read_now(kept.offers).values()) == ["0" * 64]


def test_an_answer_is_kept_for_a_leader_that_asks_again(database: Database) -> None:
    """One that was killed before it had read it; other inputs are another offer."""
    database.write_now(lambda inside: kept.offer(inside, "j", "a"))
    lease = database.write_now(lambda inside: kept.take(inside, "j", "other"))
    assert lease is not None
    database.write_now(lambda inside: kept.hand_over(inside, lease, "j", "a", MADE))
    database.write_now(lambda inside: kept.offer(inside, "j", "a"))
    assert database.read_now(lambda inside: kept.made(inside, "j", "a")) == MADE
    database.write_now(lambda inside: kept.offer(inside, "j", "b"))
    assert database.read_now(lambda inside: kept.made(inside, "j", "a")) is None
    assert database.read_now(kept.offers) == {"j": "b"}


def test_of_many_replicas_one_averages_and_one_that_was_replaced_is_not_heard(
    database: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the epoch of the job's lease, as whoever leads is fenced by its own."""
    database.write_now(lambda inside: kept.offer(inside, "j", "a"))
    first = database.write_now(lambda inside: kept.take(inside, "j", "one"))
    assert first is not None
    assert other.write_now(lambda inside: kept.take(inside, "j", "two")) is None
    monkeypatch.setattr(leases, "LEASE_S", -1.0)
    database.write_now(lambda inside: leases.renew(inside, first, 0.0))
    second = other.write_now(lambda inside: kept.take(inside, "j", "two"))
    assert second is not None
    assert second.epoch > first.epoch
    with pytest.raises(Unavailable) as refused:
        database.write_now(lambda inside: kept.hand_over(inside, first, "j", "a", MADE))
    assert refused.value.reason == "LEASE_LOST"
    assert database.read_now(lambda inside: kept.made(inside, "j", "a")) is None
    other.write_now(lambda inside: kept.hand_over(inside, second, "j", "a", MADE))
    assert database.read_now(lambda inside: kept.made(inside, "j", "a")) == MADE


def test_a_replica_that_is_gone_in_the_middle_is_not_waited_for(
    database: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease ends, and the leader averages; what comes later is answered to nobody."""
    monkeypatch.setattr(leases, "LEASE_S", 0.5)
    live = aggregating(database)

    async def play() -> e.UpdatesFolded | None:
        waiting = asyncio.create_task(shared(database, live))
        while not (offered := await other.read(kept.offers)):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        lease = await other.write(lambda inside: kept.take(inside, "j", "gone"))
        assert lease is not None
        made = await asyncio.wait_for(waiting, 20)
        await other.write(lambda inside: kept.hand_over(inside, lease, "j", offered["j"], MADE))
        assert (await other.read(lambda inside: kept.made(inside, "j", offered["j"]))) is None
        return made

    assert asyncio.run(play()) is None


def test_a_replica_that_gets_nowhere_is_not_waited_for_without_end(
    database: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is held all the time, as by one whose disk hangs."""
    monkeypatch.setattr(shared_work, "MADE_S", 0.5)
    other.write_now(lambda inside: kept.take(inside, "j", "other"))
    assert asyncio.run(shared(database, aggregating(database))) is None
    assert database.read_now(lambda inside: kept.is_held(inside, "j"))
    assert not database.read_now(kept.offers)


def test_an_average_that_fails_is_left_to_the_leader(
    database: Database, other: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say: the lease is given back at once."""
    began: list[str] = []

    def fails(live: LiveJob, *_: object) -> e.UpdatesFolded:
        began.append(live.job_id)
        raise OSError("no room")

    monkeypatch.setattr(averaging, "fold", fails)
    monkeypatch.setattr(shared_work, "TAKEN_UP_S", 1.0)
    live, work = aggregating(database), taker(other, tmp_path)

    assert asyncio.run(with_help(work, shared(database, live))) is None
    assert began
    assert not database.read_now(lambda inside: kept.is_held(inside, "j"))


def test_a_jobs_answer_is_made_from_the_rounds_that_the_leader_named(
    database: Database, other: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last half of them, by a replica that reads the same from the journal; of one round there
    is nothing to make."""
    made: list[list[str]] = []

    def write_answer(_: LiveJob, models: list[str], *__: object) -> str:
        made.append(models)
        return "8" * 64

    monkeypatch.setattr(averaging, "write_answer", write_answer)
    live, journal = aggregating(database), []
    offers = tuple(map(offer, "abc"))
    for number in (1, 2, 3):
        if number > 1:
            grants = tuple(e.Grant(f"j{number}-{one.node}", one) for one in offers)
            journal += [e.NodesSurveyed(offers, ()), e.BudgetsReserved(grants, ())]
            journal += [e.UpdateReceived(one.attempt_id, "2" * 64, LARGE, b"") for one in grants]
        journal.append(replace(MADE, round=number, digest=str(number) * 64))
        if number < 3:
            journal.append(e.ModelPublished(number, None))
    for one in journal:
        live.phase, _ = machine.step(live.phase, one, 100.0)
    assert isinstance(live.phase, Publishing)
    database.write_now(lambda inside: job_store.append_all(inside, "j", live.steps, 100.0, journal))
    models = ["1" * 64, "2" * 64, "3" * 64]
    work = taker(other, tmp_path)

    async def play() -> tuple[str | None, str | None]:
        leader = SharedWork(database)
        answer = await with_help(work, leader.answer(live, models))
        return answer, await leader.answer(live, models[:1])

    assert asyncio.run(play()) == ("8" * 64, None)
    assert made == [models]


@pytest.mark.parametrize("fault", ["", "the update was refused: it holds no value"])
def test_what_a_replica_found_of_an_update_is_known_until_its_round_is_over(
    database: Database, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of these bytes, and of no others of the attempt."""

    def look(*_: object) -> None:
        if fault:
            raise Malformed("UPDATE_INVALID", fault)

    monkeypatch.setattr(averaging, "check_update", look)
    live, work = aggregating(database), taker(database, tmp_path)
    attempt = live.rounds()[-1].attempts[0]
    data = b"x" * 7
    digest = digest_of(data)
    work.blobs.keep_update(attempt.attempt_id, digest, data)
    asyncio.run(work.check(live, attempt, digest))
    found = Checked(attempt.attempt_id, digest, "j", 7, fault)

    def known(named: str) -> Checked | None:
        return database.read_now(lambda inside: kept.checked(inside, attempt.attempt_id, named))

    assert known(digest) == found
    assert known("3" * 64) is None
    database.write_now(lambda inside: kept.forget(inside, "another"))
    assert known(digest) == found
    database.write_now(lambda inside: kept.forget(inside, "j"))
    assert known(digest) is None


def test_what_a_replica_cannot_look_through_it_says_nothing_of(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that it cannot read is no fault of the update."""

    def look(*_: object) -> None:
        raise Malformed("MODEL_INVALID", "the model was refused")

    monkeypatch.setattr(averaging, "check_update", look)
    live, work = aggregating(database), taker(database, tmp_path)
    attempt = live.rounds()[-1].attempts[0]
    digest = digest_of(b"x")
    work.blobs.keep_update(attempt.attempt_id, digest, b"x")
    asyncio.run(work.check(live, attempt, digest))
    seen = database.read_now(lambda inside: kept.checked(inside, attempt.attempt_id, digest))
    assert seen is None
