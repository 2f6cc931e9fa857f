"""The name under which every pod serves models and updates, and how many pods there are."""

import pytest

from tests.charts import rendering
from tests.charts.gateways import COORDINATOR, DOMAIN, rule_for, servers, tls_routes
from tests.charts.rendering import (
    BACKUP,
    ISTIO,
    REPLICAS,
    RESTORE,
    TRANSFER,
    merged,
    named,
    objects,
    of,
)

HOST, SERVICE = "transfer.feddp.example", "fed-feddp-transfer"


@pytest.mark.parametrize("case", ["transfer", "transfer-terminate", "transfer-gateway-api"])
def test_the_gateway_passes_its_name_on_unopened_in_either_mode(case: str) -> None:
    """To a Service and a port of its own: a connection stays with one pod, where a gateway that
    ends TLS would send each call of an upload to another."""
    found = of(case)
    assert tls_routes(found)[HOST] == (f"{SERVICE}.{DOMAIN}", 8445)
    if case != "transfer-gateway-api":
        assert servers(found)[HOST]["tls"] == {"mode": "PASSTHROUGH"}
    assert rule_for(found, SERVICE)["tls"] == {"mode": "DISABLE"}
    (port,) = named(found, "Service", SERVICE)["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (8445, "transfer")


@pytest.mark.parametrize("case", ["transfer", "transfer-without-istio"])
def test_the_port_is_open_where_the_name_leads_and_nowhere_without_it(case: str) -> None:
    """In the pod and in the network policy; without a gateway in the coordinator's own Service."""
    for name, expected in ((case, True), ("replicas", False)):
        found = of(name)
        (container,) = named(found, "StatefulSet")["spec"]["template"]["spec"]["containers"]
        assert ("transfer" in {one["name"] for one in container["ports"]}) == expected
        policy = named(found, "NetworkPolicy", COORDINATOR)["spec"]["ingress"][0]
        assert ("transfer" in {one["port"] for one in policy["ports"]}) == expected
    ports = {one["name"] for one in named(of(case), "Service", COORDINATOR)["spec"]["ports"]}
    assert ("transfer" in ports) == (case == "transfer-without-istio")


def test_a_sidecar_leaves_the_port_alone() -> None:
    """What comes there is TLS of the coordinator's own."""
    peer = named(of("transfer"), "PeerAuthentication")
    assert peer["spec"]["portLevelMtls"][8445] == {"mode": "DISABLE"}
    rules = named(of("transfer-terminate"), "AuthorizationPolicy")["spec"]["rules"]
    assert HOST in rules[0]["when"][0]["values"], "hospitals alone, as for the other names"


def test_the_autoscaler_alone_says_how_many_pods_there_are() -> None:
    """An upgrade of the release would set the number back otherwise."""
    found = of("transfer")
    scaler = named(found, "HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in named(found, "StatefulSet")["spec"]
    assert scaler["scaleTargetRef"]["name"] == named(found, "StatefulSet")["metadata"]["name"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 6)
    assert named(of("replicas"), "StatefulSet")["spec"]["replicas"] == 3


def test_nothing_scales_what_is_stopped_or_restored() -> None:
    """An autoscaler comes back with the pods; meanwhile nobody has a say in their number."""
    base = merged(rendering.COORDINATOR, ISTIO, REPLICAS, TRANSFER, BACKUP)
    for over in ({"coordinator": {"stopped": True}}, RESTORE):
        found = objects(merged(base, over))
        assert named(found, "StatefulSet")["spec"]["replicas"] == 0
        assert "HorizontalPodAutoscaler" not in {one["kind"] for one in found}
