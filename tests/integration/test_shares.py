"""Limits for one project or one purpose, which the hospitals' policies hold, are planned for."""

import json
from pathlib import Path

import pytest

from privacy.calibration import units_for
from tests.integration.federation import (
    NODES,
    WAIT_S_MAX,
    Federation,
    cli_json,
    job_file,
    run_cli,
    wait_for,
)

THREE_ROUNDS = 3.5
"""Rounds of two steps that the project's limit is worth."""


def test_exactly_the_rounds_that_fit_are_ordered(coordinator: Federation, tmp_path: Path) -> None:
    """One round by a first job, two of ten by a second; one hospital greets anew between them, the
    others were last heard before anything was spent. No order is refused, and the end says why."""
    noise = (2 * THREE_ROUNDS * 10**12 / units_for("gdp", 0, 1.0, 1e-5)) ** 0.5
    limits = {"epsilon_per_project": {"default": 1.0}, "epsilon_per_purpose": {"training": 5.0}}
    names = NODES[:3]
    for name in names:
        coordinator.add_node(name, **limits)
        coordinator.start(name)
    coordinator.wait_for_nodes(*names)

    def spec(rounds: int) -> bytes:
        privacy = {"target_epsilon": None, "noise_multiplier": noise}
        return job_file(federation={"rounds": rounds}, privacy=privacy)

    first = coordinator.wait_for_end(coordinator.submit(spec(1)))
    assert (first.status, first.rounds_done) == ("completed", 1), first.message
    coordinator.kill(names[0])
    with coordinator.client() as client:
        wait_for("it is away", lambda: not client.node(names[0]).connected, WAIT_S_MAX)
    coordinator.start(names[0])
    coordinator.wait_for_nodes(*names)

    file, folder = tmp_path / "job.yaml", str(coordinator.installation.folder)
    file.write_bytes(spec(10))
    code, out, _ = run_cli("job", "quote", str(file), "--dir", folder, "--json")
    quoted = json.loads(out)
    assert (code, quoted["rounds_possible"], quoted["rounds_planned"]) == (4, 2, 10)
    for one in quoted["nodes"]:
        assert (one["rounds_fit"], one["tightest"]) == (2, "project default"), one
        assert one["tightest_epsilon"] == 1.0

    second = coordinator.wait_for_end(coordinator.submit(spec(10)))
    assert (second.status, second.rounds_done) == ("budget_exhausted", 2), second.message
    assert "project default epsilon 1 of account" in second.message
    spent = {one.name: one.epsilon_spent for one in second.nodes}
    assert spent == pytest.approx({one["node"]: one["epsilon_job"] for one in quoted["nodes"]})
    kinds = [entry.statement.kind for entry in coordinator.entries()]
    assert (kinds.count("reserve"), kinds.count("post"), kinds.count("void")) == (9, 9, 0)
    assert not any("order_refused" in coordinator.log(name) for name in names)

    code, out, _ = run_cli("job", "quote", str(file), "--dir", folder)
    assert code == 4
    assert "project default epsilon 1 of account" in out
    shown = cli_json("budget", "show", "--dir", folder)["accounts"]
    cost = 2 * 10**12 / noise**2
    for account in shown:
        used = {(one["kind"], one["name"]): one["used_units"] for one in account["shares"]}
        assert used.keys() == {("project", "default"), ("purpose", "training")}
        assert all(abs(units - 3 * cost) < 10 for units in used.values())
    text = run_cli("budget", "show", "--dir", folder)[1]
    assert "project default" in text
    assert "14 %" in text  # half a round of three and a half is left
