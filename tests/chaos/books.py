"""What must hold of every job after every fault: nothing lost, repeated or charged twice."""

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from coordinator import offline
from privacy.verification import verify
from protos.feddp.v1.jobs_pb2 import Job
from tests.integration.federation import Federation, wait_for


def lines(path: Path) -> list[dict[str, Any]]:
    """The structured lines of a log."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def _attempts(folder: Path, job_id: str) -> list[tuple[str, int, str, str, str]]:
    """(attempt, round, state, digest, outcome) in a node's own books."""
    with sqlite3.connect(folder / "state.db", timeout=10) as state:
        return state.execute(
            "SELECT attempt_id, round, state, update_digest, outcome FROM attempts"
            " WHERE job_id = ?",
            (job_id,),
        ).fetchall()


def check_job(federation: Federation, job: Job) -> None:
    """The books of one job that has ended, at the coordinator and at each of its nodes."""
    with federation.database() as database:
        rows = database.execute(
            "SELECT attempt_id, kind FROM entries WHERE job_id = ?", (job.job_id,)
        ).fetchall()
        unproven = database.execute(
            "SELECT attempt_id FROM entries WHERE job_id = ? AND kind = 'post'"
            " AND node_signature = x''",
            (job.job_id,),
        ).fetchall()
        held = database.execute(
            "SELECT count(*) FROM reservations WHERE job_id = ?", (job.job_id,)
        ).fetchone()
    assert held == (0,), "a reservation is left open"
    kinds = Counter(rows)
    assert set(kinds.values()) <= {1}, "an attempt is booked twice"
    reserved = sorted(attempt for attempt, kind in kinds if kind == "reserve")
    central = {attempt: kind for attempt, kind in kinds if kind != "reserve"}
    assert sorted(central) == reserved, "an attempt is not resolved exactly once"
    folders = [path for path in federation.folder.glob("agents/*") if (path / "state.db").exists()]
    for folder in folders:
        wait_for(
            f"{folder.name} closes its attempts",
            lambda folder=folder: all(  # type: ignore[misc]
                state in ("closed", "refused")
                for _, _, state, _, _ in _attempts(folder, job.job_id)
            ),
            20,
        )
        _check_node(folder, job, central, {attempt for (attempt,) in unproven})
    _check_folded(federation, job, central)


def _check_node(folder: Path, job: Job, central: dict[str, str], unproven: set[str]) -> None:
    mine = _attempts(folder, job.job_id)
    for attempt, _, _, _, outcome in mine:
        # A node that nobody heard of is charged whole, though it may know that nothing left it.
        spared = outcome == "void" and attempt in unproven
        agreed = central[attempt] == outcome
        assert agreed or spared, f"{folder.name} and the coordinator disagree"
    finished = Counter(number for _, number, _, digest, _ in mine if digest)
    assert set(finished.values()) <= {1}, f"{folder.name} trained a finished round again"
    trained = Counter(
        line["attempt_id"]
        for line in lines(folder / f"logs/worker-{job.job_id}.log")
        if line["event"] == "trained"
    )
    assert set(trained.values()) <= {1}, f"{folder.name} trained an attempt twice"


def _check_folded(federation: Federation, job: Job, central: dict[str, str]) -> None:
    """An update that the coordinator has acknowledged is part of its round's model."""
    if job.status != "completed":
        return
    folded = {
        (one.number, p.node)
        for one in job.rounds
        for p in one.participation
        if p.outcome == "update"
    }
    for folder in federation.folder.glob("agents/*"):
        taken = {
            line["attempt_id"]
            for line in lines(federation.folder / f"{folder.name}.log")
            if line.get("event") == "update_submitted"
        }
        if not (folder / "state.db").exists():
            continue
        for attempt, number, _, _, _ in _attempts(folder, job.job_id):
            if attempt in taken:
                assert (number, folder.name) in folded, "an acknowledged update was not folded"


def check_ledgers(federation: Federation) -> None:
    """The whole central ledger verifies."""
    view = offline.ledger(federation.installation.folder)
    found = verify(view.entries, view.filters, view.public_keys)
    assert found.ok, found.problems
