"""An honest history that a coordinator then rewrites where nodes have surely looked."""

from typing import Literal

from tests.histories.claims import broken, disputes, officers_find
from tests.histories.dishonest import KINDS, Rewriting, rewritten
from tests.histories.moves import look, settle
from tests.histories.node import Node
from tests.histories.orders import Upto, attempt, deadline
from tests.histories.world import World

Ending = Literal["by a node", "by officers", "no lie", "missed"]
"""Who finds the rewriting; "no lie" where the seed asks for one that changes nothing."""

Seen = dict[int, dict[str, int]]
"""How far each node had surely read, by the backup that was made then."""


def lie(world: World) -> Ending:
    """Play, rewrite, let the nodes look; perhaps hide it under one more restoration."""
    rng, seen = world.rng, _play(world)
    assert not broken(world)
    which = rng.choice([*seen, None])
    node = world.any_node()
    declared = which is not None or rng.random() < 2 / 3
    if not _rewrite(world, node, which, seen, declared):
        return "no lie"
    for each in world.nodes.values():
        look(world, each)
    if not disputes(world) and rng.random() < 0.5:
        if rng.random() < 0.5:
            world.back_up()
            world.restore(len(world.backups) - 1)
        settle(world)
    if disputes(world):
        return "by a node"
    return "by officers" if officers_find(world) else "missed"


def _play(world: World) -> Seen:
    """An honest history; what was seen of it when."""
    rng, seen = world.rng, Seen()
    for node in world.nodes.values():
        for _ in range(2):
            attempt(world, node, Upto.CLOSED)
    _look_and_back_up(world, seen)
    for _ in range(rng.randint(3, 8)):
        for _ in range(rng.randint(0, 2)):
            attempt(world, world.any_node())
        roll = rng.random()
        if roll < 0.3:
            _look_and_back_up(world, seen)
        elif roll < 0.6 and len(world.backups) > 1:
            world.restore()
            if rng.random() < 0.8:
                settle(world)
        else:
            look(world, world.any_node())
        if rng.random() < 0.3:
            deadline(world)
    settle(world)
    return seen


def _look_and_back_up(world: World, seen: Seen) -> None:
    for node in world.nodes.values():
        look(world, node)
    world.back_up()
    heads = {n.name: n.state.witnessed.head(n.account).seq for n in world.nodes.values()}
    seen[len(world.backups) - 1] = heads


def _rewrite(world: World, node: Node, which: int | None, seen: Seen, declared: bool) -> bool:
    """Whether the account became another one than the node has seen.

    Args:
        which: the backup that is rewritten and put back; None: what is there now.
        declared: it says that it was restored, from a backup as old as can be.
    """
    rng = world.rng
    # Cut and declared is what an older backup looks like.
    kind = rng.choice([one for one in KINDS if one != "cut" or not declared])
    checkpoints = rng.choice(["keep", "resign", "resign"])
    if which is None:
        upto = node.state.witnessed.head(node.account).seq
    else:
        upto = seen[which][node.name]
        world.put_back(which)
    old = world.chain(node)
    new = rewritten(rng, old, node, upto, kind)
    if new is None or [one.hash for one in new] == [one.hash for one in old]:
        return False
    Rewriting(world, node, old, new).write(checkpoints)
    if declared:
        world.declare(backup_made_at_s=50.0)
    world.say(
        f"the coordinator rewrites {'what is there' if which is None else f'backup {which}'} of "
        f"{node.name}: {kind}, checkpoints {checkpoints}, up to {upto}"
        f"{', and says that it was restored' if declared else ''}"
    )
    return True
