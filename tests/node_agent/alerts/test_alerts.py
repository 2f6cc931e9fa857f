"""What a hospital is told, and that each of the three ways tells it."""

import asyncio
import json
import os
import re
import socket
import sqlite3
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from certs.authority import Authority
from node_agent.alerts.conditions import conditions, note_connection
from node_agent.alerts.settings import Alert, AlertsConfig
from node_agent.alerts.sinks import sinks
from node_agent.alerts.watch import DAY_S, DIGEST_AGAIN_S, DIGEST_NOTE, AlertWatch, digest_note
from node_agent.background import AGAIN_S, keep_up
from node_agent.doctor.alerts import check_alerts
from node_agent.folder.config import Folder
from node_agent.joining.identity import Identity, load_identity
from node_agent.policy.steward import Steward
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state.notes import CONNECTED_NOTE, ROLLED_BACK_NOTE
from node_agent.state.state import State
from privacy.filters import make_filter
from tests.node_agent.agent_federation import (
    TRUST_DOMAIN,
    WAIT_S,
    FakeCoordinator,
    FakeWorker,
    RunningAgent,
    make_agent,
)
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


def test_the_digest_is_not_for_every_account_of_the_machine(tmp_path: Path) -> None:
    """It tells which attempts failed after data was opened; the alerts beside it may be read."""
    config = AlertsConfig.model_validate({"file": {"path": f"{tmp_path}/feddp.json"}})
    asyncio.run(sinks(config)[0].digest(NODE, "Nothing was released."))
    assert stat.S_IMODE((tmp_path / "feddp.digest.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("server", "result"),
    [("localhost", "ok"), ("127.0.0.1", "ok"), ("[::1]", "ok"), ("mail.example", "warning")],
)
def test_a_password_that_goes_over_the_network_in_clear_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, result: str
) -> None:
    """`tls: none` is for a relay on this machine."""
    (tmp_path / "mail").write_text("pa55word")
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: socket.socket())
    mail = {"server": f"{server}:25", "sender": "a@b", "to": ["c@d"], "tls": "none"}
    login = {"user": "feddp", "password_file": f"{tmp_path}/mail"}
    for keys, wanted in ((mail, "ok"), ({**mail, **login}, result)):
        check = check_alerts(AlertsConfig.model_validate({"mail": keys}))
        assert check.result == wanted, check


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

    def __init__(self, refuses: str = "", login: bool = False) -> None:
        self.said: list[str] = []
        self.refuses, self.login = refuses, login

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
            elif verb.startswith("EHLO") and self.login:
                answer = "250-here\r\n250 AUTH PLAIN"
            elif verb.startswith("AUTH"):
                answer = "535 wrong, pa55word"
            elif verb.startswith("RCPT") and self.refuses and self.refuses in line:
                answer = "550 no such person"
            else:
                answer = "221 bye" if verb == "QUIT" else "250 ok"
            if answer:
                writer.write(f"{answer}\r\n".encode())
                await writer.drain()
            if verb == "QUIT":
                break
        writer.close()


def mailed(server: MailServer, work: Callable[[AlertsConfig], Any], **keys: Any) -> None:
    """Do something with a configuration that names the server."""

    async def both() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        mail = {
            "server": f"127.0.0.1:{port}",
            "sender": "feddp@hospital.example",
            "to": ["it@hospital.example"],
            "tls": "none",
            **keys,
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
            with pytest.raises(OSError, match=r"refuses every recipient: it@\S+ \(550\)$"):
                await sink.tell(NODE, [ONE], [], [ONE])

    mailed(MailServer(refuses="it@"), work)


def test_recipients_that_are_refused_while_others_are_not_are_logged() -> None:
    """The steward who has left, or a typo: the mail goes to the rest."""
    both = ["it@hospital.example", "gone@hospital.example"]

    async def work(config: AlertsConfig) -> None:
        for sink in sinks(config):
            await sink.tell(NODE, [ONE], [], [ONE])

    server = MailServer(refuses="gone@")
    with capture_logs() as logs:
        mailed(server, work, to=both)
    assert "Subject: feddp node alpha: DISK_LOW" in server.said
    (said,) = (one for one in logs if one["event"] == "alert_mail_refused")
    assert said["recipients"] == ["gone@hospital.example"]
    assert "alerts.mail.to" in said["do"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("pässwörd\n".encode(), "{file} holds other than ASCII"),
        ("pässwörd\n".encode("latin-1"), "{file} is not UTF-8"),
        (b"pa55word\n# of feddp\n", "{file} holds more than one line"),
        (b"\n", "{file} is empty"),
        (None, "{file} cannot be read here: No such file or directory"),
        (b"pa55word\r\n", "refuses user or password (535)"),
        ("\ufeffpa55word".encode(), "refuses user or password (535)"),
    ],
)
def test_a_password_that_is_of_no_use_is_told_in_a_sentence_without_any_of_it(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    """Whatever the library would say; doctor says the same of the file, but for what the server
    thinks of it."""
    file = tmp_path / "mail"
    if content is not None:
        file.write_bytes(content)
    wanted = sentence.format(file=file)

    async def work(config: AlertsConfig) -> None:
        for sink in sinks(config):
            with pytest.raises(OSError, match=re.escape(wanted)) as caught:
                await sink.tell(NODE, [ONE], [], [ONE])
            for secret in ("wörd", "pa55", "xf6", "xe4", "position", "Error"):
                assert secret not in str(caught.value)
        found = await asyncio.to_thread(check_alerts, config)
        assert (wanted in found.found) is ("535" not in wanted)

    mailed(MailServer(login=True), work, user="feddp", password_file=str(file))


def test_a_user_without_a_password_and_a_server_that_offers_none_are_told(tmp_path: Path) -> None:
    """Each before the conversation goes on; a password that nobody logs in with, beforehand."""

    def said(**keys: Any) -> tuple[str, str]:
        texts = []

        async def work(config: AlertsConfig) -> None:
            for sink in sinks(config):
                with pytest.raises(OSError, match=r"user|mail") as caught:
                    await sink.tell(NODE, [ONE], [], [ONE])
                texts.append(str(caught.value))
            texts.append((await asyncio.to_thread(check_alerts, config)).found)

        mailed(MailServer(), work, **keys)
        return texts[0], texts[1]

    for text in said(user="feddp"):
        assert "neither `password_file` nor the variable FEDDP_MAIL_PASSWORD" in text
    (tmp_path / "mail").write_text("pa55word")
    assert "takes no login" in said(user="feddp", password_file=f"{tmp_path}/mail")[0]
    assert "offers no STARTTLS" in said(tls="starttls")[0]
    lone = {"server": "m.example:25", "sender": "a@b", "to": ["c@d"], "password_file": "/x"}
    found = check_alerts(AlertsConfig.model_validate({"mail": lone}))
    assert "`password_file` is given and no `user`" in found.found


@pytest.mark.parametrize("port", ["0", "00000", "65536", "99999", "100000"])
def test_a_port_that_there_is_none_of_is_refused_when_the_file_is_read(port: str) -> None:
    """Of a collector, and of a mail server."""
    mail = {"sender": "a@b", "to": ["c@d"]}
    for key in (
        {"syslog": {"address": f"127.0.0.1:{port}"}},
        {"mail": {"server": f"127.0.0.1:{port}", **mail}},
    ):
        with pytest.raises(ValueError, match="port 1 to 65535"):
            AlertsConfig.model_validate(key)
    for right in ("1", "514", "9999", "10514", "65535"):
        AlertsConfig.model_validate({"syslog": {"address": f"127.0.0.1:{right}"}})


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    """What begins with a slash is one, whatever follows; doctor looks at it as one."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.settimeout(10)
    with server:
        for name in ("sys:log", "log:514"):
            config = AlertsConfig.model_validate({"syslog": {"address": f"{tmp_path}/{name}"}})
            assert "takes nothing" in check_alerts(config).found
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
                listening.bind(f"{tmp_path}/{name}")
                listening.settimeout(10)
                assert check_alerts(config).result == "ok"
                tell(config, [ONE], [])
                assert b"DISK_LOW" in listening.recv(4096)
    long = AlertsConfig.model_validate({"syslog": {"address": f"/{'x' * 200}"}})
    assert (check_alerts(long).result, "too long" in check_alerts(long).found) == ("failed", True)


def test_a_name_from_the_coordinator_makes_no_line_of_a_log(tmp_path: Path) -> None:
    """Nor steers a terminal."""
    forged = Alert("APPROVAL_WAITING", "x\n<27>feddp-agent: alpha \x1b[2J", "it waits", "look")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.settimeout(10)
    with server:
        server.bind(f"{tmp_path}/log")
        config = AlertsConfig.model_validate({"syslog": {"address": f"{tmp_path}/log"}})
        tell(config, [forged], [])
        assert not {10, 27} & set(server.recv(4096))


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
        for name in ("syslog", "file"):
            due = float(agent.state.notes.read(digest_note(name))) - 8 * DAY_S
            agent.state.notes.keep(digest_note(name), f"{due:.3f}")
        await watch.look()
        assert any("digest: Nothing was released." in one for one in lines())
        assert "Nothing was released." in (tmp_path / "feddp.digest.txt").read_text()
        await watch.look()
        assert lines() == []
        ledger.close()

    with server:
        asyncio.run(work())


class Told:
    """A sink of a test's."""

    remedy = "mend the test"

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.digests: list[str] = []
        self.fault: Exception | None = None

    async def tell(
        self, node: str, began: Sequence[Alert], ended: Sequence[Alert], now: Sequence[Alert]
    ) -> None:
        """Keep it, or fail."""
        if self.fault is not None:
            raise self.fault
        self.lines += [one.event for one in began] + [f"over {one.event}" for one in ended]

    async def digest(self, node: str, text: str) -> None:
        """The same."""
        if self.fault is not None:
            raise self.fault
        self.digests.append(text)


class Other(Told):
    """Beside it."""


class Watched:
    """A watch with two sinks of the test's, at a moment that the test chooses."""

    def __init__(self, agent: Agent, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> None:
        self.agent, self.now_s = agent, 1_000_000.0
        self.config = AlertsConfig.model_validate({**NO_DISK, "digest_days": 7.0, **keys})
        self.told, self.other = Told(), Other()
        monkeypatch.setattr("node_agent.alerts.watch.sinks", lambda _: [self.told, self.other])
        self.faults: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        """An agent that has just started."""
        self.watch = AlertWatch(
            *(self.agent.folder, self.agent.identity, self.config, self.agent.state),
            *(Inline(), self.agent.steward, lambda: self.faults),
            clock=lambda: self.now_s,
        )

    def look(self, later_s: float = 60.0) -> list[Any]:
        """What is logged at a look."""
        self.now_s += later_s
        with capture_logs() as logs:
            asyncio.run(self.watch.look())
        return [(one["event"], one.get("sink"), one.get("detail")) for one in logs]


class Inline:
    """The ledger's thread, which is this one."""

    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """At once."""
        return work(*args)


@pytest.fixture
def watched(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Before its first look."""
    return Watched(agent, monkeypatch)


@pytest.mark.parametrize("fault", [OverflowError("port"), ValueError("secret"), OSError("gone")])
def test_a_sink_that_fails_in_whatever_way_keeps_no_other_from_being_told(
    watched: Watched, fault: Exception
) -> None:
    """It is logged once while it lasts, without what a library says; then it is told all of it."""
    watched.faults["heart"] = "column age is missing"
    watched.told.fault = fault
    detail = "gone" if isinstance(fault, OSError) else type(fault).__name__
    assert watched.look() == [("alert_not_told", "told", detail)]
    assert watched.look() == []
    assert watched.other.lines == ["DATA_SET_UNAVAILABLE"]
    watched.told.fault = None
    assert watched.look() == [("alerts_told_again", "told", None)]
    assert watched.told.lines == ["DATA_SET_UNAVAILABLE"]


def test_what_was_told_before_a_restart_is_not_told_again_but_when_it_is_over(
    watched: Watched,
) -> None:
    """An agent that starts again and again sends no mail each time; what ended meanwhile is told
    as over. Another address is told everything."""
    watched.faults["heart"] = "column age is missing"
    watched.look()
    for _ in range(3):
        watched.start()
        watched.look()
    assert watched.told.lines == ["DATA_SET_UNAVAILABLE"]
    watched.faults.clear()
    watched.start()
    watched.look()
    assert watched.told.lines == ["DATA_SET_UNAVAILABLE", "over DATA_SET_UNAVAILABLE"]


def test_what_needs_something_else_done_now_is_told_again(watched: Watched) -> None:
    """A file that was broken, where the rules of before hold, and is gone now, where nothing is
    allowed."""
    policy = watched.agent.folder.policy_yaml
    kept = policy.read_text()
    watched.look()
    policy.write_text("accounts: 7\n")
    watched.look()
    watched.look()
    assert watched.told.lines == ["POLICY_UNREADABLE"]
    policy.unlink()
    watched.look()
    watched.look()
    assert watched.told.lines == ["POLICY_UNREADABLE"] * 2
    policy.write_text(kept)
    watched.look()
    assert watched.told.lines == ["POLICY_UNREADABLE"] * 2 + ["over POLICY_UNREADABLE"]


def test_another_address_is_told_everything(agent: Agent, tmp_path: Path) -> None:
    """It has heard of nothing; the old one's silence is not its own."""
    agent.steward.rules().data_sets[0].source.unlink()
    for name in ("one", "two"):
        config = {**NO_DISK, "syslog": {"address": f"{tmp_path}/{name}"}}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.bind(f"{tmp_path}/{name}")
            listening.setblocking(False)
            for told in (True, False):
                watch = AlertWatch(
                    *(agent.folder, agent.identity, AlertsConfig.model_validate(config)),
                    *(agent.state, Inline(), agent.steward, lambda: {"heart": "it is gone"}),
                )
                asyncio.run(watch.look())
                if told:
                    assert b"DATA_SET_UNAVAILABLE" in listening.recv(4096)
                else:
                    with pytest.raises(BlockingIOError):
                        listening.recv(4096)


def test_a_digest_that_was_not_taken_is_sent_later_with_its_whole_time(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the one that missed it alone; its next one begins where that ended."""
    since: list[float] = []

    def text(*args: Any) -> str:
        since.append(args[5])
        return f"since {args[5]:.0f}"

    monkeypatch.setattr("node_agent.alerts.watch.digest_text", text)
    watched.look(0.0)
    start = f"since {watched.now_s:.0f}"
    watched.told.fault = OSError("it is away")
    assert watched.look(7 * DAY_S) == [("digest_not_sent", "told", "it is away")]
    sent = f"since {watched.now_s:.0f}"
    watched.look(60.0)
    assert len(since) == 1, "it is made anew at each look"
    watched.look(DIGEST_AGAIN_S)
    watched.start()
    watched.told.fault = None
    watched.look(DAY_S)
    assert (watched.told.digests, watched.other.digests) == ([start], [start])
    watched.look(6 * DAY_S)
    assert watched.other.digests == [start, sent]
    watched.look(DAY_S)
    assert len(watched.told.digests) == 2


def test_a_clock_that_was_ahead_once_keeps_no_digest_back(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment is taken to be now; one that an older version kept for all is each one's."""
    monkeypatch.setattr("node_agent.alerts.watch.digest_text", lambda *_: "a week")
    watched.agent.state.notes.keep(DIGEST_NOTE, f"{watched.now_s + 700 * DAY_S:.3f}")
    watched.look(0.0)
    watched.look(6.9 * DAY_S)
    assert watched.told.digests == []
    watched.look(0.2 * DAY_S)
    assert (watched.told.digests, watched.other.digests) == (["a week"], ["a week"])
    watched.agent.state.notes.keep(digest_note("told"), "")
    watched.agent.state.notes.keep(DIGEST_NOTE, f"{watched.now_s - 7 * DAY_S:.3f}")
    watched.look(60.0)
    assert watched.told.digests == ["a week"] * 2
    assert watched.agent.state.notes.read(DIGEST_NOTE) == ""


def test_a_full_disk_is_told_although_nothing_can_be_kept(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all things this one must be."""

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("node_agent.alerts.watch.note_connection", full)
    watched.look(0.0)
    monkeypatch.setattr(AlertWatch, "_keep", full)
    watched.faults["heart"] = "column age is missing"
    watched.look()
    watched.look()
    assert watched.told.lines == watched.other.lines == ["DATA_SET_UNAVAILABLE"]


def test_work_beside_the_agent_that_fails_is_logged_and_begun_again() -> None:
    """With the places that it passed, and nothing of what the error says; what ends, has ended."""
    tries: list[int] = []
    paused: list[float] = []

    async def work() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("patient 7")

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    with capture_logs() as logs:
        asyncio.run(keep_up("alerts", work, pause))
    assert (len(tries), paused) == (3, [AGAIN_S, AGAIN_S])
    (first, _) = logs
    assert (first["event"], first["work"], first["error"]) == (
        *("work_beside_failed", "alerts", "RuntimeError"),
    )
    assert "test_alerts.py:" in first["places"]
    assert "begun anew" in first["do"]
    assert "patient" not in str(logs)


def test_an_agent_begins_each_of_its_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that are beside its session: none ends without a word."""
    works = {"memory": "keep_small", "logs": "keep_short"}
    wanted = {*works, "clock", "headers", "overlaps", "alerts"}
    tries: Counter[str] = Counter()
    again = asyncio.Event()

    def failing(name: str) -> Callable[..., Any]:
        async def work(*_: object) -> None:
            tries[name] += 1
            if {name for name, count in tries.items() if count > 1} >= wanted:
                again.set()
            raise RuntimeError

        return work

    for name, function in {**works, "clock": "watch_clock"}.items():
        monkeypatch.setattr(f"node_agent.agent.{function}", failing(name))
    monkeypatch.setattr("node_agent.data.header_watch.HeaderWatch.run", failing("headers"))
    monkeypatch.setattr("node_agent.data.overlap_watch.OverlapWatch.run", failing("overlaps"))
    monkeypatch.setattr("node_agent.alerts.watch.AlertWatch.look", failing("alerts"))
    monkeypatch.setattr("node_agent.background.AGAIN_S", 0.01)

    async def work() -> None:
        authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
        coordinator = FakeCoordinator(authority)
        await coordinator.start()
        folder = make_agent(tmp_path / "agent", authority, coordinator.port)
        config = yaml.safe_load(folder.agent_yaml.read_text())
        config["alerts"] = {"file": {"path": f"{tmp_path}/alerts.json"}}
        folder.agent_yaml.write_text(yaml.safe_dump(config))
        try:
            async with RunningAgent(folder, FakeWorker()), asyncio.timeout(WAIT_S):
                await again.wait()
        finally:
            await coordinator.stop()

    with capture_logs() as logs:
        asyncio.run(work())
    assert {one["work"] for one in logs if one["event"] == "work_beside_failed"} == wanted


def test_the_watch_loads_no_mail_and_no_second_tls_library() -> None:
    """An idle agent stays small."""
    import subprocess

    code = (
        "from feddp.process import become_long_lived\nbecome_long_lived()\n"
        "import sys, node_agent.alerts.watch\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"smtplib", "ssl", "_ssl"} & set(done.stdout.split())
