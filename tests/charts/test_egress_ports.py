"""The network policy lets out to the port that an address says, without its being said twice."""

from typing import Any

import pytest

from tests.charts.rendering import (
    AGENT,
    COORDINATOR,
    ISTIO,
    REPLICAS,
    STORE,
    TOLD,
    Values,
    merged,
    named,
    objects,
)


def ports_out(values: Values, name: str) -> set[int]:
    """The TCP ports that a component's policy lets it go out to."""
    rules: list[dict[str, Any]] = named(objects(values), "NetworkPolicy", name)["spec"]["egress"]
    return {one["port"] for rule in rules for one in rule["ports"]}


def with_endpoint(endpoint: str, port: int = 0) -> Values:
    """A coordinator with one store of objects, whose pods are named."""
    store = {"endpoint": endpoint, "port": port, "peers": [{"namespace": "storage"}]}
    return merged(COORDINATOR, ISTIO, STORE, {"coordinator": {"objectStore": store}})


@pytest.mark.parametrize(
    ("endpoint", "port", "wanted"),
    [
        ("", 0, 443),
        ("https://s3.example", 0, 443),
        ("http://s3.example", 0, 80),
        ("http://store:8333", 0, 8333),
        ("https://[2001:db8::1]", 0, 443),
        ("https://[2001:db8::1]:9000", 0, 9000),
        ("http://store:80", 8333, 8333),
    ],
)
def test_to_the_stores_port(endpoint: str, port: int, wanted: int) -> None:
    """Its address has it, or its scheme; a pod's may be another than its Service's."""
    assert ports_out(with_endpoint(endpoint, port), "fed-feddp-coordinator") == {wanted}


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("https://alerts.example/hook", 443),
        ("https://alerts.example:8443/hook:1", 8443),
        ("https://alerts.example:9443", 9443),
        ("https://alerts.example?room=a:1", 443),
        ("https://[2001:db8::1]:8443/hook", 8443),
    ],
)
def test_to_the_receivers_port(address: str, wanted: int) -> None:
    """That of the address, and nothing of its path."""
    told = {"coordinator": {"config": {"monitoring": {"alert_webhook": address}}}}
    assert ports_out(merged(COORDINATOR, ISTIO, told), "fed-feddp-coordinator") == {wanted}


def test_to_a_receiver_that_a_secret_names() -> None:
    """What it says is not known here: the given port, or 443."""
    secret = {"coordinator": {"alertWebhook": {"urlSecret": {"name": "alerts"}}}}
    assert ports_out(merged(COORDINATOR, ISTIO, secret), "fed-feddp-coordinator") == {443}
    assert ports_out(merged(COORDINATOR, ISTIO, TOLD), "fed-feddp-coordinator") == {8443, 4317}


@pytest.mark.parametrize(
    ("agent", "wanted"),
    [
        ({}, {443}),
        ({"egress": {"ports": [8443, 8444]}}, {8443, 8444}),
        ({"proxy": {"url": "http://proxy.example:3128"}}, {3128}),
        ({"proxy": {"url": "http://proxy.example:3128"}, "egress": {"ports": [443]}}, {443, 3128}),
        ({"proxy": {"url": "http://p:3128"}, "egress": {"ports": [3128]}}, {3128}),
    ],
)
def test_an_agent_gets_to_its_proxy(agent: Values, wanted: set[int]) -> None:
    """Whatever the ports of the coordinator are."""
    values = merged({"coordinator": {"enabled": False}}, AGENT, {"nodeAgent": agent})
    assert ports_out(values, "fed-feddp-agent") == wanted


def test_a_port_of_a_pod_may_be_another_than_the_addresss() -> None:
    """The policy sees the pod; what is outside has the port of its address (tests of values)."""
    values = merged(COORDINATOR, ISTIO, REPLICAS, {"coordinator": {"objectStore": {"port": 9000}}})
    assert 9000 in ports_out(values, "fed-feddp-coordinator")
