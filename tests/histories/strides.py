"""What happens in an honest history, and how often."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.histories.claims import broken
from tests.histories.meeting import Cut
from tests.histories.moves import (
    export_copy,
    greet,
    import_copy,
    look,
    raise_limit,
    restart,
    settle,
)
from tests.histories.node import Node
from tests.histories.orders import Upto, attempt, deadline, finish_work, order_again
from tests.histories.world import World

CUTS: tuple[Cut, ...] = ("", "", "", "handin", "done", "read")
CUTS_DEEP: tuple[Cut, ...] = ("", "", "", "handin", "done")
UPTO_DEEP = (
    *(Upto.RESERVED_THERE, Upto.RESERVED_HERE, Upto.RESERVED, Upto.RESERVED),
    *(Upto.POSTED_HERE, Upto.POSTED, *[Upto.CLOSED] * 4),
)


@dataclass(frozen=True, slots=True)
class Strides:
    """One kind of honest history.

    Attributes:
        stride: plays so many steps; gives what does not hold.
        with_copies: nodes lose their ledgers, and put copies of them back.
        orders_again: the coordinator orders again what is open there.
    """

    stride: Callable[[World, "Strides"], list[str]]
    with_copies: bool = True
    orders_again: bool = False


def short(world: World, strides: Strides) -> list[str]:
    """One move after the other, every kind at any time; settled now and then."""
    for node in world.nodes.values():
        for _ in range(2):
            attempt(world, node, Upto.CLOSED)
        look(world, node)
    world.back_up()
    for _ in range(25):
        _move(world, strides)
        if strides.orders_again and world.rng.random() < 0.1:
            _lose_disk_at_work(world)
        if world.rng.random() < 0.06:
            settle(world)
            if found := broken(world):
                return found
    settle(world)
    return broken(world)


def deep(world: World, strides: Strides) -> list[str]:
    """What is booked is mostly looked at, and so is every restoration."""
    nodes, rng = [*world.nodes.values()], world.rng
    for _ in range(20):
        roll = rng.random()
        if roll < 0.45:
            for node in nodes:
                _work_and_look(world, node)
        elif roll < 0.65:
            world.back_up()
        elif roll < 0.85:
            _restore_and_look(world)
        elif roll < 0.9:
            deadline(world)
        elif roll < 0.93:
            raise_limit(world, rng.choice(nodes))
        elif strides.with_copies:
            _lose_disk_after(world, rng.choice(nodes))
    settle(world)
    return broken(world)


def _move(world: World, strides: Strides) -> None:
    rng, node = world.rng, world.any_node()
    roll = rng.random()
    if roll < 0.35:
        for _ in range(rng.randint(1, 3)):
            attempt(world, node)
    elif roll < 0.60:
        look(world, node, rng.choice(CUTS))
    elif roll < 0.68:
        world.back_up()
    elif roll < 0.78:
        world.restore()
    elif roll < 0.84:
        restart(world, node)
        greet(world, node)
    elif roll < 0.88:
        finish_work(world, node)
    elif roll < 0.91:
        if strides.orders_again:
            order_again(world, node)
        deadline(world)
    elif roll < 0.93:
        raise_limit(world, node)
    elif strides.with_copies and roll < 0.96:
        export_copy(world, node)
    elif strides.with_copies:
        import_copy(world, node)
        if strides.orders_again and rng.random() < 0.5:
            order_again(world, node)


def _lose_disk_at_work(world: World) -> None:
    """The coordinator orders the attempt again that the copy does not know."""
    node = world.any_node()
    export_copy(world, node)
    attempt(world, node, world.rng.choice([Upto.RESERVED, Upto.OPENED, Upto.POSTED_HERE]))
    finish_work(world, node)
    import_copy(world, node)
    if world.rng.random() < 0.5:
        look(world, node)
    order_again(world, node)


def _work_and_look(world: World, node: Node) -> None:
    rng = world.rng
    if rng.random() < 0.7:
        for _ in range(rng.randint(1, 2)):
            attempt(world, node, rng.choice(UPTO_DEEP))
        if rng.random() < 0.8:
            look(world, node)


def _restore_and_look(world: World) -> None:
    world.restore()
    for node in world.nodes.values():
        if world.rng.random() < 0.8:
            restart(world, node)
            for _ in range(2):
                look(world, node, world.rng.choice(CUTS_DEEP))


def _lose_disk_after(world: World, node: Node) -> None:
    rng = world.rng
    export_copy(world, node)
    attempt(
        world,
        node,
        rng.choice([Upto.RESERVED_HERE, Upto.RESERVED, Upto.POSTED_HERE, Upto.CLOSED]),
    )
    if rng.random() < 0.5:
        look(world, node)
    if rng.random() < 0.6:
        world.back_up()
    if rng.random() < 0.8:
        import_copy(world, node)
        look(world, node)
