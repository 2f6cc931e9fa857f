"""One session over many renewals that die at any step: it never breaks, and carries every word.

The agent's process lives, as a stream ends with its process; what dies is the renewal in it, at the
disk or on the wire, and the next one goes on from the folder. What a death of the whole process
leaves behind is `test_renewal_crashes`.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from certs.authority import Authority
from node_agent.connection import channels
from node_agent.connection.proxy import ProxyConfig, route_to
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.joining.renewal import Renewal
from node_agent.session import events as e
from node_agent.session.link import Link
from protos.feddp.v1 import federation_pb2 as pb
from tests.node_agent.agent_federation import TRUST_DOMAIN, WAIT_S, make_agent
from tests.node_agent.joining.test_renewal_crashes import Died, Power
from tests.node_agent.session.test_moving_session import RenewingCoordinator

ROTATIONS = 1000
STEPS = 24
"""Of a renewal that goes well: each write, sync, rename and message, before and after."""


class Wire:
    """A connection on which a renewal may die before it asks, and after the answer came."""

    def __init__(self, channel: grpc.aio.Channel, power: Power) -> None:
        self._channel = channel
        self._power = power

    def unary_unary(self, path: str, **how: Any) -> Any:
        ask = self._channel.unary_unary(path, **how)

        async def asked(request: Any, timeout: float) -> Any:  # noqa: ASYNC109
            self._power.passing()
            answer = await ask(request, timeout=timeout)
            self._power.passing()
            return answer

        return asked


class Held:
    """An agent's session, and the renewals that go on beside it.

    Attributes:
        ended: how often the session was without a stream.
        welcomed: streams that were welcomed.
    """

    def __init__(self, folder: Folder, port: int, power: Power) -> None:
        self.ended = self.welcomed = 0
        self._changed = asyncio.Event()
        self._folder = folder.identity
        self._power = power
        route = route_to(f"127.0.0.1:{port}", ProxyConfig(), folder.root, {})
        self.identity = load_identity(self._folder)
        self.channels = channels.Channels(route, self.identity)
        self.link = Link(self.channels.current, route.address, self._heard, time.monotonic)

    async def renew_once(self, left: int) -> bool:
        """One renewal that dies at a step, if it has so many; whether it did."""
        wire: Any = Wire(self.channels.current, self._power)
        renewal = Renewal(self._folder, self.identity, wire, self._adopt)
        self._power.left = left
        try:
            await renewal.renew()
        except Died:
            for left_over in self._folder.glob(".*.partial"):  # as of a process with another id
                left_over.rename(left_over.with_name(left_over.name.replace(str(os.getpid()), "1")))
            return True
        finally:
            self._power.left = None
        return False

    async def until(self, claim: Callable[[], bool]) -> None:
        """Wait until events have made it true."""
        async with asyncio.timeout(WAIT_S):
            while not claim():
                self._changed.clear()
                await self._changed.wait()
                assert self.ended == 0, "the session was without a stream"

    def _adopt(self, identity: Any) -> Any:
        channel = self.channels.renewed(identity)
        self.identity = identity
        self.link.renewed(channel)
        return Wire(channel, self._power)

    def _heard(self, event: e.Event) -> None:
        match event:
            case e.Connected() | e.SecondOpened():
                assert self.link.newest is not None
                self.link.newest.put_nowait(pb.AgentMessage(hello=pb.Hello()))
            case e.WelcomeReceived():
                self.welcomed += 1
            case e.Disconnected():
                self.ended += 1
        self._changed.set()


def test_a_session_is_held_over_a_thousand_renewals_that_die_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never without a stream; each moves to the newest certificate, and what is said between two of
    them is heard once and in order."""
    chance = random.Random(20261126)
    # So that older connections are closed under way, as after hours of a real agent.
    monkeypatch.setattr(channels, "CLOSE_AFTER_S", 0.5)

    async def scene() -> tuple[int, list[str]]:
        authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
        coordinator = RenewingCoordinator(authority)
        await coordinator.start()
        folder = make_agent(tmp_path / "agent", authority, coordinator.port)
        power = Power(monkeypatch)
        held = Held(folder, coordinator.port, power)
        session = asyncio.create_task(held.link.run())
        died, heard = 0, []
        try:
            await held.until(lambda: held.welcomed == 1)
            for rotation in range(1, ROTATIONS + 1):
                before = held.identity.chain
                while await held.renew_once(chance.randrange(2 * STEPS)):
                    died += 1
                    assert held.link.outbox is not None
                    held.link.send(_word(f"{rotation} meanwhile"))
                    heard.append(await _heard(coordinator))
                assert held.identity.chain != before
                assert load_identity(folder.identity).chain == held.identity.chain
                await held.until(lambda moved=rotation + 1: held.welcomed == moved)
                assert held.identity.chain.startswith(coordinator.peers[-1])
                held.link.send(_word(str(rotation)))
                heard.append(await _heard(coordinator))
                assert held.ended == 0
            assert coordinator.sessions == ROTATIONS + 1
            assert not session.done()
        finally:
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)
            await held.channels.close()
            await coordinator.stop()
        return died, heard

    died, heard = asyncio.run(scene())
    assert died > ROTATIONS / 2
    said = [int(word.partition(" ")[0]) for word in heard]
    assert said == sorted(said)
    assert [word for word in heard if " " not in word] == [
        str(number) for number in range(1, ROTATIONS + 1)
    ]
    assert len(heard) == died + ROTATIONS


def _word(text: str) -> pb.AgentMessage:
    return pb.AgentMessage(no_update=pb.NoUpdate(attempt_id=text))


async def _heard(coordinator: RenewingCoordinator) -> str:
    return str((await coordinator.heard("no_update")).attempt_id)
