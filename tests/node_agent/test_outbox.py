"""What the hospital is told of its updates: no more than is known."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog
import yaml
from google.protobuf.json_format import MessageToDict
from typer.testing import CliRunner

from certs.authority import Authority
from feddp.cli.app import app
from node_agent.alerts.digest import digest, said
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.outbox import outbox
from node_agent.state.state import State
from node_agent.status import status
from privacy.filters import make_filter
from protos.feddp.v1 import federation_pb2 as pb
from tests.node_agent.agent_federation import (
    TRUST_DOMAIN,
    WAIT_S,
    FakeCoordinator,
    FakeWorker,
    RunningAgent,
    make_agent,
    real_order,
)
from tests.node_agent.samples import NODE, order

Scene = Callable[[FakeCoordinator, Folder, FakeWorker], Coroutine[Any, Any, None]]


def play(tmp_path: Path, scene: Scene) -> Folder:
    """Run a scene with a coordinator that listens; gives the agent's folder."""

    async def run() -> Folder:
        authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
        coordinator = FakeCoordinator(authority)
        await coordinator.start()
        folder = make_agent(tmp_path / "agent", authority, coordinator.port)
        coordinator.orders = [real_order()]
        try:
            await scene(coordinator, folder, FakeWorker())
        finally:
            await coordinator.stop()
        return folder

    return asyncio.run(run())


async def until(folder: Folder, state: str) -> None:
    """Wait until the only attempt is there."""
    async with asyncio.timeout(WAIT_S):
        while set(status(folder.root)["attempts"]) != {state}:  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.01)


def release(folder: Folder) -> tuple[str, int, int]:
    """How the only attempt stands; updates acknowledged and not, by the digest."""
    (item,) = outbox(folder.root)["items"]
    (counted,) = digest(folder.root, 7.0)["releases"]
    assert counted["booked"] == 1
    return item["standing"], counted["updates"], counted["updates_unconfirmed"]


def test_an_update_has_left_once_the_coordinator_acknowledged_it(tmp_path: Path) -> None:
    """Outbox and digest say so of no other."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted()
            await until(folder, "closed")

    folder = play(tmp_path, scene)
    assert release(folder) == ("left", 1, 0)
    assert "1 release booked, 1 update acknowledged by the coordinator." in said(
        digest(folder.root, 7.0)
    )


def test_a_withdrawn_update_is_removed_and_no_error(tmp_path: Path) -> None:
    """Withdrawn while it waited for its tick: it is not said to have left."""

    def withdraw(folder: Folder) -> None:
        content = yaml.safe_load(folder.policy_yaml.read_text())
        folder.policy_yaml.write_text(yaml.safe_dump({**content, "withdrawn": ["heart"]}))

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        content = yaml.safe_load(folder.policy_yaml.read_text())
        folder.policy_yaml.write_text(yaml.safe_dump({**content, "outcome_tick_s": 4.0}))
        async with RunningAgent(folder, worker):
            await until(folder, "spooled")
            assert release(folder) == ("leaving", 0, 0)
            withdraw(folder)
            await coordinator.heard("no_update")
            coordinator.send(attempt_closed=_closed())
            await until(folder, "closed")
        assert coordinator.submitted == []

    with structlog.testing.capture_logs() as logs:
        folder = play(tmp_path, scene)
    assert release(folder) == ("removed", 0, 1)
    assert "1 booked and not" in said(digest(folder.root, 7.0))
    levels = {one["event"]: one["log_level"] for one in logs}
    assert levels["update_withdrawn"] == "info"
    assert "update_vanished" not in levels


def test_what_was_withdrawn_while_the_agent_was_off_does_not_leave(tmp_path: Path) -> None:
    """Its tick is over when the agent starts again: it would be handed in before any look."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        content = yaml.safe_load(folder.policy_yaml.read_text())
        folder.policy_yaml.write_text(yaml.safe_dump({**content, "outcome_tick_s": 2.0}))
        async with RunningAgent(folder, worker):
            await until(folder, "spooled")
        withdrawn = {**content, "withdrawn": ["heart"]}
        folder.policy_yaml.write_text(yaml.safe_dump(withdrawn))
        async with RunningAgent(folder, worker):
            await coordinator.heard("no_update")
        assert coordinator.submitted == []
        assert list((folder.spool / "updates").iterdir()) == []

    folder = play(tmp_path, scene)
    assert release(folder)[0] == "removed"


def test_an_update_whose_file_is_gone_is_not_said_to_leave(tmp_path: Path) -> None:
    """Before the agent has found it out, and after."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.lose_answers = 10**6
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted()
        for one in (folder.spool / "updates").iterdir():
            one.unlink()
        assert release(folder)[0] == "removed"
        async with RunningAgent(folder, worker):
            await coordinator.heard("no_update")
            coordinator.send(attempt_closed=_closed())
            await until(folder, "closed")

    assert release(play(tmp_path, scene)) == ("removed", 0, 1)


def test_an_update_that_was_closed_unanswered_is_unconfirmed(tmp_path: Path) -> None:
    """The coordinator may have it, or may not: neither is claimed."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.lose_answers = 10**6
        async with RunningAgent(folder, worker):
            await coordinator.until_submitted()
            coordinator.send(attempt_closed=_closed())
            await until(folder, "closed")

    assert release(play(tmp_path, scene)) == ("unconfirmed", 0, 1)


def test_the_outbox_shows_the_hello_that_a_session_sends(tmp_path: Path) -> None:
    """The agent's own Hello and what `outbox` says of it are the same, categories included."""
    heard: list[pb.Hello] = []

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = []
        content = yaml.safe_load(folder.datasets_yaml.read_text())
        content["data_sets"][0]["columns"]["sex"] = {"category": ["Male", "Female"]}
        folder.datasets_yaml.write_text(yaml.safe_dump(content))
        async with RunningAgent(folder, worker):
            heard.append(await coordinator.heard("hello"))

    folder = play(tmp_path, scene)
    told = outbox(folder.root)["published"]
    (hello,) = heard
    (shown,), (data_set,) = told["data_sets"], hello.data_sets
    assert shown["columns"] == json.loads(data_set.schema_json)["columns"]
    assert shown["tasks"] == list(data_set.tasks)
    assert told["accounts"] == [
        MessageToDict(one, preserving_proto_field_name=True) for one in hello.accounts
    ]
    assert told["tasks"] == [f"{one.name}@{one.content_hash}" for one in hello.tasks]
    text = CliRunner().invoke(app, ["agent", "outbox", "--dir", str(folder.root)]).stdout
    for part in ("sex (Male, Female)", "epsilon_limit 10", "delta 1e-05", told["tasks"][0]):
        assert part in text
    assert "account_announced" not in text


def test_a_restored_node_does_not_say_that_nothing_was_released(tmp_path: Path) -> None:
    """A ledger that caught up holds releases without the attempts' times."""
    folder = make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 1)
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    state.reserve(order(), make_filter("gdp", 0, 10.0, 1.0e-5))
    state.open("a1", 1.0, 1.0)
    state.lose("a1")
    state.close()
    with contextlib.closing(sqlite3.connect(folder.state_db, isolation_level=None)) as database:
        database.execute("DELETE FROM attempts")
    found = digest(folder.root, 7.0)
    assert found["restored"] == 1
    assert "Nothing was released." not in said(found)
    assert "1 release booked before a copy of the ledger was imported" in said(found)


def _closed() -> pb.AttemptClosed:
    return pb.AttemptClosed(attempt_id="a1", outcome="post")
