"""What really happened in a seed, beside what anybody wrote down."""

from dataclasses import dataclass, field

from node_agent.policy.orders import Order


class Broken(Exception):
    """An invariant does not hold; `invariant` is its name."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an update came from."""

    node: str
    attempt_id: str
    job_id: str
    round: int
    base: str
    is_damaged: bool


@dataclass
class Truth:
    """Known to nobody inside.

    Attributes:
        opened: attempts whose opening became durable at their node.
        trained_attempts: attempt -> the node whose worker read the data for it.
        acknowledged: attempt -> the update that the coordinator promised to keep.
        spool_lost: updates that somebody else removed from a spool.
    """

    opened: set[str] = field(default_factory=set)
    trained_attempts: dict[str, str] = field(default_factory=dict)
    acknowledged: dict[str, str] = field(default_factory=dict)
    spool_lost: set[str] = field(default_factory=set)
    _origins: dict[str, Origin] = field(default_factory=dict)

    def keep(self, node: str, order: Order, digest: str, is_damaged: bool) -> None:
        """An update was made."""
        self._origins[digest] = Origin(
            node, order.attempt_id, order.job_id, order.round, order.base_model_digest, is_damaged
        )

    def origin(self, digest: str) -> Origin | None:
        """Where an update came from; None if nobody made it."""
        return self._origins.get(digest)

    def attempt_of(self, digest: str) -> str:
        """The attempt that an update was made for."""
        found = self._origins.get(digest)
        return found.attempt_id if found is not None else ""

    def is_damaged(self, digest: str) -> bool:
        """Whether it does not pass the coordinator's checks."""
        found = self._origins.get(digest)
        return found is None or found.is_damaged
