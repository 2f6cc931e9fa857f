"""What deploy/compose.yaml starts, as processes of this machine, with an Envoy in front."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.postgresql import postgresql
from benchmarks.s3_server import s3_server
from feddp.demo.ports import free_ports
from tests.deploy.test_compose import ROOT, compose
from tests.integration.federation import NODES, job_file, run_cli, wait_for
from tests.integration.gateway import GatewayFederation
from tests.observing.prometheus import program

NAMES = NODES[:3]


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Prometheus with deploy/compose's configuration, asking `target`; its address."""
    config = (ROOT / "deploy/compose/prometheus.yaml").read_text()
    assert config.count("coordinator:8080") == 1
    faster = config.replace("coordinator:8080", target).replace("15s", "1s")
    (folder / "prometheus.yaml").write_text(faster)
    (port,) = free_ports(1)
    with (folder / "prometheus.log").open("wb") as log:
        started = subprocess.Popen(
            [
                *(program("prometheus"), f"--config.file={folder / 'prometheus.yaml'}"),
                *(f"--storage.tsdb.path={folder / 'prometheus'}",),
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        started.terminate()
        started.wait(20)


def samples(address: str, expression: str) -> list[float]:
    """What an expression gives now; nothing while Prometheus does not answer."""
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{address}/api/v1/query?{query}", timeout=5) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
    except OSError:
        return []
    return [float(one["value"][1]) for one in found["data"]["result"]]


@pytest.mark.timeout(300)
def test_the_whole_of_compose_runs_a_job_and_is_scraped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL, SeaweedFS, Envoy, a coordinator with Compose's own settings, three agents and
    Prometheus: the job completes, its model is in the store, its rounds are in Prometheus."""
    with postgresql() as database, s3_server() as store:
        settings = dict(compose()["services"]["coordinator"]["environment"])
        settings |= {
            "FEDDP_STORAGE__DATABASE_URL": database.new_database(),
            "FEDDP_STORAGE__BLOB_ENDPOINT": store.endpoint,
            **store.credentials,
        }
        del settings["FEDDP_DIR"], settings["FEDDP_SERVER__HEALTH_HOST"]
        for key, value in settings.items():
            monkeypatch.setenv(key, str(value))
        url = settings["FEDDP_STORAGE__DATABASE_URL"]
        federation = GatewayFederation(tmp_path, "passthrough", database_url=url)
        try:
            config = str(federation.installation.config)
            code, out, error = run_cli("coordinator", "check", "--config", config)
            assert code == 0, out + error
            federation.open()
            for name in NAMES:
                federation.add_node(name)
                federation.start(name)
            federation.wait_for_nodes(*NAMES)
            target = federation.health.removeprefix("http://")
            with prometheus(tmp_path, target) as watching:
                job = federation.wait_for_end(federation.submit(job_file()))
                assert job.status == "completed", job.message
                wait_for(
                    "Prometheus has every node, healthy",
                    lambda: samples(watching, "federated_node_health") == [1.0] * len(NAMES),
                    30,
                )
                assert samples(watching, "up") == [1.0]
            code, out, error = run_cli(
                "budget", "verify", "--dir", str(federation.installation.folder)
            )
            assert code == 0, out + error
            assert job.model_digest in " ".join(store.names("s3://feddp"))
        finally:
            federation.close()
