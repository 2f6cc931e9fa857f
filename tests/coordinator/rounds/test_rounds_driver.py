"""What the driver decides by itself: what is acknowledged, tried again, resumed, and remembered."""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from coordinator.blobs import BlobStore
from coordinator.compared import model_damaged
from coordinator.observing.metrics import Metrics
from coordinator.pausing import Pausing
from coordinator.rounds import commands as c
from coordinator.rounds import driver, turn_taker
from coordinator.rounds import events as e
from coordinator.rounds.driver import Rounds
from coordinator.rounds.phases import Aggregating, Ended, Selecting, Training
from protos.content import digest_of
from protos.errors import FeddpError, NotFound, TooLate, Unavailable, WrongPhase
from tests.coordinator.rounds.test_turns import World, forgets_one_commit, update

WAIT_S = 10.0
FOREVER_S = 1e12


class FakeEffects:
    """Carries nothing out; keeps what was asked, and raises what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.blobs = BlobStore(folder)
        self.gone: set[str] = set()  # models, whose names are no digests here
        (folder / "m0").touch()
        self.damaged: set[str] = set()
        self.blobs.has_model = lambda one: one not in self.gone  # type: ignore[method-assign]
        self.blobs.check_models = self._check_models  # type: ignore[method-assign]
        self.ran: list[c.Command] = []
        self.faults: list[Exception] = []

    def _check_models(self, digests: Iterable[str]) -> None:
        for one in digests:
            if one in self.gone | self.damaged:
                raise model_damaged(one)

    async def run(self, _live: Any, command: c.Command) -> None:
        """One command."""
        self.ran.append(command)
        if self.faults:
            raise self.faults.pop(0)

    def lost_updates(self, _live: Any) -> tuple[str, ...]:
        """None is."""
        return ()


class Table:
    """A job's database, and one driver after the other that works on it."""

    def __init__(self, folder: Path) -> None:
        self.world = World(f"sqlite:///{folder / 'c.db'}")
        self.effects = FakeEffects(folder / "blobs")

    def driver(self) -> Rounds:
        """A coordinator that has just started, but for what it would take up."""
        pausing = Pausing(self.world.database)
        effects: Any = self.effects
        return Rounds(self.world.database, self.world.sessions, effects, Metrics(), pausing)

    def play(self, scene: Callable[[Rounds], Awaitable[None]]) -> None:
        """A scene with a driver that holds the job."""

        async def run() -> None:
            rounds = self.driver()
            if not self.world.live.has_ended:
                rounds._live["j"] = self.world.live
            async with asyncio.timeout(WAIT_S):
                await scene(rounds)
            await rounds.stop()

        asyncio.run(run())

    def reopen(self) -> None:
        """Take what the journal says for the job's memory."""
        phase: Any
        phase, steps = self.world.reload()  # type: ignore[misc]
        self.world.live = replace(self.world.live, phase=phase, steps=steps)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """Nobody is waited for."""
    monkeypatch.setattr(driver, "RETRY_S", (0.0,))
    monkeypatch.setattr(turn_taker, "DOUBT_S", 0.01)
    made = Table(tmp_path)
    yield made
    made.world.database.close()


async def until(claim: Callable[[], bool]) -> None:
    """Wait for a claim about another task."""
    while not claim():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.01)


def training(table: Table) -> list[str]:
    """Bring the job into its first round; the attempts of nodes a, b, c and d."""
    table.world.turn(c.Survey())
    phase: Any = table.world.live.phase
    return [a.attempt_id for a in sorted(phase.round.attempts, key=lambda a: a.node)]


def test_an_update_that_comes_as_its_round_closes_is_not_acknowledged(table: Table) -> None:
    """It was let in while the attempt was open, and booked as late by the time it is taken."""
    ids = training(table)

    async def scene(rounds: Rounds) -> None:
        live, _, attempt = await rounds.find(ids[3], "d")
        for one in ids[:3]:
            await rounds.apply(live, update(one))
        await rounds.apply(live, e.DeadlinePassed(1))
        assert isinstance(live.phase, Aggregating)
        with pytest.raises(TooLate, match="is closed"):
            await rounds.hand_in(live, attempt, update(ids[3]))

    table.play(scene)


def test_another_update_than_the_one_that_was_taken_is_not_acknowledged(table: Table) -> None:
    """Two submissions of one attempt that meet: the one that counts is; the same again is, too."""
    ids = training(table)

    async def scene(rounds: Rounds) -> None:
        live, _, attempt = await rounds.find(ids[0], "a")
        await rounds.hand_in(live, attempt, update(ids[0]))
        await rounds.hand_in(live, attempt, update(ids[0]))
        with pytest.raises(TooLate, match="is closed"):
            await rounds.hand_in(live, attempt, replace(update(ids[0]), digest="e" * 64))

    table.play(scene)


def test_an_attempt_is_found_by_its_own_node_only(table: Table) -> None:
    """Another node learns nothing of it, not even that it exists."""
    ids = training(table)

    async def scene(rounds: Rounds) -> None:
        with pytest.raises(NotFound, match="node b has no attempt"):
            await rounds.find(ids[0], "b")

    table.play(scene)


def test_what_may_pass_is_tried_again_and_what_cannot_fails_the_job(table: Table) -> None:
    """A store that is full for a moment costs no job; a model that is gone does."""

    async def passes(rounds: Rounds) -> None:
        live = await rounds.job("j")
        table.effects.faults = [Unavailable("STORE_FULL", "no room"), OSError("a disk")]
        rounds._spawn(live, [c.FoldUpdates(1)])
        await until(lambda: len(table.effects.ran) == 3)
        assert isinstance(live.phase, Selecting)

    async def fails(rounds: Rounds) -> None:
        live = await rounds.job("j")
        table.effects.faults = [NotFound("BLOB_MISSING", "there is no model")]
        rounds._spawn(live, [c.FoldUpdates(1)])
        await until(lambda: isinstance(live.phase, Ended))
        phase: Any = live.phase
        assert phase.status == "failed"
        assert "there is no model (FoldUpdates: BLOB_MISSING)" in phase.message

    table.play(passes)
    table.play(fails)


def test_a_full_disk_is_said_as_such_and_not_as_a_fault_of_ours(table: Table) -> None:
    """Whoever reads the log is told what to do, and gets no traceback every 15 s."""

    async def full(rounds: Rounds) -> None:
        live = await rounds.job("j")
        table.effects.faults = [OSError(errno.ENOSPC, "no space left"), OSError(errno.EIO, "bad")]
        rounds._spawn(live, [c.FoldUpdates(1)])
        await until(lambda: len(table.effects.ran) == 3)

    with capture_logs() as said:
        table.play(full)
    found = [one for one in said if one.get("command") == "FoldUpdates"]
    assert [one["event"] for one in found] == ["disk_full", "command_failed"]
    assert "free room" in found[0]["do"]
    assert "exc_info" not in found[0]


def test_after_a_commit_that_nobody_heard_of_the_orders_go_out(table: Table) -> None:
    """The journal has them, and whoever waited for the turn was told of a fault."""

    async def scene(rounds: Rounds) -> None:
        live = await rounds.job("j")
        forgets_one_commit(table.world)
        with pytest.raises(OSError, match="gone"):
            await rounds.apply(live, c.Survey())
        await until(lambda: isinstance(live.phase, Training))
        await until(lambda: len(table.effects.ran) == 4)
        assert all(isinstance(one, c.SendOrder) for one in table.effects.ran)

    table.play(scene)


def test_a_job_that_waits_for_nodes_gets_them_as_they_are_free(table: Table) -> None:
    """Not at its next look, which may be seconds away."""
    ids = training(table)
    record = replace(table.world.live.record, job_id="j2", request_id="r2")

    async def scene(rounds: Rounds) -> None:
        waiting = await rounds.submit(record, table.world.live.job, "m0")
        await until(waiting.is_waiting)
        for one in ids:
            await rounds.apply(table.world.live, update(one))
        await until(lambda: isinstance(waiting.phase, Training))

    table.play(scene)


def test_below_quorum_time_gives_nobody_up_and_a_lost_node_is_told(table: Table) -> None:
    """With three updates of at least three, whoever is late is."""
    ids = training(table)
    sessions: Any = table.world.sessions

    async def scene(rounds: Rounds) -> None:
        passing, live = rounds._passing, table.world.live
        assert passing.due(live, FOREVER_S) == [e.DeadlinePassed(1)]
        sessions.lost = lambda node: node == "a"
        assert passing.due(live, 0.0) == [e.NodeWasLost("a")]
        for one in ids[:3]:
            await rounds.apply(live, update(one))
        assert passing.due(live, FOREVER_S)[0] == e.GracePassed(1, "d")

    table.play(scene)


def test_a_start_keeps_the_updates_of_the_round_under_way_and_no_others(table: Table) -> None:
    """It was killed before it dropped what was booked as lost."""
    ids = training(table)
    blobs, data = table.effects.blobs, b"an update"
    digest = digest_of(data)
    for one in ids:
        blobs.keep_update(one, digest, data)
    table.world.turn(replace(update(ids[0]), digest=digest))
    table.world.turn(e.NoUpdateReceived(ids[1], b"post"))

    async def scene(rounds: Rounds) -> None:
        await rounds._forget_leftovers()
        assert blobs.attempts_kept() == sorted([ids[0], ids[2], ids[3]])

    table.play(scene)


def test_a_start_gives_nodes_the_whole_deadline_again(table: Table) -> None:
    """Jobs are taken up by the journal alone, and orders go out again."""
    training(table)
    table.world.turn(e.DeadlinePassed(1))
    phase: Any = table.world.live.phase
    assert phase.deadline_passed

    async def scene() -> None:
        rounds = table.driver()
        rounds._effects.blobs.at_hand = lambda _digests: None  # type: ignore[method-assign]
        await rounds.start()
        live = await rounds.job("j")
        assert isinstance(live.phase, Training)
        assert not live.phase.deadline_passed
        async with asyncio.timeout(WAIT_S):
            await until(lambda: len(table.effects.ran) >= 4)
        await rounds.stop()

    asyncio.run(scene())


def test_a_resumption_is_one_whoever_asks_for_it_and_how_often(table: Table) -> None:
    """Two people at once resume the same memory; a late repeat of a request changes nothing, also
    where the job has failed again since."""
    training(table)
    table.world.turn(e.StepFailed("a disk"))
    assert table.world.live.has_ended

    async def scene(rounds: Rounds) -> None:
        first, second = await asyncio.gather(
            rounds.resume("j", "operator", "r1"), rounds.resume("j", "other", "r2")
        )
        assert first is second
        assert not first.has_ended
        for has_ended in (False, True):
            await rounds.apply(first, e.StepFailed("the disk again"))
            assert (await rounds.resume("j", "operator", "r3")).has_ended == has_ended

    table.play(scene)


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("what", ["gone", "damaged"])
def test_a_job_whose_model_is_gone_or_damaged_is_not_resumed(
    table: Table, monkeypatch: pytest.MonkeyPatch, is_shared: bool, what: str
) -> None:
    """No order could be sent, and what is reserved for one is charged; what a damaged file gives
    nodes is refused by each. Nothing changes; the same request goes through once it is back."""
    training(table)
    table.world.turn(e.StepFailed("a disk"))
    monkeypatch.setattr(BlobStore, "is_shared", is_shared)
    table.effects.blobs.at_hand = lambda _digests: None  # type: ignore[method-assign]
    lost: set[str] = getattr(table.effects, what)
    lost.add("m0")

    async def scene(rounds: Rounds) -> None:
        with pytest.raises(NotFound, match="put the file back from a backup") as refused:
            await rounds.resume("j", "operator", "r1")
        assert refused.value.reason == "MODEL_DAMAGED"
        assert (await rounds.job("j")).has_ended
        assert table.effects.ran == []
        lost.clear()
        assert not (await rounds.resume("j", "operator", "r1")).has_ended

    table.play(scene)


def test_a_job_that_did_not_fail_is_neither_resumed_nor_cancelled(table: Table) -> None:
    """To cancel one that is cancelled is no fault: the answer of the first try may be lost."""

    async def scene(rounds: Rounds) -> None:
        for _ in range(2):
            live = await rounds.cancel("j", "operator")
            assert isinstance(live.phase, Ended)
            assert live.phase.status == "cancelled"
        with pytest.raises(WrongPhase, match="only a failed job can be resumed"):
            await rounds.resume("j", "operator", "r1")

    table.play(scene)
    table.reopen()
    assert table.world.live.has_ended


def test_a_job_has_one_memory(table: Table) -> None:
    """Also where somebody lists jobs in the moment between the commit and what follows it; whoever
    watched another would never see it end."""
    database: Any = table.world.database
    write, found = database.write, list[Any]()
    record = replace(table.world.live.record, job_id="j2", request_id="r2")

    async def scene(rounds: Rounds) -> None:
        async def slow(work: Any) -> Any:
            done = await write(work)
            if not found:
                found.append(await rounds.job("j2"))
            return done

        database.write = slow
        live = await rounds.submit(record, table.world.live.job, "m0")
        assert [live] == found
        assert await rounds.job("j2") is live
        del rounds._live["j2"]  # as after a start
        first, second = await asyncio.gather(rounds.job("j2"), rounds.job("j2"))
        assert first is second

    table.play(scene)


def test_a_submission_whose_caller_is_gone_begins_all_the_same(table: Table) -> None:
    """Its record is written: a job that nobody drives would hang until a restart."""
    database: Any = table.world.database
    write, begun = database.write, asyncio.Event()
    record = replace(table.world.live.record, job_id="j2", request_id="r2")

    async def scene(rounds: Rounds) -> None:
        async def slow(work: Any) -> Any:
            begun.set()
            await asyncio.sleep(0.05)
            return await write(work)

        database.write = slow
        asking = asyncio.create_task(rounds.submit(record, table.world.live.job, "m0"))
        await begun.wait()
        asking.cancel()
        await until(lambda: "j2" in rounds._live)
        await until(lambda: isinstance(rounds._live["j2"].phase, Training))

    table.play(scene)


def test_one_that_stops_takes_nothing_any_more(table: Table) -> None:
    """Whoever asks is sent to the next one."""

    async def scene(rounds: Rounds) -> None:
        live = await rounds.job("j")
        await rounds.stop()
        with pytest.raises(FeddpError) as refused:
            await rounds.apply(live, c.Survey())
        assert refused.value.reason == "DRAINING"

    table.play(scene)
