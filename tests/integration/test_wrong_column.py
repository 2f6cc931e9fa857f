"""A steward's wrong column, with real processes: it costs no budget, and it is seen."""

from tests.integration.federation import Federation, cli_json, job_file, run_cli


def test_a_patient_column_that_is_not_there_costs_nothing(federation: Federation) -> None:
    """Every attempt at that hospital is voided; the job goes on with the others and names it."""
    declared = federation.agent("alpha") / "datasets.yaml"
    good = declared.read_text()
    declared.write_text(good.replace("patient: patient_id", "patient: nothere"))
    job = federation.wait_for_end(federation.submit(job_file(federation={"rounds": 2})))
    assert job.status == "completed", job.message
    reasons = {p.reason for one in job.rounds for p in one.participation if p.node == "alpha"}
    assert "SCHEMA_MISMATCH" in reasons
    kinds = {e.statement.kind for e in federation.entries() if e.statement.node == "alpha"}
    assert kinds == {"reserve", "void"}
    assert "nothere" not in str(job)
    folder = str(federation.agent("alpha"))
    code, said, _ = run_cli("agent", "status", "--dir", folder)
    assert code == 1
    assert "column 'nothere' is missing" in said
    declared.write_text(good)
    found = cli_json("agent", "status", "--dir", folder)
    assert found["in_order"]
    assert found["accounts"][0]["posted_units"] == 0
