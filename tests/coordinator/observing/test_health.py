"""Probes and metrics over real HTTP on loopback."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from coordinator.observing.health import HealthServer
from coordinator.observing.metrics import METHODS, Metrics
from protos.errors import Malformed


class Checks:
    """What the coordinator would say about itself."""

    def __init__(self) -> None:
        self.answer: dict[str, bool] | Exception = {"database": True}

    def __call__(self) -> dict[str, bool]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def checks() -> Checks:
    return Checks()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def server(checks: Checks, metrics: Metrics) -> Iterator[HealthServer]:
    """Listening on a free port."""
    health = HealthServer("127.0.0.1", 0, checks, metrics.registry)
    health.start()
    yield health
    health.stop()


def ask(server: HealthServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Status and body."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_health_is_200_whatever_readiness_says(server, checks):
    """The process lives: restarting it would mend nothing."""
    checks.answer = {"database": False}
    assert ask(server, "/health") == (200, b'{"status": "alive"}\n')


def test_ready_follows_every_check(server, checks):
    """503 while one of them fails, and the body says which."""
    assert ask(server, "/ready")[0] == 200
    checks.answer = {"database": True, "draining": False}
    status, body = ask(server, "/ready")
    assert status == 503
    assert json.loads(body) == {"ready": False, "checks": {"database": True, "draining": False}}


def test_a_check_that_raises_is_not_ready_and_tells_no_secret(server, checks):
    """An exception's words stay inside."""
    checks.answer = RuntimeError("password is hunter2")
    status, body = ask(server, "/ready")
    assert status == 503
    assert b"hunter2" not in body


def test_metrics_are_prometheus_text(server, metrics):
    """Names that the alerts of the deployment guide use."""
    metrics.request("/feddp.v1.Jobs/GetJob", "OK", 0.2)
    metrics.budget("va", "heart", 10.0, 2.5)
    metrics.budget("cleveland", "heart", 10.0, None)
    metrics.node_health("va", False)
    status, body = ask(server, "/metrics")
    assert status == 200
    text = body.decode()
    assert 'request_duration_seconds_count{code="OK",method="Jobs/GetJob"} 1.0' in text
    assert 'privacy_budget_remaining{dataset="heart",node="va"} 7.5' in text
    assert 'privacy_budget_remaining{dataset="heart",node="cleveland"} 0.0' in text
    assert 'federated_node_health{node="va"} 0.0' in text
    (said,) = [line for line in text.splitlines() if "HELP privacy_budget_remaining" in line]
    assert "minus the booked epsilon" in said
    assert "running" not in said, "that is another figure"


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics/", "/../etc/passwd"])
def test_every_other_path_is_404(server, path):
    """There is nothing else here."""
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_only_get_and_head_are_answered(server, method, path):
    """Nothing here can be changed."""
    assert ask(server, path, method)[0] == 405


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_head_has_no_body(server, path):
    """As HTTP has it."""
    assert ask(server, path, "HEAD") == (200, b"")


def test_a_client_that_sends_nothing_blocks_nobody(server):
    """Each connection has its own thread."""
    with closing(socket.create_connection(("127.0.0.1", server.port))):
        assert ask(server, "/health")[0] == 200


def test_a_port_in_use_says_which_and_what_to_do(server, checks, metrics):
    """The most common reason why a start fails."""
    second = HealthServer("127.0.0.1", server.port, checks, metrics.registry)
    with pytest.raises(Malformed, match=rf"port {server.port} .*server\.health_port") as caught:
        second.start()
    assert caught.value.reason == "PORT_IN_USE"


def test_an_address_of_another_machine_is_refused(checks, metrics):
    """192.0.2.0/24 is for documentation and never ours."""
    with pytest.raises(Malformed) as caught:
        HealthServer("192.0.2.1", 0, checks, metrics.registry).start()
    assert caught.value.reason == "ADDRESS_INVALID"


def test_stopping_frees_the_port(checks, metrics):
    """A restart on the same port works at once, and stopping twice is no error."""
    first = HealthServer("127.0.0.1", 0, checks, metrics.registry)
    first.start()
    ask(first, "/health")
    first.stop()
    first.stop()
    second = HealthServer("127.0.0.1", first.port, checks, metrics.registry)
    second.start()
    assert ask(second, "/health")[0] == 200
    second.stop()


def test_a_made_up_method_gets_no_label_of_its_own(server, metrics):
    """Strangers cannot grow our memory by calling random paths."""
    for number in range(50):
        metrics.request(f"/evil.Service/M{number}", "UNIMPLEMENTED", 0.1)
    text = ask(server, "/metrics")[1].decode()
    assert "evil" not in text
    assert 'request_duration_seconds_count{code="UNIMPLEMENTED",method="other"} 50.0' in text
    assert "Federation/SubmitUpdate" in METHODS


def test_a_node_that_left_is_not_reported_for_ever(server, metrics):
    """Otherwise its alert never ends."""
    metrics.node_health("va", False)
    metrics.budget("va", "heart", 10.0, 1.0)
    metrics.forget_node("va")
    assert b'node="va"' not in ask(server, "/metrics")[1]
