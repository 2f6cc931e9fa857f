"""What must hold of an honest history in which nothing happens any more, and who finds a lie."""

import json
from collections.abc import Iterator
from typing import Any

from coordinator import views
from coordinator.store import epochs
from feddp.cli.verify.history import Passing, faults
from feddp.cli.verify.witnesses import from_json, from_message
from node_agent.ledger.copies import seen_by
from privacy.entries import Entry
from privacy.ledger import verify
from tests.histories.node import FILTER, PUBLIC, Node
from tests.histories.world import World


def broken(world: World) -> list[str]:
    """What does not hold, in words."""
    found = disputes(world)
    for node in world.nodes.values():
        found += [f"{node.name}: {text}" for text in _broken_at(world, node)]
    return found + [f"officers find {one}" for one in officers_find(world)]


def disputes(world: World) -> list[str]:
    """What nodes say of the coordinator."""
    return [
        f"{node.name} disputes {one.account}: {one.text}"
        for node in world.nodes.values()
        for one in node.state.disputes.all()
    ]


def officers_find(world: World) -> list[Any]:
    """What `feddp ledger verify` finds with both nodes' files and the coordinator's own."""
    entries = _all_entries(world)
    files = [from_json(_exported(world, entries), "the coordinator")]
    files += [from_json(_file_of(node), node.name) for node in world.nodes.values()]
    passing = Passing(entries, files)
    passed = list(passing)
    filters = {node.account: FILTER for node in world.nodes.values()}
    return [*faults(passing, PUBLIC, whole=True), *verify(passed, filters, PUBLIC).problems]


def _broken_at(world: World, node: Node) -> Iterator[str]:
    if node.worked_twice:
        yield f"worked at a second time: {node.worked_twice}"
    there: dict[str, set[str]] = {}
    for said, _ in world.said_there(node):
        there.setdefault(said.attempt_id, set()).add(said.kind)
    unknown = node.forgotten - node.posted()
    signed_there = {said.attempt_id for said, by in world.said_there(node) if by}
    if known := sorted(unknown & signed_there):
        yield f"posts that a copy lacked, and the chain holds signed, were not taken over: {known}"
    if void := sorted(one for one in unknown if "void" in there.get(one, ())):
        yield f"posts that a copy lacked are void in the chain: {void}"
    # What is left of these the coordinator charges for of itself, as for what was never opened; or
    # neither ledger holds it: it was lost at both ends, and nobody can tell it any more.
    signed = {name: units for name, units in node.posts.items() if name not in unknown}
    own = node.state.ledger.account(node.account)
    if (own.posted_units if own else 0) < sum(signed.values()):
        yield "its ledger holds less than it has signed"
    missing = [
        name
        for name in sorted(signed)
        if "post" not in there.get(name, ())
        # A copy held it reserved and counts it as spent; the void was signed after the copy.
        and not (name in node.doubted and "void" in there.get(name, ()))
    ]
    if missing:
        yield f"signed posts that the coordinator does not hold: {missing}"
    if both := sorted(node.voids & node.opened):
        yield f"opened, and signed void: {both}"
    if node.account in world.database.read_now(epochs.unreconciled):
        yield "the coordinator still waits for it"
    if node.state.epochs.to_hand_in():
        yield "it still has to hand in"


def _all_entries(world: World) -> list[Entry]:
    return [entry for node in world.nodes.values() for entry in world.chain(node)]


def _exported(world: World, entries: list[Entry]) -> Any:
    """The coordinator's file, as `feddp ledger export` writes it."""
    public = world.key.public_key().public_bytes_raw()
    message = world.database.read_now(lambda c: views.checkpoints(c, public))
    accounts = [node.account for node in world.nodes.values()]
    return json.loads(json.dumps(from_message(message, accounts, entries).export()))


def _file_of(node: Node) -> Any:
    """What the node's officer brings."""
    text = {"node": node.name, "ledger_public_key": PUBLIC[node.name].hex(), **seen_by(node.state)}
    return json.loads(json.dumps(text))
