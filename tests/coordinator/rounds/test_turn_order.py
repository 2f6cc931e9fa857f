"""Several jobs share nodes in turn."""

from dataclasses import replace
from typing import Any

from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import parse_job
from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Course, Phase, Reserving, Selecting
from coordinator.rounds.turn_order import taken
from coordinator.store.jobs import JobRecord
from tests.coordinator.playbook import PLAN, offers, training, update

SPEC = b'name: n\ntask: "null"\ndataset: d\nfederation: {rounds: 2}\n'


def live(name: str, phase: Phase, priority: int = 0) -> LiveJob:
    """A job in a phase."""
    job = replace(parse_job(SPEC, CoordinatorConfig()), name=name, priority=priority)
    record = JobRecord(name, "p", name, "u", "r", SPEC, "{}", "h", "running", 0.0)
    return LiveJob(record, job, phase, 1)


def waiting(name: str, since_s: float, busy: str, ready: str = "", priority: int = 0) -> LiveJob:
    """A job that waits for busy nodes; `ready` could take part."""
    absences = tuple(e.Absence(node, "BUSY", "works") for node in busy)
    phase = Selecting(Course(PLAN, "m", "m"), since_s, absences, tuple(ready), surveyed=True)
    return live(name, phase, priority)


def reason(one: LiveJob, other: LiveJob, node: str = "a") -> str:
    found = taken(one, [other], node)
    return "" if found is None else f"{found.reason} {found.message}"


def test_a_node_works_for_one_job_at_a_time() -> None:
    """Its open order keeps it; a node that is silent is kept by nobody."""
    other = live("other", training("a", "b", "c").phase)
    me = waiting("me", 1.0, "abc")
    assert reason(me, other) == "BUSY works for job other (other)"
    assert reason(me, other, "z") == ""
    asking = Reserving(Course(PLAN, "m", "m"), 1.0, offers("a", "b", "c"), ())
    assert reason(me, live("other", asking)) == "BUSY works for job other (other)"
    phase: Any = other.phase
    silent = replace(phase.round.attempts[0], silent=True)
    gone = replace(phase, round=phase.round.with_attempt(silent))
    assert reason(me, live("other", gone)) == ""


def test_who_has_waited_longest_goes_first() -> None:
    """Otherwise a job whose rounds are short would take its nodes back for ever."""
    early, late = waiting("early", 1.0, "abc"), waiting("late", 2.0, "abc")
    assert reason(late, early) == "BUSY is kept for job early (early), which goes first"
    assert reason(early, late) == ""


def short_round(name: str, began_s: float, *, busy: str = "c") -> LiveJob:
    """A job in the middle of a round: a has answered, b works, and for `busy` it has to wait."""
    phase: Any = (training("a", "b", "c") >> update("a1") >> e.NoUpdateReceived("c1", b"")).phase
    absences = tuple(e.Absence(node, "BUSY", "works") for node in busy)
    record = replace(phase.round, started_at_s=began_s)
    return live(name, replace(phase, round=record, waiting=absences))


def test_a_round_that_waits_for_a_busy_node_has_its_turn_too() -> None:
    """Since it began. Otherwise two others that take turns would keep it waiting for ever."""
    early, late = waiting("early", 1.0, "abc"), waiting("late", 3.0, "abc")
    middle = short_round("middle", 2.0)
    assert reason(late, middle, "c") == "BUSY is kept for job middle (middle), which goes first"
    assert reason(middle, late, "c") == ""
    assert reason(early, middle, "c") == ""
    assert reason(middle, early, "c") == "BUSY is kept for job early (early), which goes first"


def test_a_round_keeps_no_node_that_it_does_not_wait_for() -> None:
    """Neither one that has handed in its update, nor any where the busy ones are too few, or none
    is."""
    late = waiting("late", 3.0, "abc")
    assert reason(late, short_round("middle", 2.0), "a") == ""
    assert reason(late, short_round("middle", 2.0, busy=""), "c") == ""
    middle = short_round("middle", 2.0)
    phase: Any = middle.phase
    middle.phase = replace(phase, course=Course(replace(PLAN, min_participants=4), "m", "m"))
    assert reason(late, middle, "c") == ""


def test_the_same_moment_is_decided_one_way_only() -> None:
    """Two that each gave way to the other would wait for ever."""
    a, b = waiting("a", 1.0, "abc"), waiting("b", 1.0, "abc")
    assert (reason(a, b) == "") != (reason(b, a) == "")


def test_a_higher_priority_does_not_wait_for_a_lower_one() -> None:
    """Neither for its orders nor for its turn."""
    urgent = waiting("urgent", 9.0, "abc", priority=5)
    assert reason(urgent, live("other", training("a", "b", "c").phase)) == ""
    assert reason(urgent, waiting("other", 1.0, "abc")) == ""
    assert reason(waiting("other", 1.0, "abc"), urgent) != ""


def test_nothing_is_kept_for_a_job_that_could_not_begin_anyway() -> None:
    """It waits for others than the busy ones, or for nobody."""
    assert reason(waiting("me", 9.0, "abc"), waiting("other", 1.0, "ab")) == ""
    assert reason(waiting("me", 9.0, "abc"), waiting("other", 1.0, "", "abc")) == ""
    assert reason(waiting("me", 9.0, "abc"), waiting("other", 1.0, "bc", "a")) != ""
