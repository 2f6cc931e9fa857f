"""The gate before a start looks at what traces need."""

import sys
from pathlib import Path

import pytest
import yaml

from coordinator.checking.check import check
from coordinator.installation import init
from protos import otlp
from protos.errors import Malformed


def test_traces_without_opentelemetry_are_an_error_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the start would say; nothing is said where it is installed."""
    made = init(tmp_path / "c", "test.example", host="127.0.0.1")
    settings = yaml.safe_load(made.config.read_text())
    settings["monitoring"] = {"trace_endpoint": "https://localhost:4317"}
    made.config.write_text(yaml.safe_dump(settings))

    def errors() -> dict[str, str]:
        return {one.subject: one.text for one in check(made.config) if one.level == "error"}

    assert "monitoring.trace_endpoint" not in errors()
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert errors()["monitoring.trace_endpoint"] == otlp.MISSING


@pytest.mark.parametrize("kept", ["missing", "junk"])
def test_a_file_that_vouches_for_no_collector_is_an_error_of_check_and_start(
    tmp_path: Path, kept: str
) -> None:
    """In the same words: with junk no span would ever arrive, and nobody would be told."""
    made = init(tmp_path / "c", "test.example", host="127.0.0.1")
    file = tmp_path / "ca.pem"
    if kept == "junk":
        file.write_text("no certificate")
    settings = yaml.safe_load(made.config.read_text())
    settings["monitoring"] = {"trace_ca": str(file)}
    made.config.write_text(yaml.safe_dump(settings))
    assert [one for one in check(made.config) if one.level == "error"] == []
    settings["monitoring"]["trace_endpoint"] = "https://localhost:4317"
    made.config.write_text(yaml.safe_dump(settings))
    [told] = [one for one in check(made.config) if one.subject == "monitoring.trace_ca"]
    assert told.level == "error"
    with pytest.raises(Malformed) as refused:
        otlp.begin("feddp-coordinator", "https://localhost:4317", ca_file=file)
    assert (refused.value.reason, refused.value.message) == ("TRACING_INVALID", told.text)
