"""A hospital whose workers run in Slurm allocations, beside two that start them themselves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.federation import NODES, Federation, job_file, wait_for
from tests.node_agent.slurm_cluster import Cluster, cluster, version


@pytest.fixture(params=[version()])
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster that the agents' commands find; the test's name says which."""
    (tmp_path / "slurm").mkdir()
    with cluster(tmp_path / "slurm") as made:
        for name, value in made.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
        yield made


def test_a_node_on_a_cluster_takes_part_and_its_stop_leaves_no_allocation(
    slurm: Cluster, coordinator: Federation
) -> None:
    """The job completes with all three; the worker's allocation ends with the agent."""
    for name in NODES[:3]:
        coordinator.add_node(name)
    path = coordinator.agent("alpha") / "agent.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["launcher"] = {"kind": "slurm", "partition": "main", "time_limit_minutes": 30}
    path.write_text(yaml.safe_dump(settings))
    for name in NODES[:3]:
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES[:3])
    job_id = coordinator.submit(job_file(federation={"rounds": 2, "local_steps": 2}))
    wait_for("a worker is asked for", lambda: "worker_submitted" in coordinator.log("alpha"))
    job = coordinator.wait_for_end(job_id)
    assert job.status == "completed", job.message
    for one in job.rounds:
        assert {p.node for p in one.participation if p.outcome == "update"} == set(NODES[:3])
    assert coordinator.log("alpha").count("worker_submitted") == 1
    coordinator.stop()
    assert slurm.jobs() == []
    assert list((coordinator.agent("alpha") / "spool" / "workers").iterdir()) == []
