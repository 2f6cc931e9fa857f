"""What every pod, image and Secret of the chart must be, as functions that find what is not."""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.charts.backup_policies import (
    backups_are_one_at_a_time,
    backups_are_where_their_volume_is,
    backups_reach_the_state_and_nothing_else,
)
from tests.charts.rendering import Object
from tests.charts.replica_policies import (
    one_goes_at_a_time,
    replicas_on_machines_of_their_own,
    replicas_reach_each_other,
)

Policy = Callable[[list[Object]], list[str]]

_IMAGE: Final = re.compile(r"[a-z0-9./:_-]+@sha256:[0-9a-f]{64}")
_RESTRICTED_VOLUMES: Final = frozenset(
    {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected", "downwardAPI"}
)


def _pods(found: list[Object]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, metadata, spec) of every pod."""
    for one in found:
        if one["kind"] == "Pod":
            yield one["metadata"]["name"], one["metadata"], one["spec"]
        elif one["kind"] == "CronJob":
            template = one["spec"]["jobTemplate"]["spec"]["template"]
            yield one["metadata"]["name"], template["metadata"], template["spec"]
        elif one["kind"] in ("StatefulSet", "Deployment", "Job"):
            template = one["spec"]["template"]
            yield one["metadata"]["name"], template["metadata"], template["spec"]


def _containers(found: list[Object]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, _, spec in _pods(found):
        for one in [*spec.get("initContainers", []), *spec["containers"]]:
            yield f"{name}/{one['name']}", one


def no_root(found: list[Object]) -> list[str]:
    """Pods whose processes could be root's, or whose user is not said."""
    wrong = [
        name
        for name, _, spec in _pods(found)
        if spec.get("securityContext", {}).get("runAsNonRoot") is not True
        or not spec["securityContext"].get("runAsUser")
    ]
    return wrong + [
        name
        for name, one in _containers(found)
        if one.get("securityContext", {}).get("runAsNonRoot") is not True
        or one["securityContext"].get("runAsUser", 1) == 0
    ]


def read_only_root(found: list[Object]) -> list[str]:
    """Containers that can write in their image."""
    return [
        name
        for name, one in _containers(found)
        if one.get("securityContext", {}).get("readOnlyRootFilesystem") is not True
    ]


def no_capabilities(found: list[Object]) -> list[str]:
    """Containers with a capability, or that could gain a privilege."""
    return [
        name
        for name, one in _containers(found)
        if one.get("securityContext", {}).get("capabilities") != {"drop": ["ALL"]}
        or one["securityContext"].get("allowPrivilegeEscalation") is not False
        or one["securityContext"].get("privileged", False)
    ]


def seccomp(found: list[Object]) -> list[str]:
    """Pods and containers without the runtime's own filter of system calls."""
    contexts = [(name, spec.get("securityContext", {})) for name, _, spec in _pods(found)]
    contexts += [(name, one.get("securityContext", {})) for name, one in _containers(found)]
    return [
        name
        for name, context in contexts
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}
    ]


def nothing_of_the_host(found: list[Object]) -> list[str]:
    """Pods that share something with their machine, or mount what is not restricted."""
    return [
        name
        for name, _, spec in _pods(found)
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        or any(not (set(one) - {"name"}) <= _RESTRICTED_VOLUMES for one in spec.get("volumes", []))
        or any(
            "hostPort" in port
            for one in [*spec.get("initContainers", []), *spec["containers"]]
            for port in one.get("ports", [])
        )
    ]


def no_token(found: list[Object]) -> list[str]:
    """Pods and accounts to which a token of the cluster's API is given, or that have no account."""
    accounts = {one["metadata"]["name"]: one for one in found if one["kind"] == "ServiceAccount"}
    wrong = [
        name
        for name, one in accounts.items()
        if one.get("automountServiceAccountToken") is not False
    ]
    return wrong + [
        name
        for name, _, spec in _pods(found)
        if spec.get("automountServiceAccountToken") is not False
        or spec.get("serviceAccountName") not in accounts
    ]


def no_rights(found: list[Object]) -> list[str]:
    """Roles and bindings: nothing here asks the cluster for anything."""
    return [one["metadata"]["name"] for one in found if "rbac" in one["apiVersion"]]


def by_digest(found: list[Object]) -> list[str]:
    """Containers whose image is not named by digest alone."""
    return [name for name, one in _containers(found) if not _IMAGE.fullmatch(one["image"])]


def resources_set(found: list[Object]) -> list[str]:
    """Containers that could take a machine for themselves."""
    return [
        name
        for name, one in _containers(found)
        if any(
            not one.get("resources", {}).get(kind, {}).get(what)
            for kind in ("requests", "limits")
            for what in ("cpu", "memory")
        )
    ]


def no_service_variables(found: list[Object]) -> list[str]:
    """Pods that get variables of Services, which could be taken for settings."""
    return [name for name, _, spec in _pods(found) if spec.get("enableServiceLinks") is not False]


def temporary_is_bounded(found: list[Object]) -> list[str]:
    """Pods that could fill their machine's disk."""
    return [
        f"{name}/{one['name']}"
        for name, _, spec in _pods(found)
        for one in spec.get("volumes", [])
        if "emptyDir" in one and not (one["emptyDir"] or {}).get("sizeLimit")
    ]


def default_deny(found: list[Object]) -> list[str]:
    """Pods that no policy keeps from taking and opening connections, but for what others allow."""
    denying = [
        one["spec"]["podSelector"]["matchLabels"]
        for one in found
        if one["kind"] == "NetworkPolicy"
        and set(one["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and "ingress" not in one["spec"]
        and all(
            port["port"] == 53
            for rule in one["spec"].get("egress", [])
            for port in rule.get("ports", [{"port": None}])
        )
    ]
    return [
        name
        for name, metadata, _ in _pods(found)
        if not any(wanted.items() <= metadata["labels"].items() for wanted in denying)
    ]


def nobody_by_default(found: list[Object]) -> list[str]:
    """Rules of network policies that let everybody in: an empty list of peers means all."""
    return [
        one["metadata"]["name"]
        for one in found
        if one["kind"] == "NetworkPolicy"
        for rule in one["spec"].get("ingress", [])
        if not rule.get("from") or not rule.get("ports")
    ]


def spread(found: list[Object]) -> list[str]:
    """Pods that need not keep away from the release's others, by labels that they have."""
    wrong = []
    for name, metadata, spec in _pods(found):
        constraints = spec.get("topologySpreadConstraints", [])
        keys = {one["topologyKey"] for one in constraints}
        chosen = all(
            one["labelSelector"]["matchLabels"].items() <= metadata["labels"].items()
            for one in constraints
        )
        if not chosen or not {"kubernetes.io/hostname", "topology.kubernetes.io/zone"} <= keys:
            wrong.append(name)
    return wrong


def disruption_budget(found: list[Object]) -> list[str]:
    """Long-lived pods that a drain may take as it likes."""
    budgets = [
        one["spec"]["selector"]["matchLabels"]
        for one in found
        if one["kind"] == "PodDisruptionBudget"
    ]
    return [
        one["metadata"]["name"]
        for one in found
        if one["kind"] == "StatefulSet"
        and one["spec"]["template"]["metadata"]["labels"]
        and not any(
            wanted.items() <= one["spec"]["template"]["metadata"]["labels"].items()
            for wanted in budgets
        )
    ]


def volumes_are_kept(found: list[Object]) -> list[str]:
    """StatefulSets whose volumes would go with the release."""
    return [
        one["metadata"]["name"]
        for one in found
        if one["kind"] == "StatefulSet"
        and "volumeClaimTemplates" in one["spec"]
        and one["spec"].get("persistentVolumeClaimRetentionPolicy")
        != {"whenDeleted": "Retain", "whenScaled": "Retain"}
    ]


def no_secret_in_the_clear(found: list[Object]) -> list[str]:
    """Secrets that the chart would make itself, and passwords among settings."""
    wrong = [one["metadata"]["name"] for one in found if one["kind"] == "Secret"]
    return wrong + [
        f"{name}: {variable['name']}"
        for name, one in _containers(found)
        for variable in one.get("env", [])
        if "://" in variable.get("value", "") and "@" in variable["value"]
    ]


POLICIES: Final[dict[str, Policy]] = {
    one.__name__: one
    for one in (
        no_root,
        read_only_root,
        no_capabilities,
        seccomp,
        nothing_of_the_host,
        no_token,
        no_rights,
        by_digest,
        resources_set,
        no_service_variables,
        temporary_is_bounded,
        default_deny,
        nobody_by_default,
        spread,
        replicas_reach_each_other,
        replicas_on_machines_of_their_own,
        one_goes_at_a_time,
        backups_are_one_at_a_time,
        backups_are_where_their_volume_is,
        backups_reach_the_state_and_nothing_else,
        disruption_budget,
        volumes_are_kept,
        no_secret_in_the_clear,
    )
}
