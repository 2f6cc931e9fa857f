"""Leases: one holder at a time, and an epoch that grows with each change of hands.

The epoch is what fences: it is compared inside every write transaction, so that a process that
was paused while another took over can write nothing any more, whatever it believes.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, or_, select, update

from coordinator.store.engines import insert
from coordinator.store.schema import leases
from protos.errors import Unavailable

LEASE_S = 5.0
"""A holder that does not renew for so long may be replaced."""

LOST = "LEASE_LOST"
"""The reason with which a process that was replaced is refused."""


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
    epoch: int
    expires_at: float
    address: str = ""


def look(connection: Connection, name: str) -> HeldLease | None:
    """The present holder; None if nobody ever held it or the last one gave it back."""
    row = connection.execute(select(leases).where(leases.c.name == name)).one_or_none()
    if row is None or not row.holder:
        return None
    return HeldLease(row.holder, row.epoch, row.expires_at, row.address)


def wait(connection: Connection, name: str) -> None:
    """Wait until nobody else is changing the lease; from then on it stays as it is until this
    transaction ends."""
    connection.execute(_EPOCH, {"lease": name})


def take(
    connection: Connection,
    name: str,
    holder: str,
    now_s: float,
    *,
    gone: HeldLease | None = None,
    address: str = "",
) -> Lease | None:
    """Take the lease if it is free: never held, given back, or not renewed in time.

    One statement, so that of many who find it free one gets it.

    Args:
        gone: a holder whose process is known to have ended, or that was watched for so long and
            did not renew; it is not waited for.
        address: where others reach this holder; told to whoever looks.

    Returns:
        None: somebody holds it.
    """
    free = [leases.c.holder == "", leases.c.expires_at <= now_s]
    if gone is not None:
        # By the epoch: whoever took it since is another, and lives.
        free.append(leases.c.epoch == gone.epoch)
    values = {"holder": holder, "expires_at": now_s + LEASE_S, "address": address}
    epoch = connection.execute(
        insert(connection, leases)
        .values(name=name, epoch=1, **values)
        .on_conflict_do_update(
            index_elements=["name"], set_={**values, "epoch": leases.c.epoch + 1}, where=or_(*free)
        )
        .returning(leases.c.epoch)
    ).scalar_one_or_none()
    return None if epoch is None else Lease(name, holder, epoch)


def check(connection: Connection, lease: Lease) -> None:
    """Refuse to go on in this transaction if the lease has changed hands.

    It cannot change hands before the transaction ends: on SQLite a write transaction is alone, on
    PostgreSQL the row stays locked. So fenced transactions are one after the other on both.

    Raises:
        Unavailable: LEASE_LOST.
    """
    epoch = connection.execute(_EPOCH, {"lease": lease.name}).scalar_one_or_none()
    if epoch != lease.epoch:
        raise _lost()


_EPOCH = select(leases.c.epoch).where(leases.c.name == bindparam("lease")).with_for_update()


def renew(connection: Connection, lease: Lease, now_s: float) -> None:
    """Hold on to the lease. Raises as `check`."""
    _change(connection, lease, holder=lease.holder, expires_at=now_s + LEASE_S)


def release(connection: Connection, lease: Lease) -> None:
    """Give the lease back, so that the next holder need not wait. Raises as `check`."""
    _change(connection, lease, holder="", expires_at=0.0)


def _change(connection: Connection, lease: Lease, **values: object) -> None:
    """Compare and set in one statement."""
    mine = (leases.c.name == lease.name, leases.c.epoch == lease.epoch)
    if connection.execute(update(leases).where(*mine).values(**values)).rowcount != 1:
        raise _lost()


def _lost() -> Unavailable:
    return Unavailable(LOST, "another coordinator has taken over; reconnect, and it will answer")
