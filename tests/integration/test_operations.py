"""An operator's day with real processes: a pause over a kill, and backups beside a job."""

import urllib.request
from pathlib import Path

from protos.feddp.v1.jobs_pb2 import Job
from tests.integration.federation import Federation, cli_json, job_file, null_job, run_cli, wait_for

SMALL = ("alpha", "beta", "gamma")


def gauge(federation: Federation, name: str) -> float:
    """What Prometheus would read."""
    with urllib.request.urlopen(f"{federation.health}/metrics", timeout=5) as answer:  # noqa: S310
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def paused_for(job: Job) -> set[str]:
    """Nodes that it waits for because of the pause."""
    return {one.node for one in job.waiting if one.reason == "PAUSED"}


def test_a_pause_holds_over_a_kill_until_somebody_resumes(coordinator: Federation) -> None:
    """No order, nothing booked, the reason wherever somebody looks; then the job completes."""
    folder = str(coordinator.installation.folder)
    for name in SMALL:
        coordinator.add_node(name)
        coordinator.start(name)
    coordinator.wait_for_nodes(*SMALL)
    code, _, err = run_cli("coordinator", "pause", "--reason", "a leak", "--dir", folder)
    assert (code, "--all" in err) == (2, True)
    made = cli_json("coordinator", "pause", "--all", "--reason", "a leak", "--dir", folder)
    assert (made["by"], made["reason"]) == ("operator", "a leak")
    with coordinator.client() as client:
        job = client.submit(job_file(federation={"rounds": 2}))
        assert client.pause() is not None
    assert [text for text in job.warnings if "PAUSED" in text and "operator: a leak" in text]
    coordinator.kill("coordinator")
    coordinator.start("coordinator")
    coordinator.wait_for_nodes(*SMALL)
    wait_for("the gauge shows it", lambda: gauge(coordinator, "feddp_paused") == 1)
    wait_for(
        "the job waits for all three, paused",
        lambda: paused_for(coordinator.job(job.job_id)) == set(SMALL),
    )
    with urllib.request.urlopen(f"{coordinator.health}/ready", timeout=5) as answer:  # noqa: S310
        assert answer.status == 200
    assert coordinator.entries() == []
    assert cli_json("coordinator", "resume", "--dir", folder) == {"paused": False, "changed": True}
    assert coordinator.wait_for_end(job.job_id).status == "completed"
    assert len(coordinator.entries("post")) == 6
    wait_for("the gauge shows it", lambda: gauge(coordinator, "feddp_paused") == 0)


def test_a_backup_beside_a_running_job_is_sound_and_its_time_is_shown(
    coordinator: Federation, tmp_path: Path
) -> None:
    """Rounds go on while it is written, sealed and with keys; the running coordinator's gauge
    learns of what another process has made."""
    folder = str(coordinator.installation.folder)
    for name in SMALL:
        coordinator.add_node(name)
        coordinator.start(name)
    coordinator.wait_for_nodes(*SMALL)
    assert gauge(coordinator, "feddp_backup_last_success_timestamp_seconds") == 0
    job_id = coordinator.submit(null_job(40, parameters=20_000))
    wait_for("rounds are done", lambda: coordinator.job(job_id).rounds_done >= 3)
    password = tmp_path / "password"
    password.write_text("a password of these tests\n")
    sealed = ("--keys", "--password-file", str(password))
    out = str(tmp_path / "b")
    made = cli_json("coordinator", "backup", "--dir", folder, "--out", out, *sealed)
    assert (made["missing"], made["keys"], made["recorded"]) == ([], True, True)
    found = cli_json("coordinator", "backup", "--verify", out, "--password-file", str(password))
    assert (found["ok"], found["accounts"]) == (True, 3)
    assert found["entries"] >= 18
    assert coordinator.wait_for_end(job_id).status == "completed"
    wait_for(
        "the gauge shows it",
        lambda: (
            gauge(coordinator, "feddp_backup_last_success_timestamp_seconds") == made["made_at"]
        ),
    )
    data = bytearray((tmp_path / "b").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "broken").write_bytes(data)
    code, _, _ = run_cli(
        *("coordinator", "backup", "--verify", str(tmp_path / "broken")),
        *("--password-file", str(password)),
    )
    assert code in (1, 2)  # by where in the first chunk, or behind it, the middle lies
