"""The scripts of deploy/upgrade for a release of the chart.

There is no cluster: `kubectl` and `helm` are stand-ins that note how they are called and answer as
given; `feddp` is the real one.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordinator.backups.backup import backup
from coordinator.installation import init
from coordinator.store.database import newest_revision
from tests.deploy.versions import commands, next_release, script, version_folder, way_back

BACKUP = "/var/lib/feddp/upgrade.backup"
DIGEST = "sha256:" + "ab" * 32
STAND_IN = """#!{python}
import json, pathlib, shutil, sys
here = pathlib.Path({here!r})
words = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with (here / "calls").open("a") as file:
    file.write(json.dumps(words) + "\\n")
said = " ".join(words)
for part, answer in json.loads((here / "answers.json").read_text()):
    if part in said:
        if answer is None:
            sys.exit("it does not")
        print(json.dumps(answer))
        break
if " cp " in said:
    shutil.copy(here / "made.backup", words[-1])
"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Stand-ins on PATH, and what they were asked."""

    folder: Path
    now: Path
    following: Path

    def answers(self, first: dict[str, Any] | None = None) -> None:
        """What a command prints if a text is in it, null to fail; the first that is counts."""
        revision = newest_revision()
        usual = {
            "budget verify": {"verified": True, "entries": 4},
            "get values": {"coordinator": {"image": {"digest": DIGEST}}},
            "helm history": [{"revision": 7, "status": "deployed"}],
            "budget ledger": {"entries": [{"attempt_id": "a", "kind": "void"}] * 4},
            "upgrade --plan": {
                "revision": revision,
                "oldest_that_serves": revision,
                "needs_stop": False,
                "migrations": [],
            },
        }
        found = [*(first or {}).items(), *usual.items()]
        (self.folder / "answers.json").write_text(json.dumps(found))

    def calls(self) -> list[list[str]]:
        """Each call, in order."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self, name: str, *words: object) -> Any:
        """A script with the release `fed`."""
        return script(
            *(name, "--helm", "fed", "--namespace", "hospitals", "--chart", "charts/feddp"),
            *("--backup", self.folder / "copied.backup", *words),
            PATH=f"{self.folder}{os.pathsep}{os.environ['PATH']}",
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A real backup, two versions, and the stand-ins."""
    folder = tmp_path_factory.mktemp("cluster")
    made = init(folder / "c", "test.example")
    backup(made.config, folder / "made.backup")
    for name in ("kubectl", "helm"):
        program = folder / name
        program.write_text(STAND_IN.format(python=sys.executable, here=str(folder)))
        program.chmod(0o755)
    following = next_release(folder / "next", older_may_serve=True)
    return Cluster(folder, version_folder(folder, "now"), following)


@pytest.fixture(autouse=True)
def fresh(cluster: Cluster) -> None:
    """Nothing was asked yet."""
    (cluster.folder / "calls").unlink(missing_ok=True)
    (cluster.folder / "copied.backup").unlink(missing_ok=True)
    cluster.answers()


def changing(calls: list[list[str]]) -> list[str]:
    """Those that change something in the cluster, shortened."""
    verbs = ("upgrade fed", "rollback fed", "scale", "rollout status", "wait", "test fed", " cp ")
    return [" ".join(one) for one in calls if any(verb in " ".join(one) for verb in verbs)]


ROLLED_OUT = (
    "kubectl --namespace hospitals rollout status statefulset/fed-feddp-coordinator --timeout=120s"
)


def test_a_release_is_rolled_after_checks_and_a_backup_that_was_read_here(
    cluster: Cluster,
) -> None:
    """In this order, and the ledger is looked at afterwards; the plan alone asks nothing."""
    words = ("--new", cluster.following, "--digest", DIGEST)
    planned = cluster.run("rolling", *words)
    assert planned.returncode == 0
    assert cluster.calls() == []
    done = cluster.run("rolling", *words, "--run")
    assert done.returncode == 0, done.stdout + done.stderr
    copied, upgraded, rolled, tested = changing(cluster.calls())
    assert copied.endswith(str(cluster.folder / "copied.backup"))
    assert upgraded == (
        "helm upgrade fed charts/feddp --namespace hospitals --values values.yaml "
        f"--set coordinator.image.digest={DIGEST}"
    )
    assert rolled == ROLLED_OUT
    assert tested == "helm test fed --namespace hospitals"
    said = [" ".join(one) for one in cluster.calls()]
    verified = [place for place, one in enumerate(said) if "budget verify" in one]
    assert len(verified) == 2
    assert verified[0] < said.index(copied) < said.index(upgraded) < verified[1]
    asked = [one.replace("REVISION", newest_revision()) for one in commands(planned.stdout)]
    for one in said[2:]:  # the first two look up the revisions that are asked about
        assert one in asked


@pytest.mark.parametrize(
    ("fails", "answer", "says"),
    [
        ("upgrade fed", None, "it does not"),
        ("rollout status", None, "wait until every pod is replaced"),
        ("test fed", None, "the chart's own test"),
        ("budget verify", {"verified": False, "entries": 4}, "the ledger does not verify"),
        ("--verify", None, "the backup is sound"),
    ],
)
def test_what_fails_stops_it_and_the_way_back_is_said(
    cluster: Cluster, fails: str, answer: object, says: str
) -> None:
    """Before the upgrade a backup at most; after it, the release's revision of now, also where
    `helm` has not made another: what was before that is another one."""
    cluster.answers({fails: answer})
    done = cluster.run("rolling", "--new", cluster.following, "--digest", DIGEST, "--run")
    assert done.returncode == 1
    before, _, after = done.stdout.partition("stopped at")
    assert says in before.splitlines()[-1] + after
    back = [" ".join(one) for one in way_back(done.stdout)]
    if any("helm upgrade" in " ".join(one) for one in cluster.calls()):
        assert back == ["helm rollback fed 7 --namespace hospitals", ROLLED_OUT]
    elif answer is None:
        assert [one.partition(" -- ")[2] for one in back] == [f"rm -f {BACKUP}"]
    else:
        assert "nothing was changed" in done.stdout


def test_a_ledger_that_lost_entries_is_found(cluster: Cluster) -> None:
    """Fewer than before the upgrade: it stops."""
    calls = cluster.folder / "kubectl"
    kept = calls.read_text()
    # It answers with one entry less each time.
    calls.write_text(
        kept.replace(
            "        print(json.dumps(answer))",
            "        if 'entries' in answer and 'verified' in answer:\n"
            "            answer['entries'] -= len((here / 'calls').read_text())\n"
            "        print(json.dumps(answer))",
        )
    )
    try:
        done = cluster.run("rolling", "--new", cluster.following, "--digest", DIGEST, "--run")
    finally:
        calls.write_text(kept)
    assert done.returncode == 1
    assert "entries were there before, and now" in done.stdout


def blue_green(cluster: Cluster, *more: object) -> Any:
    """The script, with a pause and a resumption that are noted."""
    real = cluster.now / "bin/feddp"
    kept = real.read_text()
    # Nobody serves here: the pause is noted as the other calls are.
    shutil.copy(cluster.folder / "kubectl", cluster.folder / "feddp")
    real.write_text(
        f'#!/bin/sh\ncase "$*" in *pause*|*resume*) exec {cluster.folder}/feddp "$@";; esac\n'
        + kept.partition("\n")[2]
    )
    try:
        return cluster.run(
            *("blue_green", "--new", cluster.now, "--digest", DIGEST, "--profile", "fed/operator"),
            *("--copy", "kubectl copy-the-database"),
            *("--set", "coordinator.database.urlSecret.name=green", *more),
        )
    finally:
        real.write_text(kept)


def test_blue_green_stops_every_pod_before_the_copy(cluster: Cluster) -> None:
    """Paused, drained, stopped by the chart, copied; the new release has the copy, and goes on."""
    done = blue_green(cluster, "--run")
    assert done.returncode == 0, done.stdout + done.stderr
    said = [" ".join(one) for one in cluster.calls()]
    order = [
        "coordinator pause",
        "budget ledger",
        "--set coordinator.stopped=true",
        "wait --for=delete pod --selector app.kubernetes.io/instance=fed,",
        "kubectl copy-the-database",
        "urlSecret.name=green",
        "rollout status",
        "helm test fed",
        "coordinator resume",
    ]
    places = [next(at for at, one in enumerate(said) if part in one) for part in order]
    assert places == sorted(places), said
    assert not [one for one in said if " scale " in one or "--force-conflicts" in one]


@pytest.mark.parametrize("fails", ["copy-the-database", "rollout status"])
def test_blue_is_gone_back_to_past_the_revision_that_stopped_it(
    cluster: Cluster, fails: str
) -> None:
    """`helm rollback` alone would go back to the stop."""
    cluster.answers({fails: None})
    done = blue_green(cluster, "--run")
    assert done.returncode == 1
    back, rolled, resumed = (" ".join(one) for one in way_back(done.stdout))
    assert back == "helm rollback fed 7 --namespace hospitals"
    assert rolled == ROLLED_OUT
    assert "coordinator resume" in resumed


def test_helm_4_is_told_to_take_the_number_of_pods_back(cluster: Cluster) -> None:
    """Where somebody scaled them past Helm; older ones do not know the words."""
    assert blue_green(cluster, "--force-conflicts", "--run").returncode == 0
    helm = [" ".join(one) for one in cluster.calls() if one[:2] == ["helm", "upgrade"]]
    assert len(helm) == 2
    assert all(one.endswith("--server-side=true --force-conflicts") for one in helm)
    cluster.answers({"rollout status": None})
    words = ("--new", cluster.following, "--digest", DIGEST, "--force-conflicts", "--run")
    back, _ = way_back(cluster.run("rolling", *words).stdout)
    assert back[-2:] == ["--server-side=true", "--force-conflicts"]


def test_a_release_goes_back_only_where_the_older_version_may_serve(cluster: Cluster) -> None:
    """Else nothing is changed, and what is left to do is said."""
    done = cluster.run("rollback", "--old", cluster.now, "--run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert changing(cluster.calls())[1:3] == ["helm rollback fed --namespace hospitals", ROLLED_OUT]
    (cluster.folder / "calls").unlink()
    (cluster.folder / "copied.backup").unlink()
    cluster.answers({"get values": {"coordinator": {"stopped": True}}})
    done = cluster.run("rollback", "--old", cluster.now, "--run")
    assert done.returncode == 1
    assert "no coordinator would run" in done.stdout
    assert (cluster.calls()[-1][:8]) == [
        "helm",
        "get",
        "values",
        "fed",
        "--namespace",
        "hospitals",
        "--revision",
        "6",
    ]
    assert changing(cluster.calls()) == []
    newer = {"revision": "9999", "oldest_that_serves": "9999", "needs_stop": False}
    cluster.answers({"upgrade --plan": newer})
    done = cluster.run("rollback", "--old", cluster.now, "--run")
    assert done.returncode == 1
    assert "go forward, or back to a backup" in done.stdout
    assert changing(cluster.calls()) == []
