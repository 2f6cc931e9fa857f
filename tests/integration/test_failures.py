"""Processes die at the worst moment; nothing is lost, repeated or charged twice."""

import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml

from coordinator import offline
from privacy.verification import verify
from protos.feddp.v1.jobs_pb2 import Job
from tests.integration.federation import NODES, Federation, job_file, null_job, wait_for


def rounds_done(federation: Federation, job_id: str, at_least: int) -> None:
    """Wait for a number of published rounds."""
    wait_for(f"{at_least} rounds are done", lambda: federation.job(job_id).rounds_done >= at_least)


def check_books(federation: Federation, job: Job) -> None:
    """Each attempt is reserved once and resolved once, no node trained a round twice, and the
    whole ledger verifies."""
    entries = federation.entries()
    kinds = Counter((e.statement.attempt_id, e.statement.kind) for e in entries)
    assert set(kinds.values()) == {1}
    reserved = {a for a, kind in kinds if kind == "reserve"}
    resolved = [a for a, kind in kinds if kind in ("post", "void")]
    assert sorted(resolved) == sorted(reserved)
    view = offline.ledger(federation.installation.folder)
    assert verify(view.entries, view.filters, view.public_keys).ok
    assert job.rounds_done == len(job.rounds)


def per_round(federation: Federation) -> Counter[tuple[str, int]]:
    """Reservations of each node in each round."""
    return Counter((e.statement.node, e.statement.round) for e in federation.entries("reserve"))


@pytest.mark.parametrize("done", [0, 1, 2])
def test_kill_9_of_the_coordinator_in_any_round_loses_and_repeats_nothing(
    federation: Federation, done: int
) -> None:
    """The same job finishes after a restart, with one charge and one training for each round."""
    job_id = federation.submit(job_file(federation={"rounds": 4}))
    rounds_done(federation, job_id, done)
    federation.kill("coordinator")
    federation.start("coordinator")
    job = federation.wait_for_end(job_id)
    assert (job.status, job.rounds_done) == ("completed", 4), job.message
    assert set(per_round(federation).values()) == {1}
    check_books(federation, job)


def test_ten_kills_of_the_coordinator_during_one_job(federation: Federation) -> None:
    """Killed again and again at moments that nobody chose, it still finishes with clean books."""
    job_id = federation.submit(null_job(60))
    for number in range(10):
        time.sleep(0.05 + 0.07 * number)
        federation.kill("coordinator")
        federation.start("coordinator")
    job = federation.wait_for_end(job_id, 240)
    assert (job.status, job.rounds_done) == ("completed", 60), job.message
    check_books(federation, job)


def test_one_killed_agent_of_four_does_not_stop_the_job(federation: Federation) -> None:
    """The round goes on with three within the time that a lost node is given."""
    job_id = federation.submit(job_file(federation={"rounds": 8}))
    rounds_done(federation, job_id, 1)
    federation.kill("delta")
    began_s, before = time.monotonic(), federation.job(job_id).rounds_done
    rounds_done(federation, job_id, before + 2)
    assert time.monotonic() - began_s < 30
    job = federation.wait_for_end(job_id)
    assert job.status == "completed", job.message
    outcomes = {p.node: p.outcome for p in job.rounds[-1].participation}
    assert outcomes["delta"] in ("left_out", "lost")
    check_books(federation, job)


def test_two_killed_agents_make_the_job_wait_until_one_returns(federation: Federation) -> None:
    """Below quorum the job names whom it waits for, keeps what it has, and goes on by itself."""
    job_id = federation.submit(job_file(federation={"rounds": 8}))
    rounds_done(federation, job_id, 1)
    for name in ("gamma", "delta"):
        federation.kill(name)
    wait_for("the job waits", lambda: federation.job(job_id).status == "waiting", 40)
    wait_for(
        "both are named",
        lambda: {"gamma", "delta"} <= {w.node for w in federation.job(job_id).waiting},
        40,
    )
    held = federation.job(job_id).rounds_done
    posted = len(federation.entries("post"))
    time.sleep(2)
    assert federation.job(job_id).rounds_done == held
    assert len(federation.entries("post")) == posted
    federation.start("gamma")
    job = federation.wait_for_end(job_id)
    assert job.status == "completed", job.message
    assert job.rounds_done == 8
    trained = per_round(federation)
    assert all(trained[node, number] == 1 for node in ("alpha", "beta") for number in range(1, 9))
    check_books(federation, job)


def worker_of(pid: int) -> psutil.Process | None:
    """The training worker of an agent."""
    for child in psutil.Process(pid).children(recursive=True):
        if "node_agent.worker" in " ".join(child.cmdline()):
            return child
    return None


def test_a_worker_killed_after_it_opened_the_data_is_posted_whole_and_tried_anew(
    coordinator: Federation,
) -> None:
    """The attempt is spent; the next one has a new id, fresh noise and its own charge."""
    for name in NODES[:3]:
        coordinator.add_node(name)
        # Else outcomes wait as long as a patient of a thousand rows would take.
        declared = coordinator.agent(name) / "datasets.yaml"
        few_rows = {"rows_per_patient_max": 60}
        (data_set,) = yaml.safe_load(declared.read_text())["data_sets"]
        declared.write_text(yaml.safe_dump({"data_sets": [{**data_set, **few_rows}]}))
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES[:3])
    # Long enough that the worker is killed at its steps.
    job_id = coordinator.submit(job_file(federation={"rounds": 2, "local_steps": 1000}))

    def opened() -> bool:
        with sqlite3.connect(coordinator.agent("alpha") / "state.db", timeout=5) as state:
            rows = state.execute("SELECT state FROM attempts").fetchall()
        return ("opened",) in rows

    wait_for("alpha opens its data", opened)
    worker = worker_of(coordinator.pid("alpha"))
    assert worker is not None
    worker.send_signal(signal.SIGKILL)
    job = coordinator.wait_for_end(job_id, 240)
    assert job.status == "completed", job.message
    first_round = [e for e in coordinator.entries() if e.statement.round == 1]
    alpha = [e.statement for e in first_round if e.statement.node == "alpha"]
    assert [s.kind for s in alpha] == ["reserve", "post", "reserve", "post"]
    assert alpha[0].attempt_id == alpha[1].attempt_id != alpha[2].attempt_id
    assert alpha[2].noise_multiplier > alpha[0].noise_multiplier  # type: ignore[operator]
    assert all(e.node_signature for e in first_round)
    spent = {node.name: node.epsilon_spent for node in job.nodes}
    assert spent["alpha"] <= 2.0
    log = coordinator.log("coordinator")
    assert "cohort.csv" not in log, "why it failed stays in the hospital"
    check_books(coordinator, job)


def test_the_node_refuses_by_its_own_ledger_when_the_coordinators_limit_is_raised(
    coordinator: Federation,
) -> None:
    """A coordinator that forgets its limit gets BUDGET_REFUSED from the node, and both say so."""
    for name in NODES[:3]:
        coordinator.add_node(name, epsilon_limit=2.0)
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES[:3])
    first = coordinator.wait_for_end(coordinator.submit(job_file()))
    assert first.status == "completed", first.message
    with coordinator.database() as database:
        database.execute("UPDATE accounts SET epsilon_limit = 100")
    # The nodes announce their true limit at each session, so the forgery must come after it.
    second = coordinator.submit(job_file())
    job = coordinator.wait_for_end(second)
    assert job.status == "budget_exhausted"
    refusals = {p.node: p.reason for p in job.rounds[-1].participation}
    assert refusals == dict.fromkeys(NODES[:3], "BUDGET_REFUSED")
    voided = {e.statement.node for e in coordinator.entries("void")}
    assert voided == set(NODES[:3])
    assert all(e.node_signature for e in coordinator.entries("void"))
    assert "BUDGET_REFUSED" in coordinator.log("alpha")


def test_a_restarted_machine_of_the_coordinator_serves_the_same_answer(
    federation: Federation, tmp_path: Path
) -> None:
    """Jobs, models and ledger are read again from disk; an ended job stays ended."""
    job = federation.wait_for_end(federation.submit(null_job(2)))
    federation.kill("coordinator")
    federation.start("coordinator")
    again = federation.job(job.job_id)
    assert (again.status, again.model_digest) == (job.status, job.model_digest)
    with federation.client() as client:
        client.download(job.job_id, tmp_path / "m.safetensors")
