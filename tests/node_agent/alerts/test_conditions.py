"""What is told of a node that is shut out, and of a data set that cannot be used: as it is."""

import asyncio
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from node_agent.alerts import watch as alert_watch
from node_agent.alerts.digest import digest
from node_agent.alerts.settings import AlertsConfig
from node_agent.alerts.sinks import Mail, sinks
from node_agent.alerts.watch import DAY_S, AlertWatch, digest_note
from node_agent.data.header_watch import HeaderWatch
from node_agent.doctor.alerts import check_alerts
from node_agent.doctor.machine import check_disk
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state.notes import CONNECTED_NOTE, REFUSED_NOTE
from tests.node_agent.alerts.test_alerts import CONFIG, Agent
from tests.node_agent.samples import DATA_SET, NODE, write_rules


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """One in order."""
    made = Agent(tmp_path / "agent")
    yield made
    made.state.close()


@pytest.mark.parametrize(
    ("reason", "do"),
    [
        ("NODE_QUARANTINED", "a second machine"),
        ("SESSION_TAKEN", "stop one of the two"),
        ("NODE_DISABLED", "ask the coordinator's operator"),
    ],
)
def test_a_node_that_is_shut_out_is_told_so_soon_and_not_sent_to_its_network(
    agent: Agent, reason: str, do: str
) -> None:
    """A copy of the keys in use is the one thing that must not wait for an hour."""
    notes = agent.state.notes
    notes.keep(CONNECTED_NOTE, "")
    said = {"at": 1.0, "reason": reason, "message": "node alpha is shut out\n" + "x" * 9000}
    notes.keep(REFUSED_NOTE, json.dumps(said))
    start = datetime.now(UTC)
    assert agent.events(now=start) == []  # an agent that was just started may wait so
    (found,) = agent.found(now=start + timedelta(seconds=31))
    assert (found.event, reason in found.text, do in found.remedy) == ("REFUSED", True, True)
    assert "doctor" not in found.remedy
    assert len(found.text) <= 500
    assert found.text.isprintable()
    notes.keep(REFUSED_NOTE, "")
    notes.keep(CONNECTED_NOTE, "2.0")
    assert agent.events(now=start) == []


def test_the_digest_tells_of_a_data_set_that_cannot_be_used(agent: Agent, tmp_path: Path) -> None:
    """Whatever is wrong with it, as the alerts do: the command's, and the one that is sent."""
    write_rules(agent.folder.root, data_sets=[{**DATA_SET, "opt_out": "opt-out.txt"}])
    (agent.folder.root / "opt-out.txt").write_text("p1, moved away\n")
    (found,) = digest(agent.folder.root, 7.0)["alerts"]
    assert found["event"] == "DATA_SET_UNAVAILABLE"
    assert "opt-out list" in found["text"]
    keys = {"file": {"path": str(tmp_path / "feddp.json")}, "digest_days": 7.0}
    config = AlertsConfig.model_validate({**CONFIG.model_dump(), **keys})
    headers, ledger = HeaderWatch(agent.folder, agent.steward), LedgerThread()
    asyncio.run(headers.look())
    now_s = 1000 * DAY_S
    agent.state.notes.keep(digest_note("file"), f"{now_s - 8 * DAY_S:.3f}")
    watch = AlertWatch(
        agent.folder,
        agent.identity,
        config,
        agent.state,
        ledger,
        agent.steward,
        headers.texts,
        clock=lambda: now_s,
    )
    try:
        asyncio.run(watch.look())
    finally:
        ledger.close()
    assert "opt-out list" in (tmp_path / "feddp.digest.txt").read_text()


def test_a_sink_that_says_nothing_holds_up_neither_the_file_nor_the_looks(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its age tells whether the agent runs; the sink is told once it has answered, and only once
    asked at a time."""
    monkeypatch.setattr(alert_watch, "SINK_S", 0.05)
    config = AlertsConfig.model_validate(
        {
            **CONFIG.model_dump(),
            "mail": {"server": "mail.example:25", "sender": "a@b", "to": ["a@b"]},
            "file": {"path": str(tmp_path / "feddp.json")},
        }
    )
    sent: list[str] = []

    async def looks() -> None:
        answer = asyncio.Event()

        async def send(_: Mail, subject: str, text: str) -> None:
            sent.append(subject)
            await answer.wait()

        monkeypatch.setattr(Mail, "_send", send)
        ledger = LedgerThread()
        watch = AlertWatch(
            *(agent.folder, agent.identity, config, agent.state, ledger, agent.steward),
            lambda: {"heart": "column age is missing"},
        )
        try:
            for _ in range(3):
                await watch.look()
                assert json.loads((tmp_path / "feddp.json").read_text())["count"] == 1
                (tmp_path / "feddp.json").unlink()
            assert len(sent) == 1
            answer.set()
            await watch.look()
            await watch.look()
            assert len(sent) == 1
        finally:
            ledger.close()

    asyncio.run(looks())


def test_a_syslog_that_is_a_stream_gets_messages_that_end(tmp_path: Path) -> None:
    """And doctor looks at it as the agent sends."""
    path = tmp_path / "log"
    config = AlertsConfig.model_validate({"syslog": {"address": str(path)}})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        assert check_alerts(config).result == "ok"
        server.accept()[0].close()
        asyncio.run(sinks(config)[0].digest(NODE, "one\ntwo"))
        taken, _ = server.accept()
        with taken:
            data = taken.recv(65536)
    assert [one.partition(b"digest: ")[2] for one in data.split(b"\0")] == [b"one", b"two", b""]
    path.unlink()
    assert check_alerts(config).result == "failed"


@pytest.mark.parametrize(
    "keys",
    [{"every_s": math.inf}, {"digest_days": math.inf}, {"disconnected_after_s": math.inf}],
)
def test_a_time_without_end_is_no_time_of_alerts(keys: dict[str, float]) -> None:
    """The watch would look once and never again."""
    with pytest.raises(ValidationError):
        AlertsConfig.model_validate(keys)


def test_doctor_finds_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    """Nothing could be written there."""
    config = AlertsConfig.model_validate({"file": {"path": str(tmp_path)}})
    assert "is a folder" in check_alerts(config).found


def test_a_spool_on_a_disk_of_its_own_is_looked_at_too(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models and updates wait there, and the ledger's disk says nothing of it."""
    agent.folder.spool.mkdir(exist_ok=True)
    real_statvfs, real_usage = os.statvfs, shutil.disk_usage
    small = SimpleNamespace(f_bavail=1, f_frsize=4096)

    def statvfs(path: Any) -> Any:
        return small if Path(path) == agent.folder.spool else real_statvfs(path)

    def usage(path: Any) -> Any:
        return SimpleNamespace(free=4096) if Path(path) == agent.folder.spool else real_usage(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    config = AlertsConfig(disk_free_bytes_min=8192)
    (found,) = agent.found(config)
    assert (found.event, str(agent.folder.spool) in found.text) == ("DISK_LOW", True)
    check = check_disk(agent.folder)
    assert (check.result, str(agent.folder.spool) in check.found) == ("warning", True)


def test_an_agent_that_stops_leaves_no_process_that_mails(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the server does; it could say something after the agent's end."""
    monkeypatch.setattr(alert_watch, "SINK_S", 0.05)
    started: list[asyncio.subprocess.Process] = []
    real = asyncio.create_subprocess_exec

    async def stopped() -> None:
        is_asked, is_over = asyncio.Event(), asyncio.Event()

        async def start(*words: Any, **options: Any) -> asyncio.subprocess.Process:
            started.append(await real(*words, **options))
            return started[-1]

        async def says_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            is_asked.set()
            await is_over.wait()
            writer.close()

        monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
        server = await asyncio.start_server(says_nothing, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        mail = {"server": f"127.0.0.1:{port}", "sender": "a@b", "to": ["a@b"], "tls": "none"}
        config = AlertsConfig.model_validate({**CONFIG.model_dump(), "mail": mail})
        ledger = LedgerThread()
        watch = AlertWatch(
            *(agent.folder, agent.identity, config, agent.state, ledger, agent.steward),
            lambda: {"heart": "column age is missing"},
        )
        try:
            task = asyncio.create_task(watch.run())
            await is_asked.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert [one.returncode for one in started] == [-9]
        finally:
            is_over.set()
            server.close()
            ledger.close()

    asyncio.run(stopped())
