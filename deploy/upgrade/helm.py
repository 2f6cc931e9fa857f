"""An installation of the chart, by `kubectl` and `helm`."""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from steps import Command, Expect, Ledger, Step, may_go_back, may_roll, replies, runs_pods

INSTALLATION: Final = "/var/lib/feddp/installation"
UNKNOWN: Final = "REVISION"
RELEASED: Final = "RELEASE_REVISION"
RELEASED_BEFORE: Final = "RELEASE_REVISION_BEFORE"
FORCE: Final = ("--server-side=true", "--force-conflicts")
"""Helm 4 alone knows them. It refuses to write a field that somebody else wrote last, as whoever
scaled the pods did with .spec.replicas; with these it takes the field back."""

BACKUP: Final = "/var/lib/feddp/upgrade.backup"


@dataclass(frozen=True, slots=True)
class Helm:
    """A release of the chart.

    Attributes:
        values: the values file of the release.
        digest: of the image that is to run.
        here: folder of the version that is to run, on this machine, with `bin/feddp`: it knows its
            migrations, and reads the backup.
        revision: that the tables are at; looked up where something is to be done.
        released: the release's own revision that runs; looked up likewise.
        force: what `helm` is told besides, `FORCE` or nothing.
    """

    release: str
    namespace: str
    chart: str
    values: str
    digest: str
    here: str
    backup_file: str
    wait_s: float
    revision: str = UNKNOWN
    released: str = RELEASED
    force: tuple[str, ...] = ()

    @property
    def set_name(self) -> str:
        """The StatefulSet."""
        return f"statefulset/{self.release}-feddp-coordinator"

    def kubectl(self, *words: str) -> Command:
        """In the release's namespace."""
        return ("kubectl", "--namespace", self.namespace, *words)

    def inside(self, *words: str) -> Command:
        """A command of `feddp` in the first pod."""
        pod = f"{self.release}-feddp-coordinator-0"
        return self.kubectl(
            "exec", pod, "--container", "coordinator", "--", "feddp", *words, "--dir", INSTALLATION
        )

    def upgraded(self, *more: str) -> Command:
        """The release with the new image."""
        return (
            *("helm", "upgrade", self.release, self.chart, "--namespace", self.namespace),
            *("--values", self.values, "--set", f"coordinator.image.digest={self.digest}", *more),
            *self.force,
        )

    def all_ended(self) -> Command:
        """Waits until the coordinator has no pod, however many there were."""
        labels = (
            f"app.kubernetes.io/instance={self.release},app.kubernetes.io/component=coordinator"
        )
        timeout = f"--timeout={self.wait_s:.0f}s"
        return self.kubectl("wait", "--for=delete", "pod", "--selector", labels, timeout)

    def back_to_now(self) -> tuple[Command, ...]:
        """To the release's revision that runs before anything is done: past those between, and also
        where `helm` was stopped before it had made another."""
        command = ("helm", "rollback", self.release, self.released, "--namespace", self.namespace)
        return ((*command, *self.force), self.rolled_out())

    def rolled_out(self) -> Command:
        """Waits until every pod is of the newest revision and ready."""
        return self.kubectl("rollout", "status", self.set_name, f"--timeout={self.wait_s:.0f}s")

    def to_before(self) -> Command:
        """To the release's revision of before, whichever that is."""
        return ("helm", "rollback", self.release, "--namespace", self.namespace, *self.force)

    def before(self, ledger: Ledger) -> Iterator[Step]:
        """Checks and a backup that was read back and copied here."""
        yield Step("this version finds no error", (self.inside("coordinator", "check"),))
        yield Step(
            "the ledger verifies", (self.inside("budget", "verify", "--json"),), ledger.before
        )
        pod = f"{self.release}-feddp-coordinator-0"
        shell = self.kubectl("exec", pod, "--container", "coordinator", "--")
        away = (*shell, "rm", "-f", BACKUP)
        yield Step(
            "a backup; one that an interrupted upgrade left is taken away",
            (away, self.inside("coordinator", "backup", "--out", BACKUP)),
            back=(away,),
        )
        yield Step(
            "the backup is sound",
            ((*shell, "feddp", "coordinator", "backup", "--verify", BACKUP),),
            back=(away,),
        )
        yield Step(
            "the backup is here, and no longer on the volume",
            (
                self.kubectl(
                    "cp", "--container", "coordinator", f"{pod}:{BACKUP}", self.backup_file
                ),
                (f"{self.here}/bin/feddp", "coordinator", "backup", "--verify", self.backup_file),
                away,
            ),
            back=(away,),
        )

    def replaced(self, *more: str) -> Iterator[Step]:
        """The new image in every pod, one after the other."""
        back = self.back_to_now()
        yield Step("the new image, pod by pod", (self.upgraded(*more),), back=back)
        # Once only: it waits itself, and a second look would wait as long again.
        yield Step("wait until every pod is replaced and ready", (self.rolled_out(),), back=back)

    def after(self, expect: Expect) -> Iterator[Step]:
        """Nothing was lost, and it answers as its clients need it."""
        back = self.back_to_now()
        yield Step(
            "the new version finds no error", (self.inside("coordinator", "check"),), back=back
        )
        yield Step(
            "the ledger verifies, and has every entry of before",
            (self.inside("budget", "verify", "--json"),),
            expect,
            back=back,
        )
        test = ("helm", "test", self.release, "--namespace", self.namespace)
        yield Step("the chart's own test", (test,), back=back)

    def may_roll(self) -> Iterator[Step]:
        """Whether the versions may serve beside each other."""
        asked = ("coordinator", "upgrade", "--plan")
        yield Step(
            "the tables there let both serve",
            (
                self.inside(*asked, "--json"),
                (f"{self.here}/bin/feddp", *asked, "--from", self.revision, "--json"),
            ),
            may_roll,
        )

    def may_go_back(self) -> Iterator[Step]:
        """Whether the version that is here, the older one, may serve the tables that are there."""
        asked = ("coordinator", "upgrade", "--plan")
        yield Step(
            "the tables there let the older version serve",
            (
                self.inside(*asked, "--json"),
                (f"{self.here}/bin/feddp", *asked, "--from", self.revision, "--json"),
            ),
            may_go_back,
        )

    def was_running(self) -> Iterator[Step]:
        """Whether the release's revision of before had pods."""
        known = self.released.isdecimal()
        before = str(int(self.released) - 1) if known else RELEASED_BEFORE
        words = ("--namespace", self.namespace, "--revision", before, "--output", "json")
        yield Step(
            "the release's revision of before is no stop",
            (("helm", "get", "values", self.release, *words),),
            runs_pods,
        )

    def looked_up(self) -> "Helm":
        """The same with the revision that the tables are at."""
        (found,) = replies([self.inside("coordinator", "upgrade", "--plan", "--json")])
        revision = json.loads(found)["revision"] if found else UNKNOWN
        return dataclasses.replace(self, revision=revision)

    def released_now(self) -> "Helm":
        """The same with the release's own revision."""
        history = ("helm", "history", self.release, "--namespace", self.namespace)
        (found,) = replies([(*history, "--max", "1", "--output", "json")])
        released = str(json.loads(found)[-1]["revision"]) if found else RELEASED
        return dataclasses.replace(self, released=released)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What says which release."""
    group = parser.add_argument_group("Kubernetes, instead of processes")
    group.add_argument("--helm", default="", metavar="RELEASE", help="a release of the chart")
    group.add_argument("--namespace", default="default")
    group.add_argument("--chart", default="charts/feddp", help="the chart of the version to run")
    group.add_argument("--values", default="values.yaml", help="the release's values file")
    group.add_argument("--digest", default="", help="of the image that is to run (sha256:...)")
    group.add_argument(
        "--force-conflicts",
        action="store_true",
        help=f"helm is Helm 4, and somebody else scaled the pods: adds {' '.join(FORCE)}",
    )


def helm_of(
    parser: argparse.ArgumentParser, given: argparse.Namespace, needed: tuple[str, ...]
) -> Helm:
    """What the options say; ends the program if one is missing."""
    for name in needed:
        if not getattr(given, name):
            parser.error(f"--{name} is needed with --helm")
    found = Helm(
        release=given.helm,
        namespace=given.namespace,
        chart=given.chart,
        values=given.values,
        digest=given.digest,
        here=(given.new if "new" in needed else given.old).rstrip("/"),
        backup_file=given.backup,
        wait_s=given.wait_s,
        force=FORCE if given.force_conflicts else (),
    )
    return found.looked_up() if given.run else found
