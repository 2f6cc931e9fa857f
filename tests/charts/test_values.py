"""Wrong values are refused before anything is made: by their form, or because of each other."""

import json
import re
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest
import yaml

from charts.generate import VALUES, at, comments, main, schema_at
from coordinator.observing.metrics import Metrics
from tests.charts.rendering import (
    AGENT,
    BACKUP,
    CHART,
    CLIENTS,
    COORDINATOR,
    GATEWAY_API,
    ISTIO,
    MATRIX,
    POSTGRESQL,
    RELEASE,
    REPLICAS,
    RESTORE,
    STORE,
    TERMINATE,
    TOLD,
    TRANSFER,
    WATCHED,
    Values,
    merged,
    objects,
    render,
)

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
GOOD = merged(COORDINATOR, ISTIO)

BAD: dict[str, list[Any]] = {
    "clusterDomain": ["cluster.local.", "Cluster", ""],
    "imagePullSecrets": ["registry", ["UPPER"], [{"name": "registry"}]],
    "coordinator.enabled": ["yes", 1],
    "coordinator.replicas": [0, 10, 1.5, "1"],
    "coordinator.image.repository": ["registry.example/feddp:latest", "r/f@sha256:00", "R/f", "/f"],
    "coordinator.image.digest": [
        "latest",
        "sha256:12",
        "sha256:" + "A1" * 32,
        "sha512:" + "a" * 64,
    ],
    "coordinator.image.pullPolicy": ["always", ""],
    "coordinator.trustDomain": ["", "Hospitals.example", "spiffe://a", "-a"],
    "coordinator.hosts.coordinator": ["*.example", "https://feddp.example", "feddp.example:443"],
    "coordinator.hosts.enrolment": ["join_.example", "feddp.example."],
    "coordinator.database.kind": ["mysql", "PostgreSQL"],
    "coordinator.database.urlSecret.name": ["postgresql+psycopg://u:p@h/d", "Secret"],
    "coordinator.database.urlSecret.key": ["", "a/b"],
    "coordinator.database.externalSecret.store.kind": ["Vault"],
    "coordinator.database.externalSecret.refreshInterval": ["60", "0h", "1 h"],
    "coordinator.database.peers": [
        ["10.0.0.0/8"],
        [{}],
        [{"cidr": "10.0.0.0"}],
        [{"cidr": "10.0.0.0/33"}],
        [{"cidr": "10.0.0.0/8", "namespace": "a"}],
        [{"podLabels": {"a": "b"}}],
        [{"namespace": "a", "labels": {}}],
        [{"cidr": "999.1.1.1/8"}],
        [{"cidr": "10.0.0.0.0/8"}],
        [{"cidr": "10.01.0.0/16"}],
        [{"cidr": ":::/64"}],
        [{"cidr": "1:2:3:4:5:6:7:8:9/64"}],
        [{"cidr": "12345::/16"}],
    ],
    "coordinator.database.port": [0, 65536, "5432"],
    "coordinator.objectStore.url": [
        "https://s3.example/b",
        "s3://",
        "s3://B",
        "s3://u:p@b",
        "s3://b/",
        "s3://192.0.2.1/models",
        "s3://a..b",
        "s3://feddp/../other",
        "s3://feddp/.",
    ],
    "coordinator.objectStore.endpoint": [
        "s3.example:8333",
        "https://u:p@s3.example",
        "https://s3.example/path",
        "s3://s3.example",
        "https://s3.example:99999",
        "https://s3.example:0",
    ],
    "coordinator.objectStore.credentialsSecret.name": ["AKIA_X", "Secret"],
    "coordinator.objectStore.peers": [["10.0.0.0/8"], [{"cidr": "10.0.0.0"}]],
    "coordinator.objectStore.port": [-1, 65536, "443", None],
    "coordinator.installation.secretName": ["Secret", "a b"],
    "coordinator.serverCertificate.certManager.issuer.kind": ["issuer"],
    "coordinator.serverCertificate.certManager.duration": ["90d", "0h", 2160],
    "coordinator.gatewaySidecar": ["true", 1],
    "coordinator.tracing.caConfigMap.name": ["CA", "-----BEGIN CERTIFICATE-----"],
    "coordinator.tracing.headersSecret.key": ["", "a=b"],
    "coordinator.tracing.peers": [[{"cidr": "collector.example"}], "observability"],
    "coordinator.alertWebhook.urlSecret.name": ["https://alerts.example/hook"],
    "coordinator.alertWebhook.caConfigMap.key": ["a/b"],
    "coordinator.alertWebhook.signingSecret.name": ["Secret"],
    "coordinator.alertWebhook.peers": [[{"podLabels": {"a": "b"}}]],
    "coordinator.alertWebhook.port": [-1, "443", 65536],
    "coordinator.backup.enabled": ["yes"],
    "coordinator.backup.schedule": [
        "",
        "daily",
        "@daily",
        "15 2 * *",
        "15 2 * * * *",
        "60 2 * * *",
        "0 24 * * *",
        "0 0 0 * *",
        "0 0 1 13 *",
        "0 0 * * 7",
        "0 0 * * MON",
        "*/0 * * * *",
        " 15 2 * * *",
        "0 0 31 2 *",
        "0 0 30 2 *",
        "0 0 30,31 02 *",
        "0 0 31 4,6,9,11 *",
    ],
    "coordinator.backup.timeZone": [
        "",
        "europe/berlin",
        "+01:00",
        "TZ=UTC",
        "Mars/X",
        "Berlin",
        "Europe/",
    ],
    "coordinator.backup.keep": [0, -1, 1001, "7", 1.5],
    "coordinator.backup.keys": ["no"],
    "coordinator.backup.passwordSecret.name": ["hunter 2", "Secret"],
    "coordinator.backup.claim": ["/srv/backups", "Claim"],
    "coordinator.backup.deadlineSeconds": [59, 86401, "6h"],
    "coordinator.backup.scratchSize": ["10", "10G"],
    "coordinator.backup.resources.limits.memory": ["1G"],
    "coordinator.restore.file": ["../other/one.backup", ".hidden", "a b", 1],
    "coordinator.restore.revocationsConfigMap": ["Files", "/srv/r"],
    "coordinator.restore.withoutRevocations": ["yes"],
    "coordinator.restore.scratchSize": ["10", "10G"],
    "coordinator.hosts.transfer": ["transfer_.example", "feddp.example:443"],
    "coordinator.autoscaling.enabled": ["yes"],
    "coordinator.autoscaling.maxReplicas": [1, 10, "5"],
    "coordinator.autoscaling.cpuPercent": [9, 101, "70%"],
    "coordinator.storage.size": ["20", "20G", "0Gi", 20],
    "coordinator.storage.storageClass": ["Fast"],
    "coordinator.service.type": ["ExternalName", "clusterip"],
    "coordinator.service.annotations": [{"a": True}, {"a b": "c"}, ["a"]],
    "coordinator.shutdown.preStopSeconds": [0, 301, "5s"],
    "coordinator.shutdown.graceSeconds": [20, 3601],
    "coordinator.podDisruptionBudget.maxUnavailable": [2, "50%", -1],
    "coordinator.resources.requests.cpu": [0, "half", "1.5m", "0", "0m", "0.000"],
    "coordinator.resources.limits.memory": ["4G", "0Gi", 4, ""],
    "coordinator.runAsUser": [0, -1, "feddp"],
    "coordinator.nodeSelector": [{"a": "b c"}, {"a": 1}],
    **{
        f"{pod}.tolerations": [
            *(
                [{"key": "a"}],
                [{"operator": "In"}],
                {"operator": "Exists"},
                [{"operator": "Equal"}],
            ),
            [{"key": "a", "operator": "Exists", "value": "b"}],
            [{"key": "a b", "operator": "Exists"}],
            [{"key": "a", "operator": "Equal", "value": "b c"}],
            [{"key": "a", "operator": "Exists", "tolerationSeconds": 5}],
            [{"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 5}],
        ]
        for pod in ("coordinator", "nodeAgent")
    },
    "coordinator.config": [
        {"server": {"port": 1}},
        {"storage": {"database_url": "sqlite:///other.db"}},
        {"storage": {"blob_dir": "/srv"}},
        {"federation": {"model_registry": "/models"}},
        {"federation": {"min_participants": 1}},
        {"federation": {"min_participants": "3"}},
        {"federation": {"min_particpants": 3}},
        {"privacy": {"mechanism": "zcdp"}},
        {"privacy": {"max_grad_norm": 0}},
        {"security": {"enable_mtls": False}},
        {"monitoring": {"log_level": "LOUD"}},
        {"monitoring": {"trace_endpoint": "https://collector:99999"}},
        {"monitoring": {"trace_endpoint": "https://collector"}},
        {"monitoring": {"alert_webhook": "http://alerts.example/hook"}},
        {"monitoring": {"alert_webhook": "https://u:p@alerts.example/hook"}},
        {"monitoring": {"alert_webhook": "https://alerts.example:99999/hook"}},
        {"monitoring": {"alert_webhook": "https://alerts..example/hook"}},
        {"monitoring": {"alert_webhook": "https://alerts.example/h\u00f6rt"}},
        {"federaton": {}},
    ],
    "nodeAgent.records": [
        [{"claim": "records"}],
        [{"claim": "records", "path": "srv/records"}],
        [{"claim": "records", "path": "/srv/../etc/shadow/"}],
        [{"claim": "records", "path": "/var/lib/feddp/agent"}],
        [{"claim": "records", "path": "/etc/feddp/steward"}],
        [{"claim": "records", "path": "/srv/records", "readOnly": False}],
        *(
            [{"claim": "records", "path": path}]
            for path in (
                *("/opt/feddp", "/opt", "/opt/feddp/lib", "/etc", "/usr/lib", "/var", "/var/lib"),
                *("/var/lib/feddp", "/run/secrets", "/var/run/x", "/agent"),
                *("/srv/..", "/srv/./a", "/"),
            )
        ),
    ],
    "nodeAgent.logLevel": ["info"],
    "nodeAgent.proxy.url": [
        "https://proxy.example:3128",
        "http://u:p@proxy:1",
        "proxy:3128",
        "http://proxy:99999",
    ],
    "nodeAgent.egress.ports": [[0], ["443"], 443, [65536]],
    "nodeAgent.shutdown.graceSeconds": [29],
    "istio.mode": ["simple", "TERMINATE"],
    "istio.api": ["gatewayapi", ""],
    "istio.gateway.name": ["ns/name", "a.b", "Gateway"],
    "istio.gateway.namespace": ["istio.ingress", ""],
    "istio.gateway.selector": [{"istio": "in gress"}, {"istio": None}],
    "istio.gateway.port": [0, "443"],
    "istio.allowedSources": ["192.0.2.0/24", ["hospital.example"], ["192.0.2.1"], ["::/129"]],
    "networkPolicy.scrapers": [[{"namespace": "Monitoring"}]],
    "networkPolicy.dns": [[], [{"namespace": "kube-system", "podLabels": {"k8s-app": True}}]],
    "monitoring.serviceMonitor.interval": ["30", "half", "0s", "61s", "2m", "10m"],
    "monitoring.prometheusRule.latencySeconds": [0, -1, "1s", 10, 60],
    "monitoring.prometheusRule.budgetRemaining": [0, "10%"],
    "monitoring.prometheusRule.runbookUrl": ["wiki/feddp", "https://wiki/feddp/"],
    "monitoring.dashboards.folder": ["a/b", 1],
    "tests.enabled": ["true"],
}


def put(path: str, value: Any) -> Values:
    """Good values but for one."""
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return merged(GOOD, value)


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in BAD.items() for value in values]
)
def test_a_wrong_value_is_refused_and_named(path: str, value: Any) -> None:
    """Helm names where it stands; the schema says there in a sentence what is allowed."""
    with pytest.raises(helm_python.HelmValuesError) as refused:
        render(put(path, value))
    text = str(refused.value)
    assert f"at '/{path.replace('.', '/')}" in text or value is None
    for unsaid in ("pattern", "'not' failed", "'oneOf' failed"):
        assert unsaid not in text
    assert _is_sentence(schema_at(SCHEMA, tuple(path.split(".")))["description"])


@pytest.mark.parametrize(
    "path",
    sorted(
        ".".join(one[: depth + 1])
        for one in [path for path, _ in comments(VALUES.read_text())]
        for depth in range(len(one))
        if "resources" not in one
    ),
)
def test_null_is_refused_wherever_it_stands(path: str) -> None:
    """It takes the default away, as does a colon with nothing behind it; Helm names the key."""
    with pytest.raises(helm_python.HelmValuesError, match="null, or nothing after the colon") as no:
        render(put(path, None))
    place, _, name = path.rpartition(".")
    where = f"/{place.replace('.', '/')}" if place else ""
    assert f"at '{where}': missing property '{name}'" in str(no.value)


def test_a_limit_can_be_taken_away_by_null() -> None:
    """As many do with that of the CPU; nothing else is missing then."""
    values = merged(GOOD, {"coordinator": {"resources": {"limits": {"cpu": None}}}})
    (pod,) = [one for one in objects(values) if one["kind"] == "StatefulSet"]
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "4Gi"}
    assert container["resources"]["requests"]["cpu"] == "1"


@pytest.mark.parametrize(
    "path",
    ["coordinator.nodeSelector", "coordinator.service.annotations", "nodeAgent.podAnnotations"],
)
@pytest.mark.parametrize("value", [1, True, 0.5])
def test_a_number_among_texts_is_told_to_be_put_in_quotes(path: str, value: Any) -> None:
    """YAML takes `gpu: true` for no text."""
    with pytest.raises(helm_python.HelmValuesError, match="a number or true in quotes"):
        render(put(path, {"gpu": value}))


GOOD_FORMS: dict[str, list[Any]] = {
    "coordinator.backup.schedule": [
        *("0 0 31 * *", "0 0 31 1,2 *", "0 0 30 2 1", "0 0 29 2 *", "0 0 31 4-5 *", "*/5 1-3 * * *")
    ],
    "coordinator.backup.timeZone": ["UTC", "America/Argentina/Buenos_Aires", "Etc/GMT+1"],
    "networkPolicy.clients": [
        [{"cidr": one}]
        for one in ("0.0.0.0/0", "::/0", "2001:db8::1/128", "fe80::/10", "1:2:3:4:5:6:7:8/128")
    ],
    "nodeAgent.records": [
        [{"claim": "a", "path": one}]
        for one in (
            "/srv/records",
            "/data",
            "/opt/records",
            "/var/lib/omop",
            "/mnt/a.b",
            "/srv/..a",
        )
    ],
    "coordinator.resources.limits.cpu": ["1500m", 2, 1.5, "2.5", "10", "1000m"],
    "coordinator.tolerations": [
        [{"operator": "Exists"}],
        [{"key": "a.example/b", "operator": "Equal", "value": "", "effect": "NoSchedule"}],
        [{"key": "a", "operator": "Equal"}],
        [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}],
    ],
    "monitoring.serviceMonitor.interval": ["1s", "60s", "1m"],
    "coordinator.config": [
        {"monitoring": {"alert_webhook": one}}
        for one in ("https://a/x?y=%C3%BC", "https://[2001:db8::1]:8443/", "https://a.example")
    ],
}


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in GOOD_FORMS.items() for value in values]
)
def test_a_right_value_is_taken(path: str, value: Any) -> None:
    """Near those that are refused."""
    assert render(put(path, value))


@pytest.mark.parametrize(
    "path",
    [
        ".".join((*one, "unknown"))
        for one in [(), *(path for path, _ in comments(VALUES.read_text()))]
        for one in [one[:-1] if one else one]
    ],
)
def test_an_unknown_key_is_refused_wherever_it_stands(path: str) -> None:
    """A misspelt value would silently keep its default."""
    with pytest.raises(helm_python.HelmValuesError, match="'unknown' not allowed"):
        render(put(path, "x"))


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for one in schema.values():
            yield from _objects(one)
    elif isinstance(schema, list):
        for one in schema:
            yield from _objects(one)


def test_every_mapping_of_the_schema_is_closed() -> None:
    """But for `global`, which Helm adds to every chart and this one does not read."""
    free = [one for one in _objects(SCHEMA) if one.get("additionalProperties") is not False]
    assert free == [SCHEMA["properties"]["global"]]
    assert SCHEMA["additionalProperties"] is False


def _is_sentence(text: str) -> bool:
    return text[:1].isalnum() and len(text.split()) > 3 and text.endswith(".")


def test_every_form_is_said_in_a_sentence() -> None:
    """Each definition that values share, and each value, says in words what its pattern says."""
    for name, one in SCHEMA["$defs"].items():
        assert _is_sentence(one["description"]), name
    for path, said in comments(VALUES.read_text()):
        assert schema_at(SCHEMA, path)["description"] == said
        assert _is_sentence(said), path


def _leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(values, dict) and values:
        for name, one in values.items():
            yield from _leaves(one, (*path, name))
    else:
        yield path


def test_every_value_has_a_comment_a_form_and_a_row() -> None:
    """Nothing can be set that the table of docs/helm.md does not show with its default."""
    values = yaml.safe_load(VALUES.read_text())
    said = {path for path, _ in comments(VALUES.read_text())}
    for path in _leaves(values):
        assert any(path[: len(one)] == one for one in said), path
        for one in said:
            if path[: len(one)] == one:
                assert at(values, one) is not None
    assert all(schema_at(SCHEMA, path) for path in said)


def test_schema_and_table_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python charts/generate.py` has been run after the last change of a comment or a default."""
    monkeypatch.setattr("sys.argv", ["generate.py", "--check"])
    assert main() == 0


CLASHES: dict[str, tuple[Values, str]] = {
    "nothing": ({"coordinator": {"enabled": False}}, "nothing to install"),
    "replicas-sqlite": (
        merged(GOOD, {"coordinator": {"replicas": 3}}),
        "one file on one volume, and one machine has it",
    ),
    "replicas-without-store": (
        merged(GOOD, POSTGRESQL, {"coordinator": {"replicas": 2}}),
        "would not find what the one before it has acknowledged",
    ),
    "replicas-without-keys": (
        merged(GOOD, REPLICAS, {"coordinator": {"installation": {"secretName": ""}}}),
        "each first start would make others",
    ),
    "replicas-on-one-claim": (
        merged(GOOD, REPLICAS, {"coordinator": {"storage": {"existingClaim": "a"}}}),
        "each gets a volume of its own",
    ),
    "installation-sqlite": (
        merged(GOOD, {"coordinator": {"installation": {"secretName": "a"}}}),
        "which is no file in a pod",
    ),
    "store-without-credentials": (
        merged(GOOD, STORE, {"coordinator": {"objectStore": {"credentialsSecret": {"name": ""}}}}),
        "no way to a machine's role",
    ),
    "credentials-without-store": (
        merged(GOOD, STORE, {"coordinator": {"objectStore": {"url": ""}}}),
        "belong to objectStore.url",
    ),
    "no-digest": (merged(GOOD, {"coordinator": {"image": {"digest": ""}}}), "give its digest"),
    "no-repository": (
        merged(GOOD, {"coordinator": {"image": {"repository": ""}}}),
        "no image is published",
    ),
    "no-host": (
        merged(GOOD, {"coordinator": {"hosts": {"coordinator": ""}}}),
        "goes into the server's certificate",
    ),
    "url-secret": (
        merged(GOOD, {"coordinator": {"database": {"kind": "postgresql"}}}),
        "never given as a value",
    ),
    "url-secret-for-sqlite": (
        merged(GOOD, {"coordinator": {"database": {"urlSecret": {"name": "a"}}}}),
        "are for coordinator.database.kind postgresql",
    ),
    "external-secret": (
        merged(
            GOOD, POSTGRESQL, {"coordinator": {"database": {"externalSecret": {"remoteKey": ""}}}}
        ),
        "needs store.name and remoteKey",
    ),
    "cert-manager": (
        merged(GOOD, {"coordinator": {"serverCertificate": {"certManager": {"enabled": True}}}}),
        "needs serverCertificate.secretName",
    ),
    "collector-without-address": (
        merged(GOOD, {"coordinator": {"tracing": {"headersSecret": {"name": "a"}}}}),
        "belong to a collector",
    ),
    "collector-without-tls": (
        merged(
            GOOD,
            TOLD,
            {"coordinator": {"config": {"monitoring": {"trace_endpoint": "http://c:4317"}}}},
        ),
        "by http no certificate is looked at",
    ),
    "two-webhooks": (
        merged(
            GOOD, TOLD, {"coordinator": {"config": {"monitoring": {"alert_webhook": "https://a"}}}}
        ),
        "both say where alerts go",
    ),
    "webhook-without-address": (
        merged(GOOD, {"coordinator": {"alertWebhook": {"peers": [{"namespace": "a"}]}}}),
        "belong to a receiver",
    ),
    "sidecar-behind-the-charts-gateway": (
        merged(COORDINATOR, TERMINATE, {"coordinator": {"gatewaySidecar": True}}),
        "every node would be refused",
    ),
    "backup-without-claim": (
        merged(GOOD, BACKUP, {"coordinator": {"backup": {"claim": ""}}}),
        "the PersistentVolumeClaim that backups go to",
    ),
    "backup-beside-what-it-is-of": (
        merged(
            GOOD,
            BACKUP,
            {
                "coordinator": {
                    "backup": {"claim": "data-fed-feddp-coordinator-0"},
                }
            },
        ),
        "is lost with it",
    ),
    "backup-on-the-given-claim": (
        merged(GOOD, BACKUP, {"coordinator": {"storage": {"existingClaim": "feddp-backups"}}}),
        "is lost with it",
    ),
    "backup-of-keys-in-the-clear": (
        merged(GOOD, BACKUP, {"coordinator": {"backup": {"passwordSecret": {"name": ""}}}}),
        "a backup that holds keys is always sealed",
    ),
    "restore-from-nowhere": (
        merged(GOOD, {"coordinator": {"restore": {"file": "one.backup"}}}),
        "the PersistentVolumeClaim that the backup lies on",
    ),
    "gateway-api-terminates": (
        merged(COORDINATOR, TERMINATE, {"istio": {"api": "gateway-api", "gateway": {"name": "a"}}}),
        "only an EnvoyFilter on Istio's own Gateway",
    ),
    "gateway-api-without-gateway": (
        merged(COORDINATOR, GATEWAY_API, {"istio": {"gateway": {"name": ""}}}),
        "to which the TLSRoutes attach",
    ),
    "gateway-for-istio": (
        merged(GOOD, {"istio": {"gateway": {"name": "a"}}}),
        "finds its pods by istio.gateway.selector",
    ),
    "grace": (
        merged(GOOD, {"coordinator": {"shutdown": {"preStopSeconds": 45}}}),
        "at least preStopSeconds and 20 more",
    ),
    "no-clients": (COORDINATOR, "keeps every node from the coordinator"),
    "agent-image": (
        merged(GOOD, AGENT, {"nodeAgent": {"image": {"digest": ""}}}),
        "nodeAgent.image.digest are both needed",
    ),
    "agent-token": (
        merged(GOOD, AGENT, {"nodeAgent": {"joinToken": {"secretName": ""}}}),
        "what the coordinator's operator sent",
    ),
    "agent-steward": (
        merged(GOOD, AGENT, {"nodeAgent": {"stewardConfigMap": ""}}),
        "without which nothing is allowed",
    ),
    "agent-proxy": (
        merged(GOOD, AGENT, {"nodeAgent": {"proxy": {"credentialsSecret": "a"}}}),
        "the proxy that they are for",
    ),
    "istio-alone": (
        merged(ISTIO, AGENT, {"coordinator": {"enabled": False}}),
        "no gateway leads to it",
    ),
    "one-name": (
        merged(GOOD, {"coordinator": {"hosts": {"enrolment": ""}}}),
        "one port for everything",
    ),
    "same-name": (
        merged(GOOD, {"coordinator": {"hosts": {"enrolment": "feddp.example"}}}),
        "must be another name",
    ),
    "terminate-without-key": (
        merged(COORDINATOR, TERMINATE, {"istio": {"gateway": {"credentialName": ""}}}),
        "which `feddp coordinator gateway` issues",
    ),
    "passthrough-with-key": (
        merged(GOOD, {"istio": {"gateway": {"credentialName": "a"}}}),
        "holds no key",
    ),
    "sidecar-and-terminate": (
        merged(COORDINATOR, TERMINATE, {"istio": {"sidecar": True}}),
        "for plain HTTP/2",
    ),
    "transfer-alone": (
        merged(GOOD, {"coordinator": {"hosts": {"transfer": "transfer.feddp.example"}}}),
        "as every pod serves from the store what another one has taken",
    ),
    "transfer-elsewhere": (
        merged(GOOD, REPLICAS, {"coordinator": {"hosts": {"transfer": "other.example"}}}),
        "must be a name under coordinator.hosts.coordinator",
    ),
    "autoscaling-without-transfer": (
        merged(GOOD, REPLICAS, {"coordinator": {"autoscaling": {"enabled": True}}}),
        "more of them carry no more",
    ),
    "autoscaling-to-no-more": (
        merged(GOOD, REPLICAS, TRANSFER, {"coordinator": {"autoscaling": {"maxReplicas": 3}}}),
        "must be above coordinator.replicas",
    ),
    "transfer-for-joining": (
        merged(
            GOOD, REPLICAS, TRANSFER, {"coordinator": {"hosts": {"transfer": "join.feddp.example"}}}
        ),
        "each name leads to one port",
    ),
    "transfer-as-the-first": (
        merged(GOOD, REPLICAS, TRANSFER, {"coordinator": {"hosts": {"transfer": "feddp.example"}}}),
        "must be a name under coordinator.hosts.coordinator",
    ),
    "an-address-for-the-gateway": (
        merged(GOOD, {"coordinator": {"hosts": {"coordinator": "192.0.2.1"}}}),
        "there no address stands",
    ),
    "a-short-name-for-the-gateway": (
        merged(GOOD, {"coordinator": {"hosts": {"coordinator": "feddp"}}}),
        "Istio takes no short name",
    ),
    "backups-on-another-pods-volume": (
        merged(
            GOOD,
            REPLICAS,
            BACKUP,
            {"coordinator": {"backup": {"claim": f"data-{RELEASE}-feddp-coordinator-2"}}},
        ),
        "a backup on the volume that it is of is lost with it",
    ),
    "nobody-may-read-what-prometheus-is-told-to": (
        merged(GOOD, WATCHED, {"networkPolicy": {"scrapers": []}}),
        "keeps Prometheus from what it is told to read",
    ),
    "another-port-of-the-store": (
        merged(GOOD, REPLICAS, {"coordinator": {"objectStore": {"port": 443, "peers": []}}}),
        "would keep the coordinator from its store",
    ),
    "another-port-of-the-receiver": (
        merged(
            GOOD,
            {"coordinator": {"config": {"monitoring": {"alert_webhook": "https://a:8443/x"}}}},
            {"coordinator": {"alertWebhook": {"port": 443, "peers": [{"cidr": "192.0.2.9/32"}]}}},
        ),
        "would keep alerts from their receiver",
    ),
    "restore-with-and-without": (
        merged(GOOD, RESTORE, {"coordinator": {"restore": {"withoutRevocations": True}}}),
        "contradict each other",
    ),
    "restore-of-replicas-without-their-files": (
        merged(GOOD, REPLICAS, BACKUP, {"coordinator": {"restore": {"file": "one.backup"}}}),
        "Take them before the pods end",
    ),
    "label-that-the-chart-sets": (
        merged(
            GOOD,
            {"monitoring": {"prometheusRule": {"labels": {"app.kubernetes.io/name": "x"}}}},
        ),
        "must leave out",
    ),
    "revocations-without-restore": (
        merged(GOOD, {"coordinator": {"restore": {"revocationsConfigMap": "feddp-revocations"}}}),
        "belong to coordinator.restore.file",
    ),
    "no-revocations-without-restore": (
        merged(GOOD, {"coordinator": {"restore": {"withoutRevocations": True}}}),
        "belong to coordinator.restore.file",
    ),
    "schedule-turned-round": (
        merged(GOOD, {"coordinator": {"backup": {"schedule": "15 09-2 * * *"}}}),
        "whose end is before its beginning",
    ),
    "renewed-before-it-begins": (
        merged(
            GOOD,
            POSTGRESQL,
            {"coordinator": {"serverCertificate": {"certManager": {"renewBefore": "2160h"}}}},
        ),
        "must be shorter than duration",
    ),
    "less-cpu-than-reserved": (
        merged(GOOD, {"coordinator": {"resources": {"requests": {"cpu": "2001m"}}}}),
        "resources.limits.cpu must be as much as",
    ),
    "less-memory-than-reserved": (
        merged(GOOD, {"coordinator": {"backup": {"resources": {"limits": {"memory": "511Mi"}}}}}),
        "resources.limits.memory must be as much as",
    ),
    "agent-with-less-than-reserved": (
        merged(GOOD, AGENT, {"nodeAgent": {"resources": {"limits": {"cpu": 0.5}}}}),
        "resources.limits.cpu must be as much as",
    ),
    "records-at-one-place": (
        merged(
            GOOD, AGENT, {"nodeAgent": {"records": [{"claim": c, "path": "/srv"} for c in "ab"]}}
        ),
        "names a path twice",
    ),
    "past-the-gateway": (
        merged(GOOD, {"coordinator": {"service": {"type": "LoadBalancer"}}}),
        "would go past the gateway",
    ),
}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("monitoring.prometheusRule.labels", "app.kubernetes.io/instance"),
        ("monitoring.serviceMonitor.labels", "helm.sh/chart"),
        ("monitoring.dashboards.labels", "app.kubernetes.io/managed-by"),
        ("coordinator.podAnnotations", "checksum/config"),
        ("coordinator.podAnnotations", "kubectl.kubernetes.io/default-container"),
        ("coordinator.podAnnotations", "proxy.istio.io/config"),
    ],
)
def test_what_the_chart_sets_itself_cannot_be_set_once_more(path: str, name: str) -> None:
    """It would stand there twice, which a server refuses without the value's name."""
    *above, last = path.split(".")
    given: Any = {last: {name: "x"}}
    for one in reversed(above):
        given = {one: given}
    sidecar = {"istio": {"enabled": True, "sidecar": True}}
    with pytest.raises(helm_python.HelmRenderError) as refused:
        render(merged(COORDINATOR, sidecar, WATCHED, given))
    assert f"{path} must leave out {name}: the chart sets it itself." in str(refused.value)
    other = str(given).replace(name, "own.example/name")
    assert objects(merged(COORDINATOR, sidecar, WATCHED, yaml.safe_load(other)))


@pytest.mark.parametrize("case", CLASHES)
def test_values_that_do_not_go_together_are_refused_with_the_reason(case: str) -> None:
    """Each has the form that the schema asks for; the chart says in a sentence why not."""
    values, reason = CLASHES[case]
    with pytest.raises(helm_python.HelmRenderError) as refused:
        render(values)
    text = str(refused.value)
    assert reason in text
    assert text.rstrip().endswith(".")


def test_every_reason_of_the_chart_is_reached_by_a_case() -> None:
    """Sentences in the checks' template that no case above provokes would be untested."""
    template = (CHART / "templates/_checks.tpl").read_text()
    said = re.findall(r'fail \(?(?:printf )?"([^"]+)"', template)
    reached = {one for one in said for _, reason in CLASHES.values() if reason in one}
    assert set(said) == reached


def test_a_latency_that_the_histogram_cannot_tell_is_refused() -> None:
    """Beyond its last bucket a quantile is said to be that bucket's end, and nothing would fire."""
    metrics = Metrics()
    metrics.request("/feddp.v1.Jobs/GetJob", "OK", 0.1)
    ends = {
        float(sample.labels["le"])
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "request_duration_seconds_bucket"
    }
    limit = schema_at(SCHEMA, ("monitoring", "prometheusRule", "latencySeconds"))
    assert limit["exclusiveMaximum"] == max(ends - {float("inf")})


def test_a_coordinator_behind_istio_needs_ten_lines() -> None:
    """What a platform engineer writes at least."""
    text = yaml.safe_dump(MATRIX["ten-lines"], sort_keys=False)
    assert len(text.splitlines()) <= 10
    kinds = {one["kind"] for one in objects(yaml.safe_load(text))}
    assert {"StatefulSet", "Gateway", "VirtualService", "NetworkPolicy"} <= kinds


def test_without_a_client_a_chart_without_network_policy_is_taken() -> None:
    """The check about clients is for the policy that would keep them out."""
    assert objects(merged(COORDINATOR, {"networkPolicy": {"enabled": False}}))
    assert objects(merged(COORDINATOR, CLIENTS))
