"""The tested configurations of deploy/envoy and the rendered Istio resources, taken apart."""

from typing import Any

import yaml

from tests.charts.rendering import NAMESPACE, ROOT, Object, named

NODES, JOINING = "feddp.example", "join.feddp.example"
COORDINATOR, ENROLMENT = "fed-feddp-coordinator", "fed-feddp-enrolment"
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
    for one in (each for each in found if each["kind"] == "TLSRoute"):
        (rule,), namespace = one["spec"]["rules"], one["metadata"]["namespace"]
        (to,) = rule["backendRefs"]
        assert to["kind"] == "Service"
        for host in one["spec"]["hostnames"]:
            routes[host] = (f"{to['name']}.{namespace}.svc.cluster.local", to["port"])
    if routes:
        return routes
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
