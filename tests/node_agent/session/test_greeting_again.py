"""When a session says Hello again: what changed is told to a coordinator that has welcomed us."""

import asyncio
from pathlib import Path

import pytest

from certs.authority import Authority
from node_agent.folder.config import Folder
from node_agent.session.publication import Publication
from tests.node_agent.agent_federation import WAIT_S, FakeCoordinator, FakeWorker, RunningAgent
from tests.node_agent.samples import POLICY, write_rules
from tests.node_agent.session.test_session_driver import play, until

LOOKS = 4


class Slow(FakeCoordinator):
    """Has the first Hello and takes its time over the Welcome."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(authority)
        self.welcomes = asyncio.Event()

    async def greeted(self, number: int) -> None:
        """See `FakeCoordinator`."""
        await self.welcomes.wait()


def test_a_change_before_the_welcome_is_said_after_it_and_ends_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that takes long to answer would else be greeted on a new stream each time that
    somebody saves a file, and answer none of them; what was changed meanwhile is not forgotten."""
    looks = 0
    look = Publication.circumstances

    def counted(publication: Publication) -> object:
        nonlocal looks
        looks += 1
        return look(publication)

    monkeypatch.setattr(Publication, "circumstances", counted)

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, Slow)
        async with RunningAgent(folder, worker):
            first = await coordinator.heard("hello")
            assert list(first.data_sets[0].tasks)
            write_rules(folder.root, {**POLICY, "allow": []})
            seen = looks
            await until(lambda: looks >= seen + LOOKS)
            assert coordinator.sessions == 1
            coordinator.welcomes.set()
            again = await asyncio.wait_for(coordinator.heard("hello"), WAIT_S)
            assert list(again.data_sets[0].tasks) == []
            assert coordinator.sessions == 2

    play(tmp_path, scene, Slow)
