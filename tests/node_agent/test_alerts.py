"""What a hospital is told, and that each of the three ways tells it."""

import asyncio
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from certs.authority import Authority
from node_agent.alert_sinks import sinks
from node_agent.alert_watch import DAY_S, DIGEST_NOTE, AlertWatch
from node_agent.alerts import Alert, AlertsConfig
from node_agent.conditions import conditions, note_connection
from node_agent.config import Folder
from node_agent.identity import Identity, load_identity
from node_agent.notes import CONNECTED_NOTE, ROLLED_BACK_NOTE
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state import State
from node_agent.steward import Steward
from privacy.filters import make_filter
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import NODE, order

CONFIG = AlertsConfig(disk_free_bytes_min=0)
NO_DISK = {"disk_free_bytes_min": 0}
ONE = Alert("DISK_LOW", "", "0.50 GiB are free on the disk", "free room there")


class Agent:
    """A folder with its ledger, connected."""

    def __init__(self, path: Path) -> None:
        self.folder: Folder = make_agent(
            path, Authority.create(path.parent / "ca", TRUST_DOMAIN), 1
        )
        self.identity: Identity = load_identity(self.folder.identity)
        self.state = State(self.folder.state_db, NODE, self.identity.ledger_key)
        self.state.notes.keep(CONNECTED_NOTE, "1.0")
        self.steward = Steward(self.folder)

    def found(self, config: AlertsConfig = CONFIG, now: datetime | None = None) -> list[Alert]:
        """What is wrong."""
        at_s = (now or datetime.now(UTC)).timestamp()
        note_connection(self.state, at_s)
        return conditions(self.folder, self.identity, self.state, self.steward, config, at_s)

    def events(self, config: AlertsConfig = CONFIG, now: datetime | None = None) -> list[str]:
        """Their names."""
        return [one.event for one in self.found(config, now)]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """One in order."""
    made = Agent(tmp_path / "agent")
    yield made
    made.state.close()


def test_an_agent_in_order_has_nothing_to_say(agent: Agent) -> None:
    """Else nobody would read it."""
    assert agent.found() == []


def test_a_certificate_that_is_not_renewed_is_told_before_it_ends_and_after(agent: Agent) -> None:
    """With a quarter of the time to renew gone, not at the first try."""
    due, ends = agent.identity.renews_at, agent.identity.expires_at
    assert agent.events(now=due + (ends - due) / 10) == []
    (near,) = agent.found(now=due + (ends - due) / 2)
    assert (near.event, "was not renewed" in near.text) == ("CERTIFICATE", True)
    (over,) = agent.found(now=ends + timedelta(seconds=1))
    assert "has ended" in over.text


def test_a_session_that_is_gone_is_told_after_the_time_that_was_set(agent: Agent) -> None:
    """A reconnect in between begins anew."""
    start = datetime.now(UTC)
    later = [start + timedelta(minutes=minutes) for minutes in (30, 61, 62, 63, 124)]
    agent.state.notes.keep(CONNECTED_NOTE, "")
    assert agent.events(now=start) == []
    assert agent.events(now=later[0]) == []
    (away,) = agent.found(now=later[1])
    assert (away.event, away.text.endswith(" for 61 minutes")) == ("DISCONNECTED", True)
    briefly = AlertsConfig(disk_free_bytes_min=0, disconnected_after_s=1)
    (soon,) = agent.found(briefly, now=start + timedelta(seconds=60))
    assert soon.text.endswith(" for 60 seconds")
    agent.state.notes.keep(CONNECTED_NOTE, "1.0")
    assert agent.events(now=later[2]) == []
    agent.state.notes.keep(CONNECTED_NOTE, "")
    assert agent.events(now=later[3]) == []
    assert agent.events(now=later[4]) == ["DISCONNECTED"]


def test_a_disk_that_fills_a_file_that_vanished_and_a_policy_that_is_none(agent: Agent) -> None:
    """Each by its own name."""
    full = AlertsConfig(disk_free_bytes_min=1 << 62)
    assert agent.events(full) == ["DISK_LOW"]
    agent.steward.rules().data_sets[0].source.unlink()
    (gone,) = agent.found()
    assert (gone.event, gone.subject) == ("DATA_SET_UNAVAILABLE", "heart")
    agent.folder.policy_yaml.write_text("accounts: 7\n")
    assert agent.events() == ["POLICY_UNREADABLE", "DATA_SET_UNAVAILABLE"]
    assert "rules of before" in agent.found()[0].remedy
    agent.folder.policy_yaml.unlink()
    assert agent.events() == ["POLICY_UNREADABLE"]


def test_a_budget_is_told_at_its_share_and_a_ledger_that_went_back(agent: Agent) -> None:
    """By the node's own ledger."""
    filter_ = make_filter("gdp", 0, 10.0, 1.0e-5)
    wanted = order()
    agent.state.reserve(wanted, filter_)
    agent.state.open(wanted.attempt_id, 1.0, 1.0)
    agent.state.lose(wanted.attempt_id)
    share = filter_.cost_units(wanted.release) / filter_.limit_units
    above, below = (
        AlertsConfig(disk_free_bytes_min=0, budget_share=share * factor) for factor in (1.01, 0.99)
    )
    assert agent.events(above) == []
    (told,) = agent.found(below)
    assert (told.event, told.subject) == ("BUDGET", f"{NODE}/patients")
    assert f"{share:.0%} of what the limit allows is used: booked epsilon" in told.text
    assert told.text.endswith(
        " of limit 10 at delta 1e-05; the guarantee is 10, its highest limit ever"
    )
    agent.state.lower("patients", 0.1, {})
    (told,) = agent.found()
    assert told.text.startswith("the limit is below what was booked, and nothing more is admitted")
    assert told.text.endswith(
        "of limit 0.1 at delta 1e-05; the guarantee is 10, its highest limit ever"
    )
    agent.state.notes.keep(ROLLED_BACK_NOTE, "it lacks attempt a2")
    assert agent.events(above) == ["LEDGER_ROLLED_BACK", "BUDGET"]


def test_a_project_whose_first_job_waits_is_told_until_somebody_has_looked(agent: Agent) -> None:
    """Once a project, however many jobs it sends."""
    for job in ("job-1", "job-2"):
        agent.state.approvals.ask(job, "genomics", time.time())
    (told,) = agent.found()
    assert (told.event, told.subject) == ("APPROVAL_WAITING", "genomics")
    agent.state.approvals.approve("job-1", time.time())
    assert agent.found() == []


# The sinks


def tell(config: AlertsConfig, began: list[Alert], ended: list[Alert]) -> None:
    """What a look does."""

    async def work() -> None:
        for sink in sinks(config):
            await sink.tell(NODE, began, ended, began)

    asyncio.run(work())


@pytest.mark.parametrize("kind", ["unix", "udp"])
def test_syslog_gets_a_line_for_each(tmp_path: Path, kind: str) -> None:
    """With the priority that a filter looks for, and what to do."""
    if kind == "unix":
        server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = f"{tmp_path}/log"
        server.bind(address)
    else:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    server.settimeout(10)
    with server:
        tell(AlertsConfig.model_validate({"syslog": {"address": address}}), [ONE], [ONE])
        first, second = server.recv(4096).decode(), server.recv(4096).decode()
    assert first.startswith("<27>feddp-agent: alpha DISK_LOW: 0.50 GiB")  # daemon.err
    assert first.endswith("are free on the disk. What to do: free room there.")
    assert second.startswith("<30>feddp-agent: alpha over: DISK_LOW")  # daemon.info


def test_a_question_stays_one_before_what_to_do(tmp_path: Path) -> None:
    """In the line of a collector, and in the digest."""
    asked = Alert("POLICY_UNREADABLE", "", "key alow: did you mean allow?", "mend the file")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.settimeout(10)
    with server:
        server.bind(f"{tmp_path}/log")
        config = AlertsConfig.model_validate({"syslog": {"address": f"{tmp_path}/log"}})
        tell(config, [asked], [])
        assert server.recv(4096).endswith(b"mean allow? What to do: mend the file.")


def test_the_file_is_whole_json_that_another_user_may_read(tmp_path: Path) -> None:
    """With the moment of the look, by which Zabbix sees that the agent runs."""
    path = tmp_path / "feddp.json"
    old = os.umask(0o077)
    try:
        tell(AlertsConfig.model_validate({"file": {"path": str(path)}}), [ONE], [])
    finally:
        os.umask(old)
    found = json.loads(path.read_text())
    assert (found["node"], found["count"], found["alerts"][0]["event"]) == (NODE, 1, "DISK_LOW")
    assert found["at_s"] > 1.7e9
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


class MailServer:
    """Speaks as much SMTP as a message needs, and keeps it."""

    def __init__(self, refuses: bool = False) -> None:
        self.said: list[str] = []
        self.refuses = refuses

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        writer.write(b"220 mail.hospital.example\r\n")
        in_data = False
        while data := await reader.readline():
            line = data.decode().rstrip("\r\n")
            self.said.append(line)
            verb = line.upper()
            if in_data:
                in_data = line != "."
                answer = "" if in_data else "250 kept"
            elif verb == "DATA":
                in_data, answer = True, "354 go on"
            elif verb.startswith("RCPT") and self.refuses:
                answer = "550 no such person"
            else:
                answer = "221 bye" if verb == "QUIT" else "250 ok"
            if answer:
                writer.write(f"{answer}\r\n".encode())
                await writer.drain()
            if verb == "QUIT":
                break
        writer.close()


def mailed(server: MailServer, work: Callable[[AlertsConfig], Any]) -> None:
    """Do something with a configuration that names the server."""

    async def both() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        mail = {
            "server": f"127.0.0.1:{port}",
            "sender": "feddp@hospital.example",
            "to": ["it@hospital.example"],
            "tls": "none",
        }
        try:
            await work(AlertsConfig.model_validate({"mail": mail, "disk_free_bytes_min": 0}))
        finally:
            listening.close()

    asyncio.run(both())


def test_mail_goes_through_a_real_server() -> None:
    """By a process of its own."""
    server = MailServer()

    async def work(config: AlertsConfig) -> None:
        for sink in sinks(config):
            await sink.tell(NODE, [ONE], [], [ONE])
            await sink.digest(NODE, "Nothing was released.")

    mailed(server, work)
    text = "\n".join(server.said)
    assert "Subject: feddp node alpha: DISK_LOW" in text
    assert "What to do: free room there" in text
    assert "Subject: feddp node alpha: digest for the data steward" in text


def test_mail_that_is_refused_is_an_error_of_its_sink() -> None:
    """And tells the code, not the conversation."""

    async def work(config: AlertsConfig) -> None:
        for sink in sinks(config):
            with pytest.raises(OSError, match="SMTPRecipientsRefused"):
                await sink.tell(NODE, [ONE], [], [ONE])

    mailed(MailServer(refuses=True), work)


def test_a_password_does_not_belong_in_agent_yaml() -> None:
    """A key that does not exist is refused."""
    with pytest.raises(ValueError, match="password"):
        AlertsConfig.model_validate(
            {"mail": {"server": "m:25", "sender": "a@b", "to": ["c@d"], "password": "x"}}
        )


# The watch


def test_a_sink_that_takes_nothing_is_logged_with_what_to_do(agent: Agent, tmp_path: Path) -> None:
    """And with the path that stands in agent.yaml, not the name of a file beside it."""
    path = tmp_path / "nowhere" / "a.json"
    config = AlertsConfig.model_validate(
        {"file": {"path": str(path)}, "syslog": {"address": f"{tmp_path}/log"}, **NO_DISK}
    )

    async def work() -> None:
        ledger = LedgerThread()
        watch = AlertWatch(
            agent.folder,
            agent.identity,
            config,
            agent.state,
            ledger,
            agent.steward,
            lambda: {"heart": "column age is missing"},
        )
        await watch.look()
        ledger.close()

    with capture_logs() as logs:
        asyncio.run(work())
    said = {one["sink"]: one for one in logs if one["event"] == "alert_not_told"}
    assert said["file"]["detail"].endswith(f"'{path}'")
    assert "alerts.file.path" in said["file"]["do"]
    assert "alerts.syslog.address" in said["syslog"]["do"]


def test_the_watch_tells_once_and_again_when_it_is_over(agent: Agent, tmp_path: Path) -> None:
    """And what could not be told is told at the next look; the digest comes when it is due."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.setblocking(False)
    address, status = f"{tmp_path}/log", tmp_path / "feddp.json"
    config = AlertsConfig.model_validate(
        {
            "syslog": {"address": address},
            "file": {"path": str(status)},
            "disk_free_bytes_min": 0,
        }
    )
    faults: dict[str, str] = {}

    def lines() -> list[str]:
        found = []
        while True:
            try:
                found.append(server.recv(8192).decode())
            except BlockingIOError:
                return found

    async def work() -> None:
        ledger = LedgerThread()
        watch = AlertWatch(
            agent.folder,
            agent.identity,
            config,
            agent.state,
            ledger,
            agent.steward,
            lambda: faults,
        )
        faults["heart"] = "column age is missing"
        await watch.look()  # nobody listens yet
        assert json.loads(status.read_text())["count"] == 1
        server.bind(address)
        await watch.look()
        await watch.look()
        assert [one.partition(": ")[2][:26] for one in lines()] == ["alpha DATA_SET_UNAVAILABLE"]
        faults.clear()
        await watch.look()
        assert ["over: DATA_SET_UNAVAILABLE" in one for one in lines()] == [True]
        assert json.loads(status.read_text())["count"] == 0
        due = float(agent.state.notes.read(DIGEST_NOTE)) - 8 * DAY_S
        agent.state.notes.keep(DIGEST_NOTE, f"{due:.3f}")
        await watch.look()
        assert any("digest: Nothing was released." in one for one in lines())
        assert "Nothing was released." in (tmp_path / "feddp.digest.txt").read_text()
        await watch.look()
        assert lines() == []
        ledger.close()

    with server:
        asyncio.run(work())


def test_the_watch_loads_no_mail_and_no_second_tls_library() -> None:
    """An idle agent stays small."""
    import subprocess

    code = (
        "from feddp.process import become_long_lived\nbecome_long_lived()\n"
        "import sys, node_agent.alert_watch\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"smtplib", "ssl", "_ssl"} & set(done.stdout.split())
