"""A replica that does not lead passes connections on and ends them when the lead changes hands."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from coordinator.replicas.replicas import Address, Forwarder
from feddp.demo.ports import free_ports
from protos.errors import Malformed

HOST = "127.0.0.1"


@asynccontextmanager
async def leader(greeting: bytes) -> AsyncIterator[Address]:
    """Two ports that greet, and give back whatever they are sent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    servers = [await asyncio.start_server(answer, HOST, 0) for _ in range(2)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    try:
        yield Address(HOST, *ports)
    finally:
        for server in servers:
            server.close()


def with_forwarder(test: Callable[[Forwarder], Awaitable[None]]) -> None:
    """Run a test with a replica that listens and knows no leader yet."""

    async def run() -> None:
        forwarder = Forwarder(HOST, Address(HOST, *free_ports(2)))
        await forwarder.start()
        try:
            await asyncio.wait_for(test(forwarder), 20)
        finally:
            await forwarder.stop()

    asyncio.run(run())


def test_megabytes_pass_both_ways_unchanged() -> None:
    """On either port, to the same port of the leader; the end of one side reaches the other."""

    async def test(forwarder: Forwarder) -> None:
        async with leader(b"!") as found:
            forwarder.follow(str(found))
            assert forwarder.has_leader
            for port in forwarder.own.ports:
                reader, writer = await asyncio.open_connection(HOST, port)
                sent = bytes(range(256)) * 20_000
                writer.write(sent)
                assert await reader.readexactly(1 + len(sent)) == b"!" + sent
                writer.write_eof()
                assert await reader.read() == b""
                writer.close()

    with_forwarder(test)


def test_connections_end_when_another_leads() -> None:
    """So that clients dial anew and reach the new leader; one that stays is not disturbed."""

    async def test(forwarder: Forwarder) -> None:
        async with leader(b"1") as first, leader(b"2") as second:
            forwarder.follow(str(first))
            reader, writer = await asyncio.open_connection(HOST, forwarder.own.port)
            assert await reader.readexactly(1) == b"1"
            forwarder.follow(str(first))
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            forwarder.follow(str(second))
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            reader, writer = await asyncio.open_connection(HOST, forwarder.own.port)
            assert await reader.readexactly(1) == b"2"
            writer.close()

    with_forwarder(test)


@pytest.mark.parametrize("address", ["", "nonsense", "127.0.0.1 8443 x", "OWN"])
def test_without_a_leader_a_connection_ends_at_once(address: str) -> None:
    """Also while the lease still names this replica, from before its restart: never to itself."""

    async def test(forwarder: Forwarder) -> None:
        forwarder.follow(str(forwarder.own) if address == "OWN" else address)
        assert not forwarder.has_leader
        reader, writer = await asyncio.open_connection(HOST, forwarder.own.port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()

    with_forwarder(test)


def test_a_leader_that_is_gone_ends_a_connection() -> None:
    """The client is told by the end, and tries again."""

    async def test(forwarder: Forwarder) -> None:
        forwarder.follow(str(Address(HOST, *free_ports(2))))
        reader, writer = await asyncio.open_connection(HOST, forwarder.own.port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()

    with_forwarder(test)


def test_ports_are_free_again_after_the_stop_and_taken_ones_are_said() -> None:
    """As when this replica takes the lead and opens them itself."""

    async def test(forwarder: Forwarder) -> None:
        second = Forwarder(HOST, forwarder.own)
        with pytest.raises(Malformed) as taken:
            await second.start()
        assert taken.value.reason == "PORT_IN_USE"
        await forwarder.stop()
        await second.start()
        await second.stop()

    with_forwarder(test)


def test_an_address_is_read_as_it_was_written() -> None:
    """Also one of IPv6."""
    for address in (Address("10.0.0.1", 1, 2), Address("fd00::1", 8443, 8444)):
        assert Address.parse(str(address)) == address
