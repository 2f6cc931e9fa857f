"""A quote says beforehand what the job then costs, and changes nothing."""

from pathlib import Path

import pytest

from feddp.cli.quotes import lines
from protos.errors import Malformed
from tests.integration.federation import (
    NODES,
    Federation,
    cli_json,
    job_file,
    run_cli,
    wait_for,
)


@pytest.fixture
def three(coordinator: Federation) -> Federation:
    """Three connected hospitals with accounts of epsilon 2."""
    for name in NODES[:3]:
        coordinator.add_node(name, epsilon_limit=2.0)
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES[:3])
    return coordinator


def test_what_is_quoted_is_what_is_spent(three: Federation, tmp_path: Path) -> None:
    """Epsilon of the job and of the account, noise, rounds; and afterwards that nothing is left."""
    file, folder = tmp_path / "job.yaml", str(three.installation.folder)
    file.write_bytes(job_file())
    quoted = cli_json("job", "quote", str(file), "--dir", folder, "--json")
    assert three.entries("reserve") == [], "a quote reserved something"
    assert [one["node"] for one in quoted["nodes"]] == sorted(NODES[:3])
    assert "seconds_expected" not in quoted or quoted["seconds_expected"] is None
    job = three.wait_for_end(three.submit(job_file()))
    assert job.status == "completed", job.message
    spent = {one.name: one.epsilon_spent for one in job.nodes}
    assert [(n.account_epsilon_limit, n.epsilon_guarantee) for n in job.nodes] == [(2.0, 2.0)] * 3
    for one in quoted["nodes"]:
        assert not one["reason"], one["message"]
        assert one["epsilon_job"] == pytest.approx(spent[one["node"]], rel=1e-9)
        assert one["epsilon_before"] == 0.0
        assert (one["epsilon_limit"], one["epsilon_guarantee"]) == (2.0, 2.0)
        # Rounded up to five digits, and the filter's figure to the last.
        assert one["epsilon_job"] <= 1.0001 * one["epsilon_after"]
        assert one["epsilon_after"] <= one["epsilon_limit"]
        assert one["rounds_fit"] >= quoted["rounds_planned"]
    noise = {one.statement.noise_multiplier for one in three.entries("post")}
    assert noise == {one["noise_multiplier"] for one in quoted["nodes"]}
    assert all(one["nearly_spent"] for one in quoted["nodes"])
    code, out, _ = run_cli("job", "quote", str(file), "--dir", folder)
    assert code == 4, "the accounts are spent"
    assert "cannot: BUDGET" in out
    assert "0 of at least 3 hospitals can take part" in out


def test_a_quote_needs_no_connected_hospital(three: Federation) -> None:
    """Who is away is named; budgets decide about the exit code."""
    three.kill(NODES[0])
    with three.client() as client:
        wait_for("it is away", lambda: not client.node(NODES[0]).connected)
        found = client.quote(job_file())
    said = "\n".join(lines(found))
    assert f"{NODES[0]}: is not connected; once it is back it takes part, and spends" in said
    assert "warning: " in said


def test_a_quote_warns_of_a_job_that_is_under_way(three: Federation) -> None:
    """Which spends from the same accounts; not once it has ended."""
    job_id = three.submit(job_file(federation={"rounds": 50}))
    with three.client() as client:
        found = client.quote(job_file(privacy={"target_epsilon": 0.1}))
        assert {one.jobs_under_way for one in found.nodes} == {1}
        assert "1 job that is under way will spend" in "\n".join(lines(found))
        client.cancel(job_id)
        found = client.quote(job_file(privacy={"target_epsilon": 0.1}))
    assert {one.jobs_under_way for one in found.nodes} == {0}


def test_a_job_file_with_a_fault_gets_no_quote(three: Federation) -> None:
    """The same words as a submission."""
    with three.client() as client, pytest.raises(Malformed) as refused:
        client.quote(job_file(privacy={"target_epsilon": -1.0}))
    assert "privacy.target_epsilon" in refused.value.message
