"""A pod's containers as processes of this machine."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.charts.rendering import ROOT, Object, named

NAME: Final = "fed-feddp-coordinator"


class Pod:
    """A pod's containers as processes of this machine.

    Args:
        folder: stands for the root of the pod's file system.
        name: of the StatefulSet, the CronJob or the Job.
        environment: over the containers' own: what differs here, and what Secrets hold.
        found: what was rendered.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        environment: dict[str, str],
        found: list[Object],
    ) -> None:
        self.folder = folder
        self._environment = environment
        self._found = found
        spec = _spec(found, name)
        self.spec: dict[str, Any] = spec
        self._containers = {
            one["name"]: one for one in [*spec.get("initContainers", []), *spec["containers"]]
        }
        for path in (
            "var/lib/feddp",
            "tmp",
            "bin",
            "etc/feddp/steward",
            "etc/feddp/join",
            "etc/feddp/installation",
            "etc/feddp/backup",
            "etc/feddp/config",
            "etc/feddp/revocations",
        ):
            (folder / path).mkdir(parents=True, exist_ok=True)
        program = folder / "bin/feddp"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m feddp "$@"\n')
        program.chmod(0o755)

    def here(self, text: str) -> str:
        """Paths of the pod as paths of this machine."""
        for path in ("/var/lib/feddp", "/etc/feddp"):
            text = text.replace(path, str(self.folder) + path)
        return text

    def start(self, name: str, command: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start a container's command, or another one in its environment."""
        container = self._containers[name]
        environment = {one["name"]: one.get("value", "") for one in container["env"]}
        environment |= {"HOME": str(self.folder / "tmp")} | self._environment
        return subprocess.Popen(
            command
            or [self.here(one) for one in [*container["command"], *container.get("args", [])]],
            env={
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                **{key: self.here(value) for key, value in environment.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def mount_configuration(self) -> Path:
        """The ConfigMap's file over the one that was installed, as the pod mounts it."""
        text = named(self._found, "ConfigMap", NAME)["data"]["coordinator.yaml"]
        for container in [*self.spec.get("initContainers", [])[1:], *self.spec["containers"]]:
            (mount,) = [one for one in container["volumeMounts"] if one["name"] == "config"]
            assert mount["subPath"] == "coordinator.yaml"
        path = Path(self.here(mount["mountPath"]))
        path.write_text(self.here(text))
        return path

    def port(self, name: str) -> int:
        """One of the ports that were chosen for it."""
        return int(self._environment[f"FEDDP_SERVER__{name}"])

    def feddp(self, *words: str) -> tuple[int, str]:
        """What `kubectl exec -c coordinator -- feddp ... --dir` gives: exit code and output."""
        folder = self.here("/var/lib/feddp/installation")
        process = self.start("coordinator", ["feddp", *words, "--dir", folder])
        said, _ = process.communicate(timeout=120)
        return process.returncode, said

    def run(self, name: str) -> tuple[int, str]:
        """A container that ends: its exit code and what it printed."""
        process = self.start(name)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said


def _spec(found: list[Object], name: str) -> dict[str, Any]:
    (one,) = [
        each
        for each in found
        if each["kind"] in ("StatefulSet", "CronJob", "Job") and each["metadata"]["name"] == name
    ]
    outer = one["spec"]["jobTemplate"] if one["kind"] == "CronJob" else one
    spec: dict[str, Any] = outer["spec"]["template"]["spec"]
    return spec


def leads(pod: Pod) -> bool:
    """What its /metrics says."""
    url = f"http://127.0.0.1:{pod.port('HEALTH_PORT')}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return "feddp_leading 1.0" in answer.read().decode()


def ready(port: int) -> bool:
    """Whether the readiness probe's address answers with success."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
