"""Commands of this version on the folder of a hospital whose agent is still a released one."""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat import test_releases
from tests.compat.test_releases import Release, _install, _join
from tests.integration.federation import Federation, job_file, run_cli, wait_for

release = test_releases.release

NODE, OTHER = "alpha", "beta"


@pytest.fixture
def federation(release: Release, tmp_path: Path) -> Iterator[Federation]:
    """Coordinator and two hospitals, all of the release."""
    made = Federation(tmp_path)
    _install(made, release)
    made.start("coordinator")
    try:
        for name in (NODE, OTHER):
            _join(made, release, name)
            made.start(name)
        yield made
    finally:
        made.stop()


def trained(federation: Federation, release: Release) -> str:
    """A job that the release's engineer submits completes; its id."""
    federation.wait_for_nodes(NODE, OTHER)
    file = federation.folder / "job.yaml"
    file.write_bytes(
        job_file(
            federation={"rounds": 1, "min_participants": 2},
            privacy={"target_epsilon": None, "noise_multiplier": 20.0},
        )
    )
    folder = str(federation.installation.folder)
    printed = release.feddp("job", "submit", str(file), "--dir", folder, "--json")
    job_id = str(json.loads(printed)["job_id"])
    assert federation.wait_for_end(job_id).status == "completed"
    return job_id


def schema(folder: Path) -> list[object]:
    """Version and objects of an agent's state.db."""
    with contextlib.closing(sqlite3.connect(f"file:{folder}/state.db?mode=ro", uri=True)) as found:
        version = found.execute("PRAGMA user_version").fetchone()
        return [version, found.execute("SELECT sql FROM sqlite_schema ORDER BY name").fetchall()]


def test_a_releases_agent_starts_again_after_this_versions_commands(
    federation: Federation, release: Release, tmp_path: Path
) -> None:
    """All that read work beside it, and what writes refuses; nothing is brought along before an
    agent of this version starts, and then all of it is there. A copy is of the release, too."""
    folder, out = federation.agent(NODE), tmp_path / "out"
    out.mkdir()
    job_id, released = trained(federation, release), schema(folder)
    readers = (
        *(["policy", "check"], ["policy", "show"], ["policy", "explain", job_id], ["status"]),
        *(["outbox"], ["digest"], ["doctor", "--hold", "0"], ["approve", "--list"], ["leave"]),
        *(["ledger", "heads"], ["ledger", "export", "OUT/copy.db"], ["backup", "OUT/all.tar"]),
    )
    for moment in ("running", "stopped"):
        for words in readers:
            named = [one.replace("OUT", f"{out}/{moment}") for one in words]
            (out / moment).mkdir(exist_ok=True)
            code, said, err = run_cli("agent", *named, "--dir", str(folder))
            assert "error" not in err, (words, err)
            assert code in (0, 1), (words, said, err)
            assert schema(folder) == released, words
        code, _, err = run_cli("agent", "approve", job_id, "--dir", str(folder))
        assert code != 0
        assert "is of an older release (schema 1, this is " in err
        assert schema(folder) == released
        if moment == "running":
            federation.terminate(NODE)
    code, said, _ = run_cli("agent", "policy", "check", "--dir", str(folder))
    assert "brings it along when it starts" in said

    # What this version saved is the release's too.
    for suffix in ("-wal", "-shm"):
        (folder / f"state.db{suffix}").unlink(missing_ok=True)
    shutil.copyfile(out / "stopped/copy.db", folder / "state.db")
    federation.start(NODE)
    trained(federation, release)
    federation.terminate(NODE)
    said = release.feddp("agent", "status", "--dir", str(folder), "--json")
    before = json.loads(said)["ledger"]
    assert before["entries"] == 4

    del federation.trees[NODE]
    federation.start(NODE)
    wait_for("this version's agent brings it along", lambda: schema(folder)[0] != released[0])
    code, said, _ = run_cli("agent", "status", "--dir", str(folder), "--json")
    ledger = json.loads(said)["ledger"]
    assert (ledger["entries"], ledger["verified"], ledger["older"]) == (before["entries"], True, "")
