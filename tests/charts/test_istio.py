"""The Istio resources say what the configurations of deploy/envoy say, which a test drives.

Istio itself does not run here. What it makes of these resources was read in its source (1.31): a
Gateway's server is a filter chain by SNI, a VirtualService its route, a DestinationRule the cluster
and the idle time-out of the TCP proxy, and an EnvoyFilter is merged over them.
"""

import pytest
import yaml

from coordinator.observing import metrics
from tests.charts import rendering
from tests.charts.gateways import (
    COORDINATOR,
    DOMAIN,
    ENROLMENT,
    JOINING,
    NODES,
    chains,
    cluster,
    filter_of,
    patches,
    rule_for,
    servers,
    tls_routes,
)
from tests.charts.rendering import (
    CHART,
    GATEWAY_API,
    ISTIO,
    ROOT,
    TERMINATE,
    Values,
    merged,
    named,
    objects,
    of,
)

SOURCES: Values = {"istio": {"allowedSources": ["192.0.2.0/24"]}}


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


def test_the_gateway_api_routes_as_istios_own_resources_do() -> None:
    """By the same names to the same ports, unopened, with the same time-outs, on the port and the
    Gateway that the values name; and nothing of Istio's own gateway is left beside it."""
    found, istio = of("gateway-api"), of("ten-lines")
    assert tls_routes(found) == tls_routes(istio)
    for service in (COORDINATOR, ENROLMENT):
        assert rule_for(found, service) == rule_for(istio, service)
    for route in (one for one in found if one["kind"] == "TLSRoute"):
        assert route["spec"]["parentRefs"] == [
            {
                "group": "gateway.networking.k8s.io",
                "kind": "Gateway",
                "name": "hospitals",
                "namespace": "istio-ingress",
                "port": 443,
            }
        ]
    kinds = {one["kind"] for one in found}
    assert kinds.isdisjoint({"Gateway", "VirtualService", "EnvoyFilter"})
    assert {one["kind"] for one in istio} - kinds == {"Gateway", "VirtualService"}


def test_the_gateway_api_lets_in_that_gateway_alone() -> None:
    """By the label that Istio gives a Gateway's pods; and the hospitals' networks, by its name."""
    found = of("gateway-api")
    (rule, _) = named(found, "NetworkPolicy", COORDINATOR)["spec"]["ingress"]
    assert {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "istio-ingress"}},
        "podSelector": {"matchLabels": {"gateway.networking.k8s.io/gateway-name": "hospitals"}},
    } in rule["from"]
    policy = named(found, "AuthorizationPolicy")
    gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "hospitals"}
    assert policy["metadata"]["namespace"] == "istio-ingress"
    assert policy["spec"]["targetRefs"] == [gateway]
    assert "selector" not in policy["spec"]
    terminating = named(of("terminate"), "AuthorizationPolicy")["spec"]["rules"][0]["when"]
    assert policy["spec"]["rules"][0]["when"] == terminating


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


@pytest.mark.parametrize(
    "values", [TERMINATE, merged(ISTIO, SOURCES), merged(GATEWAY_API, SOURCES)]
)
def test_releases_of_one_name_in_two_namespaces_share_a_gateway(values: Values) -> None:
    """What stands in the gateway's namespace is named after theirs, which has no dot: Helm takes no
    object that is another release's."""
    staging, production = (
        {
            (one["kind"], one["metadata"]["namespace"], one["metadata"]["name"])
            for one in objects(merged(rendering.COORDINATOR, values), namespace=namespace)
        }
        for namespace in ("staging", "production")
    )
    assert [one for one in staging if one[1] != "staging"]
    assert staging & production == set()


def test_every_call_of_the_coordinator_is_let_through() -> None:
    """All services are of the package that the gateway lets through, joining included."""
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


@pytest.mark.parametrize("case", ["everything", "passthrough", "restore"])
def test_no_pod_is_drawn_into_ambient_mode(case: str) -> None:
    """Its tunnel comes to port 15008, which no network policy here opens."""
    labels = [
        spec["template"]["metadata"]["labels"]
        for one in of(case)
        for spec in (
            one.get("spec", {}),
            one.get("spec", {}).get("jobTemplate", {}).get("spec", {}),
        )
        if "template" in spec and one["kind"] in ("StatefulSet", "CronJob", "Job")
    ]
    labels += [one["metadata"]["labels"] for one in of(case) if one["kind"] == "Pod"]
    assert len(labels) > 1
    assert {one["istio.io/dataplane-mode"] for one in labels} == {"none"}


def test_what_a_sidecar_needs_under_restricted_pod_security_is_said() -> None:
    """Where it is turned on, and where Istio is described."""
    values = (CHART / "values.yaml").read_text()
    above = values.partition("  sidecar: false\n")[0].splitlines()[-1]
    for said in (above, (ROOT / "docs/helm.md").read_text().partition("## Istio\n")[2]):
        assert "restricted" in said
        assert "CNI plugin" in said
        assert "NET_ADMIN" in said
