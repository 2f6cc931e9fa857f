"""Leases: one holder at a time, and an epoch that grows with each change of hands.

The epoch is what fences: it is compared inside every write transaction, so that a process that
was paused while another took over can write nothing any more, whatever it believes.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select, update

from coordinator.store.schema import leases
from protos.errors import Unavailable

LEASE_S = 5.0
"""A holder that does not renew for so long may be replaced."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as its holder knows it."""

    name: str
    holder: str
    epoch: int


@dataclass(frozen=True, slots=True)
class HeldLease:
    """Who holds a lease now, and until when if it is not renewed."""

    holder: str
    expires_at: float


def look(connection: Connection, name: str) -> HeldLease | None:
    """The present holder; None if nobody ever held it or the last one gave it back."""
    row = connection.execute(select(leases).where(leases.c.name == name)).one_or_none()
    return HeldLease(row.holder, row.expires_at) if row is not None and row.holder else None


def take(connection: Connection, name: str, holder: str, now_s: float) -> Lease:
    """Take the lease, whoever has it: the caller has found that nobody does any more."""
    row = connection.execute(select(leases.c.epoch).where(leases.c.name == name)).one_or_none()
    epoch = 1 if row is None else row.epoch + 1
    values = {"holder": holder, "epoch": epoch, "expires_at": now_s + LEASE_S}
    if row is None:
        connection.execute(leases.insert().values(name=name, **values))
    else:
        connection.execute(update(leases).where(leases.c.name == name).values(**values))
    return Lease(name, holder, epoch)


def check(connection: Connection, lease: Lease) -> None:
    """Refuse to go on in this transaction if the lease has changed hands.

    Raises:
        Unavailable: LEASE_LOST.
    """
    epoch = connection.execute(_EPOCH, {"lease": lease.name}).scalar_one_or_none()
    if epoch != lease.epoch:
        raise Unavailable(
            "LEASE_LOST", "another coordinator has taken over; reconnect, and it will answer"
        )


_EPOCH = select(leases.c.epoch).where(leases.c.name == bindparam("lease"))


def renew(connection: Connection, lease: Lease, now_s: float) -> None:
    """Hold on to the lease. Raises as `check`."""
    check(connection, lease)
    connection.execute(
        update(leases).where(leases.c.name == lease.name).values(expires_at=now_s + LEASE_S)
    )


def release(connection: Connection, lease: Lease) -> None:
    """Give the lease back, so that the next holder need not wait. Raises as `check`."""
    check(connection, lease)
    connection.execute(
        update(leases).where(leases.c.name == lease.name).values(holder="", expires_at=0.0)
    )
