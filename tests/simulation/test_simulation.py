"""The simulation itself: it is repeatable, it finds nothing, and it finds every planted bug."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine
from coordinator.rounds.phases import Aggregating, Phase, Training
from protos.errors import FeddpError, InvariantBroken
from tests.simulation.world import Broken, World


def test_two_hundred_seeds_hold_every_invariant() -> None:
    """Faults of every kind: no double charge, no lost update, no fold below quorum, no hang."""
    endings = {World(seed).run() for seed in range(200)}
    assert {"completed", "budget_exhausted", "cancelled"} <= endings


def test_the_same_seed_plays_the_same_job() -> None:
    """A failing seed can be looked at again."""
    first, second = World(11), World(11)
    first.run()
    second.run()
    assert first.transcript == second.transcript
    assert len(first.transcript) > 5


Step = tuple[Phase, list[c.Command]]


def post_twice(world: World) -> None:
    """Every charge is booked under a second id, too."""
    resolve = world.resolve

    def bad(attempt_id: str, kind: Any, signature: bytes) -> None:
        resolve(attempt_id, kind, signature)
        node = attempt_id.partition(".")[0]
        world.entries[node].append(world.entries[node][-1])

    world.resolve = bad  # type: ignore[method-assign]


def void_what_is_unknown(world: World) -> None:
    """A silent node's charge is given back without its word."""
    resolve = world.resolve

    def bad(attempt_id: str, kind: Any, signature: bytes) -> None:
        resolve(attempt_id, kind if signature else "void", signature)

    world.resolve = bad  # type: ignore[method-assign]


def fold_below_quorum(world: World) -> None:
    """The round closes with whoever is there."""

    def bad(phase: Phase, event: e.Event, now_s: float) -> Step:
        if isinstance(phase, Training):
            course = phase.course
            lowered = replace(course, plan=replace(course.plan, min_participants=1))
            following, asked = machine.step(replace(phase, course=lowered), event, now_s)
            if isinstance(following, Aggregating):
                return replace(following, course=course), asked
        return machine.step(phase, event, now_s)

    world.step = bad


def forget_to_journal(world: World) -> None:
    """One event in ten changes memory only."""
    count = [0]

    class Forgetful(list[Any]):
        def append(self, entry: Any) -> None:
            count[0] += 1
            if count[0] % 10:
                super().append(entry)

    world.journal = Forgetful(world.journal)


def train_again_on_resend(world: World) -> None:
    """A node forgets what it answered, and trains the same attempt anew."""
    for node in world.nodes.values():

        class Forgetful(dict[str, e.Event]):
            def __contains__(self, key: object) -> bool:
                return False

        node.answers = Forgetful()


def never_charge_lost_attempts(world: World) -> None:
    """What was open when a round closed is not booked at all."""
    resolve = world.resolve

    def bad(attempt_id: str, kind: Any, signature: bytes) -> None:
        if signature:
            resolve(attempt_id, kind, signature)

    world.resolve = bad  # type: ignore[method-assign]


def never_survey_again(world: World) -> None:
    """Below quorum nobody is asked and nobody is named."""
    world.survey = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("plant", "finding"),
    [
        (post_twice, "reserved or resolved twice"),
        (void_what_is_unknown, "does not verify"),
        (fold_below_quorum, "folded below quorum"),
        (forget_to_journal, "journal does not add up"),
        (train_again_on_resend, "is trained twice"),
        (never_charge_lost_attempts, "open reservation"),
        (never_survey_again, "neither ended nor waits"),
    ],
)
def test_a_planted_bug_is_found_within_fifty_seeds(
    plant: Callable[[World], None], finding: str
) -> None:
    """Each of these would lose an update, a charge or a patient's budget, and is called by name."""
    found: list[str] = []
    for seed in range(50):
        world = World(seed)
        plant(world)
        try:
            world.run()
        except (Broken, InvariantBroken, FeddpError) as error:
            found.append(str(error))
    assert any(finding in text for text in found), found[:5]
