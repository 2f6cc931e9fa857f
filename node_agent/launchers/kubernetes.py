"""Workers as Kubernetes Jobs, by `kubectl` with the service account of the agent's pod.

The manifest is checked against Kubernetes' schemas by a test, and kubectl's answers are read as
documented; no cluster has run it.
"""

import json
from pathlib import Path
from typing import Any, Final

from node_agent.launchers.scheduled import SchedulerUnavailable, Stage, Ticket, run_command
from node_agent.launchers.settings import KubernetesSettings

AGENT_LABEL: Final = "feddp.io/agent"
JOB_LABEL: Final = "feddp.io/job"
NAME_LETTERS_MAX: Final = 63
KEPT_S: Final = 600
"""How long an ended Job is kept for whoever looks why."""

NOT_FOUND: Final = "NotFound"


class Kubernetes:
    """See `node_agent.launchers.scheduled.Scheduler`.

    Args:
        tag: tells this agent's Jobs from others of the namespace.
        folder: the agent's, at the same path in its own pod.
    """

    def __init__(self, settings: KubernetesSettings, tag: str, folder: Path) -> None:
        self._settings = settings
        self._tag = tag
        self._folder = folder

    @property
    def time_limit_s(self) -> float:
        """After which Kubernetes ends a Job."""
        return 60.0 * self._settings.time_limit_minutes

    async def check(self) -> None:
        """`kubectl auth can-i`: whether the cluster answers, and lets this account make Jobs."""
        try:
            answer = await self._kubectl("auth", "can-i", "create", "jobs")
        except SchedulerUnavailable as error:
            answer = str(error)
            if answer.partition(": ")[2]:
                raise
        if answer.strip() != "yes":
            raise SchedulerUnavailable(
                f"this account may not create jobs in the namespace {self._settings.namespace}"
            )

    async def submit(self, ticket: Ticket) -> str:
        """`kubectl create`, the manifest on its stdin."""
        manifest = job_manifest(self._settings, self._tag, self._folder, ticket)
        await self._kubectl("create", "--filename=-", said=json.dumps(manifest))
        return str(manifest["metadata"]["name"])

    async def stage(self, job: str) -> tuple[Stage, str]:
        """By the Job's own status; one that is being deleted runs until its pods are gone."""
        try:
            status = json.loads(await self._kubectl("get", "job", job, "--output=json"))["status"]
        except SchedulerUnavailable as error:
            if NOT_FOUND in str(error):
                return Stage.GONE, "it was deleted"
            raise
        except (ValueError, KeyError):
            raise SchedulerUnavailable("kubectl printed no Job") from None
        for condition in status.get("conditions", []):
            if condition.get("status") == "True" and condition.get("type") in (
                "Complete",
                "Failed",
            ):
                return Stage.GONE, str(condition.get("reason") or condition["type"])
        if status.get("ready") or (status.get("active") and "ready" not in status):
            return Stage.RUNNING, "active"
        return Stage.WAITING, "its pod is not ready"

    async def cancel(self, job: str) -> None:
        """`kubectl delete`; the Job stays until its pods are gone."""
        await self._kubectl(
            *("delete", "job", job, "--ignore-not-found", "--wait=false", "--cascade=foreground")
        )

    async def left(self) -> list[str]:
        """By the label that this agent's Jobs have."""
        printed = await self._kubectl(
            "get", "jobs", f"--selector={AGENT_LABEL}={self._tag}", "--output=name"
        )
        return [line.rpartition("/")[2] for line in printed.split()]

    async def _kubectl(self, *arguments: str, said: str = "") -> str:
        namespace = f"--namespace={self._settings.namespace}"
        return await run_command(["kubectl", namespace, "--request-timeout=20s", *arguments], said)


def job_manifest(
    settings: KubernetesSettings, tag: str, folder: Path, ticket: Ticket
) -> dict[str, Any]:
    """A Job that runs one worker once: never again, never longer than its time limit, as nobody,
    with neither a token for the cluster's API nor a disk that it may write but the agent's."""
    labels = {
        "app.kubernetes.io/name": "feddp-worker",
        AGENT_LABEL: tag,
        JOB_LABEL: _label(ticket.name),
    }
    mounts: list[dict[str, Any]] = [
        {"name": "folder", "mountPath": str(folder)},
        {"name": "temporary", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - the pod's own
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "folder", "persistentVolumeClaim": {"claimName": settings.folder_claim}},
        {"name": "temporary", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    for number, (claim, path) in enumerate(sorted(settings.data_claims.items())):
        name = f"data-{number}"
        mounts.append({"name": name, "mountPath": path, "readOnly": True})
        source = {"claimName": claim, "readOnly": True}
        volumes.append({"name": name, "persistentVolumeClaim": source})
    resources = {"cpu": str(ticket.limits.threads), "memory": settings.memory}
    if settings.gpus:
        resources[settings.gpu_resource] = str(settings.gpus)
    container = {
        "name": "worker",
        "image": settings.image,
        "command": list(ticket.command),
        "env": [{"name": name, "value": value} for name, value in ticket.environment.items()],
        "resources": {"limits": resources, "requests": resources},
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 2,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.run_as_user,
            "runAsGroup": settings.run_as_user,
            # No fsGroup: it would open the agent's folder, keys and mailboxes, to a group.
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": _label(ticket.name).lower(),
            "namespace": settings.namespace,
            "labels": labels,
        },
        "spec": {
            # Another pod in place of a failed one could train one attempt twice.
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": 60 * settings.time_limit_minutes,
            "ttlSecondsAfterFinished": KEPT_S,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _label(name: str) -> str:
    """A name as Kubernetes takes it: its beginning, which says whose it is, and its end, which is
    the worker's own."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    if len(plain) <= NAME_LETTERS_MAX:
        return plain
    end = plain[-9:]
    return plain[: NAME_LETTERS_MAX - len(end)].rstrip("-") + end
