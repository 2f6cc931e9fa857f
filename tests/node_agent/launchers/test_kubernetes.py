"""Workers as Kubernetes Jobs: the manifest against Kubernetes' own schemas; no cluster is here."""

import asyncio
import copy
import json
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from node_agent.launchers.base import Limits
from node_agent.launchers.choice import launcher_of
from node_agent.launchers.kubernetes import Kubernetes, job_manifest
from node_agent.launchers.scheduled import Scheduled, SchedulerUnavailable, Stage, Ticket
from node_agent.launchers.settings import KubernetesSettings
from tests.node_agent.launchers.test_slurm import agent

SETTINGS: dict[str, Any] = {
    "kind": "kubernetes",
    "namespace": "feddp",
    "image": "registry.hospital.example/feddp-agent:0.1.0",
    "folder_claim": "agent-folder",
    "data_claims": {"records": "/srv/records"},
    "gpus": 1,
}
FOLDER = Path("/var/lib/feddp/alpha")
TICKET = Ticket(
    "feddp-0123456789ab-4b8e3c1e-7d0a-4a53-9f0e-1c1e2f3a4b5c-0a1b2c3d",
    ["python", "-m", "node_agent.worker", f"--mailbox={FOLDER}/spool/workers/x"],
    {"OMP_NUM_THREADS": "2"},
    FOLDER / "logs" / "worker.log",
    Limits(threads=2),
)


def manifest() -> dict[str, Any]:
    """The Job of one worker."""
    settings = KubernetesSettings.model_validate(SETTINGS)
    return job_manifest(settings, "0123456789ab", FOLDER, TICKET)


@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
def test_the_manifest_is_a_job_by_kubernetes_own_schema(version: str) -> None:
    """Strictly, so that a misspelt key is found; one is, to show that the check can fail."""
    made = manifest()
    kubernetes_validate.validate(made, version, strict=True)
    wrong = copy.deepcopy(made)
    wrong["spec"]["template"]["spec"]["restartpolicy"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_a_job_runs_once_and_not_for_ever() -> None:
    """A pod in place of a failed one could train an attempt twice; its name fits and is its own."""
    made = manifest()
    spec, pod = made["spec"], made["spec"]["template"]["spec"]
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)
    assert spec["activeDeadlineSeconds"] == 240 * 60
    assert pod["restartPolicy"] == "Never"
    name = made["metadata"]["name"]
    assert len(name) <= 63
    assert name.startswith("feddp-0123456789ab-4b8e3c1e")
    assert name.endswith("-0a1b2c3d")


def test_a_pod_is_nobody_and_can_only_write_where_it_must() -> None:
    """No root, no capability, no token of the cluster; records are mounted read-only."""
    pod = manifest()["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    [records] = [one for one in container["volumeMounts"] if one["mountPath"] == "/srv/records"]
    assert records["readOnly"] is True
    [volume] = [one for one in pod["volumes"] if one["name"] == records["name"]]
    assert volume["persistentVolumeClaim"] == {"claimName": "records", "readOnly": True}
    [folder] = [one for one in container["volumeMounts"] if one["name"] == "folder"]
    assert folder["mountPath"] == str(FOLDER)
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"}


KUBECTL = """#!{python}
import json, sys
from pathlib import Path
home = Path("{folder}")
with (home / "asked").open("a") as file:
    said = sys.stdin.read() if "create" in sys.argv else ""
    file.write(json.dumps([sys.argv[1:], said]) + "\\n")
if (home / "error").exists():
    sys.stderr.write((home / "error").read_text())
    sys.exit(1)
print((home / "answer").read_text())
"""


class Stand:
    """A `kubectl` that gives documented answers and notes what it was asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        program = folder / "kubectl"
        program.write_text(KUBECTL.format(python=sys.executable, folder=folder))
        program.chmod(0o755)
        self.answer("")

    def answer(self, text: str) -> None:
        """What it prints from now on."""
        (self._folder / "error").unlink(missing_ok=True)
        (self._folder / "answer").write_text(text)

    def fail(self, text: str) -> None:
        """How it fails from now on."""
        (self._folder / "error").write_text(text)

    def asked(self) -> list[Any]:
        """Arguments and standard input of each call."""
        return [json.loads(line) for line in (self._folder / "asked").read_text().splitlines()]


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """The one that is found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return Stand(tmp_path)


@pytest.fixture
def cluster() -> Kubernetes:
    """As an agent asks it."""
    return Kubernetes(KubernetesSettings.model_validate(SETTINGS), "0123456789ab", FOLDER)


@pytest.mark.parametrize(
    ("status", "stage"),
    [
        ({}, Stage.WAITING),
        ({"active": 1, "ready": 0}, Stage.WAITING),
        ({"active": 1, "ready": 1}, Stage.RUNNING),
        ({"conditions": [{"type": "Complete", "status": "True"}]}, Stage.GONE),
        ({"conditions": [{"type": "Suspended", "status": "True"}], "ready": 0}, Stage.WAITING),
        (
            {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]},
            Stage.GONE,
        ),
    ],
)
def test_a_jobs_status_is_read_as_documented(
    stand: Stand, cluster: Kubernetes, status: dict[str, Any], stage: Stage
) -> None:
    """A condition that holds ends it; a pod that is not ready waits."""
    stand.answer(json.dumps({"kind": "Job", "status": status}))
    found, word = asyncio.run(cluster.stage("j"))
    assert found is stage
    assert "DeadlineExceeded" in word or "reason" not in str(status)


def test_a_job_that_is_not_found_is_gone_and_one_that_cannot_be_asked_after_is_not(
    stand: Stand, cluster: Kubernetes
) -> None:
    """An API server that does not answer must not end a worker."""
    stand.fail('Error from server (NotFound): jobs.batch "j" not found')
    assert asyncio.run(cluster.stage("j"))[0] is Stage.GONE
    stand.fail("Unable to connect to the server: dial tcp: i/o timeout")
    with pytest.raises(SchedulerUnavailable, match="kubectl failed"):
        asyncio.run(cluster.stage("j"))
    stand.answer("<html>")
    with pytest.raises(SchedulerUnavailable, match="no Job"):
        asyncio.run(cluster.stage("j"))


def test_jobs_are_made_found_and_deleted_by_kubectl(stand: Stand, cluster: Kubernetes) -> None:
    """In the namespace that is configured; what an earlier life left is found by its label."""
    job = asyncio.run(cluster.submit(TICKET))
    stand.answer("job.batch/one\njob.batch/two\n")
    assert asyncio.run(cluster.left()) == ["one", "two"]
    asyncio.run(cluster.cancel(job))
    [created, said], [found, _], [deleted, _] = stand.asked()
    assert json.loads(said) == manifest()
    assert all("--namespace=feddp" in one for one in (created, found, deleted))
    assert "--selector=feddp.io/agent=0123456789ab" in found
    assert manifest()["metadata"]["labels"]["feddp.io/agent"] == "0123456789ab"
    assert {"delete", job, "--ignore-not-found"} <= set(deleted)


def test_the_configuration_chooses_kubernetes(tmp_path: Path) -> None:
    """With the agent's own folder; a relative mount is refused."""
    folder, config = agent(tmp_path, SETTINGS)
    chosen = launcher_of(folder, config)
    assert isinstance(chosen, Scheduled)
    assert isinstance(chosen.scheduler, Kubernetes)
    with pytest.raises(Exception, match="data_claims"):
        agent(tmp_path, {**SETTINGS, "data_claims": {"records": "srv"}})
