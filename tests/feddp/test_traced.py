"""A command as a trace: shown where a collector is named, and never in the way."""

import sys

import pytest

from feddp.cli.traced import ENDPOINTS, traced
from protos import tracing
from tests.otlp_receiver import receiver


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)


def test_without_a_collector_there_is_no_trace() -> None:
    """And nothing to show."""
    with traced("submit") as trace:
        assert not tracing.is_on()
    assert trace.trace_id == ""


@pytest.mark.parametrize("variable", ENDPOINTS)
def test_its_trace_is_sent_before_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """With what was known at its end; the calls inside carry it."""
    with receiver() as collector:
        monkeypatch.setenv(variable, f"http://{collector.address}")
        with traced("submit") as trace:
            ((_, said),) = tracing.metadata()
            trace.about["job_id"] = "j1"
        (span,) = collector.spans
    assert (span.name, span.service, span["job_id"]) == ("submit", "feddp", "j1")
    assert said == f"00-{trace.trace_id}-{span.span_id}-01"
    assert not tracing.is_on()


def test_a_command_that_fails_leaves_a_failed_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is what it was."""
    with receiver() as collector:
        monkeypatch.setenv(ENDPOINTS[0], f"http://{collector.address}")
        with pytest.raises(KeyError), traced("submit"):
            raise KeyError
        (span,) = collector.spans
    assert span.failed


def test_without_opentelemetry_a_command_does_its_work_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr."""
    monkeypatch.setenv(ENDPOINTS[1], "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with traced("submit") as trace:
        assert trace.trace_id == ""
    assert "pip install 'feddp[otel]'" in capsys.readouterr().err
