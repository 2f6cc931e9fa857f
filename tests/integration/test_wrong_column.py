"""A steward's wrong column, with real processes: it costs no budget, and it is seen."""

from pathlib import Path

from tests.integration.federation import Federation, cli_json, job_file, run_cli, wait_for


def test_a_patient_column_that_is_not_there_costs_nothing(federation: Federation) -> None:
    """Every attempt at that hospital is voided; the job goes on with the others and names it."""
    declared = federation.agent("alpha") / "datasets.yaml"
    good = declared.read_text()
    declared.write_text(good.replace("patient: patient_id", "patient: nothere"))
    job = federation.wait_for_end(federation.submit(job_file(federation={"rounds": 2})))
    assert job.status == "completed", job.message
    reasons = {p.reason for one in job.rounds for p in one.participation if p.node == "alpha"}
    assert "SCHEMA_MISMATCH" in reasons
    # An order that was on its way before the agent had looked at the header is voided.
    kinds = {e.statement.kind for e in federation.entries() if e.statement.node == "alpha"}
    assert kinds <= {"reserve", "void"}
    assert "nothere" not in str(job)
    folder = str(federation.agent("alpha"))
    code, said, _ = run_cli("agent", "status", "--dir", folder)
    assert code == 1
    assert "column 'nothere' is missing" in said
    declared.write_text(good)
    found = cli_json("agent", "status", "--dir", folder)
    assert found["in_order"]
    assert found["accounts"][0]["posted_units"] == 0


def test_a_quote_and_a_submission_name_it_before_any_order(
    federation: Federation, tmp_path: Path
) -> None:
    """The agent has looked at the header and told the coordinator; nothing is reserved there."""
    declared = federation.agent("alpha") / "datasets.yaml"
    declared.write_text(declared.read_text().replace("patient: patient_id", "patient: nothere"))
    path, where = tmp_path / "job.yaml", str(federation.folder / "coordinator")
    path.write_bytes(job_file(federation={"rounds": 2}))

    def quote() -> str:
        return run_cli("job", "quote", str(path), "--dir", where)[1]

    wait_for("the quote names it", lambda: "cannot: SCHEMA_MISMATCH" in quote())
    assert "alpha: the columns of its data set's file are not those" in quote()
    code, said, _ = run_cli("job", "submit", str(path), "--dir", where)
    assert code == 0
    assert "warning: alpha cannot take part now, SCHEMA_MISMATCH" in said
    assert "nothere" not in said
    assert not [e for e in federation.entries() if e.statement.node == "alpha"]
