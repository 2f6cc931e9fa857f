"""A model is judged where the records are, and on public rows, through real processes."""

from pathlib import Path

import pytest
import yaml

from tests.integration.federation import FEATURES, NODES, Federation, cli_json, run_cli


def test_a_trained_model_is_evaluated_at_its_hospitals_and_on_public_rows(
    coordinator: Federation, tmp_path: Path
) -> None:
    """Train on rows whose label is whether x is above 0; a job then says, with the noise's standard
    error, that nearly all of the hospitals' patients are judged right, and has cost what it says;
    the same model is judged on public rows without a further entry in any ledger."""
    for name in NODES[:3]:
        coordinator.add_node(name, rows=200)
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES[:3])
    root = str(coordinator.installation.folder)
    privacy = {"target_epsilon": 4.0, "delta": 1e-5, "max_grad_norm": 1.0}
    training = {
        "name": "train",
        "task": "tabular-classifier",
        "task_config": {"model": "logistic", "learning_rate": 2.0, "features": FEATURES},
        "dataset": "cohort",
        "federation": {"rounds": 3, "local_steps": 2},
        "privacy": privacy,
    }
    trained = coordinator.wait_for_end(coordinator.submit(yaml.safe_dump(training).encode()))
    assert trained.status == "completed", trained.message
    job_file = tmp_path / "evaluation.yaml"
    evaluation = {
        "name": "judge",
        "task": "tabular-evaluation",
        "task_config": {"model": "logistic", "features": FEATURES, "evaluates": trained.job_id},
        "dataset": "cohort",
        "privacy": {"target_epsilon": 2.0, "delta": 1e-5},
    }
    job_file.write_text(yaml.safe_dump(evaluation))
    report = tmp_path / "report.html"
    code, out, err = run_cli(
        "job", "submit", str(job_file), "--dir", root, "--watch", "--report", str(report)
    )
    assert code == 0, err
    assert "standard error of the noise" in out
    assert "Figures at the hospitals" in report.read_text()
    [judged] = [
        one for one in cli_json("job", "list", "--dir", root)["jobs"] if one["name"] == "judge"
    ]
    shown = cli_json("job", "show", judged["job_id"], "--dir", root)
    accuracy = shown["evaluation"]["accuracy"]
    assert shown["evaluation"]["declared_n"] == 600
    # One release at epsilon 2 has a multiplier of 2.0; three hospitals of 200, two of four counts.
    assert accuracy["standard_error"] == pytest.approx(2.0 * 6**0.5 / 600, rel=0.05)
    assert accuracy["value"] > 0.9 - 5 * accuracy["standard_error"]
    assert all(node["epsilon_spent"] == pytest.approx(2.0, rel=1e-3) for node in shown["nodes"])
    entries = cli_json("budget", "ledger", "--dir", root)["entries"]
    mine = [one for one in entries if one["job_id"] == judged["job_id"] and one["kind"] == "post"]
    assert [(one["mechanism"], one["steps"], one["unit"]) for one in mine] == [
        ("gaussian", 1, "patient")
    ] * 3

    rows = tmp_path / "public.csv"
    rows.write_text("x,label\n" + "".join(f"{n / 10},{int(n > 0)}\n" for n in range(-20, 21) if n))
    found = cli_json(
        "model", "evaluate", trained.job_id, "--data", str(rows), "--label", "label", "--dir", root
    )
    assert (found["rows"], found["model"]) == (40, trained.model_digest)
    assert found["accuracy"] > 0.9
    assert found["auc"] == 1.0
    assert len(cli_json("budget", "ledger", "--dir", root)["entries"]) == len(entries)

    training["task_config"]["features"] = [*FEATURES, FEATURES[0]]
    evaluation["task_config"] = {**training["task_config"], "evaluates": trained.job_id}
    del evaluation["task_config"]["learning_rate"]
    job_file.write_text(yaml.safe_dump(evaluation))
    code, _, err = run_cli("job", "submit", str(job_file), "--dir", root)
    assert code == 2
    assert "has other tensors" in err
