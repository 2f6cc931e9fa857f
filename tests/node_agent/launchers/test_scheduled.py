"""A worker on another machine, as its agent waits for it."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from node_agent.launchers import scheduled
from node_agent.launchers.base import WorkerDied
from node_agent.launchers.mailbox import Mailbox
from node_agent.launchers.scheduled import ScheduledWorker, Stage


class FakeScheduler:
    """Runs a job until it is cancelled."""

    time_limit_s = 3600.0

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    async def cancel(self, job: str) -> None:
        """End it."""
        self.cancelled.append(job)

    async def stage(self, job: str) -> tuple[Stage, str]:
        """Where it stands."""
        return (Stage.GONE if job in self.cancelled else Stage.RUNNING), "said"


def test_a_worker_that_is_up_and_hangs_as_it_starts_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread that beats lives on, so that it is not silent; one that waits in the scheduler's
    queue is waited for."""
    monkeypatch.setattr(scheduled, "START_S_MAX", 0.0)
    monkeypatch.setattr(scheduled, "BEAT_S", 0.01)

    async def scene() -> None:
        box, scheduler = Mailbox.make(tmp_path / "boxes"), FakeScheduler()
        worker = ScheduledWorker("j", "17", box, cast(Any, scheduler))
        asked = asyncio.create_task(worker.request({"op": "prepare"}))
        await asyncio.wait({asked}, timeout=0.5)
        assert not asked.done()
        box.take()
        with pytest.raises(WorkerDied, match="hung: it had not answered"):
            await asyncio.wait_for(asked, 30.0)
        assert scheduler.cancelled == ["17"]
        assert not box.exists()

    asyncio.run(scene())
