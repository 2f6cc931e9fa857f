"""Which nodes an operator or the coordinator has shut out, as a restored registry must know it.
Every function runs inside the caller's transaction."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from coordinator.store import people
from coordinator.store.schema import quarantines

SLACK_S: Final = 60.0
"""Two clocks may not tell which was first, the backup or what shut a node out."""


@dataclass(frozen=True, slots=True)
class NodeStanding:
    """Whether a node may speak.

    Attributes:
        quarantine: why it is shut out until a person releases it; "" for no quarantine.
    """

    node: str
    disabled: bool
    quarantine: str

    @property
    def is_shut_out(self) -> bool:
        """Whether it may not."""
        return self.disabled or bool(self.quarantine)


def shut_out(connection: Connection) -> list[NodeStanding]:
    """Every node that is disabled or quarantined, by name."""
    whys = people.all_quarantines(connection)
    found = [
        NodeStanding(one.name, one.status == "disabled", whys.get(one.name, ""))
        for one in people.all_nodes(connection)
    ]
    return [one for one in found if one.is_shut_out]


@dataclass(frozen=True, slots=True)
class Carried:
    """What a registry was told of nodes: the names that it had let in and does no longer, and those
    that it had shut out and does no longer."""

    shut_out: tuple[str, ...] = ()
    let_in: tuple[str, ...] = ()


NOBODY: Final = Carried()


def carry(
    connection: Connection, standings: Iterable[tuple[float, NodeStanding]], made_at_s: float
) -> Carried:
    """Bring a backup's nodes to how they stood later.

    Args:
        standings: when it was so, in seconds since 1970, and how; one for each node. A node that
            the backup has not is left out: it joins with a new token.
        made_at_s: when the backup was made; what is older it knows itself.
    """
    before = {one.node: one for one in shut_out(connection)}
    known = {one.name for one in people.all_nodes(connection)}
    closed, opened = [], []
    for at_s, one in standings:
        earliest_s = made_at_s - SLACK_S if one.is_shut_out else made_at_s
        was = before.get(one.node, NodeStanding(one.node, False, ""))
        if one.node not in known or at_s < earliest_s or was == one:
            continue
        if one.disabled != was.disabled:
            status = "disabled" if one.disabled else "enrolled"
            people.set_status(connection, one.node, status)
        if one.quarantine != was.quarantine:
            connection.execute(quarantines.delete().where(quarantines.c.node == one.node))
            if one.quarantine:
                connection.execute(quarantines.insert().values(node=one.node, why=one.quarantine))
        if one.is_shut_out and not was.is_shut_out:
            closed.append(one.node)
        elif was.is_shut_out and not one.is_shut_out:
            opened.append(one.node)
    return Carried(tuple(sorted(closed)), tuple(sorted(opened)))
