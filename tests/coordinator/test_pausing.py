"""While all work is paused no node is offered work, and no order leaves."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from coordinator.blobs import BlobStore
from coordinator.pausing import Pausing
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds.answers import Answers
from coordinator.rounds.effects import Effects
from coordinator.rounds.phases import Selecting, Training
from protos.content import digest_of
from protos.errors import Malformed
from tests.coordinator.rounds.test_turns import NODES, World


@pytest.fixture
def world(tmp_path: Path) -> Any:
    """A job that four nodes could do, and a pause that can be made."""
    made = World(f"sqlite:///{tmp_path / 'c.db'}")
    pausing = Pausing(made.database)
    made.pausing = pausing  # type: ignore[attr-defined]
    made.answers = Answers(made.sessions, lambda _live, _node: None, pausing)
    yield made
    made.database.close()


def test_no_round_begins_and_the_job_says_why(world: Any) -> None:
    """Each node is waited for, with who paused and why; nothing is reserved. Then it goes on."""
    asyncio.run(world.pausing.pause("op", "a leak,\nperhaps"))
    world.turn(c.Survey())
    assert isinstance(world.live.phase, Selecting)
    assert [one.node for one in world.live.phase.waiting] == list(NODES)
    for one in world.live.phase.waiting:
        assert one.reason == "PAUSED"
        assert one.message.endswith("UTC by op: a leak, perhaps")
        assert not one.for_good
    asyncio.run(world.pausing.resume("op"))
    world.turn(c.Survey())
    assert isinstance(world.live.phase, Training)


def test_an_order_that_no_node_has_accepted_is_held_back(world: Any, tmp_path: Path) -> None:
    """One that was accepted may be told again: the node's work goes on to its end."""
    model = b"a model"
    blobs = BlobStore(tmp_path / "blobs")
    (tmp_path / "blobs" / digest_of(model)).write_bytes(model)
    world.turn(c.Survey())
    phase = world.live.phase
    assert isinstance(phase, Training)
    sent: list[str] = []

    class Outbox:
        def send(self, node: str, _message: object) -> None:
            sent.append(node)

    object.__setattr__(phase.course, "model", digest_of(model))
    effects = Effects(blobs, Outbox(), world.pausing)  # type: ignore[arg-type]
    first, second = phase.round.attempts[:2]
    world.turn(e.OrderWasAccepted(first.attempt_id, b""))
    asyncio.run(world.pausing.pause("op", "why"))
    for one in (first, second):
        asyncio.run(effects.run(world.live, c.SendOrder(one.attempt_id)))
    assert sent == [first.node]
    asyncio.run(world.pausing.resume("op"))
    asyncio.run(effects.run(world.live, c.SendOrder(second.attempt_id)))
    assert sent == [first.node, second.node]


def test_a_pause_outlives_the_process(world: Any) -> None:
    """And the first reason stays, whoever pauses again."""
    asyncio.run(world.pausing.pause("op", "first"))
    again = asyncio.run(world.pausing.pause("another", "second"))
    assert (again.by, again.reason) == ("op", "first")
    later = Pausing(world.database)
    asyncio.run(later.load())
    assert later.now == again


@pytest.mark.parametrize("reason", ["", "  \n", "x" * 501, "bell\x07"])
def test_a_pause_without_a_readable_reason_is_refused(world: Any, reason: str) -> None:
    """Nothing is paused by it."""
    with pytest.raises(Malformed) as caught:
        asyncio.run(world.pausing.pause("op", reason))
    assert caught.value.reason == "REASON_INVALID"
    assert world.pausing.now is None
