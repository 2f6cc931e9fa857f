"""Whatever the coordinator can be told, the chart can tell it, or says why not."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from coordinator.config.config import CoordinatorConfig
from tests.charts.pods import NAME
from tests.charts.rendering import (
    CHART,
    COORDINATOR,
    ISTIO,
    REPLICAS,
    STORE,
    TOLD,
    TRANSFER,
    Values,
    merged,
    named,
    objects,
)
from tests.charts.test_configuration import WEBHOOK, loaded

SCHEMA: Final[dict[str, Any]] = json.loads((CHART / "values.schema.json").read_text())

OWN_GATEWAY: Final[Values] = {
    "coordinator": {"gatewaySidecar": True},
    "networkPolicy": {"enabled": False},
}
OWN_CERTIFICATE: Final[Values] = {"coordinator": {"serverCertificate": {"secretName": "own"}}}

SET_BY_VALUES: Final[dict[str, Values]] = {
    "server.ssl_cert": merged(ISTIO, OWN_CERTIFICATE),
    "server.ssl_key": merged(ISTIO, OWN_CERTIFICATE),
    "server.public_host": ISTIO,
    "server.public_enrollment_host": ISTIO,
    "server.public_port": ISTIO,
    "server.public_enrollment_port": ISTIO,
    "server.gateway_sidecar": OWN_GATEWAY,
    "server.replica_host": merged(ISTIO, REPLICAS),
    "server.transfer_port": merged(ISTIO, REPLICAS, TRANSFER),
    "server.transfer_address": merged(ISTIO, REPLICAS, TRANSFER),
    "monitoring.trace_ca": merged(ISTIO, TOLD),
    "monitoring.alert_webhook_ca": merged(ISTIO, TOLD),
    "monitoring.alert_webhook_secret": merged(ISTIO, TOLD),
    "storage.database_url": merged(ISTIO, REPLICAS),
    "storage.blob_url": merged(ISTIO, STORE),
    "storage.blob_endpoint": merged(ISTIO, REPLICAS),
}
"""Settings that values other than `coordinator.config` make, and values that make one."""

NOT_SET: Final = {
    "server.host": "every address of the pod; who comes in, the network policy says",
    "server.port": "8443, which Services and gateways lead to",
    "server.enrollment_port": "8444, which Services and gateways lead to",
    "server.health_host": "every address of the pod, as probes come from outside",
    "server.health_port": "8080, which probes and Prometheus ask",
    "server.ssl_enabled": "it cannot be switched off",
    "storage.blob_dir": "on the pod's volume",
    "storage.pki_dir": "on the pod's volume",
    "storage.revocations_file": "on the pod's volume, apart from a database beside it",
    "federation.model_registry": "storage.blob_dir goes before it",
}
"""Settings that the chart's user cannot change, with the reason."""


def settings() -> set[str]:
    """Every key of coordinator.yaml."""
    return {
        f"{section}.{name}"
        for section, holder in CoordinatorConfig.model_fields.items()
        for name in holder.annotation.model_fields  # type: ignore[union-attr]
    }


def by_config() -> set[str]:
    """Those that `coordinator.config` takes."""
    sections = SCHEMA["properties"]["coordinator"]["properties"]["config"]["properties"]
    return {f"{section}.{name}" for section, one in sections.items() for name in one["properties"]}


def value_of(config: CoordinatorConfig, setting: str) -> Any:
    """What a configuration says."""
    section, _, name = setting.partition(".")
    return getattr(getattr(config, section), name)


def test_no_setting_is_out_of_reach_without_a_reason() -> None:
    """A new key of the configuration has a value in the chart, or a line above; each in one place
    alone."""
    places = [by_config(), set(SET_BY_VALUES), set(NOT_SET)]
    assert settings() == set.union(*places)
    assert sum(map(len, places)) == len(settings())


@pytest.mark.parametrize("setting", SET_BY_VALUES)
def test_a_value_of_the_chart_reaches_the_coordinator(setting: str, tmp_path: Path) -> None:
    """It is no longer what it is without."""
    plain = CoordinatorConfig()
    told = loaded(objects(merged(COORDINATOR, SET_BY_VALUES[setting])), tmp_path)
    assert value_of(told, setting) != value_of(plain, setting)


def test_files_that_are_told_are_mounted_where_they_are_told(tmp_path: Path) -> None:
    """Authorities of collector and receiver from ConfigMaps, what signs from a Secret; by the
    containers that read them, and not as single files, which would never change."""
    found = objects(merged(COORDINATOR, ISTIO, TOLD))
    monitoring = loaded(found, tmp_path).monitoring
    spec = named(found, "StatefulSet", NAME)["spec"]["template"]["spec"]
    volumes = {one["name"]: one for one in spec["volumes"]}
    wanted = {
        "trace_ca": ("configMap", "name", "collector-ca", "ca.crt"),
        "alert_webhook_ca": ("configMap", "name", "alerts-ca", "bundle.pem"),
        "alert_webhook_secret": ("secret", "secretName", "feddp-alerts", "signing"),
    }
    for container in (spec["initContainers"][1], spec["containers"][0]):
        for setting, (kind, key, name, item) in wanted.items():
            path: Path = getattr(monitoring, setting)
            (mount,) = [
                one
                for one in container["volumeMounts"]
                if Path(one["mountPath"]) == path.parent and "subPath" not in one
            ]
            source = volumes[mount["name"]][kind]
            assert source[key] == name
            assert source["items"] == [{"key": item, "path": path.name}]
            assert mount["readOnly"]


def test_what_holds_a_password_stands_in_no_configmap(tmp_path: Path) -> None:
    """The receiver's address and the collector's token come from their Secrets, to the coordinator
    and the check before it, and to nobody else."""
    found = objects(merged(COORDINATOR, ISTIO, TOLD))
    assert loaded(found, tmp_path).monitoring.alert_webhook == WEBHOOK
    text = named(found, "ConfigMap", NAME)["data"]["coordinator.yaml"]
    assert "alert_webhook:" not in text
    spec = named(found, "StatefulSet", NAME)["spec"]["template"]["spec"]
    secrets = {
        "FEDDP_MONITORING__ALERT_WEBHOOK": {"name": "feddp-alerts", "key": "url"},
        "OTEL_EXPORTER_OTLP_HEADERS": {"name": "collector", "key": "headers"},
    }
    for container in [*spec["initContainers"], *spec["containers"]]:
        seen = {
            one["name"]: one["valueFrom"]["secretKeyRef"]
            for one in container["env"]
            if one["name"] in secrets
        }
        assert seen == (secrets if container["name"] != "install" else {})


def test_alerts_and_traces_have_a_way_out_where_they_are_configured() -> None:
    """To where the values say, on the port of the address; else none."""

    def ways(values: Values) -> list[Any]:
        policy = named(objects(values), "NetworkPolicy", NAME)
        return list(policy["spec"].get("egress", []))

    assert ways(merged(COORDINATOR, ISTIO)) == []
    alerts, traces = ways(merged(COORDINATOR, ISTIO, TOLD))
    assert alerts == {
        "ports": [{"protocol": "TCP", "port": 8443}],
        "to": [{"ipBlock": {"cidr": "198.51.100.9/32"}}],
    }
    assert traces["ports"] == [{"protocol": "TCP", "port": 4317}]
    assert [set(one) for one in traces["to"]] == [{"namespaceSelector"}]
    monitoring = {"alert_webhook": "https://a.example/", "trace_endpoint": "http://c:55680"}
    config = {"coordinator": {"config": {"monitoring": monitoring}}}
    assert ways(merged(COORDINATOR, ISTIO, config)) == [
        {"ports": [{"protocol": "TCP", "port": 443}]},
        {"ports": [{"protocol": "TCP", "port": 55680}]},
    ]
