"""The spans of a round, made from its phases alone."""

from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.observing.round_traces import RoundTraces, order_place
from coordinator.rounds import events as e
from protos import tracing
from protos.tracing import Finished, Place
from tests.coordinator.playbook import Playbook, training, update


class Live:
    """What is asked of a job."""

    job_id = "job"

    def __init__(self, book: Playbook) -> None:
        self.phase = book.phase


@pytest.fixture
def finished() -> Iterator[list[Finished]]:
    """What is exported."""
    kept: list[Finished] = []
    tracing.begin(kept.append, lambda: None)
    yield kept
    tracing.end()


def published() -> Playbook:
    """A job whose first round is done."""
    book = training("a", "b", "c")
    for event in (
        *(update(f"{node}1") for node in "abc"),
        e.UpdatesFolded(1, "m1", 400, 0.1, 0.01, False),
        e.ModelPublished(1, None),
    ):
        book = Playbook((book >> event).phase, [], book.now_s + 1)
    return book


def test_a_round_that_is_done_has_each_phase_and_each_attempt_at_its_time(
    finished: list[Finished],
) -> None:
    """The phases follow each other without a gap, and fill the round."""
    course = published().phase.course
    (done,) = course.done
    RoundTraces().over("job", course, done, "published", done.published_at_s)
    *_, root = finished
    phases = [one for one in finished if one.parent == root.place]
    assert [one.name for one in phases] == ["reserving", "training", "aggregating", "publishing"]
    assert [one.start_s for one in phases[1:]] == [one.end_s for one in phases[:-1]]
    assert (root.start_s, root.end_s) == (phases[0].start_s, phases[-1].end_s)
    orders = [one for one in finished if one.parent == phases[1].place]
    assert [one.attributes["outcome"] for one in orders] == ["received"] * 3
    assert not any(one.failed for one in finished)


def test_told_again_after_a_restart_it_is_the_same(finished: list[Finished]) -> None:
    """Ids and times come from the journal: a collector that is told twice sees one span."""
    course = published().phase.course
    for _ in range(2):
        RoundTraces().over("job", course, course.done[0], "published", 0.0)
    assert finished[: len(finished) // 2] == finished[len(finished) // 2 :]


def test_a_round_that_is_cut_off_ends_where_it_was_cut(finished: list[Finished]) -> None:
    """As failed; what never began has no span."""
    book = training("a", "b", "c") >> update("a1")
    now_s = book.now_s + 10
    RoundTraces().over("job", book.phase.course, book.phase.round, "cancelled", now_s)
    said = {one.name: (one.end_s == now_s, one.failed) for one in finished}
    assert said == {
        "reserving": (False, False),
        "training": (True, True),
        "order": (True, False),
        "round": (True, True),
    }
    assert finished[-1].attributes["outcome"] == "cancelled"


def test_a_node_can_name_a_span_of_its_own_rounds_trace_only(finished: list[Finished]) -> None:
    """Whatever it says else is not linked, and nothing fails."""
    live: Any = Live(training("a", "b", "c"))
    order = order_place(live, 1, "a1")
    assert order is not None
    traces, own = RoundTraces(), order.child()
    for said in ("", "nonsense", Place(1, 2).traceparent):
        assert traces.heard(live, 1, "a1", said) is None
    assert traces.heard(live, 1, "a1", own.traceparent) == own
    traces.over("job", live.phase.course, live.phase.round, "failed", 200.0)
    links = {one.attributes["node"]: one.links for one in finished if one.name == "order"}
    assert links == {"a": (own,), "b": (), "c": ()}
