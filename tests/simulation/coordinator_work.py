"""Models and updates in the simulation: a model is what it was made of, named by its digest."""

import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Aggregating
from protos.content import digest_of

if TYPE_CHECKING:
    from tests.simulation.coordinator_side import Coordinator

MODEL_BYTES = 40


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
    """The coordinator's files, all durable; as much of `BlobStore` as the effects ask for.

    Attributes:
        inline: small models travel with the orders.
    """

    inline: bool
    updates: dict[str, set[str]] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)

    def model_bytes(self, digest: str) -> int:
        """The same size for every model."""
        return MODEL_BYTES

    def inline_model(self, digest: str) -> bytes:
        """The bytes that travel with an order; empty for none."""
        return b"m" * MODEL_BYTES if self.inline else b""

    def drop_attempt(self, attempt_id: str) -> None:
        """Forget what was staged for an attempt."""
        self.updates.pop(attempt_id, None)

    def drop_update(self, attempt_id: str, digest: str) -> None:
        """Forget one update."""
        self.updates.get(attempt_id, set()).discard(digest)

    def free_spent(self) -> None:
        """What is forgotten takes no room here."""

    def check_models(self, digests: Iterable[str]) -> None:
        """No disk damages a model here."""

    def update(self, attempt_id: str, digest: str) -> Path:
        """See `BlobStore.update`."""
        raise NotImplementedError("the fold of the simulation reads no files")


def fold(coordinator: "Coordinator", live: LiveJob, phase: Aggregating) -> e.UpdatesFolded:
    """Make the round's model of the updates that it received."""
    received = sorted(phase.round.received, key=lambda a: a.node)
    for attempt in received:
        coordinator.world.checker.folded(attempt, coordinator.blobs)
    model = Model(phase.course.model, tuple((a.attempt_id, a.digest) for a in received))
    coordinator.blobs.models[model.digest] = model
    settled = int(model.digest[:2], 16) < 25
    return e.UpdatesFolded(phase.round.number, model.digest, MODEL_BYTES, 0.1, 0.0, settled)


def write_answer(live: LiveJob, digests: list[str], blobs: Blobs) -> str:
    """The answer stands for the models of the last half of the rounds."""
    tail = digests[len(digests) // 2 :]
    model = Model("answer", tuple((digest, digest) for digest in tail))
    blobs.models[model.digest] = model
    return model.digest


async def at_once(work: Callable[..., Any], *args: Any) -> Any:
    """`asyncio.to_thread` without a thread."""
    return work(*args)


def finished(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something that virtual time does not have")


def clock_of(clock: Callable[[], float]) -> SimpleNamespace:
    """The module `time` as far as the effects ask for it."""
    return SimpleNamespace(time=clock, monotonic=time.monotonic)
