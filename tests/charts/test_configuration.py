"""The coordinator.yaml that the chart writes, as the coordinator itself reads it."""

from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from coordinator.config.config import CoordinatorConfig, load_config
from coordinator.ports import DRAIN_S
from tests.charts.rendering import (
    COORDINATOR,
    ISTIO,
    MATRIX,
    REPLICAS,
    ROOT,
    Values,
    merged,
    named,
    objects,
    of,
)

FOLDER = Path("/var/lib/feddp/installation")
URL = "postgresql+psycopg://feddp:word@database.example:5432/feddp"
WEBHOOK = "https://alerts.example/hook?token=word"
POD_IP = "fd00:10::7"
WITH_COORDINATOR = [case for case in MATRIX if not case.endswith("agent")]


def loaded(found: list[dict[str, Any]], folder: Path) -> CoordinatorConfig:
    """The configuration of a rendered chart, with the environment of its container."""
    text = named(found, "ConfigMap", "fed-feddp-coordinator")["data"]["coordinator.yaml"]
    (folder / "coordinator.yaml").write_text(text)
    (container,) = named(found, "StatefulSet", "fed-feddp-coordinator")["spec"]["template"]["spec"][
        "containers"
    ]
    given = {
        "FEDDP_STORAGE__DATABASE_URL": URL,
        "FEDDP_SERVER__REPLICA_HOST": POD_IP,
        "FEDDP_MONITORING__ALERT_WEBHOOK": WEBHOOK,
    }
    environment = {
        one["name"]: one["value"] if "value" in one else given.get(one["name"], "from a Secret")
        for one in container["env"]
    }
    return load_config(folder / "coordinator.yaml", environment)


def of_values(config: Values, folder: Path) -> CoordinatorConfig:
    """The configuration with some sections of one's own."""
    values = merged(COORDINATOR, ISTIO, {"coordinator": {"config": config}})
    return loaded(objects(values), folder)


@pytest.mark.parametrize("case", WITH_COORDINATOR)
def test_the_coordinator_takes_what_the_chart_writes(case: str, tmp_path: Path) -> None:
    """It listens where the pod's ports and probes are, and keeps everything on its volume."""
    found = of(case)
    config = loaded(found, tmp_path)
    stateful = named(found, "StatefulSet", "fed-feddp-coordinator")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    server, storage = config.server, config.storage
    assert ports == {
        "nodes": server.port,
        "enrolment": server.enrollment_port,
        "health": server.health_port,
        **({"transfer": server.transfer_port} if case.startswith("transfer") else {}),
    }
    assert (server.host, server.health_host) == ("0.0.0.0", "0.0.0.0")  # noqa: S104
    assert (storage.blob_dir, storage.pki_dir) == (FOLDER / "blobs", FOLDER / "pki")
    (data,) = [one for one in container["volumeMounts"] if one["name"] == "data"]
    assert FOLDER.is_relative_to(data["mountPath"])


@pytest.mark.parametrize(
    ("case", "ports"),
    [("ten-lines", (443, 443)), ("terminate", (443, 443)), ("without-istio", (8443, 8444))],
)
def test_tokens_name_what_nodes_dial(case: str, ports: tuple[int, int], tmp_path: Path) -> None:
    """The gateway's port under two names, or the coordinator's own two ports."""
    server = loaded(of(case), tmp_path).server
    assert (server.public_host, server.public_enrollment_host) == (
        "feddp.example",
        "join.feddp.example",
    )
    assert (server.public_port, server.public_enrollment_port) == ports


def test_sqlite_lies_on_the_volume_and_postgresql_comes_from_the_secret(tmp_path: Path) -> None:
    """The URL with its password stands in no ConfigMap."""
    assert loaded(of("ten-lines"), tmp_path).storage.database_url == (
        f"sqlite:///{FOLDER}/coordinator.db"
    )
    found = of("postgresql")
    assert loaded(found, tmp_path).storage.database_url == URL
    text = yaml.safe_dump(named(found, "ConfigMap"))
    assert "postgresql+" not in text
    assert "sqlite" not in text


def test_models_go_to_the_store_with_credentials_from_its_secret(tmp_path: Path) -> None:
    """With one pod, too; no key of the store stands in the ConfigMap, and a region need not be."""
    found = of("replicas")
    storage = loaded(found, tmp_path).storage
    assert (storage.blob_url, storage.blob_endpoint) == ("s3://feddp", "https://s3.example:8333")
    alone = loaded(of("object-store"), tmp_path)
    assert (alone.storage.blob_url, alone.storage.blob_endpoint) == ("s3://feddp/models", "")
    assert alone.server.replica_host == ""
    spec = named(found, "StatefulSet")["spec"]["template"]["spec"]
    check = next(one for one in spec["initContainers"] if one["name"] == "check")
    for container in (check, *spec["containers"]):
        references = {
            one["name"]: one["valueFrom"]["secretKeyRef"]
            for one in container["env"]
            if one["name"].startswith("AWS_")
        }
        assert {one["name"] for one in references.values()} == {"feddp-store"}
        assert all(name == one["key"] for name, one in references.items())
        assert [name for name, one in references.items() if one.get("optional")] == ["AWS_REGION"]
    assert "AWS_" not in yaml.safe_dump(named(found, "ConfigMap"))
    install = next(one for one in spec["initContainers"] if one["name"] == "install")
    assert not [one["name"] for one in install["env"] if "valueFrom" in one]


@pytest.mark.parametrize("replicas", [1, 3])
def test_replicas_tell_each_other_the_pods_address(replicas: int, tmp_path: Path) -> None:
    """Also one that may become several: their number changes nothing in the pod."""
    values = merged(COORDINATOR, ISTIO, REPLICAS, {"coordinator": {"replicas": replicas}})
    assert loaded(objects(values), tmp_path).server.replica_host == POD_IP
    nothing = {"url": "", "endpoint": "", "credentialsSecret": {"name": ""}, "peers": []}
    for without in ({"objectStore": nothing}, {"installation": {"secretName": ""}}):
        one = merged(values, {"coordinator": {"replicas": 1, **without}})
        assert loaded(objects(one), tmp_path).server.replica_host == ""


def test_a_certificate_of_ones_own_is_shown(tmp_path: Path) -> None:
    """From the files that the Secret is mounted as."""
    found = of("postgresql")
    server = loaded(found, tmp_path).server
    stateful = named(found, "StatefulSet", "fed-feddp-coordinator")["spec"]["template"]["spec"]
    (mount,) = [
        one for one in stateful["containers"][0]["volumeMounts"] if "certificate" in one["name"]
    ]
    folder = Path(mount["mountPath"])
    assert (server.ssl_cert, server.ssl_key) == (folder / "tls.crt", folder / "tls.key")
    assert loaded(of("ten-lines"), tmp_path).server.ssl_cert is None


def test_numbers_come_through_as_they_were_written(tmp_path: Path) -> None:
    """Helm keeps numbers as floats: a small delta and a size in bytes must survive that."""
    config = of_values(
        {
            "privacy": {"delta": 1e-6, "max_grad_norm": 0.25},
            "storage": {"model_bytes_max": 1 << 40},
            "federation": {"min_participants": 5, "deadline_s": 604800, "grace_factor": 0},
            "security": {"approve_joins": True, "node_certificate_life_s": 31_536_000},
            "compliance": {"frameworks": ["hipaa", "gdpr"]},
            "monitoring": {"log_level": "DEBUG"},
        },
        tmp_path,
    )
    assert (config.privacy.delta, config.privacy.max_grad_norm) == (1e-6, 0.25)
    assert config.storage.model_bytes_max == 1 << 40
    assert (config.federation.min_participants, config.federation.deadline_s) == (5, 604800)
    assert config.security.node_certificate_life_s == 31_536_000
    assert config.security.approve_joins
    assert config.compliance.frameworks == ("hipaa", "gdpr")
    assert config.monitoring.log_level == "DEBUG"


def test_the_guides_production_file_is_taken_as_values(tmp_path: Path) -> None:
    """Each of its sections, but for what says where the pod listens and keeps its files."""
    path = ROOT / "config/production.yaml"
    written = helm_python.values_from_yaml(path.read_text())
    del written["server"], written["federation"]["model_registry"]
    config, original = of_values(written, tmp_path), load_config(path, {})
    for section in ("privacy", "routing", "security", "compliance", "monitoring"):
        assert getattr(config, section) == getattr(original, section), section
    assert config.federation == original.federation.model_copy(update={"model_registry": None})


def test_a_change_of_the_configuration_restarts_the_coordinator() -> None:
    """It reads the file once, at its start."""

    def checksum(config: Values) -> str:
        found = objects(merged(COORDINATOR, ISTIO, {"coordinator": {"config": config}}))
        template = named(found, "StatefulSet")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) != checksum({"federation": {"min_participants": 5}})
    assert checksum({}) == checksum({})


@pytest.mark.parametrize("case", WITH_COORDINATOR)
def test_the_coordinator_has_time_to_drain(case: str) -> None:
    """The grace counts from the preStop on; what is left must hold the drain and what is written
    after it."""
    spec = named(of(case), "StatefulSet", "fed-feddp-coordinator")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] >= before_s + DRAIN_S + 15
    assert DRAIN_S == 5.0, "the chart's comment and check say so"
