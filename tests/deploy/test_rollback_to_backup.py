"""deploy/upgrade/rollback.py --restore with real processes: from a release whose tables this
version cannot serve, back to this version's backup."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from feddp.signing import Caps
from protos.errors import FeddpError
from tests.deploy import managed
from tests.deploy.versions import (
    Service,
    next_release,
    printed_json,
    script,
    version_folder,
    way_back,
)
from tests.integration.federation import NODES, Federation, cli_json, job_file, run_cli, wait_for

THREE = NODES[:3]
JOB = job_file(
    federation={"rounds": 2, "min_participants": 3},
    privacy={"target_epsilon": None, "noise_multiplier": 20.0},
)


class Upgraded(Federation):
    """This version served three nodes and a job, and was backed up; the next release serves them
    now, and has run a second job."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.service = Service(folder / "service")
        self.now = version_folder(folder / "versions", "now")
        self.following = next_release(folder / "next", older_may_serve=False)
        self.newer, self.restored = self.installation.folder, folder / "restored"
        for name, own in (("newer", self.newer), ("restored", self.restored)):
            self.service.add(name, own / "coordinator.yaml", folder / f"{name}.log")
        self.password = folder / "password"
        self.password.write_text("a password of this test\n")
        self.before, self.after = folder / "before.backup", folder / "after.backup"

    def build(self) -> None:
        """Bring it there."""
        self.service.switch("newer", self.now)
        self.service.start("newer")
        wait_for("this version answers", self.is_served)
        for name in (*THREE, "delta"):
            self.add_node(name)
        for name in THREE:
            self.start(name)
        self.wait_for_nodes(*THREE)
        self.run_job()
        self.backed_up(self.now, self.before)
        self.service.close()
        self.service.switch("newer", self.following)
        self.service.start("newer")
        wait_for("the next release answers", self.is_served)
        self.wait_for_nodes(*THREE)
        self.run_job()

    def is_served(self) -> bool:
        """Whether somebody answers."""
        try:
            with self.client() as client:
                client.nodes()
        except FeddpError:
            return False
        return True

    def run_job(self) -> None:
        """One, to its end and until every entry has its node's signature."""
        done = self.wait_for_end(self.submit(JOB))
        assert done.status == "completed", done.message
        wait_for("all is signed", lambda: all(one.node_signature for one in self.entries("post")))

    def backed_up(self, version: Path, file: Path) -> None:
        """A backup with keys, by that version."""
        sealed = ("--keys", "--password-file", self.password)
        printed_json(version, "coordinator", "backup", "--dir", self.newer, "--out", file, *sealed)

    def options(self, *more: object) -> list[object]:
        """What the script is given."""
        return [
            *("--dir", self.newer, "--old", self.following, "--new", self.now),
            *("--restored-dir", self.restored, "--stopped", "newer"),
            *("--replica", f"restored={self.health}", "--backup", self.after),
            *("--password-file", self.password),
            *("--revocations", self.newer / "revocations.jsonl"),
            *self.service.options,
            *more,
            "--run",
        ]

    def close(self) -> None:
        """End everything."""
        self.stop()
        self.service.close()


@pytest.fixture
def upgraded(tmp_path: Path) -> Iterator[Upgraded]:
    """As its class says."""
    found = Upgraded(tmp_path)
    try:
        found.build()
        yield found
    finally:
        found.close()


def posted(version: Path, folder: Path) -> list[str]:
    """The attempts that a ledger has charged."""
    entries = printed_json(version, "budget", "ledger", "--dir", folder)["entries"]
    return sorted(one["attempt_id"] for one in entries if one["kind"] == "post")


def test_the_older_version_goes_on_from_its_backup_and_forgets_no_charge(
    upgraded: Upgraded,
) -> None:
    """Every release of both jobs is booked once, whoever was revoked after the backup stays so,
    what the newer version left is as it was, and a job runs after `resume`."""
    folder = upgraded.newer
    assert run_cli("node", "revoke", "delta", "--dir", str(folder))[0] == 0
    told = posted(upgraded.following, folder)
    assert len(told) == 2 * 2 * 3
    left = printed_json(upgraded.following, "budget", "verify", "--dir", folder)
    done = script("rollback", *upgraded.options("--restore", upgraded.before))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not upgraded.service.runs("newer")
    assert upgraded.service.version("restored") == "now"
    upgraded.wait_for_nodes(*THREE)

    def booked() -> bool:
        return posted(upgraded.now, upgraded.restored) == told

    wait_for("the hospitals have handed in", booked)
    assert printed_json(upgraded.following, "budget", "verify", "--dir", folder) == left
    listed = cli_json("node", "list", "--dir", str(folder))["nodes"]
    assert {one["name"] for one in listed if one["status"] == "revoked"} == {"delta"}
    with upgraded.client() as client:  # nobody is quoted before `resume`
        job_id = client.submit(JOB, caps=Caps(epsilon_max=8.0)).job_id
    wait_for("it is paused", lambda: bool(upgraded.job(job_id).waiting))
    printed_json(upgraded.now, "coordinator", "resume", "--dir", folder)
    after = upgraded.wait_for_end(job_id)
    assert after.status == "completed", after.message
    assert len(posted(upgraded.now, upgraded.restored)) == len(told) + 2 * 3
    assert printed_json(upgraded.now, "budget", "verify", "--dir", upgraded.restored)["verified"]


def test_a_backup_of_the_newer_version_is_refused_before_anything_is_stopped(
    upgraded: Upgraded,
) -> None:
    """Its tables are newer than the older version knows: its dry run says so, and all goes on."""
    newest = upgraded.folder / "newest.backup"
    upgraded.backed_up(upgraded.following, newest)
    done = script("rollback", *upgraded.options("--restore", newest))
    assert done.returncode == 1, done.stdout
    assert "stopped at step 2" in done.stdout, done.stdout
    assert "newer version" in done.stdout
    assert "nothing was changed" in done.stdout
    assert not upgraded.restored.exists()
    assert not upgraded.after.exists()
    assert upgraded.is_served()


def test_the_way_back_that_is_printed_has_the_newer_version_go_on(upgraded: Upgraded) -> None:
    """Somebody puts a file where is restored to, between the dry run and the restore: the script
    stops with nothing written, and its commands start what ran before."""
    stop = shlex.join(
        [sys.executable, managed.__file__, "stop", "newer", str(upgraded.service.folder)]
    )
    meanwhile = f"mkdir {upgraded.restored} && touch {upgraded.restored}/of-somebody-else"
    both = shlex.join(["sh", "-c", f"{stop} && {meanwhile}"])
    done = script("rollback", *upgraded.options("--restore", upgraded.before, "--stop", both))
    assert done.returncode == 1, done.stdout
    assert "stopped at step 6" in done.stdout, done.stdout
    assert "the folder is not empty" in done.stdout
    assert [one.name for one in upgraded.restored.iterdir()] == ["of-somebody-else"]
    assert not upgraded.service.runs("newer")
    for command in way_back(done.stdout):
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    wait_for("the next release answers", upgraded.is_served)
    upgraded.wait_for_nodes(*THREE)
    upgraded.run_job()
