"""Alerts and scraping by what the coordinator really shows."""

import re
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from coordinator import metrics
from coordinator.metrics import Metrics
from tests.charts.rendering import NAMESPACE, named, of


def rules() -> dict[str, dict[str, Any]]:
    """The chart's alerts by name."""
    (group,) = named(of("passthrough"), "PrometheusRule")["spec"]["groups"]
    return {one["alert"]: one for one in group["rules"]}


def shown() -> dict[str, set[str]]:
    """Sample's name -> its labels, of a coordinator that has done one of everything."""
    one = Metrics()
    one.request("/feddp.v1.Jobs/ListJobs", "OK", 0.1)
    one.budget("alpha", "cohort", 2.0, 1.0)
    one.node_health("alpha", True)
    text = generate_latest(one.registry).decode()
    found: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


FUNCTIONS = {"absent", "histogram_quantile", "sum", "rate", "by", "le"}
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
        assert words <= FUNCTIONS | known.keys(), words


def test_the_guides_alerts_have_its_names_limits_and_times() -> None:
    """HighLatency 1 s for 5 min, PrivacyBudgetExhausted 0.1 for 1 min, NodeUnhealthy 0 for 2."""
    found = rules()
    assert {
        name: (rule["expr"].rsplit(" ", 2)[-2:], rule["for"], rule["labels"]["severity"])
        for name, rule in found.items()
        if name != "CoordinatorDown"
    } == {
        "HighLatency": ([">", "1"], "5m", "warning"),
        "PrivacyBudgetExhausted": (["<", "0.1"], "1m", "critical"),
        "NodeUnhealthy": (["==", "0"], "2m", "critical"),
    }


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
