"""The forms of an update, through real processes."""

from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from tests.integration.federation import NODES, Federation, job_file, run_cli


def download(federation: Federation, job_id: str, out: Path) -> dict[str, Any]:
    """The answer of a job."""
    root = str(federation.installation.folder)
    code, _, err = run_cli("model", "download", job_id, "--out", str(out), "--dir", root)
    assert code == 0, err
    return load_file(out)


def test_narrow_updates_train_a_model(coordinator: Federation, tmp_path: Path) -> None:
    """Noised and sent as bfloat16, or as int8 without noise: every update counts, and without
    noise the one feature that makes the label gets a clear weight."""
    for name in NODES[:3]:
        coordinator.add_node(name, unaccounted="allow")
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES[:3])
    plain = {"target_epsilon": None, "mechanism": "none", "max_grad_norm": 1.0}
    for dtype, privacy in (("bfloat16", {}), ("int8", plain)):
        federation = {"rounds": 3, "local_steps": 2, "update_dtype": dtype}
        spec = job_file(federation=federation, privacy=privacy)
        job = coordinator.wait_for_end(coordinator.submit(spec))
        assert (job.status, job.rounds_done) == ("completed", 3), job.message
        assert {p.outcome for r in job.rounds for p in r.participation} == {"update"}
    model = download(coordinator, job.job_id, tmp_path / "model")
    assert model["linear.weight"][0, 0] > 0.2


def test_frozen_tensors_stay_and_do_not_travel(federation: Federation, tmp_path: Path) -> None:
    """Of a model of 101,000 values the nodes send back the thousand that they train."""
    spec = job_file(
        task="null",
        task_config={"parameters": 1000, "frozen": 100_000},
        federation={"rounds": 2, "update_dtype": "int8"},
        privacy={"target_epsilon": None, "max_grad_norm": None},
    )
    job = federation.wait_for_end(federation.submit(spec))
    assert job.status == "completed", job.message
    assert all(one.model_bytes > 400_000 for one in job.rounds)
    assert all(one.update_bytes < 4 * 1500 for one in job.rounds)
    model = download(federation, job.job_id, tmp_path / "model")
    assert not model["frozen"].any()
    assert model["parameters"].all()
