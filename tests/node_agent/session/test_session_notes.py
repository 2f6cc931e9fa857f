"""What the agent's folder says of its session, for `feddp agent status` and the alerts."""

from pathlib import Path

from node_agent.folder.config import Folder
from node_agent.status import status
from tests.node_agent.agent_federation import FakeCoordinator, FakeWorker, RunningAgent
from tests.node_agent.session.test_session_driver import play, until


def test_a_coordinator_that_is_gone_is_not_told_as_connected(tmp_path: Path) -> None:
    """While the agent runs and goes on asking: the alert of a lost coordinator rests on it, too."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        async with RunningAgent(folder, worker) as agent:
            await until(lambda: status(folder.root)["connected"])
            await coordinator.stop()
            await until(lambda: not status(folder.root)["connected"])
            assert not agent.has_ended()
            assert status(folder.root)["running"]
            await coordinator.start()
            await until(lambda: status(folder.root)["connected"])

    play(tmp_path, scene)
