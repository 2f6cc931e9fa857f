"""Bugs of the agent that a correct simulation must catch; see `planted.py`."""

import math
from collections.abc import Callable
from typing import Any

from node_agent.policy.admission import Reserved
from node_agent.session import commands as c
from node_agent.session import events as e
from node_agent.session.attempts import Agent
from tests.simulation.node_side import Node
from tests.simulation.world import World


def at_each(plant: Callable[[Node], None]) -> Callable[[World], None]:
    def all_nodes(world: World) -> None:
        for node in world.nodes.values():
            plant(node)

    return all_nodes


def _instead(node: Node, other: Callable[[Agent, Any], Any]) -> None:
    """Each command goes through `other`, which gives the commands to carry out instead."""
    step = node.step

    def bad(agent: Agent, event: e.Event, now_s: float) -> Any:
        following, asked = step(agent, event, now_s)
        return following, [one for command in asked for one in other(following, command)]

    node.step = bad


def opens_before_reserving(node: Node) -> None:
    """The order is believed, and nothing is booked."""
    node.admission.decide = (  # type: ignore[method-assign]
        lambda order, _opened: Reserved(node.disk_.signature(order, "reserve"))
    )
    node.disk_.open = lambda *_: True  # type: ignore[method-assign]


def voids_what_was_opened(node: Node) -> None:
    """A failed training is called a refusal."""

    def other(agent: Agent, command: Any) -> list[Any]:
        if not isinstance(command, c.SendNoUpdate):
            return [command]
        found = agent.find(command.attempt_id)
        if found is None:
            return []
        signature = node.disk_.signature(found.order, "void")
        return [c.SendRefused(command.attempt_id, "FAILED", "It failed.", signature)]

    _instead(node, other)


def trains_again_for_a_retry(node: Node) -> None:
    """What is to be sent a second time is trained anew."""
    sent: set[str] = set()

    def other(agent: Agent, command: Any) -> list[Any]:
        if not isinstance(command, c.UploadAndSubmit) or command.attempt_id not in sent:
            sent.update([command.attempt_id] if isinstance(command, c.UploadAndSubmit) else [])
            return [command]
        found = agent.find(command.attempt_id)
        return [] if found is None else [c.OpenAndTrain(found.order, math.inf)]

    _instead(node, other)
    node.disk_.open = (  # type: ignore[method-assign]
        lambda *asked: node.disk_.state.open(*asked) or asked[0] in sent
    )


def drops_spool_before_reply(node: Node) -> None:
    """The spool is freed as soon as the upload is under way."""

    def other(agent: Agent, command: Any) -> list[Any]:
        if isinstance(command, c.UploadAndSubmit):
            node.later(0.1, lambda: node.disk_.drop_update(command.digest))
        return [command]

    _instead(node, other)


def restart_forgets_the_opening(node: Node) -> None:
    """What a crash left open is taken for reserved."""
    node.disk_.opened = list  # type: ignore[method-assign]
    node.disk_._resumed = lambda row: e.Resumed(  # type: ignore[method-assign]
        row.order,
        "spooled" if row.update_digest else "reserved",
        digest=row.update_digest,
        accepted=node.disk_.signature(row.order, "reserve"),
        signature=node.disk_.signature(row.order, "post"),
    )


def restart_forgets_everything(node: Node) -> None:
    """After a restart the agent holds nothing, whatever its disk says."""
    node.disk_.resumed = tuple  # type: ignore[method-assign]


def sends_before_booking(node: Node) -> None:
    """The update leaves while its post is not on disk."""

    def bad(attempt_id: str, digest: str) -> bytes | None:
        row = node.disk_.attempts.find(attempt_id)
        return None if row is None else node.disk_.signature(row.order, "post")

    node.disk_.spool = bad  # type: ignore[method-assign]


def never_books_what_was_closed(node: Node) -> None:
    """The coordinator's word is heard and not written down."""
    node.disk_.close_attempt = lambda *_: None  # type: ignore[method-assign]


RELOADS = ("reload-equals-memory", "trained-once")

PLANTED_AT_NODES: dict[str, tuple[Callable[[World], None], tuple[str, ...]]] = {
    "opens_before_reserving": (at_each(opens_before_reserving), ("reserved-first",)),
    "voids_what_was_opened": (at_each(voids_what_was_opened), ("void-is-unopened",)),
    "trains_again_for_a_retry": (at_each(trains_again_for_a_retry), ("trained-once",)),
    "drops_spool_before_reply": (at_each(drops_spool_before_reply), ("kept-until-acknowledged",)),
    "restart_forgets_the_opening": (at_each(restart_forgets_the_opening), RELOADS),
    "restart_forgets_everything": (
        at_each(restart_forgets_everything),
        ("ledgers-agree", "ends-or-waits", "reload-equals-memory"),
    ),
    "sends_before_booking": (at_each(sends_before_booking), ("booked-first", *RELOADS[:1])),
    "never_books_what_was_closed": (at_each(never_books_what_was_closed), ("ledgers-agree",)),
}
