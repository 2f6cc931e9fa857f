"""Doctor asks the scheduler that agent.yaml names, and begins nothing there."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from node_agent.doctor.launcher import check_launcher
from node_agent.launchers.settings import KubernetesSettings, LocalSettings, SlurmSettings

PROGRAM = """#!{python}
import json, pathlib, sys
home = pathlib.Path({folder!r})
with (home / "asked").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
sys.stdout.write({printed!r})
sys.stderr.write({complained!r})
sys.exit({code})
"""

KUBERNETES: dict[str, Any] = {
    "kind": "kubernetes",
    "namespace": "feddp",
    "image": "registry.example/feddp:1",
    "folder_claim": "folder",
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder in which programs are found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(place: Path, name: str, code: int, printed: str = "", complained: str = "") -> None:
    """One that answers so, and notes what it was asked."""
    path = place / name
    values = {"python": sys.executable, "folder": str(place), "code": code}
    path.write_text(PROGRAM.format(**values, printed=printed, complained=complained))
    path.chmod(0o755)


def test_workers_of_this_machine_have_no_launcher_to_ask() -> None:
    """Memory, training and GPU are theirs."""
    assert check_launcher(LocalSettings()) is None


def test_slurm_is_asked_with_what_a_worker_would_be(place: Path) -> None:
    """By --test-only, so that no job comes of it."""
    program(place, "sbatch", 0, complained="sbatch: Job 7 to start at 2026-11-27T14:00:00")
    found = check_launcher(SlurmSettings(kind="slurm", partition="gpu", qos="normal"))
    assert found is not None
    assert found.result == "ok"
    (asked,) = [json.loads(line) for line in (place / "asked").read_text().splitlines()]
    assert {"--test-only", "--partition=gpu", "--qos=normal"} <= set(asked)


def test_what_slurm_says_against_it_is_told(place: Path) -> None:
    """Its own sentence, before a job has to fail for it."""
    said = "allocation failure: Invalid partition name specified"
    program(place, "sbatch", 1, complained=said)
    found = check_launcher(SlurmSettings(kind="slurm", partition="nope"))
    assert found is not None
    assert (found.result, said in found.found) == ("failed", True)
    assert "agent.yaml" in found.do


def test_a_scheduler_whose_commands_are_not_there_is_told() -> None:
    """The agent runs on a machine that is no login node."""
    found = check_launcher(SlurmSettings(kind="slurm"))
    assert found is not None
    assert found.result == "failed"
    assert "sbatch cannot be started" in found.found


@pytest.mark.parametrize(
    ("code", "printed", "complained", "said"),
    [
        (0, "yes\n", "", "would take a worker"),
        (1, "no\n", "", "may not create jobs in the namespace feddp"),
        (1, "", "The connection to the server was refused", "connection to the server was refused"),
    ],
)
def test_kubernetes_is_asked_whether_this_account_may(
    place: Path, code: int, printed: str, complained: str, said: str
) -> None:
    """Whether the cluster answers, and lets it make Jobs."""
    program(place, "kubectl", code, printed, complained)
    found = check_launcher(KubernetesSettings.model_validate(KUBERNETES))
    assert found is not None
    assert (found.result == "ok") == (code == 0)
    assert said in found.found
    (asked,) = [json.loads(line) for line in (place / "asked").read_text().splitlines()]
    assert asked[-4:] == ["auth", "can-i", "create", "jobs"]
