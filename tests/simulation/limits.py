"""What limit is in force at a node and at the coordinator, by what really happened."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.store.ledger import Account
from node_agent.policy.orders import Order
from privacy.filters import Filter
from privacy.ledger import LimitChange
from protos.feddp.v1 import federation_pb2 as pb
from tests.simulation.hospital import PEOPLE
from tests.simulation.truth import Broken

if TYPE_CHECKING:
    from tests.simulation.node_disk import NodeDisk
    from tests.simulation.world import World


@dataclass
class Limit:
    """One account at one end.

    Attributes:
        shown: by the account's chain: its first limit, or that of the last raise.
        in_force: the lowest that the policy said at a greeting since then.
        raises: entries of kind limit so far.
    """

    shown: float
    in_force: float
    raises: int = 0

    def lower(self, announced: float, raises: int) -> None:
        """Take what a greeting says, unless it was written before a raise that is in force."""
        if raises >= self.raises:
            self.in_force = min(self.in_force, announced)

    def go_up(self, new: float) -> None:
        """Take a raise."""
        self.shown = self.in_force = new
        self.raises += 1


class Limits:
    """Follows announcements and raises, and compares what is enforced with them."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.at_nodes: dict[str, Limit] = {}
        self.central: dict[str, Limit] = {}
        self.recorded_by: dict[str, str] = {}
        self._booked: set[str] = set()
        self._announced: dict[str, float] = {}
        self._heard: dict[str, tuple[float, int]] = {}

    # At a node

    def reserved(self, disk: "NodeDisk", order: Order, filter_: Filter) -> None:
        """A node has reserved by this filter."""
        account, limit = f"{disk.node}/{order.account}", filter_.epsilon_limit
        policy = self._world.nodes[disk.node].steward.limits[order.account]
        # Where the coordinator's chain has begun lower, ours begins there, too.
        first = min(policy, self.central[account].in_force) if account in self.central else policy
        known = self.at_nodes.setdefault(account, Limit(first, first))
        if limit > known.shown:
            raise Broken(
                "limit-recorded-first", f"{account} counts to {limit:g}, {known.shown:g} recorded"
            )
        if limit > min(known.in_force, policy):
            raise Broken("limit", f"{account} counts to {limit:g}, lowered to {known.in_force:g}")
        if limit < min(known.in_force, policy):
            raise Broken("reload-equals-memory", f"{account} counts to {limit:g} only")

    def recorded(self, disk: "NodeDisk", account: str) -> None:
        """A steward's command has recorded a raise."""
        kept = disk.state.ledger.account(account)
        change = disk.state.ledger.raises(account)[-1]
        if kept is None or change.digest() in self.recorded_by:
            raise Broken("raised-once", f"{account} has the same raise twice")
        terms = change.terms
        if {terms.asked_by, change.agreed_by} != set(PEOPLE):
            raise Broken("two-people", f"{terms.asked_by} and {change.agreed_by} raise {account}")
        first = kept.epsilon_limit_highest
        known = self.at_nodes.setdefault(account, Limit(first, first))
        self.recorded_by[change.digest()] = disk.node
        known.go_up(terms.epsilon_limit_new)
        self._world.checker.moved_at_s = self._world.now_s
        self.look(disk)

    def announced(self, disk: "NodeDisk", hello: pb.Hello, raises: dict[str, int]) -> None:
        """A node has made a Hello, from a ledger that had so many raises."""
        for one in hello.accounts:
            name = f"{disk.node}/{one.name}"
            if name in self.at_nodes:
                self.at_nodes[name].lower(one.epsilon_limit, raises.get(name, 0))
        self.look(disk)

    def look(self, disk: "NodeDisk") -> None:
        """What a node's disk says is what was recorded there, also after a restart."""
        counts = disk.state.ledger.raise_counts()
        for kept in disk.state.ledger.accounts():
            known = self.at_nodes[kept.account]
            if (kept.epsilon_limit, counts.get(kept.account, 0)) != (known.in_force, known.raises):
                text = f"{kept.account} is at {kept.epsilon_limit:g}, was at {known.in_force:g}"
                raise Broken("reload-equals-memory", text)

    # At the coordinator

    def heard(self, node: str, hello: pb.Hello, raises: dict[str, int]) -> None:
        """The coordinator has kept a Hello; `raises` as for `announced`."""
        for one in hello.accounts:
            name = f"{node}/{one.name}"
            self._heard[name] = one.epsilon_limit, raises.get(name, 0)

    def booked(self, account: Account, change: LimitChange) -> None:
        """A raise is in the coordinator's chain."""
        digest = change.digest()
        if digest in self._booked:
            raise Broken("raised-once", f"{account.account} has the same raise twice")
        if self.recorded_by.get(digest) != change.node:
            raise Broken("raised-at-its-node", f"{account.account} is raised by no steward of its")
        self._booked.add(digest)
        self._world.faults.note("raise_booked")
        self._world.limit_raised(account.account)
        self.first(account).go_up(change.terms.epsilon_limit_new)

    def first(self, account: Account) -> Limit:
        """The account, from its first entry on."""
        if account.account not in self.central:
            first = account.epsilon_limit_highest
            self.central[account.account] = Limit(first, first)
        return self.central[account.account]

    def enforced(self, account: Account) -> None:
        """What the coordinator enforces after the entries and the Hello of one transaction."""
        name, limit = account.account, account.filter.epsilon_limit
        heard, raises = self._heard.pop(name, (None, 0))
        known = self.central.get(name)
        if heard is not None and known is not None:
            known.lower(heard, raises)
        if known is None:
            self._announced[name] = limit
            return
        before = self._announced.get(name)
        if before is not None and account.epsilon_limit_highest not in (before, heard):
            raise Broken("limit", f"{name} began at {account.epsilon_limit_highest:g}")
        self._announced[name] = account.epsilon_limit_highest
        if limit > known.shown:
            raise Broken(
                "limit-entry-first", f"{name} counts to {limit:g}, its chain has {known.shown:g}"
            )
        if limit > known.in_force:
            raise Broken("limit", f"{name} counts to {limit:g}, lowered to {known.in_force:g}")
        if limit < known.in_force:
            raise Broken("raise-lost", f"{name} counts to {limit:g} of {known.in_force:g}")

    # At the end

    def at_end(self) -> None:
        """Every raise has arrived from a node that is there, and both ends hold to the same."""
        world = self._world
        there = {
            name
            for name, node in world.nodes.items()
            if node.up and node.agent.welcomed and not world.network.cut_off(name)
        }
        for digest, node in self.recorded_by.items():
            if node in there and digest not in self._booked:
                raise Broken("raise-lost", f"a raise of {node} never arrives")
        for name, mine in self.at_nodes.items():
            theirs = self.central.get(name)
            if theirs is None or name.partition("/")[0] not in there:
                continue
            if theirs.in_force != mine.in_force:
                text = f"{name} is at {mine.in_force:g} there and {theirs.in_force:g} centrally"
                raise Broken("ledgers-agree", text)
        for node in world.nodes.values():
            self.look(node.disk_)
