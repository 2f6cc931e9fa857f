"""What several coordinators must be, as functions that find what is not."""

from typing import Any

from tests.charts.rendering import Object

MANY = 9
"""Of a StatefulSet whose autoscaler says how many there are."""


def _replicated(found: list[Object]) -> list[tuple[Object, dict[str, str], dict[str, Any]]]:
    """(StatefulSet, its pods' labels, their spec) of each that has several pods."""
    return [
        (one, one["spec"]["template"]["metadata"]["labels"], one["spec"]["template"]["spec"])
        for one in found
        if one["kind"] == "StatefulSet" and one["spec"].get("replicas", MANY) > 1
    ]


def replicas_reach_each_other(found: list[Object]) -> list[str]:
    """Pods of several that do not tell the others their address, or may not reach or be reached."""
    wrong = []
    policies = [one["spec"] for one in found if one["kind"] == "NetworkPolicy"]
    for one, labels, spec in _replicated(found):
        (container,) = spec["containers"]
        opened = {each["name"]: each["containerPort"] for each in container["ports"]}
        address = {"fieldRef": {"fieldPath": "status.podIP"}}
        told = {"name": "FEDDP_SERVER__REPLICA_HOST", "valueFrom": address} in container["env"]
        own = [p for p in policies if p["podSelector"]["matchLabels"].items() <= labels.items()]
        ways = [
            {
                opened.get(port["port"], port["port"])
                for policy in own
                for rule in policy.get(direction, [])
                if any(
                    peer["podSelector"]["matchLabels"].items() <= labels.items()
                    for peer in rule.get(side, [])
                    if set(peer) == {"podSelector"}
                )
                for port in rule["ports"]
            }
            for direction, side in (("ingress", "from"), ("egress", "to"))
        ]
        if not told or any(not {opened["nodes"], opened["enrolment"]} <= way for way in ways):
            wrong.append(one["metadata"]["name"])
    return wrong


def replicas_on_machines_of_their_own(found: list[Object]) -> list[str]:
    """Several pods that the loss of one machine could take all, though there are others."""
    return [
        one["metadata"]["name"]
        for one, labels, spec in _replicated(found)
        if not any(
            each["topologyKey"] == "kubernetes.io/hostname"
            and each["whenUnsatisfiable"] == "DoNotSchedule"
            and each.get("nodeTaintsPolicy") == "Honor"
            and each["labelSelector"]["matchLabels"] == one["spec"]["selector"]["matchLabels"]
            for each in spec["topologySpreadConstraints"]
        )
    ]


def one_goes_at_a_time(found: list[Object]) -> list[str]:
    """Several pods of which an update or a drain could stop two, or of which one waits for another
    to be ready, which it is only once one leads."""
    budgets = {
        one["metadata"]["name"]: one["spec"].get("maxUnavailable")
        for one in found
        if one["kind"] == "PodDisruptionBudget"
    }
    return [
        one["metadata"]["name"]
        for one, _, _ in _replicated(found)
        if one["spec"].get("podManagementPolicy") != "Parallel"
        or one["spec"].get("updateStrategy") != {"type": "RollingUpdate"}
        or one["spec"].get("minReadySeconds", 0) < 5
        or budgets.get(one["metadata"]["name"], 2) > 1
    ]
