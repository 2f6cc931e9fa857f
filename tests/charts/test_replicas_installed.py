"""Several coordinators as the chart starts them, from the Secret that the document's command makes.

Only paths, addresses and ports differ from those in pods; PostgreSQL and the store are real ones.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509

from benchmarks.postgresql import PostgreSql
from benchmarks.s3_server import S3Server
from certs.authority import Authority
from coordinator import server_certificate
from coordinator.installation import init
from feddp.client import Client
from feddp.demo.ports import choose_ports
from feddp.profile import Profile
from tests.charts.pods import NAME, Pod, leads, ready
from tests.charts.rendering import COORDINATOR, ISTIO, REPLICAS, ROOT, Values, merged, objects
from tests.integration.federation import wait_for

DOCUMENT = (ROOT / "docs/helm.md").read_text()

KUBECTL = """
import os, pathlib, sys

words = sys.argv[1:]
if words[:3] == ["create", "secret", "generic"]:
    for word in words[4:]:
        option, _, value = word.partition("=")
        if option != "--from-file":
            continue
        key, _, name = value.rpartition("=")
        path = pathlib.Path(name)
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                target = pathlib.Path(os.environ["MOUNTED"]) / (key or file.name)
                target.write_bytes(file.read_bytes())
"""
"""What `kubectl create secret generic` does with --from-file, as far as a pod sees it: a folder's
files, and of the folders in it nothing."""


class Replicas:
    """Pods of several coordinators, with the Secret that the operator made of an installation."""

    def __init__(self, folder: Path, url: str, s3: S3Server, over: Values | None = None) -> None:
        self.bucket = s3.new_bucket()
        own = {
            "objectStore": {"url": self.bucket, "endpoint": s3.endpoint},
            "trustDomain": "hospitals.example",
        }
        values = merged(COORDINATOR, ISTIO, REPLICAS, {"coordinator": own}, over or {})
        self.found = objects(values)
        self.made = folder / "made"
        init(
            self.made,
            "hospitals.example",
            host="feddp.example",
            enrollment_host="join.feddp.example",
            port=443,
            database_url=url,
            keep_url=False,
        )
        self._folder = folder
        self._secrets = {"FEDDP_STORAGE__DATABASE_URL": url, **s3.credentials}
        self._running: list[subprocess.Popen[str]] = []

    def pod(self, name: str, of: str = NAME) -> Pod:
        """One of them, or another pod of the release; the address by which the others reach it, and
        its ports, are its own."""
        names = ("PORT", "ENROLLMENT_PORT", "HEALTH_PORT")
        ports = dict(zip(names, choose_ports(None), strict=True))
        environment = {
            **self._secrets,
            **{f"FEDDP_SERVER__{key}": str(port) for key, port in ports.items()},
            "FEDDP_SERVER__HOST": "127.0.0.1",
            "FEDDP_SERVER__REPLICA_HOST": "127.0.0.1",
        }
        return Pod(self._folder / name, of, environment, self.found)

    def use_database(self, url: str) -> None:
        """Pods from now on find another URL in their Secret."""
        self._secrets["FEDDP_STORAGE__DATABASE_URL"] = url

    def mount_secret(self, pods: Sequence[Pod], pki: Path) -> None:
        """What the document's command makes of a pki folder, where the pods mount it."""
        (shown,) = re.findall(r"^```sh\n(set -- .*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
        kubectl = self._folder / "bin/kubectl"
        kubectl.parent.mkdir(exist_ok=True)
        kubectl.write_text(f"#!{sys.executable}\n{KUBECTL}")
        kubectl.chmod(0o755)
        for pod in pods:
            mounted = Path(pod.here("/etc/feddp/installation"))
            shutil.rmtree(mounted)
            mounted.mkdir()
            subprocess.run(
                ["/bin/sh", "-ec", shown],
                cwd=pki.parent,
                env={"PATH": f"{kubectl.parent}:{os.environ['PATH']}", "MOUNTED": str(mounted)},
                check=True,
                timeout=60,
            )

    def serve(self, pod: Pod) -> subprocess.Popen[str]:
        """Run a pod's containers as the kubelet does, until it is ready."""
        code, said = pod.run("install")
        assert code == 0, said
        pod.mount_configuration()
        code, said = pod.run("check")
        assert code == 0, said
        process = pod.start("coordinator")
        self._running.append(process)
        wait_for("/ready says yes", lambda: ready(pod.port("HEALTH_PORT")), 60)
        return process

    def stop(self) -> None:
        """End what still runs."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=30)


@pytest.fixture
def replicas(tmp_path: Path, postgresql_server: PostgreSql, s3: S3Server) -> Iterator[Replicas]:
    """Of a new installation."""
    made = Replicas(tmp_path, postgresql_server.new_database(), s3)
    try:
        yield made
    finally:
        made.stop()


def test_several_coordinators_start_from_one_secret(replicas: Replicas) -> None:
    """Each has the authority and the ledger key of the installation and a certificate of its own;
    the operator's profile from where it was made reaches the one that does not lead, too."""
    pods = [replicas.pod(name) for name in ("0", "1")]
    replicas.mount_secret(pods, replicas.made / "pki")
    for pod in pods:
        replicas.serve(pod)
    folders = [Path(pod.here("/var/lib/feddp/installation/pki")) for pod in pods]
    for name in ("root.crt", "issuing.key", "ledger.key"):
        assert len({(one / name).read_bytes() for one in (*folders, replicas.made / "pki")}) == 1
    assert len({(one / "server.key").read_bytes() for one in folders}) == 2
    for one in folders:
        shown = x509.load_pem_x509_certificates((one / "server.crt").read_bytes())[0]
        names, _ = server_certificate.hosts_of(shown)
        assert {"feddp.example", "join.feddp.example"} <= set(names)
    assert [leads(pod) for pod in pods] == [True, False]
    where = replicas.made / "operator"
    for pod in pods:
        (where / "profile.yaml").write_text(
            f"address: 127.0.0.1:{pod.port('PORT')}\nname: operator\n"
        )
        with Client(Profile.load(where)) as client:
            assert client.nodes() == []


def test_a_replica_does_not_start_on_what_is_not_its_installation(
    replicas: Replicas, tmp_path: Path
) -> None:
    """An incomplete Secret, or another installation's, is said by the container install."""
    pod = replicas.pod("0")
    code, said = pod.run("install")
    assert code != 0
    assert "lacks ledger.key, root.crt, issuing.crt, issuing.key" in said
    replicas.mount_secret([pod], replicas.made / "pki")
    assert pod.run("install")[0] == 0
    assert pod.run("install")[1].endswith("the server's certificate: kept\n")
    init(tmp_path / "other", "hospitals.example")
    replicas.mount_secret([pod], tmp_path / "other/pki")
    code, said = pod.run("install")
    assert code != 0
    assert "another installation" in said


def test_a_rollover_of_the_authority_reaches_every_replica_by_the_documents_steps(
    replicas: Replicas, tmp_path: Path
) -> None:
    """Run in one pod, the Secret made anew of its pki, and each pod started again: they end with
    the new authority alone, and `check` finds no error on the way."""
    pods = [replicas.pod(name) for name in ("0", "1")]
    replicas.mount_secret(pods, replicas.made / "pki")
    for pod in pods:
        assert pod.run("install")[0] == 0
        pod.mount_configuration()
    pki, other = (Path(pod.here("/var/lib/feddp/installation/pki")) for pod in pods)
    former = (pki / "root.crt").read_bytes()
    # The operator, who alone has a certificate here, did not renew it: by force.
    for step in (("begin",), ("switch", "--force"), ("finish", "--force")):
        code, said = pods[0].feddp("coordinator", "ca-rollover", *step)
        assert code == 0, said
        assert "is behind in that" in pods[0].run("install")[1], "the Secret is still the old one"
        replicas.mount_secret(pods, pki)
        for pod in pods:
            code, said = pod.run("install")
            assert (code, "is behind in that" in said) == (0, False), said
            code, said = pod.run("check")
            assert code == 0, said
        assert Authority.load(other).trust_bundle == Authority.load(pki).trust_bundle
        assert Authority.load(other).issuer == Authority.load(pki).issuer
    assert former not in Authority.load(other).trust_bundle
    assert not (other / "issuing.key").exists()
