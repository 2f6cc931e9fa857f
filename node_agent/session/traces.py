"""The spans of a node's attempts, for the hospital's own collector.

By default a span tells no more than what leaves the hospital anyway: between the opening of the
data and the moment that was fixed for the outcome there is one span, `release`, which ends at that
moment whatever the data took. `times_of_work` adds what the worker really took, which depends on
records; it is for a collector that nobody outside can read. Nothing of this goes to the
coordinator: what it is sent of a span is an id drawn at random when the order came.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from protos import tracing
from protos.tracing import Place

ATTEMPTS_MAX: Final = 256
"""Of which spans are open; those of before are told no more."""

TIMES_MAX: Final = 8
"""That one answer of a worker may tell."""


@dataclass(slots=True)
class _Attempt:
    """One attempt under way.

    Attributes:
        order: the coordinator's span.
        release_s: when the data was opened, and when the outcome is due; None while it is closed.
    """

    order: Place
    own: Place
    began_s: float
    release_s: tuple[float, float] | None = None


class AttemptTraces:
    """Opens and ends them.

    Args:
        times_of_work: also what the worker took once the data was open.
    """

    def __init__(self, node: str = "", *, times_of_work: bool = False) -> None:
        self._node = node
        self._times_of_work = times_of_work
        self._attempts: OrderedDict[str, _Attempt] = OrderedDict()

    def ordered(self, attempt_id: str, traceparent: str) -> None:
        """An order came, perhaps again."""
        order = tracing.parse(traceparent)
        if order is None or not tracing.is_on() or attempt_id in self._attempts:
            return
        self._attempts[attempt_id] = _Attempt(order, order.child(), time.time())
        while len(self._attempts) > ATTEMPTS_MAX:
            self._attempts.popitem(last=False)

    def place(self, attempt_id: str) -> Place | None:
        """The attempt's own span; None where nothing is traced."""
        found = self._attempts.get(attempt_id)
        return found.own if found is not None else None

    def traceparent(self, attempt_id: str) -> str:
        """What the coordinator is told of it; empty where nothing is traced."""
        place = self.place(attempt_id)
        return place.traceparent if place is not None else ""

    def span(self, name: str, attempt_id: str) -> AbstractContextManager[Place | None]:
        """A part of an attempt at which no data is open."""
        return tracing.span(name, self.place(attempt_id), self._about(attempt_id))

    def work(self, name: str, attempt_id: str) -> AbstractContextManager[Place | None]:
        """A part of an attempt whose duration depends on data."""
        if self._times_of_work:
            return self.span(name, attempt_id)
        return tracing.within(self.place(attempt_id))

    def worked(self, place: Place | None, answer: Mapping[str, Any], attempt_id: str) -> None:
        """What a worker says of itself; `place` is the span in which it was asked."""
        told = answer.get("times")
        if place is None or not isinstance(told, list):
            return
        for one in told[:TIMES_MAX]:
            name, start_s, end_s = one
            if name == "worker.train" and not self._times_of_work:
                continue
            times_s = float(start_s), float(end_s)
            tracing.record(str(name), place.child(), place, times_s, self._about(attempt_id))

    def opened(self, attempt_id: str, at_s: float, outcome_s: float) -> None:
        """The data is open; the outcome is due `outcome_s` later."""
        found = self._attempts.get(attempt_id)
        if found is not None:
            found.release_s = at_s, at_s + outcome_s

    def released(self, attempt_id: str) -> None:
        """The outcome leaves: at the moment that was fixed, or later if nobody was there."""
        found = self._attempts.get(attempt_id)
        if found is None or found.release_s is None:
            return
        opened_s, due_s = found.release_s
        found.release_s = None
        # A task that reads no data has no such moment: what it took tells nothing.
        end_s = due_s if due_s > opened_s else time.time()
        own, times_s = found.own, (opened_s, end_s)
        tracing.record("release", own.child(), own, times_s, self._about(attempt_id))

    def closed(self, attempt_id: str, outcome: str) -> None:
        """The coordinator has booked the attempt."""
        found = self._attempts.pop(attempt_id, None)
        if found is not None:
            times_s = found.began_s, time.time()
            about = {**self._about(attempt_id), "outcome": outcome}
            tracing.record("attempt", found.own, found.order, times_s, about)

    def _about(self, attempt_id: str) -> dict[str, str | int]:
        return {"attempt_id": attempt_id, "node": self._node}
