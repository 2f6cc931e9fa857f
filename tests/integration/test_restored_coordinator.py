"""A coordinator is put back from a copy of its database, as real processes see it."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from coordinator.keyring import ledger_key
from coordinator.store import epochs
from coordinator.store.database import Database
from tests.integration.federation import Federation, cli_json, job_file, run_cli, wait_for

NODES = ("alpha", "beta")
JOB = job_file(
    federation={"rounds": 2, "local_steps": 2, "min_participants": 2},
    privacy={"target_epsilon": 1.0},
)


@pytest.fixture
def federation(tmp_path: Path) -> Any:
    """Two hospitals."""
    found = Federation(tmp_path)
    found.configure(min_participants=2)
    found.start("coordinator")
    for name in NODES:
        found.add_node(name)
        found.start(name)
    found.wait_for_nodes(*NODES)
    yield found
    found.stop()


def run(federation: Federation) -> None:
    """A job to its end, and each node's look at the ledger after it."""
    job = federation.wait_for_end(federation.submit(JOB))
    assert job.status == "completed", job
    count = {one.account: one.entries for one in accounts(federation)}
    wait_for("the nodes have read it", lambda: seen(federation) == count)


def accounts(federation: Federation) -> list[Any]:
    """As the coordinator shows them."""
    with federation.client() as client:
        return list(client.accounts(""))


def seen(federation: Federation) -> dict[str, int]:
    """Up to which entry each node has followed its account."""
    found = {}
    for name in NODES:
        for one in cli_json("agent", "ledger", "heads", "--dir", str(federation.agent(name)))[
            "heads"
        ]:
            found[one["account"]] = one["seq"]
    return found


def spent(federation: Federation) -> dict[str, tuple[float, int]]:
    """account -> (epsilon, posted units)."""
    return {one.account: (one.epsilon_spent, one.posted_units) for one in accounts(federation)}


def status(federation: Federation, name: str) -> Any:
    """What `feddp agent status` says."""
    return json.loads(run_cli("agent", "status", "--dir", str(federation.agent(name)), "--json")[1])


def database_file(federation: Federation) -> Path:
    """The coordinator's."""
    return federation.installation.folder / "coordinator.db"


def put_back(federation: Federation, copy: Path, *, declared: bool) -> None:
    """Put a copy in the place of the database of a coordinator that is stopped."""
    path = database_file(federation)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.copyfile(copy, path)
    if declared:
        database = Database(f"sqlite:///{path}")
        key = ledger_key(federation.installation.folder / "pki")
        made_at_s = copy.stat().st_mtime
        database.write_now(
            lambda c: epochs.raise_epoch(c, key, now_s=time.time(), backup_made_at_s=made_at_s)
        )
        database.close()


def unreconciled(federation: Federation) -> frozenset[str]:
    """Accounts that the coordinator waits for."""
    database = Database(f"sqlite:///{database_file(federation)}")
    try:
        return database.read_now(epochs.unreconciled)
    finally:
        database.close()


def verified(federation: Federation, folder: Path) -> tuple[int, str]:
    """`feddp budget verify` with what all nodes hand over."""
    files = []
    for name in NODES:
        path = folder / f"{name}.json"
        heads = cli_json("agent", "ledger", "heads", "--dir", str(federation.agent(name)))
        path.write_text(json.dumps(heads))
        files += ["--heads", str(path)]
    coordinator = str(federation.installation.folder)
    (folder / "ledger.json").write_text(
        json.dumps(cli_json("budget", "ledger", "--dir", coordinator))
    )
    code, out, err = run_cli("budget", "verify", str(folder / "ledger.json"), *files)
    return code, out + err


def test_a_coordinator_that_was_restored_takes_over_what_nodes_have_released_since(
    federation: Federation, tmp_path: Path
) -> None:
    """What was spent is what it was, officers' files say so, work goes on; and the copy without an
    epoch is refused by who has seen one, and disputed by who has not."""
    copy, beta = tmp_path / "copy.db", tmp_path / "beta.db"
    run(federation)
    federation.terminate("coordinator")
    shutil.copyfile(database_file(federation), copy)
    federation.start("coordinator")
    federation.wait_for_nodes(*NODES)
    run(federation)
    before, entries = spent(federation), seen(federation)

    federation.terminate("coordinator")
    federation.terminate("beta")
    shutil.copyfile(federation.agent("beta") / "state.db", beta)
    put_back(federation, copy, declared=True)
    assert unreconciled(federation) == set(before)
    federation.start("coordinator")
    wait_for("alpha hands in", lambda: "beta/patients" in unreconciled(federation) != set(before))
    waiting = federation.submit(JOB)
    wait_for(
        "the job waits for beta",
        lambda: any("OFFLINE" in one.reason for one in federation.job(waiting).waiting),
    )
    with federation.client() as client:
        quote = client.quote(JOB)
    assert {one.node: one.reason for one in quote.nodes}["beta"] == "OFFLINE"
    federation.start("beta")
    wait_for("both have handed in", lambda: not unreconciled(federation))
    job = federation.wait_for_end(waiting)
    assert job.status == "completed", job
    after = spent(federation)
    for account, (epsilon, units) in before.items():
        assert after[account][0] > epsilon
        assert after[account][1] > units
        # Twice the same job and a third one: nothing was lost, and nothing charged twice.
        assert abs(after[account][1] / units - 1.5) < 0.01
    for name in NODES:
        found = status(federation, name)
        assert found["ledger"]["disputes"] == []
        assert found["coordinator_restored"]["to_hand_in"] == []
    assert "coordinator_restored" in federation.log("alpha")
    wait_for(
        "the nodes have read it",
        lambda: all(seen(federation)[one.account] == one.entries for one in accounts(federation)),
    )
    assert all(seen(federation)[name] > count for name, count in entries.items())
    code, said = verified(federation, tmp_path)
    assert code == 0, said
    assert "the ledger verifies" in said
    assert "were handed in again" in said

    # The copy once more, as if nothing had been; beta as it was before the restoration.
    for name in ("coordinator", *NODES):
        federation.terminate(name)
    put_back(federation, copy, declared=False)
    for suffix in ("-wal", "-shm"):
        Path(f"{federation.agent('beta') / 'state.db'}{suffix}").unlink(missing_ok=True)
    shutil.copyfile(beta, federation.agent("beta") / "state.db")
    for name in ("coordinator", *NODES):
        federation.start(name)
    wait_for("alpha refuses it", lambda: status(federation, "alpha")["refused"] is not None)
    assert status(federation, "alpha")["refused"]["reason"] == "COORDINATOR_EPOCH_OLD"
    wait_for("beta disputes it", lambda: bool(status(federation, "beta")["ledger"]["disputes"]))
    assert "older_copy_runs" in federation.log("coordinator")
