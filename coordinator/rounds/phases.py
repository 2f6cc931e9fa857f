"""The phases of a job, each a frozen value. design: Selecting -> Reserving -> Training ->
Aggregating -> Publishing -> (Selecting | Ended)."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from coordinator.rounds.events import Absence, Offer


class AttemptState(Enum):
    """Where an attempt stands. The last five are final."""

    ORDERED = "ordered"  # reserved; the node may not know of it yet
    ACCEPTED = "accepted"  # the node booked it, and may open the data at any moment
    RECEIVED = "received"  # its update is on our disk, and posted
    NO_UPDATE = "no_update"  # the data was opened, nothing came of it, posted whole
    REFUSED = "refused"  # the node signed that it never opened the data, voided
    LATE = "late"  # open when the round closed at its deadline, posted whole
    LOST = "lost"  # open when the round closed without its node, posted whole; or RESTORED


NO_UPDATE: Final = frozenset({AttemptState.NO_UPDATE})
CUT_OFF: Final = frozenset({AttemptState.LATE, AttemptState.LOST})
"""Open when the round closed. A round under way has such attempts only if its job failed in the
middle of it and was resumed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of one node at one round.

    Attributes:
        silent: the node is not heard; its attempt is still open.
        excused: the node came back since, so that this try does not keep it from another one.
        overdue: with a quorum nobody waits for it any more.
        steps_possible: with reason STEPS_TOO_MANY, how many fit into the node's deadline.
    """

    attempt_id: str
    offer: Offer
    ordered_at_s: float
    state: AttemptState = AttemptState.ORDERED
    silent: bool = False
    excused: bool = False
    ended_at_s: float = 0.0
    digest: str = ""
    update_bytes: int = 0
    reason: str = ""
    message: str = ""
    overdue: bool = False
    steps_possible: int = 0

    @property
    def node(self) -> str:
        """The node that was ordered."""
        return self.offer.node

    @property
    def is_open(self) -> bool:
        """Whether the node may still resolve it."""
        return self.state in (AttemptState.ORDERED, AttemptState.ACCEPTED)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is fixed when the job is submitted, as far as the machine decides by it.

    Attributes:
        attempts_per_round: tries that a node is charged for while it stays connected.
        attempts_per_round_max: tries that it is charged for in all, however often it comes back.
        refused_again_s: a node that refused is asked again after so long, or when it comes back.
        busy_wait_s: so long a round that could begin waits for nodes that work for another job.
        participants: nodes wanted in a round; 0 for all.
        over_selection: share of nodes that are ordered above `participants`.
        grace_factor: see `participation.gives_up_at_s`.
    """

    min_participants: int
    rounds_planned: int
    deadline_s: float
    convergence_patience: int
    attempts_per_round: int = 2
    attempts_per_round_max: int = 4
    refused_again_s: float = 60.0
    busy_wait_s: float = 60.0
    participants: int = 0
    over_selection: float = 0.0
    grace_factor: float = 0.0


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round, as far as it has come; the moments are 0 until they are reached."""

    number: int
    started_at_s: float
    reserved_at_s: float = 0.0
    trained_at_s: float = 0.0
    folded_at_s: float = 0.0
    published_at_s: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    left_out: tuple[Absence, ...] = ()
    model: str = ""
    model_bytes: int = 0
    drift: float | None = None
    drift_noise: float | None = None
    noise_norm: float | None = None
    chance_norm: float | None = None

    def attempt(self, attempt_id: str) -> Attempt | None:
        """The attempt of that id, if it belongs to this round."""
        return next((a for a in self.attempts if a.attempt_id == attempt_id), None)

    def with_attempt(self, changed: Attempt) -> "RoundRecord":
        """The same round with one attempt replaced."""
        same = tuple(changed if a.attempt_id == changed.attempt_id else a for a in self.attempts)
        return replace(self, attempts=same)

    @property
    def received(self) -> tuple[Attempt, ...]:
        """Attempts whose updates we hold."""
        return tuple(a for a in self.attempts if a.state is AttemptState.RECEIVED)

    @property
    def opened(self) -> tuple[Attempt, ...]:
        """Attempts that are not resolved."""
        return tuple(a for a in self.attempts if a.is_open)


@dataclass(frozen=True, slots=True)
class Course:
    """What every phase carries: the plan, the current model and the rounds before.

    Attributes:
        initial: digest of the model that the first round started from.
        model: digest of the model that the next round starts from.
        settled_rounds: rounds in a row whose drift was below the threshold.
        abandoned: rounds that were cut off when the job failed, before somebody resumed it.
    """

    plan: Plan
    initial: str
    model: str
    done: tuple[RoundRecord, ...] = ()
    settled_rounds: int = 0
    abandoned: tuple[RoundRecord, ...] = ()

    @property
    def next_round(self) -> int:
        """Number of the round under way, from 1."""
        return len(self.done) + 1


@dataclass(frozen=True, slots=True)
class Selecting:
    """Looking for nodes. Leaves when `min_participants` can take part, or never can, and the busy
    ones are free or were waited for long enough.

    `ready` says who could take part when it was last looked; `waiting` who could not.
    """

    course: Course
    since_s: float
    waiting: tuple[Absence, ...] = ()
    ready: tuple[str, ...] = ()
    surveyed: bool = False


@dataclass(frozen=True, slots=True)
class Reserving:
    """The ledger is asked for every offer. Leaves with its answer."""

    course: Course
    since_s: float
    offers: tuple[Offer, ...]
    left_out: tuple[Absence, ...]


@dataclass(frozen=True, slots=True)
class Training:
    """Nodes work. Leaves when each attempt is resolved or lost, or at the deadline, with quorum.

    Below quorum it keeps what it has and waits; `waiting` says for whom. `topping_up` while the
    ledger is asked for further nodes. `counted_from_s` is the coordinator's last start: nobody is
    given up for the time that it was away.
    """

    course: Course
    round: RoundRecord
    deadline_at_s: float
    deadline_passed: bool = False
    waiting: tuple[Absence, ...] = ()
    topping_up: tuple[Offer, ...] = ()
    counted_from_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Aggregating:
    """Updates are averaged. Leaves with the new model's digest."""

    course: Course
    round: RoundRecord


@dataclass(frozen=True, slots=True)
class Publishing:
    """The model is listed. Leaves to the next round or, if `status` is set, to the end.

    `settled_rounds` becomes the course's when the round is done: one that is cut off before, and
    averaged again when the job is resumed, counts once.
    """

    course: Course
    round: RoundRecord
    status: str = ""
    settled_rounds: int = 0


@dataclass(frozen=True, slots=True)
class Closing:
    """No further round; the answer is made from the rounds that were published."""

    course: Course
    status: str
    message: str
    unfinished: RoundRecord | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """Final. `status` is what users see; `answer` the digest of the job's model, or empty."""

    course: Course
    status: str
    message: str
    ended_at_s: float
    answer: str = ""
    unfinished: RoundRecord | None = None


Phase = Selecting | Reserving | Training | Aggregating | Publishing | Closing | Ended


def current_round(phase: Phase) -> RoundRecord | None:
    """The round under way or cut off, if attempts of it exist."""
    match phase:
        case Training() | Aggregating() | Publishing():
            return phase.round
        case Closing() | Ended():
            return phase.unfinished
        case Selecting() | Reserving():
            return None
