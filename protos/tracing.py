"""Spans: when which process did what for a round, for whoever follows it across machines.

Off unless `begin` was called, and then nothing of OpenTelemetry is loaded. A span tells who did
what and when, never anything of records: its name and its attributes' names are of the closed
lists below, an error is a mark without words, and what happens in a hospital between the opening
of data and the moment that was fixed for the outcome is no span by itself (docs/tracing.md).

A round's trace and the spans that others hang theirs on have ids that follow from the job and the
round, so that nothing is kept for them: after a restart, or at another replica, the trace goes on.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from blake3 import blake3

from protos.errors import invariant

HEADER: Final = "traceparent"
"""The metadata key of W3C Trace Context."""

NAMES: Final = {
    "round": "coordinator: one round of a job, from its beginning to its model",
    "reserving": "coordinator: the ledger is asked for each hospital",
    "training": "coordinator: hospitals work",
    "aggregating": "coordinator: updates are averaged",
    "publishing": "coordinator: the model is listed",
    "order": "coordinator: one attempt, from the order to its end",
    "fold": "coordinator: the work of averaging",
    "publish": "coordinator: the work of listing the model and writing the job's answer",
    "receive": "coordinator: one range of an update is taken",
    "take": "coordinator: an update is checked and booked",
    "start": "coordinator: a job is checked and begun",
    "submit": "command: a job is checked, its model uploaded, the job handed in",
    "attempt": "agent: one attempt, from the order to its end",
    "admission": "agent: policy and ledger are asked",
    "download": "agent: the round's model is fetched",
    "prepare": "agent: a worker is made ready, before any data is open",
    "release": "agent: from the opening of the data to the moment that was fixed for the outcome",
    "upload": "agent: the update is handed in",
    "work": "agent: the worker's answer is waited for (only with `times_of_work`)",
    "spool": "agent: the update is made durable and booked (only with `times_of_work`)",
    "worker.check": "worker: the model is read and the work rehearsed on made-up records",
    "worker.train": "worker: records are read and trained on (only with `times_of_work`)",
}
"""Every name that a span may have, with whose it is."""

ATTRIBUTES: Final = frozenset({"job_id", "round", "node", "attempt_id", "outcome"})
"""Every attribute that a span may have; each is known to whoever may see the job."""

_FORM: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a span stands.

    Attributes:
        sampled: whether the trace is exported at all.
    """

    trace_id: int
    span_id: int
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """As W3C Trace Context writes it."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.sampled:02x}"

    def named(self, *names: object) -> "Place":
        """The place of a span in this trace, the same for the same names."""
        return Place(self.trace_id, _number(8, "span", f"{self.trace_id:x}", *names), self.sampled)

    def child(self) -> "Place":
        """A new place in this trace."""
        return Place(self.trace_id, secrets.randbits(64) or 1, self.sampled)


@dataclass(frozen=True, slots=True)
class Finished:
    """A span that is over, as it is exported.

    Attributes:
        links: places in other processes that it has to do with.
    """

    name: str
    place: Place
    parent: Place | None
    start_s: float
    end_s: float
    failed: bool
    links: tuple[Place, ...]
    attributes: dict[str, str | int]


@dataclass(slots=True)
class _Process:
    """What this process does with spans.

    Attributes:
        ratio: of new traces that are sampled.
    """

    export: Callable[[Finished], None] | None = None
    close: Callable[[], None] = field(default=lambda: None)
    ratio: float = 1.0


_process = _Process()
_here: ContextVar[Place | None] = ContextVar("place", default=None)


def parse(text: str) -> Place | None:
    """The place that a `traceparent` names; None for one that is none."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    trace_id, span_id = int(found[1], 16), int(found[2], 16)
    return Place(trace_id, span_id, bool(int(found[3], 16) & 1)) if trace_id and span_id else None


def begin(
    export: Callable[[Finished], None], close: Callable[[], None], ratio: float = 1.0
) -> None:
    """Export spans of this process from now on; see `protos.otlp.begin`."""
    _process.export, _process.close, _process.ratio = export, close, ratio


def end() -> None:
    """Send what is left, within a bounded time, and export no more."""
    close = _process.close
    _process.export, _process.close, _process.ratio = None, _nothing, 1.0
    close()


def is_on() -> bool:
    """Whether spans are exported."""
    return _process.export is not None


def here() -> Place | None:
    """The span in which this is called."""
    return _here.get()


def metadata() -> tuple[tuple[str, str], ...]:
    """What a call says of the span in which it is made."""
    place = _here.get()
    return () if place is None else ((HEADER, place.traceparent),)


def of_round(job_id: str, number: int, again: int) -> Place | None:
    """The place of a round's first span; None if spans are not exported.

    Args:
        again: how many rounds of the job were cut off and begun anew.
    """
    if not is_on():
        return None
    trace_id = _number(16, "round", job_id, number, again)
    return Place(trace_id, _number(8, "root", f"{trace_id:x}"), _is_sampled(trace_id))


def new_trace() -> Place | None:
    """The place of the first span of a trace; None if spans are not exported."""
    if not is_on():
        return None
    trace_id = secrets.randbits(128) or 1
    return Place(trace_id, secrets.randbits(64) or 1, _is_sampled(trace_id))


def record(
    name: str,
    place: Place | None,
    parent: Place | None,
    times_s: tuple[float, float],
    about: Mapping[str, str | int],
    *,
    failed: bool = False,
    links: Sequence[Place] = (),
) -> None:
    """Export a span that is over. Never waits, and never raises but for a name that is on no list.

    Args:
        times_s: its beginning and its end, since the epoch.
        about: its attributes.
    """
    export = _process.export
    if export is None or place is None or not place.sampled:
        return
    invariant(name in NAMES, f"no span is called {name}")
    invariant(about.keys() <= ATTRIBUTES, "a span has an attribute that is on no list")
    start_s, end_s = times_s
    end_s = max(start_s, end_s)
    export(Finished(name, place, parent, start_s, end_s, failed, tuple(links), dict(about)))


@contextmanager
def within(place: Place | None) -> Iterator[Place | None]:
    """Log lines inside say this span, which somebody else records; None for none."""
    token = _here.set(place)
    try:
        yield place
    finally:
        _here.reset(token)


@contextmanager
def span(
    name: str,
    parent: Place | None,
    about: Mapping[str, str | int],
    *,
    place: Place | None = None,
    links: Sequence[Place] = (),
) -> Iterator[Place | None]:
    """What happens inside, as a span under `parent`; gives its place, None without a parent.

    Args:
        about: its attributes; looked at when it ends.
        place: its own, where that is fixed; then it may have no parent.
    """
    mine = place or (parent.child() if parent is not None else None)
    if mine is None or not is_on():
        yield None
        return
    began_s, failed = time.time(), True
    with within(mine):
        try:
            yield mine
            failed = False
        finally:
            times_s = began_s, time.time()
            record(name, mine, parent, times_s, about, failed=failed, links=links)


def log_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A step of a log's pipeline: says the span that a line belongs to."""
    place = _here.get()
    if place is not None:
        event["trace_id"], event["span_id"] = f"{place.trace_id:032x}", f"{place.span_id:016x}"
    return event


def _is_sampled(trace_id: int) -> bool:
    """By the trace's low 64 bits, as OpenTelemetry's samplers do."""
    return trace_id & (1 << 64) - 1 < round(_process.ratio * (1 << 64))


def _number(size: int, *names: object) -> int:
    text = "\n".join(("feddp-trace-v1", *map(str, names)))
    return int.from_bytes(blake3(text.encode()).digest(length=size)) or 1


def _nothing() -> None:
    """Nothing is to be closed."""
