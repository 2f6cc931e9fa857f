"""A patient in two data sets of one node: found, said once, and never told which."""

import asyncio
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
from typer.testing import CliRunner

from certs.authority import Authority
from feddp.cli.app import app
from node_agent.alerts.conditions import conditions
from node_agent.alerts.digest import digest
from node_agent.alerts.settings import AlertsConfig
from node_agent.data import overlaps as module
from node_agent.data.datasets import DataSetSpec
from node_agent.data.overlap_watch import OverlapWatch
from node_agent.data.overlaps import overlaps
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.policy.steward import Steward
from node_agent.state.state import State
from node_agent.status import status
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import DATA_SET, POLICY, data_set, write_rules
from tests.stewards import vouched

HEADER = "patient_id,age,disease\n"


def written(path: Path, *patients: str, **changes: Any) -> DataSetSpec:
    """A data set named as its file, with one row for each patient."""
    path.write_text(HEADER + "".join(f"{one},60,1\n" for one in patients))
    return data_set(name=path.stem, source=str(path), **changes)


def kinds(*specs: DataSetSpec) -> list[str]:
    """What is found of each pair."""
    return [one.kind for one in overlaps(specs)]


def test_one_common_patient_is_found(tmp_path: Path) -> None:
    """By the id as training knows it, however spelt; a row without one is nobody's."""
    one = written(tmp_path / "one.csv", "p1", "p2", "", "NA")
    assert kinds(one, written(tmp_path / "two.csv", "p3", " p2 ")) == ["patients"]
    assert kinds(one, written(tmp_path / "two.csv", "p3", "P2")) == ["patients"]
    assert kinds(one, written(tmp_path / "two.csv", "p3", "", "NA")) == []


def test_the_same_file_is_found_under_another_name(tmp_path: Path) -> None:
    """A link to it included."""
    one = written(tmp_path / "one.csv", "p1")
    os.symlink(one.source, tmp_path / "two.csv")
    two = data_set(name="two", source=str(tmp_path / "two.csv"))
    assert kinds(one, two) == ["same_file"]
    assert kinds(one, one.model_copy(update={"name": "again"})) == ["same_file"]


def test_numbers_in_parquet_are_compared_as_they_are_spelt(tmp_path: Path) -> None:
    """7 in a Parquet file is the patient 7 of a CSV file."""
    path = tmp_path / "two.parquet"
    pq.write_table(pa.table({"patient_id": [7, None], "age": [2.0, 3.0], "disease": [1, 0]}), path)
    two = data_set(name="two", source=str(path))
    assert kinds(written(tmp_path / "one.csv", "7"), two) == ["patients"]
    assert kinds(written(tmp_path / "one.csv", "8"), two) == []


def test_a_file_that_cannot_be_read_is_not_called_disjoint(tmp_path: Path) -> None:
    """It is said that nothing is known."""
    one, two = written(tmp_path / "one.csv", "p1"), written(tmp_path / "two.csv", "p2")
    two.source.write_text("id,age,disease\np2,60,1\n")
    assert kinds(one, two) == ["unknown"]
    two.source.write_bytes(b"\xff\xfe")
    assert kinds(one, two) == ["unknown"]


def test_an_id_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    """Its row is in no training; the ids beside it are compared."""
    one, two = written(tmp_path / "one.csv", "p1"), written(tmp_path / "two.csv", "p2")
    two.source.write_bytes(HEADER.encode() + b"\xff\xfe,60,1\n")
    assert kinds(one, two) == []
    two.source.write_bytes(HEADER.encode() + b"\xff\xfe,60,1\np1,60,1\n")
    assert kinds(one, two) != []


def test_many_patients_are_compared_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded: only a part of the ids is held at a time, and none is missed."""
    held = []
    meet = module._meet

    def counted(one: Any, two: Any) -> bool:
        held.append(max(len(one), len(two)))
        return meet(one, two)

    monkeypatch.setattr(module, "IDS_MAX", 1000)
    monkeypatch.setattr(module, "_meet", counted)
    one = written(tmp_path / "one.csv", *(f"a{n}" for n in range(9_999)), "both")
    two = written(tmp_path / "two.csv", *(f"b{n}" for n in range(9_999)))
    assert kinds(one, two) == []
    assert len(held) == 11
    assert max(held) < 1200
    two = written(tmp_path / "two.csv", "both", *(f"b{n}" for n in range(9_999)))
    assert kinds(one, two) == ["patients"]


def test_two_accounts_are_a_warning_and_one_is_a_note(tmp_path: Path) -> None:
    """Names of data sets and accounts are said; no id, and no number of them."""
    one, two = written(tmp_path / "one.csv", "secret7"), written(tmp_path / "two.csv", "secret7")
    (note,) = overlaps([one, two])
    (warning,) = overlaps([one, two.model_copy(update={"account": "others"})])
    assert (note.is_warning, warning.is_warning) == (False, True)
    assert "account patients, which counts for both" in note.said()
    assert "neither limit holds" in warning.said()
    assert "secret7" not in note.said() + warning.said()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An agent with two data sets that share a patient."""
    made = make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 9)
    for name in ("heart", "heart-2"):
        written(made.root / f"{name}.csv", "secret7", name)
    sets = [{**DATA_SET, "name": n, "source": f"{n}.csv"} for n in ("heart", "heart-2")]
    write_rules(made.root, data_sets=sets)
    return made


def test_status_shows_what_two_data_sets_share(folder: Folder) -> None:
    """It stays in order: one account pays for both."""
    found = status(folder.root)
    (one,) = found["overlaps"]
    assert (one["data_sets"], one["warning"]) == (["heart", "heart-2"], False)
    assert found["in_order"]


def test_one_file_for_two_vouched_accounts_is_a_warning(folder: Folder) -> None:
    """A steward's signature does not hide it."""
    first = POLICY["accounts"][0]
    content = {
        **POLICY,
        "accounts": [first, {**first, "name": "others"}],
        **vouched({"patients": ["heart"], "others": ["copy"]}),
    }
    one = {**DATA_SET, "source": "heart.csv"}
    write_rules(folder.root, content, [one, {**one, "name": "copy", "account": "others"}])
    answer = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)])
    (line,) = [one for one in answer.stdout.splitlines() if "the same file" in one]
    assert line.startswith("WARNING")
    assert "heart and copy are the same file" in line
    assert "neither limit holds" in line


def test_the_agent_logs_it_once_at_start_and_when_a_file_changes(folder: Folder) -> None:
    """A real process compares; unchanged files cost none, and the log holds no id."""
    counts: list[int] = []

    class Done(Exception):
        """Seen enough."""

    async def pause(_: float) -> None:
        counts.append(len(logs))
        if len(counts) == 2:
            written(folder.root / "heart-2.csv", "secret7", "new")
        if len(counts) == 3:
            raise Done

    with structlog.testing.capture_logs() as logs, pytest.raises(Done):
        asyncio.run(OverlapWatch(folder, Steward(folder)).run(pause))
    assert counts == [1, 1, 2]
    assert {one["event"] for one in logs} == {"patients_in_two_data_sets"}
    assert logs[0]["log_level"] == "info"
    assert "secret7" not in str(logs)


def test_patients_of_two_accounts_are_an_alert_and_in_the_digest(folder: Folder) -> None:
    """Neither limit holds for them: a line of a log is not enough."""
    first = POLICY["accounts"][0]
    content = {
        **POLICY,
        "accounts": [first, {**first, "name": "others"}],
        **vouched({"patients": ["heart"], "others": ["copy"]}),
    }
    one = {**DATA_SET, "source": "heart.csv"}
    write_rules(folder.root, content, [one, {**one, "name": "copy", "account": "others"}])
    (said,) = [
        one
        for one in digest(folder.root, 7.0)["alerts"]
        if one["event"] == "PATIENTS_IN_TWO_ACCOUNTS"
    ]
    assert said["subject"] == "heart and copy"
    assert "neither limit holds" in said["text"]

    class Done(Exception):
        """Seen enough."""

    async def pause(_: float) -> None:
        raise Done

    watch = OverlapWatch(folder, Steward(folder))
    with pytest.raises(Done):
        asyncio.run(watch.run(pause))
    assert [one.data_sets for one in watch.warnings()] == [("heart", "copy")]
    identity = load_identity(folder.identity)
    with closing(State(folder.state_db, identity.node, identity.ledger_key)) as state:
        found = conditions(
            *(folder, identity, state, Steward(folder), AlertsConfig(disk_free_bytes_min=0)),
            overlaps=watch.warnings(),
        )
    assert [one.event for one in found] == ["PATIENTS_IN_TWO_ACCOUNTS"]
    folder.datasets_yaml.write_text("data_sets: [")  # the agent goes on by what it read
    with pytest.raises(Done):
        asyncio.run(watch.run(pause))
    assert watch.warnings()
