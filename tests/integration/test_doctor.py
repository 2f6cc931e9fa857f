"""`feddp agent doctor` beside a running agent and a real coordinator, and through bad boxes."""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from node_agent.connection.proxy import Route
from node_agent.doctor import coordinator as asking
from node_agent.doctor import machine, stream
from node_agent.doctor.examine import examine, joined
from node_agent.doctor.probe import Stopped
from node_agent.doctor.report import Check
from node_agent.joining.identity import Identity, load_identity
from protos.feddp.v1 import diagnosis_pb2 as pb
from protos.feddp.v1 import diagnosis_pb2_grpc as pb_grpc
from protos.status import from_rpc
from tests.integration.federation import Federation, run_cli
from tests.node_agent.proxies import ConnectProxy

HEARTBEAT_S = 0.4


@pytest.fixture
def identity(coordinator: Federation) -> Identity:
    """Of a node that has joined and does not run."""
    coordinator.add_node("alpha")
    return load_identity(coordinator.agent("alpha") / "identity")


def route(federation: Federation, proxy: ConnectProxy | None = None) -> Route:
    """To the coordinator, through a proxy if there is one."""
    through = f"127.0.0.1:{proxy.port}" if proxy is not None else ""
    return Route(federation.address, through, "agent.yaml" if through else "")


def examined(folder: Path) -> dict[str, Check]:
    """Every check, by name."""
    return {one.name: one for one in examine(joined(folder), hold_s=2)}


def test_the_doctor_measures_beside_a_running_agent(
    coordinator: Federation, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clock, version, latency, bandwidth, a held stream; the agent's session is not touched."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(machine, "check_training", lambda: Check("training", "ok", "-"))
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    before = coordinator.log("coordinator").count("session_")
    found = examined(coordinator.agent("alpha"))
    assert not [one for one in found.values() if one.result == "failed"]
    for name in ("coordinator", "clock", "version", "latency", "bandwidth", "stream", "ledger"):
        assert found[name].result == "ok", found[name]
    assert "/s up, " in found["bandwidth"].found
    assert coordinator.log("coordinator").count("session_") == before
    with coordinator.client() as client:
        assert client.node("alpha").connected
        # A node that is not let in is told why, with the coordinator's own sentence.
        client.disable("alpha")
    found = examined(coordinator.agent("alpha"))
    assert (found["coordinator"].result, found["stream"].result) == ("failed", "skipped")
    assert found["coordinator"].found.startswith("NODE_DISABLED: ")


def held(federation: Federation, identity: Identity, proxy: ConnectProxy, hold_s: float) -> Check:
    """What holding streams through a proxy shows."""
    way = route(federation, proxy)
    return asyncio.run(stream.check_stream(way, identity, hold_s, lambda _: None))


def test_a_box_that_ends_streams_is_named(
    coordinator: Federation, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends quiet ones only, one that ends all, and one that ends none."""
    monkeypatch.setattr(stream, "HEARTBEAT_S", HEARTBEAT_S)
    with ConnectProxy(idle_s=1.2) as proxy:
        check = held(coordinator, identity, proxy, 3)
    assert (check.result, check.found.startswith("a quiet stream was ended")) == ("failed", True)
    with ConnectProxy(life_s=1.5) as proxy:
        check = held(coordinator, identity, proxy, 3)
    assert (check.result, "limits how long" in check.do) == ("failed", True)
    assert check.found.startswith("a stream that speaks every")
    with ConnectProxy() as proxy:
        assert held(coordinator, identity, proxy, 2).result == "ok"


def test_a_way_that_swallows_long_messages_is_named(
    coordinator: Federation, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a tunnel whose packets are too large for what lies behind it."""
    monkeypatch.setattr(asking, "STEP_S_MAX", 1.0)
    with ConnectProxy(bytes_max=40_000) as proxy:
        way = route(coordinator, proxy)
        checks, answers = asyncio.run(asking.check_coordinator(way, identity))
    found = {one.name: one for one in checks}
    assert answers
    assert [found[name].result for name in asking.ASKED] == ["ok"] * 4 + ["failed"]
    assert "MTU" in found["bandwidth"].do


def test_a_healthy_way_is_measured_each_time(
    coordinator: Federation, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is here before the write of its question is done ends no measurement. How fast
    a busy machine was found to be is not asked."""
    monkeypatch.setattr(asking, "ECHOES", 1)
    monkeypatch.setattr(asking, "STEPS_BYTES", (64 << 10,) * 6)

    async def measured(times: int) -> list[Check]:
        way = route(coordinator)
        return [(await asking.check_coordinator(way, identity))[0][-1] for _ in range(times)]

    found = asyncio.run(measured(150))
    assert {one.name for one in found} == {"bandwidth"}
    assert {one.result for one in found} <= {"ok", "warning"}


def test_a_stream_that_somebody_ends_is_no_matter_of_mtu(
    coordinator: Federation, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that restarts ends it as a box does: at once, not by silence."""
    monkeypatch.setattr(asking, "STEPS_BYTES", (1 << 20,) * 12)
    monkeypatch.setattr(asking, "STEP_S_ENOUGH", 30.0)
    say_all = asking._say_all

    async def killed_between(*arguments: object, **options: object) -> None:
        await say_all(*arguments, **options)  # type: ignore[arg-type]
        coordinator.kill("coordinator")

    monkeypatch.setattr(asking, "_say_all", killed_between)
    checks, _ = asyncio.run(asking.check_coordinator(route(coordinator), identity))
    found = {one.name: one for one in checks}
    assert found["latency"].result == "ok"
    assert found["bandwidth"].result == "failed"
    assert "ended during the measurement" in found["bandwidth"].found
    assert "MTU" not in found["bandwidth"].do


def test_a_connection_given_up_after_silence_is_a_matter_of_mtu() -> None:
    """gRPC ends one whose bytes nobody acknowledges, before the time of the test is over."""
    silence = asking._ended("bandwidth", Stopped(None), asking.SWALLOWED_S_MIN)
    assert "MTU" in silence.do
    assert "MTU" not in asking._ended("bandwidth", Stopped(None), 1.0).do
    assert "MTU" not in asking._ended("latency", Stopped(None), 15.0).do


def test_quiet_streams_that_live_long_enough_are_only_warned_of() -> None:
    """The agent speaks every five seconds."""
    assert stream._stream_check(60, (60, ""), (30, "-")).result == "warning"
    assert stream._stream_check(60, (60, ""), (10, "-")).result == "failed"


class _Prober:
    """Probe by hand."""

    def __init__(self, federation: Federation, identity: Identity) -> None:
        self.channel = grpc.secure_channel(federation.address, identity.credentials())
        self.stub = pb_grpc.DiagnosisStub(self.channel)

    def refused(self, *messages: pb.ProbeRequest) -> str:
        """The reason of a refusal; the empty text when every message was answered."""
        try:
            answers = list(self.stub.Probe(iter(messages), timeout=20))
        except grpc.RpcError as error:
            return from_rpc(error).reason
        assert all(one.version for one in answers)
        return "" if len(answers) == len(messages) else f"{len(answers)} answered"


def test_an_echo_is_bounded(coordinator: Federation, identity: Identity) -> None:
    """In the size of a message, of a stream, and in how many run."""
    prober = _Prober(coordinator, identity)
    assert prober.refused(pb.ProbeRequest(data=b"x" * 1000, answer_bytes=5)) == ""
    assert prober.refused(pb.ProbeRequest(answer_bytes=(1 << 20) + 1)) == "TOO_LARGE"
    assert prober.refused(pb.ProbeRequest(data=bytes((1 << 20) + 1))) == "TOO_LARGE"
    mebibyte = pb.ProbeRequest(answer_bytes=1 << 20)
    assert prober.refused(*[mebibyte] * 40) == "32 answered"
    calls = [prober.stub.Probe(_endless()) for _ in range(4)]
    for call in calls:
        next(call)
    assert prober.refused(pb.ProbeRequest()) == "PROBES_BUSY"
    for call in calls:
        call.cancel()
    prober.channel.close()


def _endless() -> Iterator[pb.ProbeRequest]:
    """One message, and a stream that stays open."""
    yield pb.ProbeRequest()
    threading.Event().wait(30)


def test_a_held_probe_of_a_disabled_node_is_cut(
    coordinator: Federation, identity: Identity
) -> None:
    """Like a session, within the same seconds."""
    prober = _Prober(coordinator, identity)
    call = prober.stub.Probe(_endless(), timeout=10)
    next(call)
    with coordinator.client() as client:
        client.disable("alpha")
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    assert from_rpc(ended.value).reason == "NODE_DISABLED"
    prober.channel.close()


def moved_clock(moved: str) -> dict[str, str]:
    """An environment in which a process sees a moved clock."""
    package = importlib.util.find_spec("libfaketime")
    assert package is not None
    assert package.origin is not None
    library = Path(package.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "FAKETIME": moved,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@pytest.mark.parametrize(("moved", "found"), [("-2d", "2 days behind"), ("+2d", "2 days ahead of")])
def test_a_machine_whose_clock_is_two_days_off_is_told(
    coordinator: Federation, identity: Identity, moved: str, found: str
) -> None:
    """A real process under a moved clock, against a coordinator whose clock is right."""
    code = (
        "import sys; from pathlib import Path\n"
        "from node_agent.doctor.examine import joined, _outside\n"
        "for one in _outside(joined(Path(sys.argv[1])), 0, lambda _: None): print(one)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(coordinator.agent("alpha"))],
        capture_output=True,
        text=True,
        check=True,
        env=moved_clock(moved),
    )
    (clock,) = (line for line in ran.stdout.splitlines() if "name='clock'" in line)
    assert "result='failed'" in clock
    assert "chrony" in clock
    if moved == "+2d":
        assert found in clock
    else:
        # The coordinator is younger than that, and its certificate has not begun by this clock.
        assert "before the coordinator's certificate begins" in clock


def doctor(moved: str, *words: str) -> dict[str, Check]:
    """What the command finds under a moved clock."""
    ran = subprocess.run(
        [sys.executable, "-m", "feddp", "agent", "doctor", *words, "--hold", "0", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=moved_clock(moved),
    )
    return {one["name"]: Check(**one) for one in json.loads(ran.stdout)["checks"]}


@pytest.mark.parametrize("asked", ["enrolment", "session"])
def test_a_clock_past_the_certificates_end_is_found(
    coordinator: Federation, identity: Identity, asked: str
) -> None:
    """By the time that the enrolment port tells; where agent.yaml names none, the coordinator still
    takes the certificate, and tells it in a session. To let the agent run is no remedy."""
    folder = coordinator.agent("alpha")
    if asked == "session":
        config = yaml.safe_load((folder / "agent.yaml").read_text())
        (folder / "agent.yaml").write_text(yaml.safe_dump({**config, "enrollment": ""}))
    found = doctor("+10d", "--dir", str(folder))
    assert found["coordinator"].result == "ok"
    assert found["clock"].result == "failed"
    assert found["clock"].found == "this machine's clock is 10 days ahead of the coordinator's"
    assert found["certificate"].result == "failed"
    assert found["certificate"].do.startswith("set the clock, and keep it set")
    assert "let the agent run" not in found["certificate"].do


def test_a_clock_before_the_certificates_begin_is_found(
    coordinator: Federation, identity: Identity
) -> None:
    """The coordinator's certificate began later than now, as the node's own."""
    found = doctor("-2d", "--dir", str(coordinator.agent("alpha")))
    assert found["clock"].result == "failed"
    assert found["certificate"].result == "failed"
    assert found["certificate"].found.startswith("it begins in ")
    assert found["certificate"].do.startswith("set the clock, and keep it set")


def test_a_clock_is_compared_before_joining(coordinator: Federation) -> None:
    """With the token alone, and without using it up."""
    token = run_cli("node", "token", "beta", "--dir", str(coordinator.installation.folder))[1]
    found = doctor("+2d", "--token", token.split()[-1])
    assert found["clock"].result == "failed"
    assert found["clock"].found == "this machine's clock is 2 days ahead of the coordinator's"
    assert doctor("+0d", "--token", token.split()[-1])["clock"].result == "ok"


@pytest.mark.parametrize(
    ("moved", "found"),
    [("-2d", "2 days behind"), ("+2d", "2 days ahead of"), ("+20d", "20 days ahead of")],
)
def test_an_agent_whose_clock_is_days_off_logs_it(
    coordinator: Federation, identity: Identity, moved: str, found: str
) -> None:
    """A real agent: two days ahead it works, two days behind it has no session, twenty days ahead
    each certificate that it gets has ended already."""
    words = ["agent", "run", "--dir", str(coordinator.agent("alpha"))]
    agent = subprocess.Popen(
        [sys.executable, "-m", "feddp", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=moved_clock(moved),
    )
    ending = threading.Timer(60.0, agent.kill)
    ending.start()
    other = {"-2d": {"coordinator_unreachable"}, "+20d": {"certificate_renewal_failed"}}
    wanted = {"clock_off", *other.get(moved, ())}
    said: dict[str, str] = {}
    try:
        assert agent.stdout is not None
        for line in agent.stdout:
            said |= {event: line for event in wanted if f'"{event}"' in line or event in line}
            if said.keys() == wanted:
                break
    finally:
        ending.cancel()
        agent.kill()
        agent.wait()
    assert said.keys() == wanted, said
    assert f"{found} the coordinator's" in said["clock_off"]
    assert all("chrony" in line for line in said.values())


def test_a_join_with_a_clock_that_is_off_says_so(coordinator: Federation) -> None:
    """Two days ahead it joins and warns; two days behind it cannot, and the clock is the cause."""
    for moved, code in (("-2d", 5), ("+2d", 0)):
        token = run_cli("node", "token", "alpha", "--dir", str(coordinator.installation.folder))[1]
        folder = coordinator.agent("alpha")
        words = ["agent", "join", token.split()[-1], "--dir", str(folder)]
        ran = subprocess.run(
            [sys.executable, "-m", "feddp", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=moved_clock(moved),
        )
        assert ran.returncode == code, ran.stderr
        if moved == "-2d":
            assert "before the coordinator's certificate begins" in ran.stderr
        else:
            assert "WARNING: this machine's clock is 2 days ahead of the coordinator" in ran.stdout
