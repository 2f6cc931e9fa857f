"""All that the round machine may ask for. Each is safe to carry out twice.

`LedgerCommand`s are carried out in the transaction that journals the step, and so are, as a rule,
`InsideCommand`s, which the database alone answers; the others after it.
"""

from dataclasses import dataclass

from coordinator.rounds.events import Offer


@dataclass(frozen=True, slots=True)
class KeepSignature:
    """Attach the node's signature to the attempt's reserve entry."""

    attempt_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class PostCharge:
    """Book the attempt's release as made; `signature` is empty when the node's word is missing."""

    attempt_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class VoidCharge:
    """Give the reservation back: the node signed that it never opened the data."""

    attempt_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Survey:
    """Find out who could take part now; answered by NodesSurveyed."""


@dataclass(frozen=True, slots=True)
class ReserveBudgets:
    """Reserve for each offer that the ledger admits; answered by BudgetsReserved.

    Attributes:
        at_least: with fewer grants than this, reserve nothing at all.
    """

    round: int
    offers: tuple[Offer, ...]
    at_least: int


@dataclass(frozen=True, slots=True)
class SendOrder:
    """Give the node its order, again if need be."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class NotifyClosed:
    """Tell the node how its attempt was booked."""

    attempt_id: str
    node: str
    outcome: str


@dataclass(frozen=True, slots=True)
class FoldUpdates:
    """Average the round's updates into the next model; answered by UpdatesFolded."""

    round: int


@dataclass(frozen=True, slots=True)
class PublishModel:
    """List the round's model; answered by ModelPublished."""

    round: int
    digest: str
    model_bytes: int


@dataclass(frozen=True, slots=True)
class PublishLast:
    """List the last round's model, and make and list the job's answer; answered by
    ModelPublished."""

    round: int
    digest: str
    model_bytes: int


@dataclass(frozen=True, slots=True)
class ForgetUpdates:
    """Clear the staged updates of a round that is published."""

    round: int


@dataclass(frozen=True, slots=True)
class WriteAnswer:
    """Make the job's answer from the rounds that were published; answered by AnswerWritten."""

    through_round: int


@dataclass(frozen=True, slots=True)
class EndJob:
    """Tell the nodes that no order of this job will follow, and clear its staged updates."""


LedgerCommand = KeepSignature | PostCharge | VoidCharge
InsideCommand = Survey | ReserveBudgets | PublishModel
Command = (
    LedgerCommand
    | InsideCommand
    | SendOrder
    | NotifyClosed
    | FoldUpdates
    | PublishLast
    | ForgetUpdates
    | WriteAnswer
    | EndJob
)
