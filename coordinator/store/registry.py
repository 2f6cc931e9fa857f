"""Whether anything has changed of who may call, told by a few numbers and the short lists.

A replica that does not lead asks every second; reading all certificates as often would cost more
than it serves. No change that shuts somebody out is missed: a certificate that was revoked or
superseded stays so, and the nodes and people are compared one by one.
"""

from typing import Any

from sqlalchemy import Connection, Integer, cast, func, select

from coordinator.store.schema import certificates, nodes, quarantines, users

Stamp = tuple[tuple[Any, ...], ...]


def stamp(connection: Connection) -> Stamp:
    """Another one after each change; to be compared only."""
    column = certificates.c
    counted = select(
        func.count(),
        func.sum(cast(column.revoked, Integer)),
        func.sum(cast(column.superseded, Integer)),
        func.sum(column.generation),
        func.max(column.not_before),
    ).select_from(certificates)
    shut_out = select(nodes.c.name).where(nodes.c.status == "disabled").order_by(nodes.c.name)
    quarantined = select(quarantines).order_by(quarantines.c.node)
    people = select(users.c.name, users.c.roles, users.c.project).order_by(users.c.name)
    found: list[tuple[Any, ...]] = []
    for part in (counted, shut_out, quarantined, people):
        rows = connection.execute(part).all()
        found.append(tuple(tuple(row) for row in rows))
    return tuple(found)
