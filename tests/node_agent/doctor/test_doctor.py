"""`feddp agent doctor`: each fault is made for real, and named."""

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from certs.authority import NODE_LIFETIME, Authority
from certs.credentials import server_credentials
from certs.enrolment import load_ledger_key, new_key, private_pem
from certs.spiffe import SpiffeId
from certs.tokens import JoinToken, new_secret
from node_agent.connection.proxy import ProxyConfig, Route
from node_agent.doctor import coordinator as asking
from node_agent.doctor import files, machine, network
from node_agent.doctor.examine import examine, joined, joining
from node_agent.doctor.files import check_ledger, check_policy
from node_agent.doctor.firewall import request_for
from node_agent.doctor.probe import Probe, Stopped
from node_agent.doctor.report import Check, is_in_order
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.state.notes import ROLLED_BACK_NOTE
from node_agent.state.state import State
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.proxies import ConnectProxy, Middlebox, Mute, closed_port
from tests.node_agent.samples import NODE

SECRET = "clinic:s3cret-w0rd"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this machine; torch is not loaded anew for each test."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(machine, "check_training", lambda: Check("training", "ok", "-"))


class OldCoordinator:
    """A real mTLS port that serves nothing: what an older coordinator is to the newest test."""

    def __init__(
        self, authority: Authority, now: datetime, hosts: list[str], days: float = 7
    ) -> None:
        self.key = new_key()
        self.issued = authority.issue(
            self.key.public_key(),
            SpiffeId(TRUST_DOMAIN, "coordinator"),
            now=now,
            lifetime=timedelta(days=days),
            ip_addresses=[one for one in hosts if one[0].isdigit()],
            dns_names=[one for one in hosts if not one[0].isdigit()],
        )
        self._server = grpc.server(ThreadPoolExecutor(2))
        credentials = server_credentials(
            self.issued.chain_pem, private_pem(self.key), authority.trust_bundle
        )
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.stop(None).wait()


class Site:
    """An authority, a coordinator and an agent's folder; the clocks may be moved."""

    def __init__(self, path: Path, shift: timedelta, hosts: list[str]) -> None:
        self.path = path
        self.authority = Authority.create(path / "ca", TRUST_DOMAIN, datetime.now(UTC) + shift)
        self.coordinator = OldCoordinator(self.authority, datetime.now(UTC) + shift, hosts)
        self.folder = make_agent(path / "agent", self.authority, self.coordinator.port)

    def write(self, **settings: Any) -> None:
        """Change agent.yaml."""
        known = yaml.safe_load(self.folder.agent_yaml.read_text())
        self.folder.agent_yaml.write_text(yaml.safe_dump({**known, **settings}))

    def examined(self, **options: Any) -> dict[str, Check]:
        """Every check, by name."""
        found = list(examine(joined(self.folder.root), **{"hold_s": 0, **options}))
        assert len({one.name for one in found}) == len(found)
        return {one.name: one for one in found}

    def box(self, authority: Authority | None = None, **habits: Any) -> Middlebox:
        """A middlebox with a certificate of `authority`; the coordinator's own if None."""
        if authority is None:
            key, chain = self.coordinator.key, self.coordinator.issued.chain_pem
        else:
            key = new_key()
            issued = authority.issue(
                key.public_key(),
                SpiffeId(authority.trust_domain, "coordinator"),
                now=datetime.now(UTC),
                lifetime=NODE_LIFETIME,
                ip_addresses=["127.0.0.1"],
            )
            chain = issued.chain_pem
        (self.path / "box.pem").write_bytes(chain)
        (self.path / "box.key").write_bytes(private_pem(key))
        return Middlebox(self.path / "box.pem", self.path / "box.key", **habits)


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site; a test's parameter moves the coordinator's clock, or names other hosts."""
    asked = getattr(request, "param", None)
    shift = asked if isinstance(asked, timedelta) else timedelta(0)
    hosts = asked if isinstance(asked, list) else ["127.0.0.1"]
    made = Site(tmp_path, shift, hosts)
    yield made
    made.coordinator.stop()


def results(checks: dict[str, Check], *names: str) -> list[str]:
    """Results of some checks."""
    return [checks[name].result for name in names]


def test_a_healthy_site_is_in_order_with_an_older_coordinator(site: Site) -> None:
    """A coordinator that cannot be asked is still reached; what it would say is skipped."""
    (site.folder.root / "train.csv").write_text("patient_id,disease,age\np,1,40\n")
    checks = site.examined()
    assert is_in_order(checks.values()), checks
    assert results(checks, "name", "tcp", "tls", "http2", "coordinator") == ["ok"] * 5
    assert "too old" in checks["coordinator"].found
    assert results(checks, "proxy", "version", "latency", "stream") == ["skipped"] * 4
    assert (
        results(checks, "disk", "certificate", "ledger", "policy", "data set heart") == ["ok"] * 5
    )


def test_what_a_coordinator_says_at_once_is_heard_each_time(site: Site) -> None:
    """A refusal that comes while the first message is being written does not get lost."""
    way = Route(f"127.0.0.1:{site.coordinator.port}")
    identity = load_identity(site.folder.identity)

    async def asked(times: int) -> set[str]:
        found = [await asking.check_coordinator(way, identity) for _ in range(times)]
        return {checks[0].found for checks, _ in found}

    assert asyncio.run(asked(150)) == {"it answers, and is too old for the tests that follow"}


def test_the_document_lists_every_check(site: Site) -> None:
    """And none that is not made; its proxy settings are such."""
    write_records(site.folder, "patient_id,disease,age\np,1,40\n")
    text = (Path(__file__).parents[3] / "docs/hospital-it.md").read_text()
    table = text.partition("| Check |")[2].partition("\n\n")[0]
    listed = {
        name for line in table.splitlines() for name in re.findall("`([^`]+)`", line.split("|")[1])
    }
    made = {re.sub(r"heart$", "NAME", name) for name in site.examined()}
    site.write(launcher={"kind": "slurm"})
    (site.folder.identity / "ledger.key").unlink()
    shown_there = made | set(site.examined()) - {"data set heart", "records of heart"}
    # The data set here is a file; of a query see test_doctor_query.py.
    assert listed == shown_there | {"query of NAME"}
    assert listed - made == {"launcher", "keys", "query of NAME"}
    (shown,) = re.findall(r"^```yaml\nproxy:(.*?)^```", text, re.DOTALL | re.MULTILINE)
    config = ProxyConfig.model_validate(yaml.safe_load(f"proxy:{shown}")["proxy"])
    assert config.credentials_file


def test_every_check_that_failed_says_what_to_do(site: Site) -> None:
    """And whatever depends on it is skipped, while the rest is looked at."""
    with closed_port() as port:
        site.write(coordinator=f"127.0.0.1:{port}")
        checks = site.examined()
    assert checks["tcp"].result == "failed"
    assert "refuses" in checks["tcp"].found
    assert "--firewall-request" in checks["tcp"].do
    later = ("proxy", "tls", "http2", "coordinator", "clock", "version", "bandwidth")
    assert set(results(checks, *later)) == {"skipped"}
    assert results(checks, "disk", "certificate", "ledger", "policy") == ["ok"] * 4
    assert all(one.do for one in checks.values() if one.result in ("failed", "warning"))


def test_a_name_that_nobody_knows_is_named(site: Site) -> None:
    """Before TCP is tried."""
    site.write(coordinator="no-such-host.invalid:443")
    checks = site.examined()
    assert (checks["name"].result, checks["tcp"].result) == ("failed", "skipped")
    assert "no-such-host.invalid" in checks["name"].found


# Proxy


def through(site: Site, proxy: ConnectProxy, credentials: str = "") -> dict[str, Check]:
    """What is found through a proxy."""
    settings = {"url": proxy.url()}
    if credentials:
        login = site.path / "login"
        login.write_text(credentials)
        login.chmod(0o600)
        settings["credentials_file"] = str(login)
    site.write(proxy=settings)
    return site.examined()


def test_a_proxy_that_lets_it_through_is_said(site: Site) -> None:
    """TLS and HTTP/2 inside it are checked, through it."""
    with ConnectProxy(SECRET) as proxy:
        checks = through(site, proxy, SECRET)
    assert results(checks, "tcp", "proxy", "tls", "http2", "coordinator") == ["ok"] * 5
    assert "with credentials" in checks["proxy"].found
    assert SECRET.partition(":")[2] not in repr(checks)


@pytest.mark.parametrize(
    ("credentials", "found"),
    [
        ("", "wants credentials, and there are none"),
        ("clinic:wrong", "does not take the credentials"),
    ],
)
def test_a_407_says_whether_credentials_were_shown(
    site: Site, credentials: str, found: str
) -> None:
    """The remedy is another; what was shown is not told."""
    with ConnectProxy(SECRET) as proxy:
        checks = through(site, proxy, credentials)
    assert checks["proxy"].result == "failed"
    assert "407" in checks["proxy"].found
    assert found in checks["proxy"].found
    assert "wrong" not in repr(checks["proxy"])
    assert results(checks, "tls", "coordinator") == ["skipped"] * 2


def test_credentials_that_a_proxy_does_not_take_are_told_by_their_file(site: Site) -> None:
    """And blanks that nobody sees in it; a byte order mark is none of them."""
    with ConnectProxy(SECRET) as proxy:
        seen = through(site, proxy, f"{SECRET} \n")["proxy"]
        marked = through(site, proxy, f"\ufeff{SECRET}\r\n")["proxy"]
    assert str(site.path / "login") in seen.found
    assert "blanks around user or password" in seen.do
    assert "percent-encoded" not in seen.do
    assert SECRET.partition(":")[2] not in repr(seen)
    assert marked.result == "ok"


def test_a_proxy_that_wants_more_than_basic_is_named(site: Site) -> None:
    """The agent knows Basic only."""
    status = "407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM"

    class Ntlm(ConnectProxy):
        def _answer(self, connection: socket.socket, status: str) -> None:
            connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())

    with Ntlm(status=status) as proxy:
        assert "NTLM" in through(site, proxy)["proxy"].found


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("403 Forbidden", "it refuses"),
        ("504 Gateway Timeout", "cannot reach"),
        ("511 Network Authentication Required", "a login page (captive portal) stands there"),
        ("302 Found\r\nLocation: http://login.example/", "and leads to http://login.example/"),
        ("200 OK\r\nContent-Type: text/html; charset=utf-8", "a login page (captive portal)"),
        ("200 OK\r\nContent-Length: 12", "a login page (captive portal)"),
    ],
)
def test_a_refusing_proxy_is_told_from_one_that_cannot_go_on(
    site: Site, status: str, found: str
) -> None:
    """Others have to be asked."""
    with ConnectProxy(status=status) as proxy:
        check = through(site, proxy)["proxy"]
    assert (check.result, found in check.found) == ("failed", True)
    assert f"127.0.0.1:{site.coordinator.port}" in check.found


def test_a_wrong_host_for_the_proxy_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that speaks TLS, one that says nothing, one that is closed, a name that is none."""
    monkeypatch.setattr(network, "ANSWER_S_MAX", 0.3)
    with Mute() as mute, closed_port() as closed:
        for port in (site.coordinator.port, mute.port):
            site.write(proxy={"url": f"http://127.0.0.1:{port}"})
            check = site.examined()["proxy"]
            assert (check.result, "does not answer CONNECT" in check.found) == ("failed", True)
        site.write(proxy={"url": f"http://127.0.0.1:{closed}"})
        check = site.examined()["tcp"]
        assert (check.result, "proxy's host and port" in check.do) == ("failed", True)
    site.write(proxy={"url": "http://no-such-proxy.invalid:3128"})
    check = site.examined()["name"]
    assert (check.result, "the proxy's name" in check.found) == ("failed", True)


def test_a_proxy_of_the_shell_is_used_and_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service has an environment of its own."""
    with ConnectProxy() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url())
        check = site.examined()["proxy"]
    assert (check.result, "https_proxy" in check.found) == ("ok", True)
    assert "agent.yaml" in check.do


def test_a_clock_is_compared_with_the_proxys_where_there_is_no_other(site: Site) -> None:
    """Its Date header is there even when it refuses."""
    date = (datetime.now(UTC) + timedelta(days=2)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    with ConnectProxy(status="403 Forbidden", headers=f"Date: {date}\r\n") as proxy:
        check = through(site, proxy)["clock"]
    assert check.result == "failed"
    assert "2 days behind the proxy's" in check.found


# TLS


def test_a_tls_inspection_is_named_by_its_certificate(site: Site) -> None:
    """Issuer and fingerprint of what came instead, so that its owner can be found."""
    other = Authority.create(site.path / "inspection", "inspection.example")
    with site.box(other) as box:
        shown = ssl.PEM_cert_to_DER_cert(
            (site.path / "box.pem").read_text().split("-----END")[0] + "-----END CERTIFICATE-----\n"
        )
        site.write(coordinator=f"127.0.0.1:{box.port}")
        checks = site.examined()
    check = checks["tls"]
    assert check.result == "failed"
    assert "CN=feddp issuing inspection.example" in check.found
    import hashlib

    digest = hashlib.sha256(shown).hexdigest().upper()
    assert ":".join(digest[i : i + 2] for i in range(0, 64, 2)) in check.found
    assert f"exempt 127.0.0.1:{box.port}" in check.do
    assert checks["http2"].result == "ok"
    assert checks["coordinator"].result == "skipped"


@pytest.mark.parametrize("own", [True, False])
def test_a_middlebox_that_strips_alpn_is_named(site: Site, own: bool) -> None:
    """With the coordinator's certificate (a gateway) and with its own (an inspection)."""
    other = None if own else Authority.create(site.path / "inspection", "inspection.example")
    with site.box(other, alpn=()) as box:
        site.write(coordinator=f"127.0.0.1:{box.port}")
        checks = site.examined()
    assert (checks["http2"].result, checks["tls"].result) == ("failed", "ok" if own else "failed")
    assert "ALPN was stripped" in checks["http2"].found
    assert ("gateway" if own else "opens TLS") in checks["http2"].found
    assert checks["coordinator"].result == "skipped"


def test_a_box_that_holds_tls_down_is_named(site: Site) -> None:
    """The coordinator takes TLS 1.3 only."""
    with site.box(version=ssl.TLSVersion.TLSv1_2) as box:
        site.write(coordinator=f"127.0.0.1:{box.port}")
        check = site.examined()["tls"]
    assert (check.result, "TLSv1.2" in check.found) == ("failed", True)


@pytest.mark.parametrize("site", [["other.example"]], indirect=True)
def test_a_certificate_for_other_names_is_told_from_an_inspection(site: Site) -> None:
    """It is the coordinator's; the address in agent.yaml is not one of its names."""
    check = site.examined()["tls"]
    assert (check.result, "other.example, not for 127.0.0.1" in check.found) == ("failed", True)


def test_a_port_that_speaks_no_tls_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A web server, or a firewall that swallows what it does not know."""
    monkeypatch.setattr(network, "ANSWER_S_MAX", 0.3)
    with ConnectProxy() as web, Mute() as mute:
        for port in (web.port, mute.port):
            site.write(coordinator=f"127.0.0.1:{port}")
            assert site.examined()["tls"].result == "failed"


@pytest.mark.parametrize(
    ("site", "found"),
    [
        (timedelta(days=2), "2 days before the coordinator's certificate begins"),
        (timedelta(days=-9), "2 days after the coordinator's certificate ended"),
    ],
    indirect=["site"],
)
def test_a_clock_two_days_off_is_named_by_the_certificate(site: Site, found: str) -> None:
    """gRPC would say that the handshake failed; whose certificate it is holds whatever the time."""
    checks = site.examined()
    assert checks["tls"].result == "ok"
    assert checks["clock"].result == "failed"
    assert found in checks["clock"].found
    assert "chrony" in checks["clock"].do
    assert checks["coordinator"].result == "skipped"


@pytest.mark.parametrize(
    ("ahead_s", "result", "found"),
    [
        (30.0, "ok", "agrees"),
        (-30.0, "ok", "agrees"),
        (600.0, "warning", "10 minutes behind"),
        (-172_800.0, "failed", "2 days ahead of"),
        (172_800.0, "failed", "2 days behind"),
    ],
)
def test_a_clock_is_judged_by_another(ahead_s: float, result: str, found: str) -> None:
    """An hour is what certificates are dated back by."""
    check = asking.clock_check(ahead_s, "the coordinator's")
    assert (check.result, found in check.found) == (result, True)


# The machine and the folder


def test_what_keeps_a_sound_node_from_work_is_named(site: Site) -> None:
    """A ledger that went back, a withdrawn data set, hours that are over."""
    key = load_ledger_key(site.folder.identity / "ledger.key")
    with contextlib.closing(State(site.folder.state_db, NODE, key)) as state:
        state.notes.keep(ROLLED_BACK_NOTE, "entry 3 is missing")
    check = check_ledger(site.folder)
    assert (check.result, "LEDGER_ROLLED_BACK: entry 3" in check.found) == ("failed", True)
    identity = load_identity(site.folder.identity)
    rules = yaml.safe_load(site.folder.policy_yaml.read_text())
    ahead = datetime.now() + timedelta(hours=12)
    hours = f"{ahead:%H:%M}-{ahead + timedelta(minutes=30):%H:%M}"
    for keys, said in [({"withdrawn": ["heart"]}, "withdrawn heart"), ({"hours": [hours]}, hours)]:
        changed = {**rules, **(keys if "withdrawn" in keys else {"work": keys})}
        site.folder.policy_yaml.write_text(yaml.safe_dump(changed))
        check, _ = check_policy(site.folder, identity)
        assert (check.result, said in check.found) == ("warning", True)


def test_the_account_is_the_ledgers_owner_and_not_the_folders(site: Site) -> None:
    """After install-service the folder is root's and the ledger the agent's."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(site.folder.state_db, 65534, -1)
    check = machine.check_account(site.folder)
    assert (check.result, "sudo -u nobody" in check.do) == ("warning", True)


def test_a_stream_that_the_other_side_cancels_is_a_stopped_one() -> None:
    """gRPC raises CancelledError for it; a time-out of one's own still ends the task."""

    class Call:
        async def read(self) -> object:
            raise asyncio.CancelledError

    async def scenario() -> None:
        probe = object.__new__(Probe)
        probe._call = Call()
        with pytest.raises(Stopped):
            await probe.hear()

    asyncio.run(scenario())


def test_a_full_disk_is_named(site: Site) -> None:
    """A real file system of 1 MiB, in a mount namespace of its own."""
    full = site.path / "full"
    full.mkdir()
    code = (
        "import sys; from pathlib import Path\n"
        "from node_agent.folder.config import Folder\n"
        "from node_agent.doctor.machine import check_disk\n"
        "print(check_disk(Folder(Path(sys.argv[1]))))"
    )
    script = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"'
    ran = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", str(full), sys.executable, code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "result='failed'" in ran.stdout
    assert "No space left on device" in ran.stdout
    assert machine.check_disk(site.folder).result in ("ok", "warning")
    assert not list(site.folder.root.glob("**/.doctor*"))


def test_places_that_alerts_cannot_reach_are_named_beforehand(site: Site) -> None:
    """Each by its own; a typo shows before the first alert is lost. Nothing is sent."""
    assert site.examined()["alerts"].result == "skipped"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    mail = {"sender": "a@b.example", "to": ["c@d.example"]}
    with listening, socket.create_server(("127.0.0.1", 0)) as server, closed_port() as closed:
        listening.bind(f"{site.path}/log")
        here = f"127.0.0.1:{server.getsockname()[1]}"
        good = {
            "syslog": {"address": f"{site.path}/log"},
            "mail": {"server": here, **mail},
            "file": {"path": f"{site.path}/alerts.json"},
        }
        site.write(alerts=good)
        assert site.examined()["alerts"].result == "ok", site.examined()["alerts"]
        wrong = {
            "syslog": {"address": f"{site.path}/lgo"},
            "mail": {
                "server": f"127.0.0.1:{closed}",
                "password_file": f"{site.path}/no",
                **mail,
            },
            "file": {"path": f"{site.path}/nowhere/alerts.json"},
        }
        site.write(alerts=wrong)
        check = site.examined()["alerts"]
    assert (check.result, "agent.yaml" in check.do) == ("failed", True)
    for text in (f"{site.path}/lgo", f"127.0.0.1:{closed} cannot", "/no cannot", "/nowhere is not"):
        assert text in check.found
    listening.close()
    assert not (site.path / "alerts.json").exists()


def test_a_token_alone_does_not_vouch_for_the_clock(site: Site) -> None:
    """The coordinator's certificate lives for days: to lie within it is not to be right."""
    address = f"127.0.0.1:{site.coordinator.port}"
    token = JoinToken(address, new_secret(), site.authority.root_der).encode()
    checks = {one.name: one for one in examine(joining(token, None), hold_s=0)}
    assert checks["tls"].result == "ok"
    assert checks["clock"].result == "skipped"
    assert "says no more" in checks["clock"].found


def test_before_joining_the_stream_is_skipped_for_that_alone(site: Site) -> None:
    """Nobody was asked, so that nothing is said of the coordinator."""
    address = f"127.0.0.1:{site.coordinator.port}"
    token = JoinToken(address, new_secret(), site.authority.root_der).encode()
    checks = {one.name: one for one in examine(joining(token, None), hold_s=1)}
    assert (checks["stream"].result, checks["stream"].found) == ("skipped", "not joined yet")


def test_too_little_memory_for_a_worker_is_named(site: Site) -> None:
    """The limit of agent.yaml counts as much as the machine's."""
    site.write(worker={"memory_bytes_max": 100 << 20})
    check = site.examined()["memory"]
    assert (check.result, "memory_bytes_max" in check.found) == ("failed", True)


def test_a_data_set_whose_file_vanished_is_named(site: Site) -> None:
    """Attempts on it are refused; a missing column likewise."""
    source = site.folder.root / "train.csv"
    source.unlink(missing_ok=True)
    check = site.examined()["data set heart"]
    assert (check.result, check.found.startswith("SOURCE_MISSING")) == ("failed", True)
    source.write_text("patient_id,disease\np,1\n")
    check = site.examined()["data set heart"]
    assert (check.result, "column 'age' is missing" in check.found) == ("failed", True)


def test_a_policy_that_does_not_hold_or_allows_nothing_is_named(site: Site) -> None:
    """The first stops everything, the second is a warning: it may be what the steward wants."""
    site.folder.policy_yaml.write_text("accounts: [\n")
    assert site.examined()["policy"].result == "failed"
    site.folder.policy_yaml.write_text("accounts: []\n")
    site.folder.datasets_yaml.write_text("data_sets: []\n")
    check = site.examined()["policy"]
    assert (check.result, "allows nothing" in check.found) == ("warning", True)


def test_a_missing_or_newer_ledger_is_named(site: Site) -> None:
    """The agent would not start."""
    site.folder.state_db.unlink()
    assert site.examined()["ledger"].result == "failed"
    assert not site.folder.state_db.exists()


def test_a_certificate_that_ended_says_how_to_join_again(tmp_path: Path) -> None:
    """And one whose renewal is due says so."""
    for age, result, found in (
        (timedelta(hours=169), "failed", "ended"),
        (timedelta(hours=150), "warning", "has been due"),
    ):
        made = Site(tmp_path / result, timedelta(0), ["127.0.0.1"])
        again = make_agent(tmp_path / f"{result}-old", made.authority, made.coordinator.port, age)
        made.folder = again
        check = made.examined()["certificate"]
        made.coordinator.stop()
        assert (check.result, found in check.found) == (result, True)


def test_a_certificate_that_can_be_replaced_says_that_the_agent_does_it(tmp_path: Path) -> None:
    """Where there is no enrolment port in agent.yaml, to join again. The coordinator has no fault:
    that it refuses such a certificate is no second finding."""
    site = Site(tmp_path, timedelta(0), ["127.0.0.1"])
    port = site.coordinator.port
    site.folder = make_agent(tmp_path / "old", site.authority, port, timedelta(hours=169))
    try:
        site.write(enrollment="127.0.0.1:18444")
        checks = site.examined(hold_s=1.0)
        assert checks["certificate"].result == "failed"
        assert results(checks, "coordinator", "version", "stream") == ["skipped"] * 3
        assert checks["clock"].result == "skipped"
        do = checks["certificate"].do
        assert do.startswith("see that this machine's clock is right, as nobody could be asked; ")
        assert "let the agent run, and reach 127.0.0.1:18444" in do
        site.write(enrollment="")
        assert "ask the operator for a token" in site.examined()["certificate"].do
    finally:
        site.coordinator.stop()


def test_an_older_coordinator_that_takes_an_ended_certificate_shows_the_clock(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells no time; that it lets the node in says that the certificate has not ended there."""
    ahead = datetime.now(UTC) + timedelta(days=8)
    site.coordinator.stop()
    site.coordinator = OldCoordinator(site.authority, datetime.now(UTC), ["127.0.0.1"], 90)
    site.write(coordinator=f"127.0.0.1:{site.coordinator.port}")
    monkeypatch.setattr(files, "now", lambda: ahead)
    checks = site.examined()
    assert checks["coordinator"].result == "ok"
    assert (checks["clock"].result, "the coordinator takes it" in checks["clock"].found) == (
        "failed",
        True,
    )
    assert "chrony" in checks["certificate"].do
    assert "let the agent run" not in checks["certificate"].do


def test_the_ledger_is_only_read(site: Site) -> None:
    """With the agent stopped nothing is left beside it; with the agent's writes open it is seen."""
    folder = site.folder
    before = sorted(path.name for path in folder.root.iterdir()), folder.state_db.read_bytes()
    site.examined()
    assert before == (
        sorted(path.name for path in folder.root.iterdir()),
        folder.state_db.read_bytes(),
    )
    state = State(folder.state_db, NODE, load_ledger_key(folder.identity / "ledger.key"))
    state.notes.keep("one", "two")
    try:
        assert site.examined()["ledger"].result == "ok"
    finally:
        state.close()


# Records


def write_records(folder: Folder, text: str) -> None:
    """The source of the one data set."""
    (folder.root / "train.csv").write_text(text)


ROWS = "".join(f"p{n},{n % 4 == 0:d},{40 + n if n % 10 else ''}\n" for n in range(200))


def test_missing_values_and_labels_are_counted_where_they_may_be_seen(site: Site) -> None:
    """At the hospital's terminal; without that they are not even read."""
    write_records(site.folder, f"patient_id,disease,age\n{ROWS}")
    shown = site.examined(rows=True)["records of heart"]
    assert shown.result == "ok"
    assert "180 of 200 rows complete, of 180 patients (199 declared)" in shown.found
    assert "label 0: 140, 1: 40; missing: age 20" in shown.found
    hidden = site.examined()["records of heart"]
    assert hidden.result == "skipped"
    assert not any(count in repr(hidden) for count in ("180", "140", "20"))


def test_records_that_cannot_train_are_warned_of(site: Site) -> None:
    """One label only; far fewer patients than declared; a cell that does not read."""
    write_records(site.folder, "patient_id,disease,age\n" + "p1,1,40\np2,1,41\n")
    check = site.examined(rows=True)["records of heart"]
    assert check.result == "warning"
    assert "only one label" in check.do
    assert "declared_n is far" in check.do
    write_records(site.folder, "patient_id,disease,age\np1,1,forty-one\n")
    check = site.examined(rows=True)["records of heart"]
    assert (check.result, "forty" in check.do) == ("warning", False)
    assert "column 'age' is not a number in 1 row, first in row 1" in check.do
    assert "charged all the same, and gives noise alone" in check.do


def test_an_opt_out_list_that_matches_nobody_is_warned_of(site: Site) -> None:
    """How many of its ids are patients here is for the terminal alone."""
    write_records(site.folder, "patient_id,disease,age\np1,1,40\np2,0,41\n")
    root = site.folder.root
    declared = yaml.safe_load((root / "datasets.yaml").read_text())
    declared["data_sets"][0]["opt_out"] = "out.txt"
    (root / "datasets.yaml").write_text(yaml.safe_dump(declared))
    (root / "out.txt").write_text("P2\nelsewhere\n")
    check = site.examined(rows=True)["records of heart"]
    assert "1 of 2 ids on the opt-out list are patients here" in check.found
    assert "nobody on the opt-out list" not in check.do
    (root / "out.txt").write_text("elsewhere\n")
    assert "nobody on the opt-out list" in site.examined(rows=True)["records of heart"].do


# The request, and the command


def test_the_firewall_request_names_the_exact_rule(site: Site) -> None:
    """Host, port and this machine's address; the proxy where there is one."""
    direct = request_for(Route(f"127.0.0.1:{site.coordinator.port}"))
    assert (direct.source, direct.host, direct.port) == (
        "127.0.0.1",
        "127.0.0.1",
        site.coordinator.port,
    )
    assert f"TCP port {site.coordinator.port}" in direct.text()
    proxied = request_for(Route("feddp.example:443", "127.0.0.1:3128", "agent.yaml", SECRET))
    assert "allow CONNECT from 127.0.0.1 to feddp.example, TCP port 443" in proxied.text()
    assert "s3cret" not in proxied.text() + json.dumps(proxied.as_dict())


def test_the_firewall_request_names_both_ports(site: Site) -> None:
    """The enrolment port of a node that has joined; that there is another one before joining. Where
    both are one, one rule."""
    root = str(site.folder.root)
    site.write(enrollment="127.0.0.1:18444")
    _, out, _ = command("--dir", root, "--firewall-request")
    assert f"TCP port {site.coordinator.port}.\n" in out
    assert "second rule, to 127.0.0.1, TCP port 18444: it is where the node joins" in out
    _, out, _ = command("--dir", root, "--firewall-request", "--json")
    assert json.loads(out)["also"][0]["address"] == "127.0.0.1:18444"
    token = JoinToken("127.0.0.1:18444", new_secret(), site.authority.root_der).encode()
    _, out, _ = command("--token", token, "--firewall-request")
    assert "TCP port 18444.\n" in out
    assert "another port of the coordinator, which its operator names: it is for the session" in out
    site.write(enrollment=f"127.0.0.1:{site.coordinator.port}")
    _, out, _ = command("--dir", root, "--firewall-request")
    assert "second rule" not in out


def command(*words: str, **environment: str) -> tuple[int, str, str]:
    """`feddp agent doctor` in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "feddp", "agent", "doctor", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return ran.returncode, ran.stdout, ran.stderr


def test_the_command_tells_by_its_exit_code(site: Site) -> None:
    """0 in order; 1 a check failed; JSON holds every check and no count of records."""
    write_records(site.folder, f"patient_id,disease,age\n{ROWS}")
    root = str(site.folder.root)
    code, out, _ = command("--dir", root, "--hold", "0", "--json", "--data")
    found = json.loads(out)
    assert (code, found["in_order"], found["node"]) == (0, True, NODE)
    assert found["firewall_request"]["port"] == site.coordinator.port
    for count in ("180 of", "label 0"):
        assert count not in out
    site.write(worker={"memory_bytes_max": 100 << 20})
    code, out, _ = command("--dir", root, "--hold", "0", "--data")
    assert (code, "FAILED   memory: " in out) == (1, True), out
    assert "label 0: 140, 1: 40" in out
    assert out.splitlines()[-1].endswith("checks: 1 failed, 0 warnings")
    code, out, _ = command("--dir", root, "--firewall-request")
    assert (code, out.startswith("Please allow OUTBOUND TCP")) == (0, True)


def test_the_help_promises_nothing_that_joining_alone_does() -> None:
    """The doctor writes no agent.yaml; the option's text is its own."""
    shown = {
        name: " ".join(
            subprocess.run(
                [sys.executable, "-m", "feddp", "agent", name, "--help"],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "COLUMNS": "400", "TERM": "dumb"},
            ).stdout.split()
        )
        for name in ("doctor", "join")
    }
    assert "goes into agent.yaml" in shown["join"]
    assert "goes into agent.yaml" not in shown["doctor"]
    assert "nothing is written" in shown["doctor"]


def test_the_command_wants_a_folder_or_a_token(site: Site) -> None:
    """Exit code 2; a proxy's password is not shown again."""
    code, _, err = command()
    assert (code, "--dir DIR" in err) == (2, True)
    code, out, err = command("--token", "x", "--proxy", f"http://{SECRET}@proxy:1")
    assert (code, "s3cret" in out + err) == (2, False)


@pytest.mark.parametrize("place", ["not-entered", "a-file"])
def test_a_place_of_the_path_that_cannot_be_looked_into_is_no_fault_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As for a service's user with root's PATH: the other checks go on."""
    (tmp_path / "a-file").touch()

    def refuse(_command: Any) -> Any:
        raise PermissionError(13, "Permission denied", "nvidia-smi")

    if place == "not-entered":  # root may enter any folder
        monkeypatch.setattr(machine, "_child", refuse)
    monkeypatch.setenv("PATH", str(tmp_path / place))
    assert machine.check_gpu().result == "ok"
