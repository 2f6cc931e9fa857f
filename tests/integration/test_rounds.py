"""Rounds with slow hospitals, several jobs, and more than one coordinator process."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import yaml

from feddp.demo.ports import free_ports
from tests.integration.federation import NODES, Federation, cli_json, job_file, null_job, wait_for


def test_a_node_does_as_many_steps_as_fit_its_deadline_and_is_booked_for_them(
    federation: Federation,
) -> None:
    """Ordered far too many, a node rehearses, refuses unopened, and is ordered what it can do."""
    asked = 10_000
    job_id = federation.submit(
        job_file(federation={"rounds": 1, "local_steps": asked, "deadline": "5s"})
    )
    job = federation.wait_for_end(job_id)
    assert job.status == "completed"
    booked = {one.statement.node: one.statement.steps for one in federation.entries("post")}
    took_part = [one for one in job.rounds[0].participation if one.outcome == "update"]
    assert len(took_part) >= 3
    for one in took_part:
        assert 0 < one.local_steps < asked
        assert booked[one.node] == one.local_steps
    voided = [one.statement for one in federation.entries("void")]
    assert {statement.steps for statement in voided} >= {asked}
    ledger = cli_json("budget", "verify", "--dir", str(federation.installation.folder))
    assert ledger["verified"]


def test_jobs_on_the_same_nodes_take_turns_and_the_urgent_one_goes_first(
    federation: Federation,
) -> None:
    """Three jobs, each with all nodes in each round; none waits until another has ended."""
    jobs = [federation.submit(null_job(12)) for _ in range(2)]
    urgent = {**yaml.safe_load(null_job(4)), "priority": 50}
    urgent_id = federation.submit(yaml.safe_dump(urgent).encode())
    ended = {job_id: federation.wait_for_end(job_id) for job_id in (urgent_id, *jobs)}
    for job in ended.values():
        assert job.status == "completed"
        assert {n for one in job.rounds for n in _took_part(one)} == set(NODES)
    first, second = (ended[job_id] for job_id in jobs)
    # Their rounds alternate: neither was done before the other had begun its second.
    assert first.rounds[1].started_at < second.ended_at
    assert second.rounds[1].started_at < first.ended_at
    assert ended[urgent_id].ended_at < max(first.ended_at, second.ended_at)


def _took_part(one: object) -> list[str]:
    return [p.node for p in one.participation if p.outcome == "update"]  # type: ignore[attr-defined]


def test_a_coordinator_that_was_paused_while_another_took_over_can_write_nothing(
    federation: Federation, tmp_path: Path
) -> None:
    """The second waits for the lease and takes it when it runs out; the first ends on waking."""
    job_id = federation.submit(null_job(90))
    wait_for("rounds are under way", lambda: federation.job(job_id).rounds_done > 1)
    paused = federation.pid("coordinator")
    settings = yaml.safe_load(federation.installation.config.read_text())
    ports = free_ports(3)
    settings["server"] |= dict(zip(("port", "enrollment_port", "health_port"), ports, strict=True))
    second_config = federation.installation.config.with_name("second.yaml")
    second_config.write_text(yaml.safe_dump(settings))
    with (tmp_path / "second.log").open("wb") as log:
        second = subprocess.Popen(
            [sys.executable, "-m", "feddp", "coordinator", "serve", "--config", second_config],
            stderr=log,
        )
    try:
        said = tmp_path / "second.log"
        wait_for("the second waits", lambda: "waiting_for_lease" in said.read_text())
        assert "coordinator_ready" not in said.read_text()
        os.kill(paused, signal.SIGSTOP)
        while _is_locked(federation):  # it was stopped in the middle of a write
            os.kill(paused, signal.SIGCONT)
            time.sleep(0.1)
            os.kill(paused, signal.SIGSTOP)
        wait_for("the second serves", lambda: "coordinator_ready" in said.read_text(), 30)
        before = federation.entries()
        os.kill(paused, signal.SIGCONT)
        wait_for("the first ends", lambda: "lease_lost" in federation.log("coordinator"), 30)
        wait_for("its process is gone", lambda: _ended(federation, "coordinator"), 30)
        assert federation.entries()[: len(before)] == before
    finally:
        second.terminate()
        second.wait(20)


def _is_locked(federation: Federation) -> bool:
    database = federation.installation.folder / "coordinator.db"
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


def _ended(federation: Federation, name: str) -> bool:
    process = federation._running[name]
    return process.poll() is not None
