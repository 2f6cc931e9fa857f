"""How many pods there are after each `helm` and `kubectl` command of a procedure, also where a
HorizontalPodAutoscaler says so.

The rules are those of Kubernetes and Helm, written down here as no cluster is at hand: an
autoscaler leaves a StatefulSet of no pod alone, and Helm writes `.spec.replicas` where the chart's
manifest has it; where it has it no more, Kubernetes makes it 1.
"""

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.charts.rendering import (
    COORDINATOR,
    ISTIO,
    REPLICAS,
    TRANSFER,
    Values,
    merged,
    named,
    objects,
)
from tests.deploy.versions import commands, script

HELM: Final = (Path(__file__).parents[2] / "docs/helm.md").read_text()
DIGEST: Final = "sha256:" + "ab" * 32
FIXED: Final = merged(COORDINATOR, ISTIO, REPLICAS)
SCALED: Final = merged(COORDINATOR, ISTIO, REPLICAS, TRANSFER)
RESTORED: Final[Values] = {
    "coordinator": {
        "backup": {"claim": "backups"},
        "restore": {"file": "one.backup", "revocationsConfigMap": "feddp-revocations"},
    }
}


class Release:
    """A release and its StatefulSet's number of pods."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.pods = 1
        self._said: int | None = None
        self.upgrade({})

    def upgrade(self, over: Values) -> None:
        """`helm upgrade`, and what the autoscaler makes of it."""
        found = objects(merged(self.values, over))
        said: int | None = named(found, "StatefulSet")["spec"].get("replicas")
        if said is not None:
            self.pods = said
        elif self._said is not None:
            self.pods = 1
        self._said = said
        self._autoscaled(found)

    def scale(self, number: int) -> None:
        """`kubectl scale`."""
        self.pods = number
        self._autoscaled(objects(self.values))

    def _autoscaled(self, found: list[dict[str, Any]]) -> None:
        for one in found:
            if one["kind"] == "HorizontalPodAutoscaler" and self.pods:
                self.pods = max(self.pods, one["spec"]["minReplicas"])


def run(release: Release, lines: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """(command, pods after it)."""
    for line in lines:
        words = shlex.split(line)
        if words[:2] == ["helm", "upgrade"]:
            over: Values = RESTORED if "restore.yaml" in words else {}
            for name, word in itertools.pairwise(words):
                if name == "--set":
                    path, _, value = word.partition("=")
                    one: Any = value == "true" if value in ("true", "false") else value
                    for part in reversed(path.split(".")):
                        one = {part: one}
                    over = merged(over, one)
            release.upgrade(over)
        elif "scale" in words:
            release.scale(int(words[-1].partition("=")[2]))
        yield words, release.pods


@pytest.mark.parametrize("values", [FIXED, SCALED], ids=["fixed", "autoscaled"])
def test_blue_green_ends_every_pod_before_the_copy_and_has_them_all_afterwards(
    values: Values,
) -> None:
    """An autoscaler alone would leave the release without a pod."""
    planned = script(
        *("blue_green", "--helm", "fed", "--namespace", "hospitals", "--digest", DIGEST),
        *("--new", "/opt/feddp/0.3.0", "--backup", "b", "--profile", "p"),
        *("--copy", "createdb green", "--set", "coordinator.database.urlSecret.name=green"),
    )
    assert planned.returncode == 0, planned.stderr
    release = Release(values)
    assert release.pods == 3
    counted = {words[0]: pods for words, pods in run(release, commands(planned.stdout))}
    assert counted["createdb"] == 0
    assert release.pods == 3


@pytest.mark.parametrize("values", [FIXED, SCALED], ids=["fixed", "autoscaled"])
def test_a_restore_by_the_document_begins_without_a_pod_and_ends_with_all(values: Values) -> None:
    """Every `helm` and `kubectl` command of the section, in its order."""
    section = HELM.partition("## Restore\n")[2].partition("\n## ")[0]
    lines = [
        line
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.M | re.S)
        if not language
        for line in block.splitlines()
    ]
    release = Release(values)
    counted = [(words, pods) for words, pods in run(release, lines)]
    (waited,) = [pods for words, pods in counted if "--for=delete" in words]
    (logged,) = [pods for words, pods in counted if "logs" in words]
    assert (waited, logged) == (0, 0)
    assert release.pods == 3


def test_kubectl_alone_would_leave_an_autoscaled_release_without_a_pod() -> None:
    """What the procedures avoid; so that the rules above would find it."""
    release = Release(SCALED)
    release.scale(0)
    release.upgrade({})
    assert release.pods == 0
    fixed = Release(FIXED)
    fixed.scale(0)
    fixed.upgrade({})
    assert fixed.pods == 3
