"""Orders: from the coordinator's reservation to the node's post, cut short anywhere."""

from enum import IntEnum

from node_agent.policy.admission import Refused, Reserved, Spent
from node_agent.policy.orders import Order
from privacy.ledger import Statement
from tests.histories.node import FILTER, Node
from tests.histories.world import World
from tests.node_agent.samples import order

P_REFUSED = 0.15
P_WITHDRAWN = 0.4
P_HEARD = 0.7
"""How often the coordinator hears of a void."""


class Upto(IntEnum):
    """How far an attempt comes before something else happens."""

    RESERVED_THERE = 0
    RESERVED_HERE = 1
    RESERVED = 2
    OPENED = 3
    POSTED_HERE = 4
    POSTED = 5
    CLOSED = 6


USUAL = (*Upto, *[Upto.CLOSED] * 4)


def attempt(world: World, node: Node, upto: Upto | None = None) -> None:
    """One attempt up to some step, or refused."""
    state, rng = node.state, world.rng
    upto = rng.choice(USUAL) if upto is None else upto
    if node.account in state.epochs.to_hand_in() or node.is_in_doubt:
        upto = Upto.RESERVED_THERE
    world.orders += 1
    name = f"x{world.orders:03d}"
    one = _order(name)
    said = one.statement(node.name, "reserve")
    if why := world.book(said):
        world.say(f"{node.name} {name} not reserved: {why}")
        return
    world.say(f"{node.name} {name} up to {upto.name}")
    if upto is Upto.RESERVED_THERE:
        return
    if rng.random() < P_REFUSED:
        signature = state.refuse(one, "POLICY", "no")
        _void(world, node, said, signature, "refused")
        return
    signature = state.reserve(one, FILTER)
    if upto is Upto.RESERVED_HERE:
        return
    world.keep_signature(name, signature)
    if upto is Upto.RESERVED:
        if rng.random() < P_WITHDRAWN:
            _void(world, node, said, state.withdraw(name, "MODEL", "m") or b"", "withdrawn")
        return
    _work(world, node, said, upto)


def finish_work(world: World, node: Node) -> None:
    """What is reserved or opened at the node goes on to its end."""
    for row in node.state.attempts.live():
        name = row.order.attempt_id
        if row.state == "reserved":
            if world.rng.random() < 0.5:
                node.state.withdraw(name, "MODEL", "m")
                node.voids.add(name)
                continue
            node.state.open(name, 1.0, 1.0)
            node.opened.add(name)
        node.state.lose(name)
        node.keep_post(row.order.statement(node.name, "post"))


def order_again(world: World, node: Node) -> None:
    """The coordinator sends what is open there, as to a node that came back; the agent's own
    admission answers."""
    for name, said in world.open_there(node).items():
        decision = node.admission.decide(_order(name))
        match decision:
            case Refused(reason, _, signature):
                if signature:
                    node.voids.add(name)
                    world.book(said.resolved("void"), signature)
            case Spent(signature):
                reason = "SPENT"
                node.keep_post(said)
                world.book(said.resolved("post"), signature)
            case Reserved(signature, terms):
                reason = "RESERVED"
                world.keep_signature(name, signature)
                if terms is not None and name in node.posts:
                    node.worked_twice.append(name)
        world.say(f"{node.name} {name} again: {reason}")


def deadline(world: World) -> None:
    """The coordinator charges for some of what is open there, unsigned: those jobs have ended."""
    for node in world.nodes.values():
        for name, said in world.open_there(node).items():
            if world.rng.random() < 0.5:
                world.book(said.resolved("post"))
                world.say(f"{node.name} {name} posted unsigned")


def _order(name: str) -> Order:
    """The order of a name is always the same one."""
    return order(name, job_id=f"job-{int(name[1:])}")


def _void(world: World, node: Node, said: Statement, signature: bytes, why: str) -> None:
    node.voids.add(said.attempt_id)
    if world.rng.random() < P_HEARD:
        world.book(said.resolved("void"), signature)
    world.say(f"{node.name} {said.attempt_id} {why}")


def _work(world: World, node: Node, said: Statement, upto: Upto) -> None:
    """From the opening on."""
    state, name = node.state, said.attempt_id
    state.open(name, 1.0, 1.0)
    node.opened.add(name)
    if upto is Upto.OPENED:
        return
    post = state.spool(name, "d" * 64) if world.rng.random() < 0.5 else state.lose(name)
    node.keep_post(said)
    if upto is Upto.POSTED_HERE:
        return
    world.book(said.resolved("post"), post or b"")
    if upto is Upto.CLOSED:
        state.close_attempt(name, "post")
