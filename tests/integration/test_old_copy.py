"""An old copy of a node's ledger beside a renamed account gives no second budget."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.federation import Federation, cli_json, run_cli, wait_for
from tests.integration.test_moving import (
    countersigned,
    of_two,
    put_back,
    serving,
    snapshot,
    start_alpha,
    status,
    stop_agent,
)


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Federation]:
    """Two hospitals are enough for it."""
    yield from serving(tmp_path / "one")


def rename(folder: Path, old: str, new: str) -> None:
    """Call the account otherwise in both of the steward's files."""
    policy = yaml.safe_load((folder / "policy.yaml").read_text())
    (account,) = [one for one in policy["accounts"] if one["name"] == old]
    account["name"] = new
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    sets = yaml.safe_load((folder / "datasets.yaml").read_text())
    for one in sets["data_sets"]:
        one["account"] = new
    (folder / "datasets.yaml").write_text(yaml.safe_dump(sets))


def test_a_renamed_account_beside_an_old_copy_trains_nothing_until_it_is_back(
    coordinator: Federation, tmp_path: Path
) -> None:
    """No data set can be used, everybody is told to put it back, and settling does not help; then
    what was spent is booked, the dispute ends by itself, and the data set can be used."""
    folder, saved = start_alpha(coordinator, epsilon_limit=3.0), tmp_path / "empty"
    stop_agent(coordinator)
    snapshot(folder, saved)
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    assert coordinator.wait_for_end(coordinator.submit(of_two())).status == "completed"
    wait_for("its head is countersigned", lambda: countersigned(coordinator, "alpha/patients", 4))
    (spent,) = [one["epsilon_spent"] for one in status(folder)["accounts"]]
    stop_agent(coordinator)

    put_back(saved, folder)
    rename(folder, "patients", "persons")
    copy = tmp_path / "copy.db"
    cli_json("agent", "ledger", "export", str(copy), "--dir", str(folder))
    assert cli_json("agent", "ledger", "import", str(copy), "--dir", str(folder))["entries"] == 0
    coordinator.start("alpha")

    wait_for("it has read the chain", lambda: status(folder)["ledger"]["disputes"])
    (dispute,) = status(folder)["ledger"]["disputes"]
    assert dispute["account"] == "alpha/patients"
    assert "Put account patients back in policy.yaml" in dispute["text"]
    assert "Put account patients back in policy.yaml" in status(folder)["rules"]["message"]
    wait_for("its log says so", lambda: "ACCOUNT_LEFT_OUT" in coordinator.log("alpha"))

    def unavailable() -> dict[str, str]:
        """Why each of its data sets cannot be used now."""
        with coordinator.client() as client:
            (node,) = [one for one in client.nodes() if one.name == "alpha"]
            return {one.name: one.unavailable for one in node.data_sets}

    wait_for("it says why", lambda: unavailable() == {"cohort": "ACCOUNT_LEFT_OUT"})
    stop_agent(coordinator)
    settled = run_cli("agent", "ledger", "settle", "patients", "--dir", str(folder))
    assert settled[0] != 0
    assert "put account patients back in policy.yaml" in settled[2]
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    job_id = coordinator.submit(of_two())

    def waits() -> bool:
        found = {one.node: one.reason for one in coordinator.job(job_id).waiting}
        return found.get("alpha") == "ACCOUNT_LEFT_OUT"

    wait_for("a job waits for it", waits)
    assert {one.statement.account for one in coordinator.entries("post")} == {
        "alpha/patients",
        "beta/patients",
    }

    rename(folder, "persons", "patients")
    wait_for("the dispute ends by itself", lambda: not status(folder)["ledger"]["disputes"])
    (account,) = status(folder)["accounts"]
    assert account["name"] == "patients"
    assert account["epsilon_spent"] >= spent
    wait_for("it can be used again", lambda: unavailable() == {"cohort": ""})
    assert coordinator.wait_for_end(job_id).status == "completed"
    verified = run_cli("budget", "verify", "--json", "--dir", str(coordinator.installation.folder))
    found = json.loads(verified[1])
    assert (found["verified"], found["paid_twice"]) == (True, [])
