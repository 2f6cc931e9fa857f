"""Alerts and scraping by what the coordinator really shows."""

import re
from typing import Any

import yaml
from google.protobuf.descriptor import FileDescriptor
from prometheus_client.parser import text_string_to_metric_families

from charts.dashboards import operational
from coordinator.observing import metrics
from tests.charts.rendering import CHART, MATRIX, NAMESPACE, merged, named, objects, of
from tests.observing.busy import busy, text_of

PLAIN: dict[str, Any] = yaml.safe_load((CHART / "rules/feddp.yaml").read_text())


def rules() -> dict[str, dict[str, Any]]:
    """The chart's alerts by name."""
    (group,) = named(of("passthrough"), "PrometheusRule")["spec"]["groups"]
    return {one["alert"]: one for one in group["rules"]}


def shown() -> dict[str, set[str]]:
    """Sample's name -> its labels, of a coordinator that has done one of everything."""
    found: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(text_of(busy())):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


WORDS = {
    *("absent", "histogram_quantile", "sum", "min", "max", "rate", "time", "scalar", "by"),
    *("job", "namespace", "instance", "le", "node", "dataset", "reason", "holder"),
}
FROM_PROMETHEUS = {"job", "namespace"}


def test_alerts_ask_for_what_the_coordinator_shows() -> None:
    """Every name in every expression is a sample of /metrics, every label one that it has."""
    known = shown()
    for name, rule in rules().items():
        expression = re.sub(r'"[^"]*"', '""', rule["expr"])
        selectors = re.findall(r"([a-z_]+)\{([^}]*)\}", expression)
        assert selectors, name
        for sample, matchers in selectors:
            assert sample in known, sample
            labels = set(re.findall(r"([a-z_]+)\s*(?:=|!)", matchers))
            assert labels <= known[sample] | FROM_PROMETHEUS, labels
        words = set(re.findall(r"[a-z_]{2,}", re.sub(r"\{[^}]*\}|\[\w+\]", "", expression)))
        assert words <= WORDS | known.keys(), words


def test_the_guides_alerts_have_its_names_limits_and_times() -> None:
    """HighLatency 1 s for 5 min, PrivacyBudgetExhausted 0.1 for 1 min, NodeUnhealthy 0 for 2."""
    guides = ("HighLatency", "PrivacyBudgetExhausted", "NodeUnhealthy")
    assert {
        name: (rule["expr"].rsplit(" ", 2)[-2:], rule["for"], rule["labels"]["severity"])
        for name, rule in rules().items()
        if name in guides
    } == {
        "HighLatency": ([">", "1"], "5m", "warning"),
        "PrivacyBudgetExhausted": (["<", "0.1"], "1m", "critical"),
        "NodeUnhealthy": (["==", "0"], "2m", "critical"),
    }


def test_the_charts_alerts_are_the_files_but_for_the_release() -> None:
    """Prometheus can load rules/feddp.yaml as it is; the chart says which release it asks for."""
    release = f'job="fed-feddp-coordinator-metrics",namespace="{NAMESPACE}"'
    (plain,) = PLAIN["groups"]
    expected = {
        one["alert"]: one | {"expr": one["expr"].replace('job="feddp-coordinator"', release)}
        for one in plain["rules"]
    }
    assert list(rules().items()) == list(expected.items())


def test_limits_and_runbooks_of_the_alerts_can_be_set() -> None:
    """Two numbers, in these two alerts alone; and where the pages of all of them are published."""
    settings = {"latencySeconds": 2.5, "budgetRemaining": 0.25, "runbookUrl": "https://wiki/feddp"}
    values = merged(MATRIX["passthrough"], {"monitoring": {"prometheusRule": settings}})
    (group,) = named(objects(values), "PrometheusRule")["spec"]["groups"]
    changed = {one["alert"]: one for one in group["rules"]}
    before = rules()
    assert {name for name in before if changed[name]["expr"] != before[name]["expr"]} == {
        "HighLatency",
        "PrivacyBudgetExhausted",
    }
    assert changed["HighLatency"]["expr"].endswith(" > 2.5")
    assert changed["PrivacyBudgetExhausted"]["expr"].endswith(" < 0.25")
    for name, rule in changed.items():
        assert rule["annotations"]["runbook_url"] == f"https://wiki/feddp/{name}.md"
        assert "runbook_url" not in before[name]["annotations"]


def test_dashboards_are_config_maps_that_the_side_car_finds() -> None:
    """One for each file, byte for byte, with the side-car's label and folder; none by default."""
    boards = {path.name: path.read_text() for path in (CHART / "dashboards").glob("*.json")}
    assert len(boards) == 5
    found = [one for one in of("dashboards") if "grafana_dashboard" in _labels(one)]
    assert {name: text for one in found for name, text in one["data"].items()} == {
        f"feddp-{name}": text for name, text in boards.items()
    }
    for one in found:
        assert (one["kind"], _labels(one)["grafana_dashboard"]) == ("ConfigMap", "1")
        assert one["metadata"]["annotations"] == {"grafana_folder": "feddp"}
    assert not [one for one in of("ten-lines") if "grafana_dashboard" in _labels(one)]


def _labels(one: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = one["metadata"].get("labels", {})
    return labels


def test_latency_is_that_of_every_short_call_and_of_no_stream() -> None:
    """A stream lasts as long as a session or a transfer; its end would be an alarm."""
    expression = rules()["HighLatency"]["expr"]
    (left_out,) = re.findall(r'method!~"([^"]+)"', expression)
    files: tuple[FileDescriptor, ...] = metrics._FILES
    streams = {
        f"{service.name}/{method.name}"
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
        if method.client_streaming or method.server_streaming
    }
    assert {one for one in metrics.METHODS if re.fullmatch(left_out, one)} == streams
    assert left_out == operational.STREAMS


def test_prometheus_finds_the_port_and_the_alerts_find_what_it_scrapes() -> None:
    """ServiceMonitor, Service and the alerts' job and namespace say the same."""
    found = of("passthrough")
    monitor = named(found, "ServiceMonitor")["spec"]
    chosen = [
        one
        for one in found
        if one["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    ]
    (service,) = chosen
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {one["name"] for one in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    for rule in rules().values():
        # The Prometheus operator gives a target the name of its Service as `job`.
        assert f'job="{service["metadata"]["name"]}"' in rule["expr"]
        assert f'namespace="{NAMESPACE}"' in rule["expr"]
