"""From a released coordinator to this version's, by the script; and what must not happen beside."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent.joining.enrol import join
from protos.errors import FeddpError
from tests.compat import test_releases
from tests.compat.test_releases import HOSPITALS, Release, _install, _join
from tests.deploy.versions import Service, printed_json, script, version_folder
from tests.integration.federation import Federation, job_file, wait_for, write_data

release = test_releases.release


class Released(Federation):
    """An installation of a release, which serves."""

    def __init__(self, folder: Path, release: Release) -> None:
        super().__init__(folder)
        self.release = release
        _install(self, release)
        server = yaml.safe_load(self.installation.config.read_text())["server"]
        self.health = f"http://127.0.0.1:{server['health_port']}"
        self.service = Service(folder / "service")
        self.old = version_folder(folder / "versions", release.version, release.tree)
        self.now = version_folder(folder / "versions", "now")
        self.blue, self.green = self.installation.folder, folder / "green"
        for name, own in (("blue", self.blue), ("green", self.green)):
            self.service.add(name, own / "coordinator.yaml", folder / f"{name}.log")
        self.service.switch("blue", self.old)
        self.service.start("blue")
        wait_for("the release answers", self.is_served)

    def is_served(self) -> bool:
        """Whether somebody answers."""
        try:
            with self.client() as client:
                client.nodes()
        except FeddpError:
            return False
        return True

    def ordered(self) -> str:
        """A job by the release's engineer; its id."""
        file = self.folder / "job.yaml"
        file.write_bytes(
            job_file(
                federation={"rounds": 2, "min_participants": 3},
                privacy={"target_epsilon": None, "noise_multiplier": 20.0},
            )
        )
        printed = self.release.feddp("job", "submit", str(file), "--dir", str(self.blue), "--json")
        return str(json.loads(printed)["job_id"])

    def close(self) -> None:
        """End everything."""
        self.stop()
        self.service.close()


@pytest.fixture
def released(release: Release, tmp_path: Path) -> Iterator[Released]:
    """A release that serves, without hospitals."""
    found = Released(tmp_path, release)
    try:
        yield found
    finally:
        found.close()


def revision(version: Path, folder: Path) -> Any:
    """Which migration the tables are at."""
    return printed_json(version, "coordinator", "upgrade", "--plan", "--dir", folder)["revision"]


def test_this_version_does_not_upgrade_beneath_a_release_that_serves(released: Released) -> None:
    """It ends with a sentence and changes nothing; the release serves on and starts again."""
    beside = subprocess.run(
        [released.now / "bin/feddp", "coordinator", "serve", "--dir", released.blue],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert beside.returncode == 2
    assert "a coordinator of an older version serves this database" in beside.stderr
    assert "nothing was changed. Stop every coordinator of the older version" in beside.stderr
    assert revision(released.now, released.blue) == "0001"
    assert released.is_served()
    released.service.close()
    released.service.start("blue")
    wait_for("the release answers again", released.is_served)


def test_the_script_brings_a_release_to_this_version(released: Released) -> None:
    """Its hospitals go on under the coordinator of now, with every entry of before; what the
    release left is as it was."""
    for name in HOSPITALS:
        _join(released, released.release, name)
        released.start(name)
    released.wait_for_nodes(*HOSPITALS)
    assert released.wait_for_end(released.ordered()).status == "completed"
    wait_for(
        "the release has every signature",
        lambda: all(
            one["node_signature"]
            for one in printed_json(released.old, "budget", "ledger", "--dir", released.blue)[
                "entries"
            ]
        ),
    )
    before = printed_json(released.old, "budget", "ledger", "--dir", released.blue)["entries"]
    done = script(
        *("blue_green", "--dir", released.blue, "--green-dir", released.green),
        *("--old", released.old, "--new", released.now, "--no-pause", "--backup-with", "new"),
        *("--backup", released.folder / "upgrade.backup"),
        *("--replica", f"blue={released.health}", "--replica", f"green={released.health}"),
        *(*released.service.options, "--run"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    released.wait_for_nodes(*HOSPITALS)
    assert released.wait_for_end(released.ordered()).status == "completed"
    after = printed_json(released.now, "budget", "ledger", "--dir", released.green)["entries"]
    assert len(after) == 2 * len(before) == 2 * 12
    assert [one["hash"] for one in before] == [
        one["hash"] for one in after if one["hash"] in {old["hash"] for old in before}
    ]
    left = printed_json(released.old, "budget", "ledger", "--dir", released.blue)["entries"]
    assert left == before
    assert revision(released.now, released.blue) == "0001"


def test_hospitals_of_this_version_wait_for_their_coordinator_to_be_upgraded(
    released: Released,
) -> None:
    """They connect to the release and tell it nothing: it has none of their tasks, they refuse what
    it sends on unsigned, and an engineer of now is told that the coordinator is older."""
    for name in HOSPITALS:
        with released.client() as client:
            token = client.create_token(name, "edge", 3600).token
        join(token, released.agent(name))
        write_data(released.agent(name), rows=60)
        released.set_policy(name)
        released.start(name)
    released.wait_for_nodes(*HOSPITALS)
    with pytest.raises(AssertionError, match="TASK_UNKNOWN"):
        released.ordered()
    by_noise = job_file(privacy={"target_epsilon": None, "noise_multiplier": 20.0})
    with pytest.raises(FeddpError, match="older than this program"):
        released.submit(by_noise)
    job_id = released.submit(job_file(federation={"rounds": 2}))

    def all_refused() -> bool:
        parts = [one for done in released.job(job_id).rounds for one in done.participation]
        ended = {(one.node, one.outcome, one.reason) for one in parts if one.outcome}
        return ended >= {(name, "refused", "ORDER_UNSIGNED") for name in HOSPITALS}

    wait_for("every hospital has refused", all_refused, 30)
    listed = printed_json(released.old, "budget", "ledger", "--dir", released.blue)["entries"]
    assert {one["kind"] for one in listed} == {"reserve", "void"}
    assert all(one["epsilon_spent"] == 0 for one in _spent(released, job_id))


def _spent(released: Released, job_id: str) -> list[dict[str, Any]]:
    """What the release shows of each hospital's part in a job."""
    found = printed_json(released.old, "job", "show", job_id, "--dir", released.blue)
    return list(found["nodes"])
