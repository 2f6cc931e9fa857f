"""What docs/hospital-it.md says to do when a key or the ledger is lost, done."""

import json
import shutil
from pathlib import Path

import pytest

from certs.enrolment import spoken
from tests.integration.federation import Federation, cli_json, job_file, run_cli, wait_for
from tests.integration.test_joining import Joining, root, waiting_key

JOB = {"federation": {"rounds": 1}, "privacy": {"target_epsilon": 1.0}}


def spent(federation: Federation, tmp_path: Path) -> Path:
    """Three hospitals that have done a job, and then a copy of alpha's ledger; one more job."""
    for name in ("alpha", "beta", "gamma"):
        federation.add_node(name)
        federation.start(name)
    federation.wait_for_nodes("alpha", "beta", "gamma")
    copy = tmp_path / "ledger.db"
    federation.wait_for_end(federation.submit(job_file(**JOB)))
    made = run_cli("agent", "ledger", "export", str(copy), "--dir", str(federation.agent("alpha")))
    assert made[0] == 0, made
    federation.wait_for_end(federation.submit(job_file(**JOB)))
    federation.terminate("alpha")
    return copy


def posted(federation: Federation) -> int:
    status = run_cli("agent", "status", "--dir", str(federation.agent("alpha")), "--json")
    return int(json.loads(status[1])["accounts"][0]["posted_units"])


def goes_on(federation: Federation, units: int) -> None:
    """The agent takes over what it has signed since the copy, and then works again."""
    federation.start("alpha")
    federation.wait_for_nodes("alpha")
    wait_for("it has caught up", lambda: posted(federation) == units)
    job = federation.wait_for_end(federation.submit(job_file(**JOB)))
    assert job.status == "completed"
    assert posted(federation) > units


def test_a_lost_state_db_is_put_back_from_a_copy(coordinator: Federation, tmp_path: Path) -> None:
    """In the folder itself, with nobody's help; what was spent since the copy counts."""
    copy = spent(coordinator, tmp_path)
    units = posted(coordinator)
    folder = coordinator.agent("alpha")
    for one in folder.glob("state.db*"):
        one.unlink()
    code, _, err = run_cli("agent", "run", "--dir", str(folder))
    assert code != 0
    assert "feddp agent ledger import FILE" in err
    code, _, err = run_cli("agent", "ledger", "import", str(copy), "--dir", str(folder))
    assert code == 0, err
    goes_on(coordinator, units)


def own_ledger(federation: Federation, tmp_path: Path) -> Path:
    """A copy of the empty ledger, once the agent has heard what it has forgotten."""
    folder = federation.agent("alpha")
    federation.start("alpha")
    status = ("agent", "status", "--dir", str(folder), "--json")
    wait_for(
        "it knows that its ledger lacks something",
        lambda: bool(json.loads(run_cli(*status)[1])["ledger"]["rolled_back"]),
    )
    federation.terminate("alpha")
    code, _, err = run_cli(
        "agent", "ledger", "export", str(tmp_path / "own.db"), "--dir", str(folder)
    )
    assert code == 0, err
    return tmp_path / "own.db"


@pytest.mark.parametrize("kept", ["ledger.key", "ledger.key and no copy", "all but node.key"])
def test_a_node_joins_again_with_its_ledger_key(
    coordinator: Federation, tmp_path: Path, kept: str
) -> None:
    """After a reinstallation, or with the certificate's key alone lost: a token with --rejoin, the
    steward's word, and the copy put back."""
    copy = spent(coordinator, tmp_path)
    units = posted(coordinator)
    folder = coordinator.agent("alpha")
    if kept != "all but node.key":
        old = tmp_path / "old"
        folder.rename(old)
        (folder / "identity").mkdir(parents=True, mode=0o700)
        shutil.copy2(old / "identity" / "ledger.key", folder / "identity")
    else:
        (folder / "identity" / "node.key").unlink()
    refused = run_cli("node", "token", "alpha", "--dir", root(coordinator))
    assert "--rejoin" in refused[2]
    token = cli_json("node", "token", "alpha", "--rejoin", "--dir", root(coordinator))["token"]
    joining = Joining(token, folder)
    wait_for("it waits", lambda: bool(waiting_key(coordinator, "alpha")) or not joining.is_alive())
    assert joining.is_alive(), joining.error
    key = spoken(waiting_key(coordinator, "alpha"))
    approve = ("node", "approve", "alpha", "--dir", root(coordinator), "--key", key)
    assert run_cli(*approve)[0] != 0
    assert run_cli(*approve, "--steward", "anna")[0] == 0
    assert joining.ended() is None
    if kept != "all but node.key":
        for name in ("policy.yaml", "datasets.yaml"):
            shutil.copy2(old / name, folder)
        shutil.copytree(old / "data", folder / "data")
        if kept == "ledger.key and no copy":
            copy = own_ledger(coordinator, tmp_path)
        code, _, err = run_cli("agent", "ledger", "import", str(copy), "--dir", str(folder))
        assert code == 0, err
    goes_on(coordinator, units)
