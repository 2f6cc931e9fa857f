"""Several coordinators on one database: one leads, the others pass connections on to it.

Nodes and people may dial any replica. One that does not lead passes the bytes of each connection on
to the one that does; it cannot read them, as TLS ends at the leader, and decides nothing. When the
lead changes hands it ends every such connection, so that clients dial anew.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from protos.errors import Malformed

log = structlog.get_logger(__name__)

PIECE_BYTES: Final = 128 << 10
CONNECT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the other replicas reach one of them."""

    host: str
    port: int
    enrollment_port: int

    def __str__(self) -> str:
        return f"{self.host} {self.port} {self.enrollment_port}"

    @classmethod
    def parse(cls, text: str) -> "Address | None":
        """What `str` gave; None for anything else, as of a coordinator that tells no address."""
        parts = text.split(" ")
        if len(parts) != 3 or not parts[0] or not all(part.isdecimal() for part in parts[1:]):
            return None
        return cls(parts[0], int(parts[1]), int(parts[2]))

    @property
    def ports(self) -> tuple[int, int]:
        """In the order in which each replica listens."""
        return self.port, self.enrollment_port


@dataclass(slots=True)
class Forwarder:
    """Listens in the leader's stead, on the ports that this replica has itself when it leads.

    Args:
        host: on which this replica listens, on the ports of `own`.
        own: its address. Should the lease still name it, from before a restart, nobody leads.
    """

    host: str
    own: Address
    _leader: Address | None = None
    _servers: list[asyncio.Server] = field(default_factory=list)
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Listen.

        Raises:
            Malformed: PORT_IN_USE.
        """
        for place, port in enumerate(self.own.ports):

            async def passed(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: int = place
            ) -> None:
                await self._serve(place, reader, writer)

            try:
                server = await asyncio.start_server(
                    passed, self.host, port, limit=PIECE_BYTES, reuse_port=False
                )
            except OSError as error:
                await self.stop()
                raise Malformed(
                    "PORT_IN_USE",
                    f"port {port} on {self.host} cannot be opened ({error.strerror}); another "
                    "program may hold it: choose another in the configuration, or stop that "
                    "program",
                ) from None
            self._servers.append(server)

    async def stop(self) -> None:
        """End every connection and free the ports."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        await self._end(list(self._open))

    def follow(self, address: str) -> None:
        """Who leads now; connections to another are ended."""
        leader = Address.parse(address)
        if leader == self.own:
            leader = None
        if leader == self._leader:
            return
        self._leader = leader
        if leader is not None:
            log.info("leader_followed", host=leader.host, port=leader.port)
        for task in self._open:
            task.cancel()

    @property
    def has_leader(self) -> bool:
        """Whether there is one to pass connections on to."""
        return bool(self._servers) and self._leader is not None

    async def _serve(
        self, place: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        leader = self._leader
        if task is None or leader is None:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            async with asyncio.timeout(CONNECT_S):
                inner = await asyncio.open_connection(
                    leader.host, leader.ports[place], limit=PIECE_BYTES
                )
        except OSError:  # also TimeoutError: the client is told by the end, and tries again
            writer.transport.abort()
            self._open.discard(task)
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            self._open.discard(task)
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass(reader, inner[1]))
                both.create_task(_pass(inner[0], writer))
        except* OSError:
            pass  # one of the two is gone
        except* asyncio.CancelledError:
            pass
        finally:
            self._open.discard(task)
            for one in (writer, inner[1]):
                one.transport.abort()

    @staticmethod
    async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Until the source ends; then the other side is told."""
    while data := await source.read(PIECE_BYTES):
        target.write(data)
        await target.drain()
    with suppress(OSError):
        target.write_eof()
