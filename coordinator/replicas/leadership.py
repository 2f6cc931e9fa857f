"""Which process is the coordinator: one at a time, and one that was replaced can write no more."""

import asyncio
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from coordinator.store import leases
from coordinator.store.database import Database, newer_fault, newest_revision
from coordinator.store.engines import WAIT_S, is_away, is_busy, now_s, why_away
from coordinator.store.leases import HeldLease, Lease
from coordinator.store.serving import is_outgrown
from protos.errors import FeddpError, Unavailable

log = structlog.get_logger(__name__)

NAME = "coordinator"
RENEW_S = leases.LEASE_S / 3
LOOK_AGAIN_S = 0.25
SILENT_S = 2.0 * WAIT_S
"""A write may wait for a lock, and then as long again for the server."""

T = TypeVar("T")


class Leadership:
    """Takes the lease at the start, renews it, and says when it is lost.

    Args:
        address: where the other replicas reach this one.
        led_from: told the address of the holder while another one is waited for; "" for none.

    Attributes:
        lost: set once another process has taken over.
    """

    def __init__(
        self,
        database: Database,
        address: str = "",
        led_from: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.lost = asyncio.Event()
        self._database = database
        self._address = address
        self._led_from = led_from
        self._lease: Lease | None = None
        self._held_s = -math.inf
        self._seen: tuple[HeldLease, float] | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Wait until nobody else holds the lease, and take it; from now on every write is fenced.

        A holder of this machine whose process is gone is not waited for, nor one that has not
        renewed while this process watched it for as long as a lease lasts: until when it is held
        was said by a clock that may have been hours ahead. One that was paused in
        the middle of a write keeps its locks until it is woken or ended: SQLite's only write lock,
        say. That is waited for, and said. So is a PostgreSQL server that is away.
        """
        said: set[str] = set()
        while True:
            try:
                found, waiting = await self._look()
            except (DBAPIError, Unavailable) as error:
                if isinstance(error, DBAPIError) and not is_away(error):
                    raise
                # Whoever leads may still reach it, and serves.
                if "waiting_for_database" not in said:
                    log.warning("waiting_for_database", why=why_away(error))
                    said.add("waiting_for_database")
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            if isinstance(found, Lease):
                break
            self._led_from("" if found is None else found.address)
            if found is not None and waiting not in said:
                log.warning(waiting, holder=found.holder)
                said.add(waiting)
            await asyncio.sleep(LOOK_AGAIN_S)
        lease = self._lease = found
        self._held_s = time.monotonic()
        self._database.fence = lambda inside: leases.check(inside, lease)
        self._renewing = asyncio.create_task(self._renew())

    async def _look(self) -> tuple[Lease | HeldLease | None, str]:
        """The lease, or who holds it, and what is waited for."""
        try:
            return await self._write(self._try), "waiting_for_lease"
        except DBAPIError as error:
            if not is_busy(error):
                raise
        held = await self._database.read(lambda inside: leases.look(inside, NAME))
        return held, "waiting_for_lock"

    def _try(self, connection: Connection) -> Lease | HeldLease | None:
        """The lease, or who holds it; None if that changed while it was looked at.

        Raises:
            Malformed: DATABASE_NEWER, the tables were upgraded since this process started, and
                not for its version.
        """
        # Before the clock is read: whoever hung in a write may keep the row for longer than a lease
        # lasts, and one that has ended when it is taken is taken again by the next, at once.
        leases.wait(connection, NAME)
        held = leases.look(connection, NAME)
        gone = held if held is not None and (is_gone(held.holder) or self._is_still(held)) else None
        lease = leases.take(
            connection, NAME, this_process(), now_s(connection), gone=gone, address=self._address
        )
        # After it: an upgrade that was under way has kept the lease's row until it was done.
        if is_outgrown(connection, newest_revision()):
            raise newer_fault()
        return lease or leases.look(connection, NAME)

    def _is_still(self, held: HeldLease) -> bool:
        """Whether the lease was not renewed for so long, by a clock that nobody can set."""
        at_s = time.monotonic()
        if self._seen is None or self._seen[0] != held:
            self._seen = held, at_s
            return False
        return at_s - self._seen[1] >= leases.LEASE_S

    async def _renew(self) -> None:
        """Whether we may still write is checked in each write: only another holder is a reason to
        end. A database that is away may come back."""
        lease, is_renewed = self._lease, True
        while lease is not None:
            await asyncio.sleep(RENEW_S)
            try:
                await self._write(lambda inside: leases.renew(inside, lease, now_s(inside)))
            except Exception as error:
                if is_lost(error):
                    log.error("lease_lost")
                    self.lost.set()
                    return
                if is_renewed:
                    log.exception("lease_not_renewed")
                is_renewed = False
            else:
                if not is_renewed:
                    log.info("lease_renewed")
                is_renewed, self._held_s = True, time.monotonic()

    async def _write(self, work: Callable[[Connection], T]) -> T:
        """A write that comes to an end, also where a connection has gone silent: whoever answered
        it died, or something between passes nothing on and says nothing."""
        writing = asyncio.ensure_future(self._database.write(work))
        if not (await asyncio.wait([writing], timeout=SILENT_S))[0]:
            log.error("database_silent", after_s=SILENT_S, do="connections are made anew")
            self._database.cut()
        return await writing

    def is_sure(self) -> bool:
        """Whether this process renewed its lease not long ago; else another may lead."""
        return time.monotonic() - self._held_s < 2 * leases.LEASE_S

    async def give_back(self) -> None:
        """Let the next coordinator begin at once."""
        if self._renewing is not None:
            self._renewing.cancel()
        lease = self._lease
        if lease is None or self.lost.is_set():
            return
        try:
            await self._write(lambda inside: leases.release(inside, lease))
        except (DBAPIError, Unavailable) as error:
            if is_lost(error) or (isinstance(error, DBAPIError) and not is_away(error)):
                raise
            log.warning("lease_not_given_back")  # the next one waits until it runs out


def is_lost(error: Exception) -> bool:
    """Whether another process has taken over."""
    return isinstance(error, FeddpError) and error.reason == leases.LOST


def this_process() -> str:
    """Host, boot, process id and when it started: no other process is mistaken for it."""
    pid = os.getpid()
    return f"{socket.gethostname()} {_boot_id()} {pid} {_started(pid)}"


def is_gone(holder: str) -> bool:
    """Whether the holder was a process of this machine that does not run any more.

    What cannot be told is not gone; should it be mistaken, the fence still holds. Containers of
    one machine share its boot and not its processes, but each has a host name of its own.
    """
    parts = holder.split(" ")
    if len(parts) != 4 or parts[:2] != [socket.gethostname(), _boot_id()]:
        return False
    if not parts[1] or not parts[2].isdecimal():
        return False
    return _started(int(parts[2])) != parts[3]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty if there is none (or no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended, and only waits to be reaped.
    return "" if fields[0] == "Z" else fields[19]
