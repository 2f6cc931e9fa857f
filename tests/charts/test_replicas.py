"""What the chart lets several coordinators do, and what their number changes."""

import pytest

from tests.charts.rendering import COORDINATOR, ISTIO, REPLICAS, Object, merged, named, objects, of


@pytest.mark.parametrize(
    ("case", "allowed"),
    [
        ("ten-lines", []),
        ("object-store", [(["anywhere"], [443])]),
        (
            "replicas",
            [
                (["fed/coordinator"], [8443, 8444]),
                (["storage"], [8333]),
                (["anywhere"], [5432]),
                (["istio-system"], [15012]),
            ],
        ),
    ],
)
def test_the_coordinator_reaches_what_it_needs_and_nothing_else(
    case: str, allowed: list[tuple[list[str], list[int]]]
) -> None:
    """Names in DNS are another policy's."""
    spec = named(of(case), "NetworkPolicy", "fed-feddp-coordinator")["spec"]

    def said(peer: Object) -> str:
        if "namespaceSelector" in peer:
            return str(peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"])
        labels = peer["podSelector"]["matchLabels"]
        return f"{labels['app.kubernetes.io/instance']}/{labels['app.kubernetes.io/component']}"

    assert [
        ([said(one) for one in rule["to"]] if "to" in rule else ["anywhere"],
         [one["port"] for one in rule["ports"]])
        for rule in spec.get("egress", [])
    ] == allowed  # fmt: skip
    own = [
        peer
        for rule in spec["ingress"]
        for peer in rule["from"]
        if "podSelector" in peer and said(peer) == "fed/coordinator"
    ]
    assert len(own) == (case == "replicas")


def test_another_number_of_replicas_restarts_none_of_them() -> None:
    """Nothing differs but the number itself: not the pods, not what they may reach."""
    one, three = (
        objects(merged(COORDINATOR, ISTIO, REPLICAS, {"coordinator": {"replicas": number}}))
        for number in (1, 3)
    )
    assert one != three
    for found in (one, three):
        del named(found, "StatefulSet")["spec"]["replicas"]
    assert one == three


def test_a_sidecar_lets_replicas_reach_each_other() -> None:
    """It does not know a pod's address as a host of the mesh; elsewhere it keeps every port."""
    key = "traffic.sidecar.istio.io/excludeOutboundPorts"
    for case, ports in (("replicas", "8443,8444"), ("passthrough", None)):
        template = named(of(case), "StatefulSet")["spec"]["template"]
        assert template["metadata"]["annotations"].get(key) == ports
