"""What the restore's Job runs, run here: on a coordinator's volume, and for several.

Only paths, addresses and ports differ from those in pods; PostgreSQL and the store are real ones.
"""

import dataclasses
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.postgresql import PostgreSql
from benchmarks.s3_server import S3Server
from coordinator.keyring import ledger_key
from coordinator.restoring.revocations import RevocationsFile
from coordinator.store import epochs, pauses, people, standings
from coordinator.store.database import Database
from feddp.client import Client
from feddp.demo.ports import choose_ports
from feddp.profile import Profile
from tests.charts.pods import NAME, Pod, ready
from tests.charts.rendering import (
    BACKUP,
    COORDINATOR,
    ISTIO,
    REPLICAS,
    RESTORE,
    Object,
    Values,
    merged,
    named,
    objects,
)
from tests.charts.test_replicas_installed import Replicas
from tests.integration.federation import wait_for

FOLDER = "/var/lib/feddp-backups/hospitals-fed-feddp"
FILE = RESTORE["coordinator"]["restore"]["file"]
PASSWORD = b"a password of these tests\n"
ON_VOLUME = {"coordinator": {"restore": {"revocationsConfigMap": ""}}}
WITHOUT = {"coordinator": {"restore": {"revocationsConfigMap": "", "withoutRevocations": True}}}


def job_of(found: list[Object]) -> Object:
    """The restore's."""
    return named(found, "Job")


class Volume:
    """One coordinator's volume, and pods that have it in turn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("PORT", "ENROLLMENT_PORT", "HEALTH_PORT")
        self.ports = dict(zip(names, choose_ports(None), strict=True))
        self.environment = {f"FEDDP_SERVER__{name}": str(at) for name, at in self.ports.items()}
        self.environment["FEDDP_SERVER__HOST"] = "127.0.0.1"
        self._running: list[subprocess.Popen[str]] = []

    @property
    def data(self) -> Path:
        """The volume."""
        return self.folder / "var/lib/feddp"

    def serve(self) -> subprocess.Popen[str]:
        """The coordinator's pod, until it is ready."""
        pod = Pod(self.folder, NAME, self.environment, objects(merged(COORDINATOR, ISTIO)))
        code, said = pod.run("install")
        assert code == 0, said
        pod.mount_configuration()
        code, said = pod.run("check")
        assert code == 0, said
        process = pod.start("coordinator")
        self._running.append(process)
        wait_for("/ready says yes", lambda: ready(self.ports["HEALTH_PORT"]), 60)
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        """As the kubelet does when the StatefulSet is scaled to 0."""
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)
        assert process.returncode == 0

    def client(self) -> Client:
        """The operator's, on this machine."""
        profile = Profile.load(self.data / "installation/operator")
        return Client(dataclasses.replace(profile, address=f"127.0.0.1:{self.ports['PORT']}"))

    def back_up(self) -> None:
        """What the CronJob makes, under the name that is to be restored."""
        pod = Pod(
            self.folder,
            "fed-feddp-backup",
            self.environment,
            objects(merged(COORDINATOR, ISTIO, BACKUP)),
        )
        Path(pod.here("/etc/feddp/backup/password")).write_bytes(PASSWORD)
        code, said = pod.run("backup")
        assert code == 0, said
        (made,) = Path(pod.here(FOLDER)).glob("*.backup")
        made.rename(made.with_name(FILE))

    def restore(self, over: Values) -> tuple[int, str]:
        """The Job's containers as the kubelet runs them, up to the first that fails."""
        found = objects(merged(COORDINATOR, ISTIO, RESTORE, over))
        pod = Pod(self.folder, job_of(found)["metadata"]["name"], self.environment, found)
        text = named(found, "ConfigMap", NAME)["data"]["coordinator.yaml"]
        Path(pod.here("/etc/feddp/config/coordinator.yaml")).write_text(pod.here(text))
        said = ""
        for one in [*pod.spec.get("initContainers", []), *pod.spec["containers"]]:
            code, told = pod.run(one["name"])
            said += told
            if code != 0:
                return code, said
        return 0, said

    def kept(self) -> Path:
        """What was there before."""
        (found,) = self.data.glob("before-restore-*")
        return found

    def stop(self) -> None:
        """End what still runs."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=30)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """Of a coordinator that knows a node, and whose backup was made; it serves no more."""
    made = Volume(tmp_path)
    try:
        process = made.serve()
        with made.client() as client:
            client.create_token("alpha", "edge", 3600)
        made.back_up()
        with made.client() as client:
            client.disable("alpha")
        made.end(process)
        yield made
    finally:
        made.stop()


def test_the_job_restores_beside_what_was_there_and_the_pod_serves_it(volume: Volume) -> None:
    """The broken installation is kept whole, its file of who was shut out is found, and a Job that
    is run again does nothing."""
    (volume.data / "installation/coordinator.db").write_bytes(b"broken")
    code, said = volume.restore(ON_VOLUME)
    assert code == 0, said
    assert (volume.kept() / "installation/coordinator.db").read_bytes() == b"broken"
    code, said = volume.restore(ON_VOLUME)
    assert (code, "it was restored already" in said) == (0, True)
    volume.serve()
    database = Database(f"sqlite:///{volume.data / 'installation/coordinator.db'}")
    try:
        assert [one.node for one in database.read_now(standings.shut_out)] == ["alpha"]
        assert database.read_now(pauses.current) is not None
        epoch = database.read_now(epochs.newest)
    finally:
        database.close()
    assert epoch is not None
    assert epoch.number == 2
    with volume.client() as client:
        assert [one.name for one in client.nodes()] == ["alpha"]


def test_a_try_that_failed_keeps_the_file_of_who_was_shut_out_for_the_next(volume: Volume) -> None:
    """The next upgrade, with the right password, finds it in what the first one moved aside."""
    password = volume.folder / "etc/feddp/backup/password"
    password.write_bytes(b"not the password of this backup")
    code, said = volume.restore(ON_VOLUME)
    assert code != 0
    assert "password" in said
    volume.kept().rename(volume.data / "before-restore-0")  # of the revision before
    password.write_bytes(PASSWORD)
    code, said = volume.restore(ON_VOLUME)
    assert code == 0, said
    database = Database(f"sqlite:///{volume.data / 'installation/coordinator.db'}")
    try:
        assert [one.node for one in database.read_now(standings.shut_out)] == ["alpha"]
    finally:
        database.close()


def test_a_new_volume_needs_the_file_from_elsewhere_or_a_word_that_there_is_none(
    volume: Volume,
) -> None:
    """The one of the installation that the first start has made there is another's."""
    (volume.data / "installation").rename(volume.folder / "lost")
    volume.end(volume.serve())
    code, said = volume.restore(ON_VOLUME)
    assert code != 0
    assert "another ledger key" in said
    kept = sorted(one.name for one in volume.kept().iterdir())
    assert kept == ["installation"]
    code, said = volume.restore(WITHOUT)
    assert code == 0, said
    volume.serve()


def test_the_job_of_several_fills_postgresql_and_the_bucket(
    tmp_path: Path, postgresql_server: PostgreSql, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys from their Secret, files of who was shut out from a ConfigMap; a coordinator starts from
    what it made, and mounts nothing of the Job's."""
    url, fresh = postgresql_server.new_database(), postgresql_server.new_database()
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    replicas = Replicas(tmp_path, url, s3, merged(BACKUP, RESTORE))
    database = Database(url)
    database.write_now(
        lambda c: people.invite(
            c, "alpha", "edge", "s", spiffe_id="alpha", now_s=0.0, expires_at_s=1.0
        )
    )
    backup = replicas.pod("backup", "fed-feddp-backup")
    Path(backup.here("/etc/feddp/backup/password")).write_bytes(PASSWORD)
    job = job_of(replicas.found)["metadata"]["name"]
    replicas.use_database(fresh)
    restore, first = replicas.pod("restore", job), replicas.pod("first")
    replicas.mount_secret([backup, restore, first], replicas.made / "pki")
    assert backup.run("install")[0] == 0
    backup.mount_configuration()
    code, said = backup.run("backup")
    assert code == 0, said
    (made,) = Path(backup.here(FOLDER)).glob("*.backup")
    target = Path(restore.here(FOLDER))
    target.mkdir(parents=True)
    made.rename(target / FILE)
    database.write_now(lambda c: people.set_status(c, "alpha", "disabled"))
    shut_out = database.read_now(standings.shut_out)
    database.close()
    file = Path(restore.here("/etc/feddp/revocations/replica-0"))
    RevocationsFile(file, ledger_key(replicas.made / "pki")).keep([], shut_out, 1e10)

    Path(restore.here("/etc/feddp/backup/password")).write_bytes(PASSWORD)
    text = named(replicas.found, "ConfigMap", NAME)["data"]["coordinator.yaml"]
    Path(restore.here("/etc/feddp/config/coordinator.yaml")).write_text(restore.here(text))
    assert [one["name"] for one in restore.spec["initContainers"]] == ["install"]
    assert restore.run("install")[0] == 0
    code, said = restore.run("restore")
    assert code == 0, said
    try:
        replicas.serve(first)
    finally:
        replicas.stop()
    database = Database(fresh)
    try:
        assert [one.node for one in database.read_now(standings.shut_out)] == ["alpha"]
        assert database.read_now(epochs.newest) is not None
    finally:
        database.close()


@pytest.mark.parametrize("over", [{}, REPLICAS], ids=["one", "several"])
def test_nobody_serves_or_backs_up_while_it_is_restored(over: Values) -> None:
    """No pod of the StatefulSet, no backup; on a volume the Job waits for the pod's end; and its
    network is that of a backup."""
    found = objects(merged(COORDINATOR, ISTIO, over, BACKUP, RESTORE))
    stateful = named(found, "StatefulSet")
    assert stateful["spec"]["replicas"] == 0
    assert named(found, "CronJob")["spec"]["suspend"] is True
    template = job_of(found)["spec"]["template"]
    claims = {
        one["name"]: one["persistentVolumeClaim"]["claimName"]
        for one in template["spec"]["volumes"]
        if "persistentVolumeClaim" in one
    }
    assert claims.pop("backups") == "feddp-backups"
    affinity = template["spec"].get("affinity", {}).get("podAntiAffinity", {})
    if over:
        assert not claims
        (policy,) = [
            one
            for one in found
            if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "fed-feddp-backup"
        ]
        chosen = policy["spec"]["podSelector"]["matchLabels"]
        assert chosen.items() <= template["metadata"]["labels"].items()
    else:
        assert claims == {"data": f"data-{NAME}-0"}
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert term["labelSelector"]["matchLabels"] == stateful["spec"]["selector"]["matchLabels"]
    without = objects(merged(COORDINATOR, ISTIO, over, BACKUP))
    assert named(without, "StatefulSet")["spec"]["replicas"] == (3 if over else 1)
    assert "suspend" not in named(without, "CronJob")["spec"]
    assert not [one for one in without if one["kind"] == "Job"]
    stopped = {"coordinator": {"stopped": True}}
    halted = objects(merged(COORDINATOR, ISTIO, over, BACKUP, stopped))
    assert named(halted, "StatefulSet")["spec"]["replicas"] == 0
    assert named(halted, "CronJob")["spec"]["suspend"] is True
    assert not [one for one in halted if one["kind"] == "Job"]
