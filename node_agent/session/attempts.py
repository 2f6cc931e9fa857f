"""What the agent machine remembers: frozen values, built again from `state.db` after a restart."""

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from node_agent.policy.orders import Order


class Phase(Enum):
    """Where an attempt stands."""

    JUDGING = "judging"
    FETCHING = "fetching"  # reserved; its model is on the way
    READY = "ready"  # its model is here; waits for its turn
    WITHDRAWING = "withdrawing"  # never opened; the void is being booked
    PREPARING = "preparing"  # the worker gets ready; the data is not open
    TRAINING = "training"  # the data is open
    HOLDING = "holding"  # over and booked; the outcome waits for its tick
    SUBMITTING = "submitting"  # the update is on its way out
    TELLING = "telling"  # no update; told, and told again until it is closed


OPENED: Final = (Phase.TRAINING, Phase.HOLDING)
"""From the opening of the data to the moment of the outcome. Nobody outside may tell the two apart,
whatever is ordered or closed meanwhile: the first ends when the data is done with."""

AT_WORK: Final = (Phase.PREPARING, *OPENED)
"""One attempt at a time. HOLDING counts, so that when the next one begins tells nothing about how
long the data took."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that the coordinator has not closed.

    Attributes:
        accepted: signature over the reserve statement.
        digest: of the spooled update; empty for none.
        posted: signature over the post statement.
        due_at_s: when the coordinator stops waiting, by our clock; unknown until it says so.
        failure_class: to be told with "no update"; empty unless the policy shares it.
        ordered: this process has heard the order itself, and not only found it in the state
            database: it is wanted still, and by when is known.
    """

    order: Order
    phase: Phase
    accepted: bytes = b""
    opened_at_s: float = 0.0
    tick_s: float = 0.0
    digest: str = ""
    posted: bytes = b""
    due_at_s: float = math.inf
    failure_class: str = ""
    ordered: bool = True

    @property
    def attempt_id(self) -> str:
        """Its id."""
        return self.order.attempt_id


@dataclass(frozen=True, slots=True)
class Agent:
    """The whole state.

    Attributes:
        attempts: in the order of arrival, which is the order of work.
        welcomed: the coordinator hears us.
        workers: jobs whose worker is alive, the one that was used last at the end.
        idle_since_s: when a worker was last at work.
        over: attempts that were closed while `OPENED`, until the moment of their outcome. Each
            keeps its place: when the next one begins must not tell how long the data took.
    """

    attempts: tuple[Attempt, ...] = ()
    welcomed: bool = False
    workers: tuple[str, ...] = ()
    idle_since_s: float = 0.0
    stopping: bool = False
    over: tuple[str, ...] = ()

    @property
    def is_busy(self) -> bool:
        """Whether an attempt has the place of the one that is at work."""
        return bool(self.over) or any(one.phase in AT_WORK for one in self.attempts)

    @property
    def opened(self) -> frozenset[str]:
        """Attempts that are `OPENED`."""
        return frozenset(one.attempt_id for one in self.attempts if one.phase in OPENED)

    def find(self, attempt_id: str) -> Attempt | None:
        """An attempt by its id."""
        return next((one for one in self.attempts if one.attempt_id == attempt_id), None)

    def having(self, changed: Attempt) -> "Agent":
        """The state with an attempt put in the place of the one with its id."""
        same = (changed if one.attempt_id == changed.attempt_id else one for one in self.attempts)
        return replace(self, attempts=tuple(same))

    def without(self, attempt_id: str) -> "Agent":
        """The state without an attempt."""
        rest = tuple(one for one in self.attempts if one.attempt_id != attempt_id)
        return replace(self, attempts=rest)

    def without_worker(self, job_id: str) -> "Agent":
        """The state once a job's worker is stopped."""
        return replace(self, workers=tuple(one for one in self.workers if one != job_id))
