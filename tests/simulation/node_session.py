"""What a node says first in a session, and how it follows the coordinator's ledger."""

from typing import TYPE_CHECKING, Any

from node_agent.session.publication import Publication
from privacy.ledger import LimitChange
from privacy.wire import limit_to_wire
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb
from tests.simulation.hospital import TASKS
from tests.simulation.network import LOST
from tests.simulation.process import Work

if TYPE_CHECKING:
    from tests.simulation.node_side import Node

LOOK_AFTER_S = 1.0


class Greeting(Publication):
    """The agent's own, whose steps people may act between: each reads the policy, or the ledger,
    anew."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        steward: Any = self
        super().__init__(node.disk_.state, steward, node.admission, self.installed, dict)

    def say(self, open_attempts: tuple[str, ...]) -> tuple[pb.Hello, dict[str, int]]:
        """The Hello, and the raises that the ledger had when it was begun."""
        disk = self._node.disk_
        message, raises = self.hello(open_attempts), self._raised
        self._node.world.checker.limits.announced(disk, message, raises)
        if raises and self._node.strike("raise_sent_again"):
            del message.limits[:]
            message.limits.extend(
                limit_to_wire(one.statement, one.node_signature)
                for one in disk.entries()
                if isinstance(one.statement, LimitChange)
            )
        return message, raises

    def has_changed(self) -> bool:
        """Whether it is to be said again."""
        return self.is_outdated(self._node.steward.stamp(), self.circumstances(), None)

    # The steward's files

    def stamp(self) -> tuple[object, ...]:
        """See `Steward.stamp`."""
        self._meanwhile()
        return self._node.steward.stamp()

    def rules(self) -> Any:
        """See `Steward.rules`."""
        self._meanwhile()
        rules = self._node.steward.rules()
        self._meanwhile()
        return rules

    def installed(self) -> Any:
        """The tasks."""
        self._meanwhile()
        return TASKS

    def _meanwhile(self) -> None:
        node = self._node
        if node.world.desk.at_work.get(node.name) and node.strike("raise_in_greeting"):
            node.world.desk.hurry(node)


def look(node: "Node") -> Work:
    """Follow the coordinator's chains to where they stand, as `Witness.look`."""
    yield node.sleep(LOOK_AFTER_S)
    if node.looking:
        return
    node.looking = True
    yield from _look(node)
    node.looking = False


def _look(node: "Node") -> Work:
    state, coordinator, call = node.disk_.state, node.world.coordinator, node.world.network.call
    expected = yield node.disk(state.witnessed.unseen)
    heads = yield call(node, lambda reply: coordinator.read_heads(node.name, reply))
    if heads is LOST or isinstance(heads, FeddpError):
        return
    for head in heads:
        seen = state.witnessed.head(head.account)
        if seen.seq >= head.seq:
            continue
        found = yield call(
            node, lambda reply, at=seen: coordinator.read_entries(at.account, at.seq, reply)
        )
        if found is LOST or isinstance(found, FeddpError):
            return
        entries = [one for one in found if one.seq <= head.seq]
        filter_ = node.admission.filter_of_account(head.account)
        dispute = yield node.disk(
            lambda head=head, entries=entries, filter_=filter_: state.follow(
                head.account, entries, filter_, node.clock()
            )
        )
        if dispute is not None:
            node.world.checker.broken("no-false-dispute", dispute.text)
    disputes = yield node.disk(lambda: state.compare(heads, expected, node.clock()))
    for dispute in disputes:
        node.world.checker.broken("no-false-dispute", dispute.text)
