"""Models and updates in the simulation: a model is what it was made of, named by its digest."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine
from coordinator.rounds.live import LiveJob, replay
from coordinator.rounds.phases import Aggregating, Phase, Plan
from protos.content import digest_of

if TYPE_CHECKING:
    from tests.simulation.coordinator_side import Coordinator


@dataclass(frozen=True, slots=True)
class Model:
    """What a global model came from: the one before, and (attempt, update) of each node."""

    base: str
    updates: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """Its name."""
        return digest_of(repr(self).encode())


@dataclass
class Blobs:
    """The coordinator's files, all durable."""

    updates: dict[str, set[str]] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)

    def drop_attempt(self, attempt_id: str) -> None:
        """Forget what was staged for an attempt."""
        self.updates.pop(attempt_id, None)


def fold(coordinator: "Coordinator", live: LiveJob) -> e.Event | None:
    """Make the round's model of the updates that it received."""
    phase = live.phase
    if not isinstance(phase, Aggregating):
        return None
    received = sorted(phase.round.received, key=lambda a: a.node)
    for attempt in received:
        coordinator.world.checker.folded(attempt, coordinator.blobs)
    model = Model(phase.course.model, tuple((a.attempt_id, a.digest) for a in received))
    coordinator.blobs.models[model.digest] = model
    settled = int(model.digest[:2], 16) < 25
    return e.UpdatesFolded(phase.round.number, model.digest, 40, 0.1, 0.0, settled)


def write_answer(blobs: Blobs, digests: list[str]) -> str:
    """The answer stands for the models of the last half of the rounds."""
    tail = digests[len(digests) // 2 :]
    model = Model("answer", tuple((digest, digest) for digest in tail))
    blobs.models[model.digest] = model
    return model.digest


Step = Callable[[Phase, e.Event, float], tuple[Phase, list[c.Command]]]


def replayed(step: Step, plan: Plan, steps: Iterable[tuple[float, e.Event]]) -> tuple[Phase, int]:
    """`coordinator.rounds.live.replay`, or the same with a step function that has a bug."""
    if step is machine.step:
        return replay(plan, steps)
    (began_s, first), *rest = steps
    phase, _ = machine.start(plan, first, began_s)  # type: ignore[arg-type]
    for at_s, event in rest:
        phase, _ = step(phase, event, at_s)
    return phase, 1 + len(rest)
