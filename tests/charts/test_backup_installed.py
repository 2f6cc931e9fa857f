"""What the backup's CronJob runs, run here: beside a coordinator that serves, and of several.

Only paths, addresses and ports differ from those in pods; PostgreSQL and the store are real ones.
"""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.postgresql import PostgreSql
from benchmarks.s3_server import S3Server
from coordinator.backups.check import check
from coordinator.replicas.shared_blobs import SharedBlobs
from coordinator.store import jobs
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord, ModelRecord
from feddp.demo.ports import choose_ports
from protos.content import digest_of
from tests.charts.pods import NAME, Pod, ready
from tests.charts.rendering import BACKUP, COORDINATOR, ISTIO, REPLICAS, merged, objects
from tests.charts.test_replicas_installed import Replicas
from tests.coordinator.planning import HASH, SPEC
from tests.integration.federation import wait_for

BACKUPS = "/var/lib/feddp-backups/hospitals-fed-feddp"
PASSWORD = b"a password of these tests"
TWO = {"coordinator": {"backup": {"keep": 2}}}
MODEL = b"a model of a few bytes"


def backups_of(pod: Pod) -> list[Path]:
    """What lies in the installation's own folder on the claim."""
    return sorted(Path(pod.here(BACKUPS)).glob("*.backup"))


def run(pod: Pod) -> str:
    """The job's containers as the kubelet runs them; what the last one printed."""
    for name in [one["name"] for one in pod.spec.get("initContainers", [])]:
        code, said = pod.run(name)
        assert code == 0, said
    code, said = pod.run("backup")
    assert code == 0, said
    return said


def told_s(pod: Pod) -> float:
    """When the newest backup was made, by the coordinator's /metrics."""
    url = f"http://127.0.0.1:{pod.port('HEALTH_PORT')}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [one for one in lines if one.startswith("feddp_backup_last_success")]
    return float(line.split()[1])


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Pod]:
    """The backup's pod on the machine, and the volume, of a coordinator that serves."""
    found = objects(merged(COORDINATOR, ISTIO, BACKUP, TWO))
    ports = dict(zip(("PORT", "ENROLLMENT_PORT", "HEALTH_PORT"), choose_ports(None), strict=True))
    environment = {f"FEDDP_SERVER__{name}": str(port) for name, port in ports.items()}
    pod = Pod(tmp_path, NAME, environment | {"FEDDP_SERVER__HOST": "127.0.0.1"}, found)
    assert pod.run("install")[0] == 0
    pod.mount_configuration()
    process = pod.start("coordinator")
    try:
        wait_for("/ready says yes", lambda: ready(ports["HEALTH_PORT"]), 60)
        yield Pod(tmp_path, "fed-feddp-backup", environment, found)
        assert process.poll() is None
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def test_the_job_keeps_the_newest_beside_a_coordinator_that_serves(beside: Pod) -> None:
    """Sealed, with keys, each sound; the oldest goes; another installation's on the same claim
    stays; and the coordinator's own figure says when the last one was made."""
    password = Path(beside.here("/etc/feddp/backup/password"))
    password.write_bytes(PASSWORD + b"\n")
    other = Path(beside.here("/var/lib/feddp-backups/other-fed-feddp"))
    other.mkdir(parents=True)
    (other / "feddp-20200101T000000Z.backup").write_bytes(b"another's")
    first = run(beside)
    assert "sealed, with keys" in first
    assert "read back and sound" in first
    (oldest,) = backups_of(beside)
    # Names are of a second; what was made before is of one before this.
    oldest = oldest.replace(oldest.with_name("feddp-20260101T000000Z.backup"))
    second = oldest.with_name("feddp-20260102T000000Z.backup")
    second.write_bytes(oldest.read_bytes())
    said = run(beside)
    assert f"removed {oldest.name}" in said
    assert len(backups_of(beside)) == 2
    newest = backups_of(beside)[-1]
    checked = check(newest, PASSWORD)
    assert (checked.problems, checked.format["keys"], checked.sealed) == ([], True, True)
    assert PASSWORD not in said.encode()
    assert (other / "feddp-20200101T000000Z.backup").read_bytes() == b"another's"
    wait_for("its figure says so", lambda: told_s(beside) == checked.format["made_at"], 60)


def test_the_job_fails_without_its_password_and_removes_nothing(beside: Pod) -> None:
    """A Secret that is not there never means a backup without a seal."""
    Path(beside.here(BACKUPS)).mkdir(parents=True)
    for day in (1, 2, 3):
        Path(beside.here(f"{BACKUPS}/feddp-2026010{day}T000000Z.backup")).write_bytes(b"one")
    code, said = beside.run("backup")
    assert (code, "a backup with keys is always sealed" in said) == (2, True), said
    assert len(backups_of(beside)) == 3


def test_the_job_of_several_coordinators_needs_none_of_their_volumes(
    tmp_path: Path, postgresql_server: PostgreSql, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys from their Secret, tables from PostgreSQL, and the model that lies in the bucket
    alone."""
    url = postgresql_server.new_database()
    replicas = Replicas(tmp_path, url, s3, merged(BACKUP, TWO))
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    digest = digest_of(MODEL)
    (tmp_path / "model").write_bytes(MODEL)
    shared = SharedBlobs(replicas.bucket, s3.endpoint)
    shared.put(digest, tmp_path / "model")
    shared.close()
    database = Database(url)
    record = JobRecord(
        *("j", "default", "heart", "operator", "r", SPEC, b"{}", HASH, "completed", 1.0)
    )
    database.write_now(lambda c: jobs.add(c, record))
    model = ModelRecord("j", "round", 1, digest, len(MODEL), 1.0, "default")
    database.write_now(lambda c: jobs.add_model(c, model))
    database.close()
    pod = replicas.pod("backup", "fed-feddp-backup")
    Path(pod.here("/etc/feddp/backup/password")).write_bytes(PASSWORD)
    replicas.mount_secret([pod], replicas.made / "pki")
    assert pod.run("install")[0] == 0
    pod.mount_configuration()
    said = run(pod)
    assert "missing" not in said
    (made,) = backups_of(pod)
    checked = check(made, PASSWORD)
    assert (checked.problems, checked.missing, checked.format["keys"]) == ([], (), True)
    assert checked.format["database"] == "postgresql"
    assert not (Path(pod.here("/var/lib/feddp/installation")) / "blobs" / digest).exists()


def test_the_job_of_several_may_run_on_any_machine() -> None:
    """It mounts no volume of theirs, so nothing holds it to one."""
    found = objects(merged(COORDINATOR, ISTIO, REPLICAS, BACKUP))
    (job,) = [one for one in found if one["kind"] == "CronJob"]
    spec = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    claims = [one for one in spec["volumes"] if "persistentVolumeClaim" in one]
    assert [one["persistentVolumeClaim"]["claimName"] for one in claims] == ["feddp-backups"]
    assert "affinity" not in spec
