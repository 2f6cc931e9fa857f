"""Logs of every process: JSON lines for machines, readable lines for a terminal, to stderr.

What an exception of a foreign library says may hold a value from data (a failed cast names the
cell). So an exception is logged by its class and the places that it passed; its message only when
it is one of our own errors, whose messages are written to be seen.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from protos.errors import FeddpError, InvariantBroken, Malformed
from protos.tracing import log_ids

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
FORMATS = {"auto": None, "json": True, "text": False}
_FRAMES_MAX = 30
_CHATTY = ("alembic", "asyncio", "grpc", "sqlalchemy", "py.warnings")
"""Libraries whose INFO lines are of no use to an operator."""


def configure_logging(level: str, *, json: bool | None = None) -> None:
    """Send everything that is logged in this process to stderr; may be called again.

    Args:
        level: one of `LEVELS`, any case.
        json: JSON lines; by default exactly when stderr is not a terminal.

    Raises:
        Malformed: LOG_LEVEL_INVALID.
    """
    name = level.upper()
    if name not in LEVELS:
        raise Malformed("LOG_LEVEL_INVALID", f"the log level must be one of {', '.join(LEVELS)}")
    as_json = not sys.stderr.isatty() if json is None else json
    number = logging.getLevelName(name)
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        log_ids,
        _without_foreign_words,
    ]
    end = _end(as_json)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *end],
        )
    )
    root = logging.getLogger()
    for old in [kept for kept in root.handlers if getattr(kept, "feddp", False)]:
        root.removeHandler(old)
    handler.feddp = True  # type: ignore[attr-defined]  # marks ours for the next call
    root.addHandler(handler)
    root.setLevel(number)
    for library in _CHATTY:
        logging.getLogger(library).setLevel(number if name == "DEBUG" else logging.WARNING)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, *end],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_Lines,
        cache_logger_on_first_use=False,
    )


def json_asked(log_format: str) -> bool | None:
    """What a log format means for `configure_logging`.

    Raises:
        Malformed: LOG_FORMAT_INVALID.
    """
    if log_format not in FORMATS:
        raise Malformed("LOG_FORMAT_INVALID", f"the log format must be one of {', '.join(FORMATS)}")
    return FORMATS[log_format]


class _Lines:
    """Writes finished lines to stderr, each whole, from any thread.

    Our own lines do not pass through `logging`, which costs as much as everything else about them.

    Attributes:
        name: of the module that logs.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self, name: str = "feddp") -> None:
        self.name = name

    def msg(self, line: str) -> None:
        """Write one line."""
        with self._one_at_a_time:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = msg


def _end(as_json: bool) -> list[Any]:
    if as_json:
        return [structlog.processors.JSONRenderer(default=_class_of)]
    return [_exception_as_text, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]


def _without_foreign_words(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace exceptions, wherever they stand in the event, by what may be told of them."""
    error = _exception_of(event.pop("exc_info", None))
    event.pop("stack_info", None)
    for field, value in event.items():
        if isinstance(value, BaseException) and not field.startswith("_"):
            event[field] = _told(value)
    if error is not None:
        event["event"] = _purged(str(event.get("event", "")), error)
        event["exception"] = [_described(each) for each in _chain(error)]
    return event


def _exception_of(given: object) -> BaseException | None:
    if isinstance(given, BaseException):
        return given
    if isinstance(given, tuple):
        return given[1] if isinstance(given[1], BaseException) else None
    return sys.exc_info()[1] if given else None


def _purged(text: str, error: BaseException) -> str:
    """`text` without the exception's message, which some libraries format into theirs."""
    for each in _chain(error):
        if not isinstance(each, (FeddpError, InvariantBroken)):
            for words in (repr(each), str(each)):
                if words:
                    text = text.replace(words, f"<{type(each).__name__}>")
    return text


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _described(error: BaseException) -> dict[str, object]:
    told: dict[str, object] = {"class": f"{type(error).__module__}.{type(error).__qualname__}"}
    if isinstance(error, FeddpError):
        told["reason"] = error.reason
    if isinstance(error, (FeddpError, InvariantBroken)):
        told["message"] = str(error)
    return told | {"frames": _frames(error.__traceback__)}


def _frames(trace: TracebackType | None) -> list[str]:
    """`file:line function`, innermost last; the source line stays out, it may hold literals."""
    summary = traceback.StackSummary.extract(traceback.walk_tb(trace), lookup_lines=False)
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in summary]
    return places[-_FRAMES_MAX:]


def _told(error: BaseException) -> str:
    if isinstance(error, (FeddpError, InvariantBroken)):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__


def _class_of(value: object) -> str:
    """Stands for a field that JSON cannot hold; its `repr` might show data."""
    return f"<{type(value).__name__}>"


def _exception_as_text(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    chain = event.pop("exception", None)
    if chain:
        lines = []
        for each in chain:
            lines.append(": ".join(str(each[k]) for k in ("class", "message") if k in each))
            lines += [f"    {place}" for place in each["frames"]]
        event["exception"] = "\n".join(lines)
    return event
