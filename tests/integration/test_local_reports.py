"""What a hospital can read of its own node, and what the coordinator learns of a failure."""

import json
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml

from node_agent.state.state import State
from tests.integration.federation import (
    Federation,
    cli_json,
    job_file,
    run_cli,
    wait_for,
)
from tests.integration.test_witness import ledger_key_of

THREE = ("alpha", "beta", "gamma")
SECRET = "S3cret-cell"


def three(coordinator: Federation) -> Path:
    """Three nodes that do not run yet; alpha's folder."""
    for name in THREE:
        coordinator.add_node(name)
    return coordinator.agent("alpha")


def started(coordinator: Federation) -> None:
    """All three run."""
    for name in THREE:
        coordinator.start(name)
    coordinator.wait_for_nodes(*THREE)


def spoil(folder: Path, *, shares: bool) -> None:
    """Make of the records a Parquet file whose header is whole and whose cells are not."""
    source = folder / "data/cohort.parquet"
    table = pyarrow.csv.read_csv(folder / "data/cohort.csv")
    pyarrow.parquet.write_table(table, source, compression="gzip")
    with source.open("r+b") as file:
        file.seek(40)
        file.write(SECRET.encode() * 20)
    declared = (folder / "datasets.yaml").read_text()
    (folder / "datasets.yaml").write_text(declared.replace("cohort.csv", "cohort.parquet"))
    policy = yaml.safe_load((folder / "policy.yaml").read_text())
    (folder / "policy.yaml").write_text(yaml.safe_dump({**policy, "share_failure_class": shares}))


def told(coordinator: Federation, job_id: str) -> dict[str, str]:
    """Reason and message of what the coordinator says of alpha in the job's rounds."""
    return {
        p.reason: p.message
        for one in coordinator.job(job_id).rounds
        for p in one.participation
        if p.node == "alpha" and p.reason
    }


@pytest.mark.parametrize("shares", [False, True])
def test_a_failure_after_opening_is_told_at_home_and_outside_only_if_it_is_shared(
    coordinator: Federation, shares: bool
) -> None:
    """The sentence, the remedy and the place in the hospital's own report; at the coordinator "no
    update", or the kind of the failure. The cell itself is nowhere."""
    folder = three(coordinator)
    spoil(folder, shares=shares)
    started(coordinator)
    job_id = coordinator.submit(job_file())
    wait_for("alpha gives no update", lambda: bool(told(coordinator, job_id)))
    (reason, message) = next(iter(told(coordinator, job_id).items()))
    assert reason == ("DATA_PROBLEM" if shares else "NO_UPDATE")
    assert ("datasets.yaml" in message) is shares

    found = cli_json("agent", "logs", job_id, "--dir", str(folder))
    failure = found["failures"][0]
    assert (failure["opened"], failure["reason"]) == (True, "DATA_PROBLEM")
    assert "is not a Parquet file that can be read" in failure["detail"]
    assert "mend the file" in failure["remedy"]
    assert any("no_update" in line for line in found["log"])
    shown = run_cli("agent", "logs", job_id, "--dir", str(folder))[1]
    assert "what to do: mend the file" in shown
    assert SECRET not in json.dumps(found) + shown + coordinator.log("coordinator")

    outbox = cli_json("agent", "outbox", "--dir", str(folder))
    first = outbox["items"][0]
    assert (first["standing"], first["booked"], first["digest"]) == ("no_update", "post", "")
    assert first["epsilon_alone"] > 0
    assert outbox["published"]["data_sets"][0]["declared_n"] == 60
    digest = cli_json("agent", "digest", "--dir", str(folder))
    assert digest["failed_after_opening"]["DATA_PROBLEM"] >= 1
    assert digest["releases"][0]["updates"] == 0
    status = run_cli("agent", "status", "--dir", str(folder))[1]
    assert ("no epsilon covers it" in status) is shares
    with coordinator.client() as client:
        client.cancel(job_id)


def test_a_row_that_reads_otherwise_is_told_at_home_alone(coordinator: Federation) -> None:
    """The node's update is as any other: nobody outside learns that there is such a row."""
    folder = three(coordinator)
    path = folder / "data/cohort.csv"
    lines = path.read_text().splitlines()
    lines[3] = f"p2,{SECRET},1"
    path.write_text("\n".join(lines))
    started(coordinator)
    job = coordinator.wait_for_end(coordinator.submit(job_file()))
    assert {p.outcome for one in job.rounds for p in one.participation} == {"update"}
    (alert,) = cli_json("agent", "digest", "--dir", str(folder))["alerts"]
    assert (alert["event"], alert["subject"]) == ("ROWS_LEFT_OUT", "cohort")
    log = "\n".join(cli_json("agent", "logs", job.job_id, "--dir", str(folder))["log"])
    assert "column 'x' is not a number in 1 row, first in row 3" in log
    # What may go to a mail or a collector says that there are such rows, and neither where nor how
    # many.
    assert "rows_left_out" in coordinator.log("alpha")
    assert "row 3" not in json.dumps(alert) + coordinator.log("alpha")
    assert SECRET not in log + coordinator.log("alpha") + coordinator.log("coordinator")
    assert "not a number" not in coordinator.log("coordinator")


def test_a_failure_before_opening_is_told_with_what_to_do(coordinator: Federation) -> None:
    """To both sides the same; nothing was opened and nothing is booked."""
    for name in THREE:
        coordinator.add_node(name)
        coordinator.start(name)
    coordinator.wait_for_nodes(*THREE)
    folder = coordinator.agent("alpha")
    (folder / "data/cohort.csv").rename(folder / "data/gone.csv")
    job_id = coordinator.submit(job_file())

    def is_known() -> bool:
        return run_cli("agent", "logs", job_id, "--dir", str(folder))[0] == 0

    wait_for("the hospital has it", is_known)
    wait_for("the coordinator has it", lambda: bool(told(coordinator, job_id)))
    (failure, *_) = cli_json("agent", "logs", job_id, "--dir", str(folder))["failures"]
    assert (failure["opened"], failure["reason"]) == (False, "SOURCE_MISSING")
    assert failure["sentence"].endswith(
        "What to do: its data steward puts the file back, or corrects datasets.yaml."
    )
    assert failure["sentence"] in [
        *told(coordinator, job_id).values(),
        *(one.message for one in coordinator.job(job_id).waiting),
    ]
    item = cli_json("agent", "outbox", "--dir", str(folder))["items"][0]
    assert (item["standing"], item["booked"], item["units"]) == ("nothing", "void", 0)
    unknown = run_cli("agent", "logs", "../../etc", "--dir", str(folder))
    assert (unknown[0], "no attempt of job" in unknown[2]) == (3, True)
    with coordinator.client() as client:
        client.cancel(job_id)


def test_the_outbox_shows_what_left_with_its_price_and_what_waits(
    coordinator: Federation,
) -> None:
    """A job that completed; and an update that is booked and still in the spool."""
    for name in THREE:
        coordinator.add_node(name)
        coordinator.start(name)
    coordinator.wait_for_nodes(*THREE)
    job = coordinator.wait_for_end(coordinator.submit(job_file(federation={"rounds": 1})))
    assert job.status == "completed"
    folder = coordinator.agent("alpha")
    wait_for(
        "it is closed",
        lambda: cli_json("agent", "outbox", "--dir", str(folder))["items"][0]["standing"] == "left",
    )
    coordinator.kill("alpha")
    found: dict[str, Any] = cli_json("agent", "outbox", "--dir", str(folder))
    (item,) = found["items"]
    assert len(item["digest"]) == 64
    assert item["epsilon_alone"] == pytest.approx(found["accounts"][0]["epsilon_spent"])
    assert found["restored"] == 0
    state = State(folder / "state.db", "alpha", ledger_key_of(folder))
    with state._connection as database:
        database.execute("UPDATE attempts SET state = 'spooled'")
    state.close()
    (folder / "spool/updates" / item["digest"]).write_bytes(b"1234567")
    (waiting,) = cli_json("agent", "outbox", "--dir", str(folder))["items"]
    assert (waiting["standing"], waiting["update_bytes"]) == ("leaving", 7)
    assert waiting["leaves_at_s"] > waiting["opened_at_s"] > 0
    table = run_cli("agent", "outbox", "--dir", str(folder))[1]
    assert "leaves as soon as the coordinator takes it" in table
