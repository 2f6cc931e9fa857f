"""The whole system with its state in PostgreSQL."""

import json
from pathlib import Path

from benchmarks.postgresql import PostgreSql
from tests.integration.federation import (
    NODES,
    Federation,
    cli_json,
    job_file,
    null_job,
    run_cli,
)
from tests.integration.test_failures import check_books, per_round, rounds_done

ROUNDS = 60


def test_jobs_on_postgresql_go_on_after_kill_9_of_the_coordinator(
    postgresql_server: PostgreSql, tmp_path: Path
) -> None:
    """A null job and a DP job finish with one charge for each node and round, though the
    coordinator was killed in the middle; the ledger is read and verified with it stopped."""
    federation = Federation(tmp_path, database_url=postgresql_server.new_database())
    names = NODES[:3]
    try:
        federation.start("coordinator")
        for name in names:
            federation.add_node(name)
            federation.start(name)
        federation.wait_for_nodes(*names)
        null = federation.submit(null_job(ROUNDS))
        rounds_done(federation, null, 5)
        federation.kill("coordinator")
        federation.start("coordinator")
        after = federation.wait_for_end(null)
        assert (after.status, after.rounds_done) == ("completed", ROUNDS), after.message
        check_books(federation, after)
        assert set(per_round(federation).values()) == {1}
        trained = federation.submit(job_file(federation={"rounds": 4}))
        rounds_done(federation, trained, 1)
        federation.kill("coordinator")
        federation.start("coordinator")
        job = federation.wait_for_end(trained)
        assert (job.status, job.rounds_done) == ("completed", 4), job.message
        assert all(0 < node.epsilon_spent <= 2.0 for node in job.nodes)
        check_books(federation, job)
    finally:
        federation.stop()
    root = str(federation.installation.folder)
    verified = cli_json("budget", "verify", "--dir", root)
    assert verified["verified"] is True
    assert verified["counts"]["post"] == 3 * (ROUNDS + 4)
    code, out, _ = run_cli("coordinator", "check", "--config", str(federation.installation.config))
    assert code == 0
    assert "storage.database_url: readable; 3 nodes, 1 users" in out
    assert federation.log("coordinator").count("job_resumed") == 2, "both were killed in the middle"
    said = out + "".join(federation.log(name) for name in ("coordinator", *names))
    assert postgresql_server.password not in said
    assert not list(federation.installation.folder.glob("*.db*")), "nothing is kept beside it"


def test_an_address_from_the_environment_is_used_and_not_written_down(
    postgresql_server: PostgreSql, tmp_path: Path
) -> None:
    """init fills the database, offline commands read it, and a second installation is refused."""
    url = postgresql_server.new_database()
    variable = {"FEDDP_STORAGE__DATABASE_URL": url}
    first, second = tmp_path / "first", tmp_path / "second"
    code, _, err = run_cli("coordinator", "init", "--dir", str(first), **variable)
    assert code == 0, err
    assert "postgresql" not in (first / "coordinator.yaml").read_text()
    code, out, err = run_cli("budget", "show", "--json", "--dir", str(first), **variable)
    assert (code, json.loads(out)) == (0, {"accounts": []}), err
    code, _, err = run_cli("budget", "show", "--json", "--dir", str(first))
    assert (code, json.loads(err)["error"]["reason"]) == (3, "DATABASE_MISSING")
    code, _, err = run_cli("coordinator", "init", "--dir", str(second), "--json", **variable)
    assert (code, json.loads(err)["error"]["reason"]) == (2, "ALREADY_INITIALISED")
    assert not second.exists()
    gone = {"FEDDP_STORAGE__DATABASE_URL": f"{url}_gone"}
    for words in (
        ["coordinator", "init", "--dir", str(second)],
        ["budget", "show", "--dir", str(first)],
        ["coordinator", "serve", "--config", str(first / "coordinator.yaml")],
    ):
        code, out, err = run_cli(*words, **gone)
        assert code == 5, err
        assert postgresql_server.password not in out + err
    assert not second.exists()
