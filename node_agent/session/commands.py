"""All that the agent machine may ask for. Each is safe to carry out twice."""

from dataclasses import dataclass

from node_agent.policy.orders import Order
from node_agent.session.events import Outcome

# Said on the stream. What is lost with a stream is said again after the next Welcome, or when the
# order comes again.


@dataclass(frozen=True, slots=True)
class SendHello:
    """Say who we are, what the steward publishes, and which attempts we hold."""

    open_attempts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Be heard."""


@dataclass(frozen=True, slots=True)
class SendAccepted:
    """The order is booked here too."""

    attempt_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class SendRefused:
    """The data was not opened for this attempt and never will be."""

    attempt_id: str
    reason: str
    message: str
    signature: bytes
    steps_possible: int = 0


@dataclass(frozen=True, slots=True)
class SendNoUpdate:
    """The data was opened and there is no update."""

    attempt_id: str
    signature: bytes
    accepted: bytes = b""
    failure_class: str = ""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """End the stream and open another."""


# Done in the background; each answers with an event.


@dataclass(frozen=True, slots=True)
class JudgeOrder:
    """Reserve or refuse; answered by OrderReserved, OrderRefused or OrderSpent.

    Attributes:
        opened: attempts that count as under way, though they may be booked already.
    """

    order: Order
    opened: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class FetchModel:
    """Answered by ModelReady or WorkImpossible."""

    order: Order


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Void what was reserved and not opened; answered by OrderRefused."""

    order: Order
    reason: str
    message: str
    steps_possible: int = 0


@dataclass(frozen=True, slots=True)
class OpenAndTrain:
    """Answered by WorkImpossible, or by DataOpened and then TrainingEnded.

    Attributes:
        due_at_s: when the coordinator stops waiting, by our clock.
    """

    order: Order
    due_at_s: float


@dataclass(frozen=True, slots=True)
class ScheduleAcceptance:
    """Answered by AcceptanceDue at `at_s`."""

    attempt_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class ScheduleOutcome:
    """Answered by TickReached at `at_s`, or at once if that is past."""

    attempt_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class UploadAndSubmit:
    """Hand in a spooled update; answered by UpdateAcknowledged, UpdateRejected
    or UpdateVanished."""

    attempt_id: str
    digest: str
    signature: bytes
    accepted: bytes


# Done in the background; nothing answers.


@dataclass(frozen=True, slots=True)
class Abandon:
    """End what is under way for an attempt: fetching, waiting for a tick, handing in."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class CloseAttempt:
    """Book what the coordinator booked, and free the spool."""

    attempt_id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class StopWorker:
    """End a job's worker, whatever it does."""

    job_id: str


@dataclass(frozen=True, slots=True)
class ForgetModels:
    """Remove the models that no attempt needs any more."""


@dataclass(frozen=True, slots=True)
class ReportConflict:
    """Tell the hospital that a known attempt was ordered again with other terms."""

    attempt_id: str


Command = (
    SendHello
    | SendHeartbeat
    | SendAccepted
    | SendRefused
    | SendNoUpdate
    | Reconnect
    | JudgeOrder
    | FetchModel
    | Withdraw
    | OpenAndTrain
    | ScheduleAcceptance
    | ScheduleOutcome
    | UploadAndSubmit
    | Abandon
    | CloseAttempt
    | StopWorker
    | ForgetModels
    | ReportConflict
)
