"""The chart's pods are as restricted as they are said to be; and each check sees a broken one."""

import shutil
from pathlib import Path

import pytest

from tests.charts.policies import POLICIES
from tests.charts.rendering import CHART, MATRIX, objects, of

HELPERS, COORDINATOR = "templates/_helpers.tpl", "templates/coordinator/statefulset.yaml"
AGENT, ACCESS = "templates/node-agent/statefulset.yaml", "templates/coordinator/access.yaml"
CONTAINER = "templates/coordinator/_container.tpl"
BACKUP = "templates/coordinator/backup.yaml"
NETWORK, TEST = "templates/networkpolicies.yaml", "templates/coordinator/test.yaml"

BROKEN: dict[str, list[tuple[str, str, str]]] = {
    "no_root": [
        (HELPERS, "  runAsNonRoot: true\n  runAsUser", "  runAsUser"),
        (HELPERS, "  runAsNonRoot: true\n  privileged", "  privileged"),
        (HELPERS, "runAsUser: {{ $values.runAsUser }}", "runAsUser: 0"),
    ],
    "read_only_root": [(HELPERS, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false")],
    "no_capabilities": [
        (HELPERS, "drop: [ALL]", "drop: [ALL]\n    add: [NET_ADMIN]"),
        (HELPERS, "drop: [ALL]", "drop: [MKNOD]"),
        (HELPERS, "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"),
        (HELPERS, "privileged: false", "privileged: true"),
    ],
    "seccomp": [
        (HELPERS, "type: RuntimeDefault\n# The pods", "type: Unconfined\n# The pods"),
        (HELPERS, "type: RuntimeDefault\n{{- end -}}\n\n{{/* Peers", "type: Localhost\n"
         "{{- end -}}\n\n{{/* Peers"),
    ],
    "nothing_of_the_host": [
        (COORDINATOR, "      terminationGrace", "      hostNetwork: true\n      terminationGrace"),
        (COORDINATOR, "configMap:\n            name: {{ $name }}", "hostPath:\n"
         "            path: /"),
        (COORDINATOR, "containerPort: 8443,", "containerPort: 8443, hostPort: 8443,"),
    ],
    "no_token": [
        (HELPERS, "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
        (ACCESS, "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
        (HELPERS, "serviceAccountName: {{", "serviceAccountName: default # {{"),
    ],
    "no_rights": [(ACCESS, "apiVersion: policy/v1", "apiVersion: rbac.authorization.k8s.io/v1")],
    "by_digest": [
        (HELPERS, '"%s@%s" .repository .digest', '"%s:%s" .repository "latest"'),
        (HELPERS, '"%s@%s" .repository .digest', '"%s" .repository'),
    ],
    "resources_set": [
        (COORDINATOR, "resources:\n            {{- toYaml $c.resources", "x-resources:\n"
         "            {{- toYaml $c.resources"),
        (TEST, "limits: {cpu: 500m, memory: 256Mi}", "limits: {cpu: 500m}"),
    ],
    "no_service_variables": [(HELPERS, "enableServiceLinks: false", "enableServiceLinks: true")],
    "temporary_is_bounded": [
        (COORDINATOR, "sizeLimit: 1Gi", "medium: Memory"),
        (BACKUP, "sizeLimit: {{ $b.scratchSize }}", "medium: Memory"),
    ],
    "default_deny": [
        (NETWORK, "policyTypes: [Ingress, Egress]\n  egress:\n    - to:\n        {{-",
         "policyTypes: [Egress]\n  egress:\n    - to:\n        {{-"),
        (NETWORK, "{protocol: TCP, port: 53}", "{protocol: TCP, port: 443}"),
        (NETWORK, "{{- if .Values.networkPolicy.enabled }}", "{{- if false }}"),
    ],
    "nobody_by_default": [
        (NETWORK, "        {{- include \"feddp.peers\" $n.scrapers | nindent 8 }}\n"
         "        - podSelector:\n            matchLabels:\n"
         "              {{- include \"feddp.selector\" (list . \"test\") | nindent 14 }}\n", ""),
    ],
    "spread": [
        (HELPERS, '"kubernetes.io/hostname" "topo', '"topology.kubernetes.io/region" "topo'),
        (HELPERS, "        app.kubernetes.io/name: feddp\n        app", "        app"
         ".kubernetes.io/name: other\n        app"),
    ],
    "replicas_reach_each_other": [
        (NETWORK, '(list . "coordinator") | nindent 14 }}\n        {{- end }}\n      ports:',
         '(list . "other") | nindent 14 }}\n        {{- end }}\n      ports:'),
        (NETWORK, "port: 8443}\n        - {protocol: TCP, port: 8444}\n    {{- end }}",
         "port: 8443}\n    {{- end }}"),
        (CONTAINER, "fieldPath: status.podIP", "fieldPath: status.hostIP"),
        (CONTAINER, '{{- if include "feddp.replicated" . }}', "{{- if false }}"),
    ],
    "replicas_on_machines_of_their_own": [
        (HELPERS, "whenUnsatisfiable: DoNotSchedule", "whenUnsatisfiable: ScheduleAnyway"),
        (HELPERS, "    nodeTaintsPolicy: Honor\n", ""),
        (HELPERS, '(list $root (index . 1)) | nindent 8', '(list $root "other") | nindent 8'),
    ],
    "one_goes_at_a_time": [
        (COORDINATOR, "type: RollingUpdate", "type: OnDelete"),
        (COORDINATOR, "podManagementPolicy: Parallel", "podManagementPolicy: OrderedReady"),
        (COORDINATOR, "minReadySeconds: 10", "minReadySeconds: 0"),
        (ACCESS, "Unavailable: {{ $c.podDisruptionBudget.maxUnavailable }}", "Unavailable: 2"),
    ],
    "backups_are_one_at_a_time": [
        (BACKUP, "concurrencyPolicy: Forbid", "concurrencyPolicy: Allow"),
        (BACKUP, "startingDeadlineSeconds: 3600", "startingDeadlineSeconds: 5"),
        (BACKUP, "      activeDeadlineSeconds: {{ $b.deadlineSeconds }}\n", ""),
        (BACKUP, "backoffLimit: 1", "backoffLimit: 6"),
        (BACKUP, "restartPolicy: Never", "restartPolicy: OnFailure"),
    ],
    "backups_are_where_their_volume_is": [
        (BACKUP, "- topologyKey: kubernetes.io/hostname", "- topologyKey: topology.kubernetes"
         ".io/zone"),
        (BACKUP, "requiredDuringSchedulingIgnored", "preferredDuringSchedulingIgnored"),
        (BACKUP, '(list . "coordinator") | nindent 22', '(list . "backup") | nindent 22'),
        (BACKUP, "{{- if not $shared }}", "{{- if false }}"),
    ],
    "backups_reach_the_state_and_nothing_else": [
        (NETWORK, '{{- include "feddp.selector" (list . "backup") | nindent 6 }}',
         '{{- include "feddp.selector" (list . "other") | nindent 6 }}'),
        (NETWORK, "  egress:\n    {{- $state | nindent 4 }}",
         "  ingress: [{}]\n  egress:\n    {{- $state | nindent 4 }}"),
        (NETWORK, "  egress:\n    {{- $state | nindent 4 }}",
         "  egress:\n    {{- $state | nindent 4 }}\n    - {}"),
    ],
    "disruption_budget": [
        (ACCESS, "kind: PodDisruptionBudget", "kind: ConfigMap"),
        (ACCESS, '(list . "coordinator") | nindent 6', '(list . "other") | nindent 6'),
    ],
    "volumes_are_kept": [(COORDINATOR, "whenDeleted: Retain", "whenDeleted: Delete")],
    "no_secret_in_the_clear": [
        (ACCESS, "kind: ServiceAccount", "kind: Secret"),
        (CONTAINER, "{name: TRUST_DOMAIN, value: {{ $c.trustDomain | quote }}}",
         '{name: TRUST_DOMAIN, value: "postgresql+psycopg://feddp:word@db/feddp"}'),
    ],
}  # fmt: skip
"""For each policy: (template, what it says, what a careless change would make of it)."""

SEEN_IN = {"backups_are_where_their_volume_is": "backup"}
"""Policies that say nothing of the case of the matrix that has everything."""

WITHOUT_BUDGET = {("disruption_budget", "without-istio")}
"""The case of the matrix that switches it off."""


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", MATRIX)
def test_what_is_rendered_keeps_to_the_policy(case: str, policy: str) -> None:
    """For every case of the matrix, the test pod and init containers included."""
    found = POLICIES[policy](of(case))
    assert bool(found) == ((policy, case) in WITHOUT_BUDGET), found


@pytest.mark.parametrize(
    ("policy", "change"),
    [(policy, change) for policy in POLICIES for change in BROKEN[policy]],
)
def test_a_template_that_breaks_a_policy_is_found(
    policy: str, change: tuple[str, str, str], tmp_path: Path
) -> None:
    """Each policy is seen to fail: with one of its templates broken, it names an object."""
    template, before, after = change
    chart = shutil.copytree(CHART, tmp_path / "feddp")
    text = (chart / template).read_text()
    assert before in text, "the template says something else now; break it in another way"
    (chart / template).write_text(text.replace(before, after))
    assert POLICIES[policy](objects(MATRIX[SEEN_IN.get(policy, "everything")], chart))


def test_the_agent_writes_in_its_folder_alone() -> None:
    """Records, the steward's files and the token are mounted read-only."""
    for one in of("full-agent"):
        if one["kind"] == "StatefulSet":
            spec = one["spec"]["template"]["spec"]
            for container in [*spec["initContainers"], *spec["containers"]]:
                writable = {
                    each["name"] for each in container["volumeMounts"] if not each.get("readOnly")
                }
                assert writable == {"data", "tmp"}
            assert [c["name"] for c in spec["containers"]] == ["agent"]
            (agent,) = spec["containers"]
            assert {"records-0", "steward"} <= {each["name"] for each in agent["volumeMounts"]}
            assert "join-token" not in {each["name"] for each in agent["volumeMounts"]}
