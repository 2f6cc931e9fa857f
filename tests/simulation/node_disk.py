"""A node's disk: the real `state.db` in memory, and a spool. Watched at each durable step."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.policy.orders import Order
from node_agent.session import events as e
from node_agent.session.recovery import resumed
from node_agent.state.kept_attempts import AttemptRow
from node_agent.state.state import State
from node_agent.tasks.registry import Purpose
from privacy.filters import Filter
from privacy.ledger import Statement

if TYPE_CHECKING:
    from tests.simulation.world import World


class NodeDisk:
    """As `State`, and tells the checker what has become durable. Survives every crash."""

    def __init__(self, world: "World", node: str, key: Ed25519PrivateKey) -> None:
        self._world, self.node = world, node
        self.state = State(Path(":memory:"), node, key)
        self.spool_files: dict[str, str] = {}
        self.attempts, self.standing = self.state.attempts, self.state.standing
        self.signature, self.fixed_filter = self.state.signature, self.state.fixed_filter
        self.notes, self.disputes = self.state.notes, self.state.disputes
        self.witnessed, self.epochs = self.state.witnessed, self.state.epochs
        self.mandates, self.approvals = self.state.mandates, self.state.approvals
        self.accounts_kept, self.payers = self.state.accounts_kept, self.state.payers
        self.coordinator_limits = self.state.coordinator_limits
        self.memory, self.ledger = self.state.memory, self.state.ledger

    def reserve(
        self, order: Order, filter_: Filter, purpose: Purpose = "training", source: str = ""
    ) -> bytes:
        """See `State.reserve`."""
        signature = self.state.reserve(order, filter_, purpose, source)
        self._world.checker.node_reserved(self, order, filter_)
        return signature

    def refuse(self, order: Order, reason: str, message: str) -> bytes:
        """See `State.refuse`."""
        return self.state.refuse(order, reason, message)

    def withdraw(self, attempt_id: str, reason: str, message: str) -> bytes | None:
        """See `State.withdraw`."""
        return self.state.withdraw(attempt_id, reason, message)

    def open(self, attempt_id: str, opened_at_s: float, tick_s: float) -> bool:
        """See `State.open`."""
        opened = self.state.open(attempt_id, opened_at_s, tick_s)
        if opened:
            self._world.checker.node_opened(self, attempt_id)
        return opened

    def spool(self, attempt_id: str, digest: str) -> bytes | None:
        """See `State.spool`."""
        return self.state.spool(attempt_id, digest)

    def lose(self, attempt_id: str) -> bytes | None:
        """See `State.lose`."""
        return self.state.lose(attempt_id)

    def close_attempt(self, attempt_id: str, outcome: Literal["post", "void"]) -> AttemptRow | None:
        """See `State.close_attempt`."""
        return self.state.close_attempt(attempt_id, outcome)

    def opened(self) -> list[str]:
        """Attempts that a crash left open."""
        return [row.order.attempt_id for row in self.state.attempts.live() if row.state == "opened"]

    def resumed(self) -> tuple[e.Resumed, ...]:
        """What the agent goes on with; the spool keeps nothing else."""
        rows = self.state.attempts.live()
        kept = {row.update_digest for row in rows}
        self.spool_files = {k: v for k, v in self.spool_files.items() if k in kept}
        return tuple(resumed(row, self.state) for row in rows)

    def keep_update(self, attempt_id: str, digest: str) -> None:
        """An update's bytes are in the spool."""
        self.spool_files[digest] = attempt_id

    def drop_update(self, digest: str) -> None:
        """They are no longer needed."""
        self.spool_files.pop(digest, None)

    def lose_spool(self) -> None:
        """Somebody empties the spool; `state.db` is never lost, or the agent would not start."""
        self._world.checker.spool_lost(self.spool_files)
        self.spool_files = {}

    def close(self) -> None:
        """Free the memory."""
        self.state.close()

    def entries(self) -> Any:
        """The node's own chains."""
        return self.state.ledger.entries()

    def statements(self) -> list[Statement]:
        """What the node's own chains say of attempts."""
        said = [one.statement for one in self.entries()]
        return [one for one in said if isinstance(one, Statement)]
