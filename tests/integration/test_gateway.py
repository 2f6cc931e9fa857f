"""Everything through one port: a real Envoy that tells nodes from joining nodes by their SNI."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from node_agent.doctor import machine
from node_agent.doctor.examine import examine, joined
from node_agent.doctor.report import Check
from node_agent.joining.identity import load_identity
from tests.integration.federation import NODES, job_file, null_job, wait_for
from tests.integration.gateway import (
    HOST,
    JOIN_HOST,
    PAST_THE_GATE,
    GatewayFederation,
    Mode,
    fingerprint_of,
    reason_as_gateway,
    session_refusal,
)

NAMES = NODES[:3]


@pytest.fixture
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GatewayFederation]:
    """A coordinator behind Envoy; the parameter says how Envoy treats TLS."""
    mode: Mode = request.param
    federation = GatewayFederation(tmp_path, mode)
    try:
        yield federation
    finally:
        federation.close()


BOTH = pytest.mark.parametrize("gateway", ["passthrough", "terminate"], indirect=True)
TERMINATING = pytest.mark.parametrize("gateway", ["terminate"], indirect=True)


@BOTH
def test_join_and_rounds_go_through_one_port(
    gateway: GatewayFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With deploy/envoy as it is: three nodes join, train, and the doctor finds nothing."""
    gateway.open()
    for name in NAMES:
        gateway.add_node(name)
        gateway.start(name)
    gateway.wait_for_nodes(*NAMES)
    job = gateway.wait_for_end(gateway.submit(job_file(federation={"rounds": 2})))
    assert job.status == "completed", job
    assert set(gateway.proxy.asked) == {f"{HOST}:443", f"{JOIN_HOST}:443"}
    for name in NAMES:
        assert f"coordinator: {HOST}:443" in (gateway.agent(name) / "agent.yaml").read_text()
    monkeypatch.setattr(machine, "check_training", lambda: Check("training", "ok", "-"))
    found = list(examine(joined(gateway.agent(NAMES[0])), hold_s=2))
    assert not [one for one in found if one.result == "failed"]


@BOTH
def test_a_name_that_the_gateway_does_not_know_is_reset(gateway: GatewayFederation) -> None:
    """And the doctor says at which step."""
    gateway.open()
    gateway.add_node("alpha")
    path = gateway.agent("alpha") / "agent.yaml"
    path.write_text(path.read_text().replace(HOST, "localhost").replace(":443", f":{gateway.port}"))
    found = {one.name: one for one in examine(joined(gateway.agent("alpha")), hold_s=0)}
    assert (found["tcp"].result, found["tls"].result) == ("ok", "failed")
    assert "a gateway does not know the name" in found["tls"].do


def short_lives(manager: Any, config: Any) -> None:
    """Defaults and Istio's EDGE profile, each limit divided so that it strikes within a test.

    The route's 15 s and EDGE's request time-out of 5 min are 3 s here; the 5 min of a quiet stream
    are 7 s (an agent speaks every 2.5 s in these tests); windows are EDGE's.
    """
    manager["stream_idle_timeout"] = "7s"
    manager["request_timeout"] = "3s"
    manager["http2_protocol_options"] = {
        "initial_stream_window_size": 65_536,
        "initial_connection_window_size": 1_048_576,
    }
    (host,) = manager["route_config"]["virtual_hosts"]
    host["routes"][0]["route"]["timeout"] = "3s"


def ending_lives(manager: Any, config: Any) -> None:
    """Connections are drained after 3 s of age, and a stream lives 6 s at most; where they are
    passed on unopened, a connection does."""
    if manager is None:
        (listener,) = config["static_resources"]["listeners"]
        for chain in listener["filter_chains"]:
            (proxy,) = chain["filters"]
            proxy["typed_config"]["max_downstream_connection_duration"] = "6s"
        return
    manager["common_http_protocol_options"] = {
        "max_connection_duration": "3s",
        "max_stream_duration": "6s",
    }
    manager["drain_timeout"] = "1s"


def sessions(gateway: GatewayFederation, name: str) -> int:
    """How often a node's session was opened."""
    lines = [json.loads(one) for one in gateway.log("coordinator").splitlines()]
    return sum(one["event"] == "session_opened" and one["node"] == name for one in lines)


@TERMINATING
def test_a_session_outlives_default_and_edge_time_outs(gateway: GatewayFederation) -> None:
    """One stream for the whole time, and updates in calls that end before the limits."""
    gateway.open(short_lives)
    for name in NAMES:
        gateway.add_node(name)
        gateway.start(name)
    gateway.wait_for_nodes(*NAMES)
    # 12 MB a model: uploads and downloads move while the limits strike.
    job_id = gateway.submit(null_job(rounds=4, parameters=3_000_000))
    job = gateway.wait_for_end(job_id)
    assert job.status == "completed", job
    began = job.created_at
    wait_for("twice the longest limit", lambda: time.time() - began > 14)
    assert [sessions(gateway, name) for name in NAMES] == [1, 1, 1]
    assert gateway.log("alpha").count("session_ended") == 0


@BOTH
def test_streams_that_the_gateway_ends_are_opened_again(gateway: GatewayFederation) -> None:
    """By age, by a cap on a stream's life, and by a restart: the job ends as it would have."""
    gateway.open(ending_lives)
    for name in NAMES:
        gateway.add_node(name)
        gateway.start(name)
    gateway.wait_for_nodes(*NAMES)
    job_id = gateway.submit(null_job(rounds=12, parameters=1_000_000))
    wait_for("a stream was ended", lambda: sessions(gateway, "alpha") > 1, 30)
    gateway.stop_envoy()
    gateway.start_envoy(ending_lives)
    job = gateway.wait_for_end(job_id)
    assert job.status == "completed", job
    gateway.wait_for_nodes(*NAMES)


@TERMINATING
def test_behind_a_gateway_the_nodes_own_certificate_counts(gateway: GatewayFederation) -> None:
    """A disabled node is cut though the gateway is trusted; a header of one's own is not read."""
    gateway.open()
    for name in ("alpha", "beta"):
        gateway.add_node(name)
    gateway.start("alpha")
    gateway.wait_for_nodes("alpha")
    with gateway.client() as client:
        client.disable("alpha")
        wait_for("the stream is cut", lambda: not client.node("alpha").connected, 10)
    # Beta says that it is somebody else: to the gateway, which throws it away; to the coordinator
    # itself, which does not read it from a node.
    beta = load_identity(gateway.agent("beta") / "identity")
    lie = (("x-forwarded-client-cert", f"Hash={fingerprint_of(gateway, 'alpha')}"),)
    direct = f"127.0.0.1:{gateway.installation_port}"
    through = f"{HOST}:443"
    for address, options in (
        (direct, ()),
        (through, (("grpc.http_proxy", gateway.proxy.url()),)),
    ):
        with grpc.secure_channel(address, beta.credentials(), options) as channel:
            assert session_refusal(channel, lie) == PAST_THE_GATE
    # The gateway's certificate alone is nobody.
    assert reason_as_gateway(gateway) == "FORWARDED_IDENTITY"
    assert reason_as_gateway(gateway, lie[0][1]) == "NODE_DISABLED"
    assert reason_as_gateway(gateway, f"Hash={'0' * 64}") == "CERTIFICATE_UNKNOWN"
