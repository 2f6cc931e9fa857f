"""All that the agent machine may learn."""

from dataclasses import dataclass
from typing import Literal

from node_agent.ledger.rollback import Signed
from node_agent.policy.orders import Order
from privacy.epochs import Epoch

Outcome = Literal["post", "void"]


@dataclass(frozen=True, slots=True)
class Resumed:
    """An attempt that `state.db` holds after a restart; what was opened is lost by now.

    Attributes:
        digest: of the spooled update; empty for "no_update" and "reserved".
        accepted: signature over the reserve statement.
        signature: over the post statement; empty for "reserved".
    """

    order: Order
    state: Literal["reserved", "spooled", "no_update"]
    opened_at_s: float = 0.0
    tick_s: float = 0.0
    digest: str = ""
    accepted: bytes = b""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Restarted:
    """The agent has started; always the first event."""

    attempts: tuple[Resumed, ...]


@dataclass(frozen=True, slots=True)
class Connected:
    """A stream is open; nothing was said on it."""


@dataclass(frozen=True, slots=True)
class SecondOpened:
    """A second stream is open, with a newer certificate; the first goes on until this one is
    welcomed."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The stream is gone, and what was not delivered with it."""


@dataclass(frozen=True, slots=True)
class WelcomeReceived:
    """The coordinator has taken our Hello.

    Attributes:
        closed: attempts that it has resolved meanwhile.
        limits: (account without the node, the epsilon that the coordinator holds it to).
        highest: the same with the highest that its chain shows, for accounts with entries.
        signed: what this node has signed last, by the coordinator's ledger.
        epochs: its restorations, in order.
    """

    closed: tuple[tuple[str, Outcome], ...] = ()
    limits: tuple[tuple[str, float], ...] = ()
    highest: tuple[tuple[str, float], ...] = ()
    signed: tuple[Signed, ...] = ()
    epochs: tuple[Epoch, ...] = ()


@dataclass(frozen=True, slots=True)
class HeartbeatDue:
    """It is time to be heard."""


@dataclass(frozen=True, slots=True)
class DrainReceived:
    """The coordinator is about to stop."""


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """The steward wrote a file or a limit was raised: the coordinator must hear a new Hello."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The agent is to end."""


@dataclass(frozen=True, slots=True)
class OrderReceived:
    """A well-formed order, new or again."""

    order: Order


@dataclass(frozen=True, slots=True)
class OrderUnreadable:
    """An order that no statement can be made from, so that nothing can be signed."""

    attempt_id: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class OrderReserved:
    """The node's ledger holds the reservation."""

    attempt_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class OrderRefused:
    """The node refuses for ever; the refusal is durable.

    Attributes:
        steps_possible: with STEPS_TOO_MANY, how many fit into the deadline.
    """

    attempt_id: str
    reason: str
    message: str
    signature: bytes
    steps_possible: int = 0


@dataclass(frozen=True, slots=True)
class OrderSpent:
    """The attempt was over before, and nothing is left to hand in."""

    attempt_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class AcceptanceDue:
    """The work takes longer than a moment: the coordinator is told that it is on its way."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class ModelReady:
    """The round's model is in the spool."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class WorkImpossible:
    """No model, no worker or no time: the data was not opened and will not be."""

    attempt_id: str
    reason: str
    message: str
    steps_possible: int = 0


@dataclass(frozen=True, slots=True)
class DataOpened:
    """The opening is durable. From here on the outside learns of an outcome at a tick only.

    Attributes:
        tick_s: 0 where no data is read.
    """

    attempt_id: str
    at_s: float
    tick_s: float


@dataclass(frozen=True, slots=True)
class TrainingEnded:
    """It is booked as posted.

    Attributes:
        digest: of the spooled update; empty for no update, whatever the cause.
        signature: over the post statement.
        failure_class: why there is no update, if the policy shares that; else empty.
    """

    attempt_id: str
    digest: str
    signature: bytes
    failure_class: str = ""


@dataclass(frozen=True, slots=True)
class TickReached:
    """The outcome may be told now."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class UpdateAcknowledged:
    """The coordinator has the update, durably and posted."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class UpdateRejected:
    """The coordinator will never take the update, and has closed its attempt; it stays posted."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class UpdateVanished:
    """The update's bytes are gone from the spool, or are others now, which the coordinator will
    never take: it is to be told so, to close the attempt. Training again would be a second release.
    """

    attempt_id: str


@dataclass(frozen=True, slots=True)
class AttemptClosedReceived:
    """The coordinator has resolved the attempt."""

    attempt_id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class JobEndedReceived:
    """No order of this job will follow, and what was open of it is posted."""

    job_id: str


AttemptEvent = (
    OrderReserved
    | OrderRefused
    | OrderSpent
    | AcceptanceDue
    | ModelReady
    | WorkImpossible
    | DataOpened
    | TrainingEnded
    | TickReached
    | UpdateAcknowledged
    | UpdateRejected
    | UpdateVanished
)
Event = (
    AttemptEvent
    | Restarted
    | Connected
    | SecondOpened
    | Disconnected
    | WelcomeReceived
    | HeartbeatDue
    | DrainReceived
    | PolicyChanged
    | StopRequested
    | OrderReceived
    | OrderUnreadable
    | AttemptClosedReceived
    | JobEndedReceived
)
