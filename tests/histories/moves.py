"""What else may happen to a node: a restart, a session, a copy put back, a raised limit."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.store import limits
from node_agent.state.kept_attempts import AttemptRow
from privacy.ledger import LimitChange
from privacy.limits import LimitTerms, sign_terms
from protos.errors import FeddpError
from tests.histories import meeting
from tests.histories.meeting import Cut
from tests.histories.node import PUBLIC, Node
from tests.histories.orders import finish_work
from tests.histories.world import World

P_TOLD = 0.6
"""How often the coordinator hears of a raise."""

RAISERS = [Ed25519PrivateKey.from_private_bytes(bytes([k] * 32)) for k in (7, 8)]


def restart(world: World, node: Node) -> None:
    """Of the agent: what was opened and not done is charged."""
    for name in node.state.recover():
        row = node.state.attempts.find(name)
        assert row is not None
        node.keep_post(row.order.statement(node.name, "post"))
    world.say(f"{node.name} restarts")


def look(world: World, node: Node, cut: Cut = "") -> None:
    """A session begins."""
    meeting.look(world, node, greet, cut)


def greet(world: World, node: Node) -> None:
    """The coordinator tells what it holds of the node's live attempts, and these end."""
    kinds = {said.attempt_id: said.kind for said, _ in world.said_there(node)}
    is_of_before = node.account in node.state.epochs.to_hand_in()
    for row in node.state.attempts.live():
        name = row.order.attempt_id
        outcome = _outcome(world, node, row, kinds.get(name, ""), is_of_before)
        if not outcome:
            continue
        node.state.close_attempt(name, outcome)
        after = node.state.attempts.find(name)
        assert after is not None
        if after.outcome == "post":
            node.keep_post(row.order.statement(node.name, "post"))
        else:
            node.voids.add(name)


def _outcome(world: World, node: Node, row: AttemptRow, kind: str, is_of_before: bool) -> str:
    """How a live attempt ends; empty where it goes on.

    Args:
        kind: of the last that the coordinator holds of it; empty for nothing.
        is_of_before: the coordinator was restored since, and the account is not handed in yet.
    """
    if is_of_before or not kind:
        return "void" if row.state == "reserved" else "post"
    if kind != "reserve":
        return kind
    if row.state in ("spooled", "no_update"):
        said = row.order.statement(node.name, "post")
        world.book(said, node.state.signature(row.order, "post"))
        return "post"
    return ""


def export_copy(world: World, node: Node) -> None:
    """As `feddp agent ledger export`."""
    world.say(f"{node.name} copy {node.export_copy()}")


def import_copy(world: World, node: Node) -> None:
    """As `feddp agent ledger import` of any copy, and the agent starts."""
    if not node.copies:
        return
    number = world.rng.randrange(len(node.copies))
    reserved = node.import_copy(number)
    world.say(f"{node.name} imports copy {number}; reserved in it: {' '.join(reserved) or 'none'}")
    restart(world, node)


def raise_limit(world: World, node: Node) -> None:
    """Two people raise the account's limit; the same file for each number."""
    kept = node.state.ledger.account(node.account)
    if kept is None or node.is_in_doubt:
        return
    known = len(node.state.ledger.raises(node.account))
    asked, agreed = (one.public_key().public_bytes_raw().hex() for one in RAISERS)
    terms = LimitTerms(
        account=node.account,
        node=node.name,
        number=known + 1,
        filter=kept.fixed.kind,
        rdp_order=kept.fixed.order,
        delta=kept.fixed.delta,
        epsilon_limit_old=10.0 + known,
        epsilon_limit_new=11.0 + known,
        reason="a study",
        asked_by="anna",
        asked_key=asked,
    )
    first, second = (sign_terms(one, terms) for one in RAISERS)
    change = LimitChange(terms, first, "bert", agreed, second)
    signature = node.state.ledger.record(change)
    told = world.rng.random() < P_TOLD and _record(world, node, change, signature)
    world.say(f"{node.name} raises {known + 1}{', recorded there' if told else ''}")


def _record(world: World, node: Node, change: LimitChange, signature: bytes) -> bool:
    """Whether the coordinator took it: after a restoration it may lack the one before."""
    try:
        world.database.write_now(
            lambda c: limits.record(c, node.name, PUBLIC[node.name], change, signature)
        )
    except FeddpError:
        return False
    return True


def settle(world: World) -> None:
    """Everything that is under way ends, and nothing happens any more."""
    for node in world.nodes.values():
        restart(world, node)
        for _ in range(3):
            look(world, node)
            finish_work(world, node)
            greet(world, node)
        for said in world.open_there(node).values():
            world.book(said.resolved("post"))
        greet(world, node)
        look(world, node)
    for node in world.nodes.values():
        look(world, node)
