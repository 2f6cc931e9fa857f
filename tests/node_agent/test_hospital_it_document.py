"""The settings that docs/hospital-it.md shows load as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent.data.datasets import load_data_sets
from node_agent.folder.config import AgentConfig

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "hospital-it.md").read_text()
JOINED = {
    "coordinator": "127.0.0.1:8443",
    "trust_domain": "hospitals.example",
    "node": "alpha",
    "node_class": "hpc",
}


def blocks(title: str) -> list[dict[str, Any]]:
    """The YAML blocks of the document that begin with a file's name."""
    found = re.findall(rf"```yaml\n# {re.escape(title)}\n(.*?)```", DOCUMENT, re.DOTALL)
    return [yaml.safe_load(one) for one in found]


def test_every_launcher_that_is_shown_loads() -> None:
    """Local, Slurm and Kubernetes, each with all its keys."""
    shown = [one for one in blocks("agent.yaml") if "launcher" in one]
    loaded = [AgentConfig.model_validate({**JOINED, **one}).launcher for one in shown]
    assert {one.kind for one in loaded} == {"local", "slurm", "kubernetes"}
    for written, one in zip(shown, loaded, strict=True):
        optional = {"gpu_resource"}
        assert set(written["launcher"]) == set(type(one).model_fields) - optional


@pytest.mark.parametrize("source", ["document", "omop-cdm", "fhir-export"])
def test_every_data_set_that_is_shown_loads(tmp_path: Path, source: str) -> None:
    """Those of the document and of the examples beside it."""
    if source == "document":
        [shown] = [one for one in blocks("datasets.yaml") if "consent" in str(one)]
        text = yaml.safe_dump(shown)
    else:
        text = (ROOT / "config" / "sources" / f"{source}.datasets.yaml").read_text()
    (tmp_path / "datasets.yaml").write_text(text)
    [spec] = load_data_sets(tmp_path)
    assert spec.consent is not None


@pytest.mark.parametrize(
    "file", ["Makefile", "deploy/Dockerfile", "deploy/apptainer.def", "docs/hospital-it.md"]
)
def test_what_is_installed_without_an_index_reads_every_kind_of_source(file: str) -> None:
    """A site that cannot add a package later has databases from the start, as the table says."""
    needed = {
        extra
        for extras in re.findall(r"^\| `\.\w+` \|.*\| `feddp\[([a-z,]+)\]` \|$", DOCUMENT, re.M)
        for extra in extras.split(",")
    }
    assert needed == {"agent", "sql"}
    text = (ROOT / file).read_text()
    unless_said = re.search(r"^(?:wheelhouse: EXTRA :=|ARG EXTRA=) ?([a-z,]+)$", text, re.M)
    if unless_said:
        text = re.sub(r"\$[({]EXTRA[)}]", unless_said[1], text)
    offline = re.findall(r"--no-index .*['\"]feddp\[([a-z,]+)\]['\"]", text)
    assert offline
    assert all(needed <= set(one.split(",")) for one in offline)
    for built in re.findall(r"pip wheel .*'\.\[([a-z,]+)\]'", text):
        assert needed <= set(built.split(","))
