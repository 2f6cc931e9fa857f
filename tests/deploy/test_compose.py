"""deploy/compose.yaml is valid, names what exists, and gives the coordinator settings it knows."""

import hashlib
import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from coordinator.config.config import load_config

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy/compose.yaml"
TEXT = COMPOSE.read_text()
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::[?-][^}]*)?\}")


def compose() -> dict[str, Any]:
    """As Compose reads it, with each variable given a value."""
    found: dict[str, Any] = yaml.safe_load(VARIABLE.sub(lambda one: f"is-{one[1].lower()}", TEXT))
    return found


def test_it_is_what_the_specification_allows() -> None:
    """Its own schema, in which nothing unknown is allowed."""
    schema = json.loads((ROOT / "tests/deploy/compose-spec.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(compose())
    assert not validator.is_valid({"services": {"a": {"imago": "x"}}})


def test_every_variable_is_in_the_example_and_the_other_way_round() -> None:
    """So that nobody looks for a name."""
    example = (ROOT / "deploy/compose.env.example").read_text()
    assert set(re.findall(r"^([A-Z_]+)=$", example, re.M)) == {
        one[1] for one in VARIABLE.finditer(TEXT)
    }


def test_every_image_is_named_by_digest() -> None:
    """None is invented here: each is asked for, with what to give."""
    images = re.findall(r"^\s+image: (.*)$", TEXT, re.M)
    assert len(images) == 6
    for one in images:
        assert re.fullmatch(r"(\S+@\$\{[A-Z]+_DIGEST:[?-].*\}|\$\{COORDINATOR_IMAGE:\?.*\})", one)


def test_the_coordinator_takes_every_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each FEDDP_ variable is a key of its configuration."""
    file = tmp_path / "coordinator.yaml"
    file.write_text("{}")
    environment = compose()["services"]["coordinator"]["environment"]
    assert environment.keys() > {"FEDDP_STORAGE__DATABASE_URL", "FEDDP_STORAGE__BLOB_URL"}
    config = load_config(file, {key: str(value) for key, value in environment.items()})
    assert config.storage.blob_url == "s3://feddp"
    assert config.server.health_host == "0.0.0.0"  # noqa: S104 - within the network of Compose


def test_only_the_coordinators_two_ports_are_open_to_others() -> None:
    """What watches is on loopback; the database and the store have no port at all."""
    ports = {name: one.get("ports", []) for name, one in compose()["services"].items()}
    assert ports.pop("coordinator") == ["8443:8443", "8444:8444"]
    assert all(one.startswith("127.0.0.1:") for each in ports.values() for one in each)
    assert not ports["database"]
    assert not ports["store"]


def test_what_is_mounted_exists_and_names_what_runs() -> None:
    """Prometheus asks the coordinator's own port, and Grafana asks Prometheus."""
    services = compose()["services"]
    for one in services.values():
        for mount in one.get("volumes", []):
            source = mount.partition(":")[0]
            if source.startswith("."):
                wanted = (COMPOSE.parent / source).resolve()
                # The dashboards are generated; their folder may not be there yet.
                assert wanted.exists() or wanted.name == "dashboards", wanted
            else:
                assert source in compose()["volumes"]
    scraped = yaml.safe_load((ROOT / "deploy/compose/prometheus.yaml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["coordinator:8080"]}]
    (source,) = yaml.safe_load((ROOT / "deploy/compose/grafana-source.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"


def test_prometheus_loads_the_alerts_and_they_are_of_the_job_that_it_reads() -> None:
    """Each file that it loads is mounted, and every expression asks for what is scraped."""
    read = yaml.safe_load((ROOT / "deploy/compose/prometheus.yaml").read_text())
    (job,) = read["scrape_configs"]
    mounts = dict(
        one.removesuffix(":ro").split(":")[::-1]
        for one in compose()["services"]["prometheus"]["volumes"]
    )
    (pattern,) = read["rule_files"]
    folder, _, name = pattern.rpartition("/")
    files = sorted((COMPOSE.parent / mounts[folder]).glob(name))
    assert [one.name for one in files] == ["feddp.yaml"]
    (group,) = yaml.safe_load(files[0].read_text())["groups"]
    wanted = f'job="{job["job_name"]}"'
    assert [one["alert"] for one in group["rules"] if wanted not in one["expr"]] == []


def test_images_run_without_root_and_tell_their_health() -> None:
    """Both targets come from one stage with a user; the base is asked for and never a tag."""
    found = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.M)
    stages = {name: base for base, name in found}
    assert stages == {
        "installed": "${BASE}",
        "sbom": "scratch",
        "user": "${BASE}",
        "coordinator": "user",
        "agent": "user",
    }
    assert re.search(r"^ARG BASE$", DOCKERFILE, re.M), "a default would be a tag or an invention"
    parts = dict(re.findall(r"^FROM \S+ AS (\w+)$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S))
    assert re.search(r"^USER 10001:10001$", parts["user"], re.M)
    for target in ("coordinator", "agent"):
        assert "HEALTHCHECK" in parts[target]
        assert "USER" not in parts[target]
    assert list(parts)[-1] == "agent", "the target that is built unless another is named"


def test_the_bill_of_materials_lists_what_is_installed(tmp_path: Path) -> None:
    """Each package once, with its version, and its wheel's digest where the wheel is there."""
    (tmp_path / "typer-0.wrong-py3-none-any.whl").write_bytes(b"")
    version = next(one.version for one in distributions() if one.metadata["Name"] == "PyYAML")
    (tmp_path / f"pyyaml-{version}-cp311-none-any.whl").write_bytes(b"wheel")
    printed = subprocess.run(
        [sys.executable, str(ROOT / "deploy/sbom.py"), str(tmp_path)],
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout
    found = json.loads(printed)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    listed = {one["name"]: one for one in found["components"]}
    assert len(listed) == len(found["components"])
    there = {re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower() for one in distributions()}
    assert listed.keys() == there
    assert listed["pyyaml"]["purl"] == f"pkg:pypi/pyyaml@{version}"
    (digest,) = listed["pyyaml"]["hashes"]
    assert digest == {"alg": "SHA-256", "content": hashlib.sha256(b"wheel").hexdigest()}
    assert "hashes" not in listed["typer"]
