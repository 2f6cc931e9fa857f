"""What `test_links.py` runs in a network namespace of its own: the coordinator's."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import books
from tests.chaos.acts import NODES, spec
from tests.chaos.lives import Nursery, WatchedFederation
from tests.chaos.tun_switch import Switch, address, namespaces
from tests.integration.federation import wait_for
from tests.integration.gateway import GatewayFederation, Mode

HOSTS = dict(zip(NODES, (11, 12, 13), strict=True))
COORDINATOR = 1
WAIT_S = 120.0


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[tuple[WatchedFederation, Switch]]:
    """A coordinator and three agents, each in a namespace of its own."""
    with namespaces(list(HOSTS.values()), seed=1) as (switch, commands):
        federation = WatchedFederation(tmp_path, address(COORDINATOR))
        try:
            federation.configure(
                min_participants=2, node_disconnected_s=5, node_silent_s=5, heartbeat_interval_s=1
            )
            federation.start("coordinator")
            for name, host in HOSTS.items():
                federation.add_node(name)
                federation.bear_in(name, Nursery("agent", commands[host]))
                federation.start(name)
            wait_for_nodes(federation)
            yield federation, switch
        finally:
            federation.stop()


def wait_for_nodes(federation: WatchedFederation) -> None:
    """Wait until all are connected, on whatever links."""

    def all_there() -> bool:
        nodes = federation.again(lambda client: client.nodes())
        return {node.name for node in nodes if node.connected} == set(NODES)

    wait_for("every node connects", all_there, WAIT_S)


def ends_well(federation: WatchedFederation, job_id: str) -> None:
    """The job completes with its books in order."""
    job = federation.wait_for_end(job_id, WAIT_S)
    assert job.status == "completed", job.message
    books.check_job(federation, job)
    books.check_ledgers(federation)


def test_slow_and_lossy(linked: tuple[WatchedFederation, Switch]) -> None:
    """A job completes over 40 ms and 5 % loss each way; every node's update is in each round."""
    federation, switch = linked
    switch.set_all(delay_s=0.040, loss=0.05)
    job_id = federation.submit(spec(3))
    ends_well(federation, job_id)
    assert switch.dropped > 0
    assert switch.carried > switch.dropped
    for one in federation.job(job_id).rounds:
        assert {p.node for p in one.participation if p.outcome == "update"} == set(NODES)


@pytest.mark.parametrize("mode", ["passthrough", "terminate"])
def test_behind_a_gateway(tmp_path: Path, mode: Mode) -> None:
    """A job completes over 40 ms of round trip and through Envoy, which is killed on the way."""
    with namespaces(list(HOSTS.values()), seed=1) as (switch, commands):
        federation = GatewayFederation(tmp_path, mode, address(COORDINATOR), commands_of(commands))
        try:
            switch.set_all(delay_s=0.020, loss=0.0)
            federation.open()
            for name in HOSTS:
                federation.add_node(name)
                federation.start(name)
            federation.wait_for_nodes(*HOSTS)
            job_id = federation.submit(spec(6, more=1_000_000))
            wait_for("a round is done", lambda: rounds_done(federation, job_id) >= 1, WAIT_S)
            federation.kill_envoy()
            federation.start_envoy()
            job = federation.wait_for_end(job_id, WAIT_S)
            assert job.status == "completed", job.message
            books.check_job(federation, job)
            books.check_ledgers(federation)
            assert switch.carried > 0
        finally:
            federation.close()


def commands_of(commands: dict[int, list[str]]) -> dict[str, list[str]]:
    """What runs each node's agent in the node's own namespace."""
    return {name: commands[host] for name, host in HOSTS.items()}


def rounds_done(federation: GatewayFederation, job_id: str) -> int:
    """How many rounds of a job are over."""
    with federation.client() as client:
        return client.job(job_id).rounds_done


def test_one_way_partitions(linked: tuple[WatchedFederation, Switch]) -> None:
    """One node cannot be heard and another cannot hear: both ends notice, the job waits below its
    quorum, and goes on by itself once the links heal."""
    federation, switch = linked
    job_id = federation.submit(spec(20))
    wait_for("a round is done", lambda: federation.job(job_id).rounds_done >= 1, WAIT_S)
    mute, deaf = NODES[0], NODES[1]
    switch.lines[HOSTS[mute], COORDINATOR].cut = True
    switch.lines[COORDINATOR, HOSTS[deaf]].cut = True
    began_s = time.monotonic()

    def gone(name: str) -> bool:
        nodes = {node.name: node for node in federation.again(lambda client: client.nodes())}
        return not nodes[name].connected

    for name in (mute, deaf):
        wait_for(f"the coordinator notices that {name} is gone", lambda name=name: gone(name), 60)  # type: ignore[misc]
    for name in (mute, deaf):
        wait_for(f"{name} notices", lambda name=name: noticed(federation, name), 60)  # type: ignore[misc]
    assert time.monotonic() - began_s < 60
    wait_for("the job waits", lambda: federation.job(job_id).status == "waiting", 30)
    assert {mute, deaf} <= {one.node for one in federation.job(job_id).waiting}
    switch.lines[HOSTS[mute], COORDINATOR].cut = False
    switch.lines[COORDINATOR, HOSTS[deaf]].cut = False
    wait_for_nodes(federation)
    ends_well(federation, job_id)


def noticed(federation: WatchedFederation, name: str) -> bool:
    """Whether an agent's log says that its session has ended."""
    log = books.lines(federation.folder / f"{name}.log")
    return any(line["event"] in ("session_ended", "coordinator_unreachable") for line in log)
