"""What the chart's containers run, run here: install, check, serve, `helm test`, join, upgrade.

Only paths and addresses differ from those in a pod.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.postgresql import PostgreSql
from coordinator.ports import DRAIN_S
from feddp.client import Client
from feddp.demo.ports import choose_ports
from feddp.profile import Profile
from node_agent.folder.templates import DATASETS_YAML, POLICY_YAML
from tests.charts.pods import NAME, Pod, ready
from tests.charts.rendering import (
    AGENT,
    COORDINATOR,
    ISTIO,
    POSTGRESQL,
    merged,
    named,
    objects,
)
from tests.integration.federation import wait_for
from tests.node_agent.proxies import ConnectProxy

FOUND = objects(
    merged(COORDINATOR, ISTIO, AGENT, {"nodeAgent": {"proxy": {"url": "http://proxy.example:1"}}})
)


@pytest.fixture
def ports() -> tuple[int, ...]:
    """Of nodes, enrolment and health."""
    return tuple(choose_ports(None))


@pytest.fixture
def pod(tmp_path: Path, ports: tuple[int, ...]) -> Pod:
    """The coordinator's, with ports of its own."""
    names = ("PORT", "ENROLLMENT_PORT", "HEALTH_PORT")
    environment = {
        f"FEDDP_SERVER__{name}": str(port) for name, port in zip(names, ports, strict=True)
    }
    return Pod(tmp_path, NAME, environment | {"FEDDP_SERVER__HOST": "127.0.0.1"}, FOUND)


@pytest.fixture
def serving(pod: Pod, ports: tuple[int, ...]) -> Iterator[subprocess.Popen[str]]:
    """The coordinator after its init containers."""
    assert pod.run("install")[0] == 0
    pod.mount_configuration()
    process = pod.start("coordinator")
    try:
        wait_for("/ready says yes", lambda: ready(ports[2]), 60)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def test_the_first_start_installs_and_the_next_leave_it_alone(pod: Pod) -> None:
    """The authority is made once; a start that was cut off before its end is made again whole."""
    root = pod.folder / "var/lib/feddp"
    (root / "installation.new/pki").mkdir(parents=True)
    code, said = pod.run("install")
    assert code == 0, said
    assert "root certificate SHA-256" in said
    installation = root / "installation"
    assert not (root / "installation.new").exists()
    profile = yaml.safe_load((installation / "operator/profile.yaml").read_text())
    assert profile["address"] == "feddp.example:443"
    kept = {path: path.read_bytes() for path in installation.rglob("*") if path.is_file()}
    assert pod.run("install") == (0, "")
    assert kept == {path: path.read_bytes() for path in installation.rglob("*") if path.is_file()}


def test_the_check_before_the_start_says_what_is_missing(pod: Pod) -> None:
    """An error of `feddp coordinator check` keeps the coordinator's container from starting."""
    assert pod.run("install")[0] == 0
    config = pod.mount_configuration()
    code, said = pod.run("check")
    assert (code, "the check found no error" in said) == (0, True), said
    (config.parent / "coordinator.db").unlink()
    code, said = pod.run("check")
    assert code == 1
    assert "storage.database_url" in said


def test_an_installation_on_postgresql_keeps_no_password(
    tmp_path: Path, postgresql_server: PostgreSql
) -> None:
    """The URL comes from the Secret at every start; the next start finds what the first made."""
    own = {"serverCertificate": {"secretName": "", "certManager": {"enabled": False}}}
    found = objects(merged(COORDINATOR, ISTIO, POSTGRESQL, {"coordinator": own}))
    url = postgresql_server.new_database()
    pod = Pod(tmp_path, NAME, {"FEDDP_STORAGE__DATABASE_URL": url}, found)
    code, said = pod.run("install")
    assert code == 0, said
    pod.mount_configuration()
    assert pod.run("install") == (0, "")
    code, said = pod.run("check")
    assert code == 0, said
    assert "storage.database_url: readable; 0 nodes, 1 users" in said
    files = [path for path in (tmp_path / "var").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert postgresql_server.password.encode() not in path.read_bytes(), path


def test_helm_test_passes_on_a_coordinator_that_serves_and_on_no_other(
    serving: subprocess.Popen[str], ports: tuple[int, ...], pod: Pod
) -> None:
    """The test pod's own program, against the real ports; it ends well within the grace on
    SIGTERM."""
    (container,) = named(FOUND, "Pod")["spec"]["containers"]
    own = {one["name"]: one["value"] for one in container["env"]}
    assert own["HEALTH"] == f"{NAME}-metrics.hospitals.svc.cluster.local:8080"
    names = ("NODES", "ENROLMENT", "HEALTH")
    environment = own | {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}

    def run() -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, *container["command"][1:], *container["args"]],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout

    assert run() == (
        0,
        "/ready: the coordinator serves and its database answers\n"
        "nodes: TLS 1.3 and HTTP/2\nenrolment: TLS 1.3 and HTTP/2\n",
    )
    began_s = time.monotonic()
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(60) == 0
    lifecycle = pod.spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    left_s = pod.spec["terminationGracePeriodSeconds"] - lifecycle
    assert time.monotonic() - began_s < left_s
    assert left_s > DRAIN_S
    assert run()[0] == 1


def test_a_node_joins_from_its_secret_and_sees_the_stewards_changes(
    serving: subprocess.Popen[str], ports: tuple[int, ...], pod: Pod, tmp_path: Path
) -> None:
    """Through a proxy, under the names that the token says; the token is needed once, and the
    steward's files are the ConfigMap's, not a copy."""
    assert serving.poll() is None
    where = pod.folder / "var/lib/feddp/installation/operator"
    (where / "profile.yaml").write_text(f"address: 127.0.0.1:{ports[0]}\nname: operator\n")
    with Client(Profile.load(where)) as client:
        token = client.create_token("cleveland", "cloud", 3600).token
    agents = tmp_path / "agent"
    with ConnectProxy(
        hosts={
            "feddp.example": ("127.0.0.1", ports[0]),
            "join.feddp.example": ("127.0.0.1", ports[1]),
        }
    ) as proxy:
        agent = Pod(agents, "fed-feddp-agent", {"PROXY": proxy.url()}, FOUND)
        assert "http://proxy.example:1" in yaml.safe_dump(agent.spec["initContainers"])
        steward = agents / "etc/feddp/steward"
        (steward / "policy.yaml").write_text(POLICY_YAML)
        (steward / "datasets.yaml").write_text(DATASETS_YAML)
        (agents / "etc/feddp/join/token").write_text(token)
        code, said = agent.run("join")
        assert code == 0, said
        assert "joined as cleveland (cloud); coordinator feddp.example:443" in said
        assert set(proxy.asked) == {"join.feddp.example:443"}
        (agents / "etc/feddp/join/token").unlink()
        assert agent.run("join") == (0, "")
    folder = agents / "var/lib/feddp/agent"
    written = yaml.safe_load((folder / "agent.yaml").read_text())
    assert written["coordinator"] == "feddp.example:443"
    (steward / "policy.yaml").write_text(POLICY_YAML + "\n# changed\n")
    assert (folder / "policy.yaml").read_text().endswith("# changed\n")
