"""The clock is set while rounds are under way."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.blobs import BlobStore
from coordinator.clock_steps import ClockSteps
from coordinator.observing.metrics import Metrics
from coordinator.pausing import Pausing
from coordinator.rounds import commands as c
from coordinator.rounds.driver import Rounds
from coordinator.rounds.effects import Effects
from coordinator.rounds.phases import Training
from tests.coordinator.rounds.test_turns import World

DAYS_S = 49 * 3600.0


class Clocks:
    """Two clocks of one machine."""

    def __init__(self) -> None:
        self.wall_s, self.steady_s = 1e9, 50.0

    def pass_(self, seconds: float) -> None:
        """Time goes by."""
        self.wall_s += seconds
        self.steady_s += seconds

    def steps(self) -> ClockSteps:
        """What looks at them."""
        return ClockSteps(lambda: self.wall_s, lambda: self.steady_s)


def test_a_step_is_seen_once_and_slow_corrections_never() -> None:
    """Whichever way; a busy machine that looks seldom is no step."""
    clocks = Clocks()
    steps = clocks.steps()
    assert steps.look() == 0.0
    clocks.pass_(3600.0)
    assert steps.look() == 0.0
    for step_s in (-DAYS_S, DAYS_S):
        clocks.wall_s += step_s
        assert steps.look() == step_s
        assert steps.look() == 0.0
    for _ in range(100):
        clocks.wall_s += 0.5
        assert steps.look() == 0.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(f"sqlite:///{tmp_path / 'c.db'}")
    yield made
    made.database.close()


@pytest.mark.parametrize("step_s", [-DAYS_S, DAYS_S])
def test_after_a_step_a_round_has_its_whole_deadline_again(
    world: World, tmp_path: Path, step_s: float
) -> None:
    """Nobody is waited for or cut off by moments of before it; without a step nothing changes."""
    world.turn(c.Survey())
    phase = world.live.phase
    assert isinstance(phase, Training)

    async def scene() -> None:
        pausing = Pausing(world.database)
        effects = Effects(BlobStore(tmp_path / "blobs"), world.sessions, pausing)
        rounds = Rounds(world.database, world.sessions, effects, Metrics(), pausing)
        clocks = Clocks()
        rounds._passing._clock = clocks.steps()
        rounds._live["j"] = world.live
        await rounds._look_at_the_clock()
        assert world.live.phase is phase
        clocks.wall_s += step_s
        await rounds._look_at_the_clock()
        await rounds.stop()

    asyncio.run(scene())
    after = world.live.phase
    assert isinstance(after, Training)
    assert after.deadline_at_s == after.counted_from_s + after.course.plan.deadline_s
    assert after.counted_from_s > phase.counted_from_s
    same = {"deadline_at_s": 0.0, "counted_from_s": 0.0}
    assert replace(after, **same) == replace(phase, **same)  # type: ignore[arg-type]
    assert world.reload()[0] == after  # type: ignore[index]
