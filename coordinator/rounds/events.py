"""All that the round machine may learn. Past tense; journalled as JSON, so a field never changes
its meaning and a new field has a default."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from privacy.releases import Mechanism


@dataclass(frozen=True, slots=True)
class Offer:
    """A node that can take part in the next round, and the release that it would be ordered."""

    node: str
    account: str
    declared_n: int
    mechanism: Mechanism
    noise_multiplier: float | None
    sample_rate: float
    local_steps: int = 0  # 0 in journals of 0.1.0: as many as the job says


@dataclass(frozen=True, slots=True)
class Absence:
    """A node that cannot take part now, and why, for people.

    Attributes:
        reason: UPPER_SNAKE: OFFLINE, BUDGET, TASK_NOT_ALLOWED, BUSY, ...
        for_good: nothing that the node's own session does can change it during this job.
    """

    node: str
    reason: str
    message: str
    for_good: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """A reservation that is in the ledger: the node may be ordered to make this release."""

    attempt_id: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """The job exists. Its plan is derived from the submitted bytes."""

    initial_model: str
    kind: Literal["JobSubmitted"] = "JobSubmitted"


@dataclass(frozen=True, slots=True)
class NodesSurveyed:
    """Who could take part now, and who could not."""

    offers: tuple[Offer, ...]
    absences: tuple[Absence, ...]
    kind: Literal["NodesSurveyed"] = "NodesSurveyed"


@dataclass(frozen=True, slots=True)
class BudgetsReserved:
    """The ledger's answer; the reservations are in the same transaction as this event."""

    grants: tuple[Grant, ...]
    refused: tuple[Absence, ...]
    kind: Literal["BudgetsReserved"] = "BudgetsReserved"


@dataclass(frozen=True, slots=True)
class OrderWasAccepted:
    """The node booked the order in its own ledger."""

    attempt_id: str
    signature: bytes
    kind: Literal["OrderWasAccepted"] = "OrderWasAccepted"


@dataclass(frozen=True, slots=True)
class OrderWasRefused:
    """The node signed that it never opened the data for this attempt."""

    attempt_id: str
    reason: str
    message: str
    signature: bytes
    steps_possible: int = 0  # with STEPS_TOO_MANY: how many fit into the node's deadline
    kind: Literal["OrderWasRefused"] = "OrderWasRefused"


@dataclass(frozen=True, slots=True)
class UpdateReceived:
    """A checked update is on our disk."""

    attempt_id: str
    digest: str
    update_bytes: int
    signature: bytes
    accepted: bytes = b""  # over the reserve statement, if it came with it
    kind: Literal["UpdateReceived"] = "UpdateReceived"


@dataclass(frozen=True, slots=True)
class NoUpdateReceived:
    """The data was opened and nothing of this attempt counts: the node has no update, or we
    refused what it sent."""

    attempt_id: str
    signature: bytes
    reason: str = "NO_UPDATE"
    message: str = (
        "its data was opened and no update came of it; the reason is in the hospital's own log"
    )
    accepted: bytes = b""  # over the reserve statement, if it came with it
    kind: Literal["NoUpdateReceived"] = "NoUpdateReceived"


@dataclass(frozen=True, slots=True)
class NodeWasLost:
    """A node has been silent for too long."""

    node: str
    kind: Literal["NodeWasLost"] = "NodeWasLost"


@dataclass(frozen=True, slots=True)
class NodeReturned:
    """A node that was lost, or is new, has an open session."""

    node: str
    kind: Literal["NodeReturned"] = "NodeReturned"


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The round's deadline is over."""

    round: int
    kind: Literal["DeadlinePassed"] = "DeadlinePassed"


@dataclass(frozen=True, slots=True)
class GracePassed:
    """A round with a quorum has waited for this node long enough."""

    round: int
    node: str
    kind: Literal["GracePassed"] = "GracePassed"


@dataclass(frozen=True, slots=True)
class UpdatesFolded:
    """The round's model is written.

    Attributes:
        drift: relative movement of the global model per round; None before two models exist.
        drift_noise: what chance alone would make of `drift`; None when it cannot be told.
        settled: whether the drift is below the threshold, chance included.
        noise_norm: expected norm of the noise that this round added to the global model; None when
            it cannot be told.
        chance_norm: the same, and what the choice of patients can have made of the movement.
    """

    round: int
    digest: str
    model_bytes: int
    drift: float | None
    drift_noise: float | None
    settled: bool
    noise_norm: float | None = None  # missing in journals of 0.1.0
    chance_norm: float | None = None  # and this one
    kind: Literal["UpdatesFolded"] = "UpdatesFolded"


@dataclass(frozen=True, slots=True)
class ModelPublished:
    """The model can be listed and downloaded; `answer` is set after the last round."""

    round: int
    answer: str | None
    kind: Literal["ModelPublished"] = "ModelPublished"


@dataclass(frozen=True, slots=True)
class AnswerWritten:
    """The job's answer exists although no further round was published."""

    digest: str
    kind: Literal["AnswerWritten"] = "AnswerWritten"


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """A person wants the job to end."""

    by: str
    kind: Literal["CancelRequested"] = "CancelRequested"


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """A person wants a failed job to go on from its last published model.

    Attributes:
        lost: attempts whose updates were acknowledged, and are not on our disk any more.
    """

    by: str
    request_id: str = ""
    lost: tuple[str, ...] = ()
    kind: Literal["ResumeRequested"] = "ResumeRequested"


@dataclass(frozen=True, slots=True)
class CoordinatorRestarted:
    """The coordinator was away, or its clock was set: nodes get the whole deadline again to hand in
    what they have."""

    kind: Literal["CoordinatorRestarted"] = "CoordinatorRestarted"


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The coordinator could not do its own part, for a reason that a retry does not mend."""

    message: str
    kind: Literal["StepFailed"] = "StepFailed"


@dataclass(frozen=True, slots=True)
class CoordinatorRestored:
    """The journal is a backup's: what became of the job after `backup_made_at_s` is not in it."""

    backup_made_at_s: float
    kind: Literal["CoordinatorRestored"] = "CoordinatorRestored"


Event = (
    JobSubmitted
    | NodesSurveyed
    | BudgetsReserved
    | OrderWasAccepted
    | OrderWasRefused
    | UpdateReceived
    | NoUpdateReceived
    | NodeWasLost
    | NodeReturned
    | DeadlinePassed
    | GracePassed
    | UpdatesFolded
    | ModelPublished
    | AnswerWritten
    | CancelRequested
    | ResumeRequested
    | CoordinatorRestarted
    | StepFailed
    | CoordinatorRestored
)

_ADAPTER: TypeAdapter[Event] = TypeAdapter(
    Annotated[Event, Field(discriminator="kind")],
    config={"ser_json_bytes": "base64", "val_json_bytes": "base64"},
)


def to_json(event: Event) -> bytes:
    """The event as the journal keeps it."""
    return _ADAPTER.dump_json(event)


def from_json(data: bytes) -> Event:
    """The event that `to_json` wrote."""
    return _ADAPTER.validate_json(data)
