"""What the hospital keeps of failures: bounded, readable after a cut, and of its own jobs only."""

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest

from node_agent import failures
from node_agent.failures import DAY_S, LOG_DAYS_MAX, Failures, keep_short, kept, worker_log
from protos.failures import AFTER_OPENING, BEFORE_OPENING, told
from tests.node_agent.samples import order


def test_each_job_sees_its_own_in_order(tmp_path: Path) -> None:
    """With sentence and remedy, before and after the data was opened; its owner's alone."""
    book = Failures(tmp_path)
    book.refused(order("a1", job_id="one"), "SOURCE_MISSING", "The file is gone.")
    book.after_opening(order("a2", job_id="two"), "DATA_PROBLEM", "column 'age', row 2")
    book.after_opening(order("a3", job_id="one"), "of a newer worker", "something")
    found = kept(tmp_path, "one")
    assert [(one.attempt_id, one.opened, one.reason) for one in found] == [
        ("a1", False, "SOURCE_MISSING"),
        ("a3", True, "TASK_FAILED"),
    ]
    assert found[0].remedy == BEFORE_OPENING["SOURCE_MISSING"]
    (two,) = kept(tmp_path, "two")
    assert (two.sentence, two.remedy) == AFTER_OPENING["DATA_PROBLEM"]
    assert stat.S_IMODE((tmp_path / "failures.jsonl").stat().st_mode) == 0o600
    assert kept(tmp_path, since_s=two.at_s + 100.0) == []


def test_why_no_worker_could_be_started_is_kept_for_the_hospital(tmp_path: Path) -> None:
    """The remedy that leads to `feddp agent logs` is not what is read there."""
    book = Failures(tmp_path)
    book.note_why("a1", "sbatch failed: invalid partition specified: nope")
    book.refused(order("a2"), "WORKER_FAILED", "The node could not start a worker.")
    book.refused(order("a1"), "WORKER_FAILED", "The node could not start a worker.")
    book.refused(order("a1"), "WORKER_FAILED", "The node could not start a worker.")
    other, mine, again = kept(tmp_path)
    assert mine.detail == "sbatch failed: invalid partition specified: nope"
    assert "feddp agent logs" not in mine.remedy
    assert "feddp agent doctor" in mine.remedy
    assert (other.detail, again.detail) == ("", "")
    for number in range(500):
        book.note_why(f"b{number}", "x" * 5000)
    book.refused(order("b499"), "WORKER_FAILED", "m")
    book.refused(order("b1"), "WORKER_FAILED", "m")
    assert [len(one.detail) for one in kept(tmp_path)[3:]] == [600, 0]


def test_the_file_stays_small_and_a_cut_line_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk cuts lines; years of failures are not kept."""
    monkeypatch.setattr(failures, "FILE_BYTES_MAX", 2000)
    book = Failures(tmp_path)
    for number in range(60):
        book.after_opening(order(f"a{number}"), "TOO_LONG")
    sizes = [one.stat().st_size for one in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) < 3000
    newest = kept(tmp_path)[-1]
    assert newest.attempt_id == "a59"
    with (tmp_path / "failures.jsonl").open("a") as file:
        file.write(json.dumps({"at_s": 1})[:-3] + "\n[]\n{}\n")
    book.after_opening(order("b1"), "TOO_LONG")
    assert [one.attempt_id for one in kept(tmp_path)[-2:]] == ["a59", "b1"]


def test_a_disk_that_takes_nothing_stops_no_attempt(tmp_path: Path) -> None:
    """It is logged, and that is all."""
    Failures(tmp_path / "gone").after_opening(order(), "TOO_LONG")
    assert kept(tmp_path / "gone") == []


def test_a_log_is_named_by_a_job_and_by_nothing_else(tmp_path: Path) -> None:
    """Its end is read, however long it is."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (tmp_path / "x.log").write_text("not a worker's")
    (logs / "worker-j.log").write_text("".join(f"line {n}\n" for n in range(100_000)))
    assert worker_log(logs, "j", 2) == ["line 99998", "line 99999"]
    for name in ("../x", "/../../x", "k"):
        assert worker_log(logs, name, 2) == []


def test_logs_of_long_ago_go(tmp_path: Path) -> None:
    """At the start, and then once a day."""
    for name, days in (("worker-old.log", LOG_DAYS_MAX + 1), ("worker-new.log", 1)):
        (tmp_path / name).write_text("x")
        at_s = (tmp_path / name).stat().st_mtime - days * DAY_S
        os.utime(tmp_path / name, (at_s, at_s))
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(keep_short(tmp_path, pause))
    assert [one.name for one in tmp_path.iterdir()] == ["worker-new.log"]
    assert waited == [DAY_S]


def test_what_may_be_told_ends_with_what_to_do() -> None:
    """A refusal of the policy already says it."""
    assert told("TOO_SLOW", "It is slow.").endswith("What to do: give the job a longer deadline.")
    assert told("BUDGET_REFUSED", "Nothing is left.") == "Nothing is left."
