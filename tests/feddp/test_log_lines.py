"""Log lines: machine-readable, in UTC, and without what foreign exceptions say."""

import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from feddp.logging import configure_logging
from protos.errors import BudgetRefused, Malformed

CELL = "could not convert string to float: 'HIV positive'"


class Stderr:
    """What was written to stderr since the test began."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._read = ""

    def getvalue(self) -> str:
        out, err = self._capsys.readouterr()
        assert out == "", "stdout belongs to results"
        self._read += err
        return self._read


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Stderr]:
    """Logging is put back as it was afterwards."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield Stderr(capsys)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(stream: Stderr) -> list[dict[str, object]]:
    """The JSON lines written so far."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail() -> None:
    """As a library that meets a bad cell does."""
    row = ["HIV positive"]
    raise ValueError(f"could not convert string to float: {row[0]!r}")


def test_a_line_is_json_with_its_fields_when_stderr_is_no_terminal(stderr):
    """Level, logger, UTC time, and job, round and node as fields."""
    configure_logging("info")
    structlog.get_logger("coordinator.x").info("round_published", job_id="j1", round=3, node="va")
    (line,) = lines(stderr)
    assert {key: line[key] for key in ("event", "level", "logger", "job_id", "round", "node")} == {
        "event": "round_published",
        "level": "info",
        "logger": "coordinator.x",
        "job_id": "j1",
        "round": 3,
        "node": "va",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", str(line["timestamp"]))


def test_a_line_is_readable_when_asked(stderr):
    """For people at a terminal."""
    configure_logging("INFO", json=False)
    structlog.get_logger("x").info("round_published", round=3)
    (line,) = stderr.getvalue().splitlines()
    assert "round_published" in line
    assert "round=3" in line
    with pytest.raises(json.JSONDecodeError):
        json.loads(line)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
@pytest.mark.parametrize("source", ["ours", "library"])
def test_a_foreign_exception_is_logged_without_its_words(stderr, as_json, level, source):
    """Its class and where it passed are enough to find the fault; its message may be data."""
    configure_logging(level, json=as_json)
    try:
        fail()
    except ValueError as error:
        if source == "ours":
            structlog.get_logger("x").exception("worker_failed")
        else:
            logging.getLogger("grpc").exception("Exception calling application: %s", error)
    text = stderr.getvalue()
    assert "HIV" not in text
    assert "ValueError" in text
    assert "test_log_lines.py" in text
    assert " fail" in text


def test_causes_are_told_too_and_still_without_words(stderr):
    """`raise ... from` keeps both classes and neither message."""
    configure_logging("INFO")
    try:
        try:
            fail()
        except ValueError as error:
            raise RuntimeError(f"in column diagnosis: {error}") from error
    except RuntimeError:
        structlog.get_logger("x").exception("worker_failed")
    (line,) = lines(stderr)
    told = [each["class"] for each in line["exception"]]
    assert told == ["builtins.RuntimeError", "builtins.ValueError"]
    assert "HIV" not in stderr.getvalue()
    assert "diagnosis" not in stderr.getvalue()


def test_our_own_errors_keep_their_words(stderr):
    """They are written to be seen."""
    configure_logging("INFO")
    try:
        raise BudgetRefused("BUDGET_REFUSED", "account va/patients has 3 of 10 left")
    except BudgetRefused as error:
        structlog.get_logger("x").exception("refused", cause=error)
    (line,) = lines(stderr)
    assert line["exception"][0]["message"] == "account va/patients has 3 of 10 left"
    assert line["exception"][0]["reason"] == "BUDGET_REFUSED"
    assert line["cause"] == "BudgetRefused: account va/patients has 3 of 10 left"


def test_an_exception_as_a_field_is_its_class(stderr):
    """`error=error` is the usual way in which a message slips out."""
    configure_logging("INFO")
    structlog.get_logger("x").warning(
        "failed", error=ValueError(CELL), other={"e": ValueError(CELL)}
    )
    (line,) = lines(stderr)
    assert line["error"] == "ValueError"
    assert "HIV" not in stderr.getvalue()


def test_the_level_is_kept_by_our_loggers_and_by_libraries(stderr):
    """INFO of a library is of no use to an operator; its warnings are."""
    configure_logging("INFO")
    structlog.get_logger("x").debug("hidden")
    logging.getLogger("alembic.runtime").info("hidden")
    logging.getLogger("alembic.runtime").warning("shown %d", 1)
    assert [line["event"] for line in lines(stderr)] == ["shown 1"]


def test_configuring_twice_does_not_double_lines(stderr):
    """A command may configure before and after it has read its file."""
    configure_logging("INFO")
    configure_logging("WARNING")
    structlog.get_logger("x").warning("once")
    structlog.get_logger("x").info("hidden")
    assert [line["event"] for line in lines(stderr)] == ["once"]


def test_an_unknown_level_is_refused():
    """With the levels that exist."""
    with pytest.raises(Malformed, match="DEBUG, INFO, WARNING, ERROR"):
        configure_logging("LOUD")
