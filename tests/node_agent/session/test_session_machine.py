"""The agent machine, read as transcripts: `>>` an event, `<<` the commands that must follow."""

import math
from dataclasses import replace
from typing import Any

import pytest

from node_agent.outcome_time import outcome_after_s, steps_that_fit
from node_agent.policy.orders import Order
from node_agent.session import commands as c
from node_agent.session import events as e
from node_agent.session.attempts import Agent, Phase
from node_agent.session.machine import ACCEPTANCE_S, WORKER_IDLE_S, next_tick_s, step
from node_agent.session.training import Impossible, Training
from protos.errors import InvariantBroken
from tests.node_agent.samples import order

TICK_S = 0.5
DEADLINE_S = 60
OPENED_S = 100.0
A1 = order("a1")
B1 = order("b1", job_id="job-2")
DIGEST = "d" * 64
DUE_S = OPENED_S + DEADLINE_S


class Playbook:
    """An agent played forward. What a step asked for must be read before the next event."""

    def __init__(
        self, agent: Agent | None = None, asked: tuple[c.Command, ...] = (), now_s: float = OPENED_S
    ) -> None:
        self.agent = agent or Agent()
        self.asked = asked
        self.now_s = now_s

    def at(self, now_s: float) -> "Playbook":
        """The same at another time."""
        return Playbook(self.agent, self.asked, now_s)

    def __rshift__(self, event: e.Event) -> "Playbook":
        assert not self.asked, f"not expected: {self.asked}"
        agent, asked = step(self.agent, event, self.now_s)
        return Playbook(agent, tuple(asked), self.now_s)

    def __lshift__(self, expected: c.Command | None) -> "Playbook":
        if expected is None:
            assert not self.asked, f"not expected: {self.asked}"
            return self
        assert self.asked, f"nothing left where {expected} was expected"
        assert self.asked[0] == expected
        return Playbook(self.agent, self.asked[1:], self.now_s)

    def phase(self, attempt_id: str) -> Phase:
        """Where an attempt stands."""
        attempt = self.agent.find(attempt_id)
        assert attempt is not None
        return attempt.phase


def connected() -> Playbook:
    """An agent that the coordinator hears."""
    book = Playbook() >> e.Restarted(()) << None
    book = book >> e.Connected() << c.SendHello(()) << None
    return book >> e.WelcomeReceived() << None


def fetching(book: Playbook, one: Order = A1) -> Playbook:
    """An order that was accepted."""
    asked = c.JudgeOrder(one, book.agent.opened)
    book = book >> e.OrderReceived(one) << asked << None
    book = book >> e.OrderReserved(one.attempt_id, b"res")
    due = c.ScheduleAcceptance(one.attempt_id, book.now_s + ACCEPTANCE_S)
    return book << due << c.FetchModel(one) << None


def preparing() -> Playbook:
    """A worker that gets ready."""
    return fetching(connected()) >> e.ModelReady("a1") << c.OpenAndTrain(A1, DUE_S) << None


def training() -> Playbook:
    """The data is open."""
    return preparing() >> e.DataOpened("a1", OPENED_S, TICK_S) << None


def ended(digest: str, now_s: float = OPENED_S + 0.7) -> Playbook:
    """Training is over; the outcome waits for 101.0, the next multiple of the tick."""
    book = training().at(now_s) >> e.TrainingEnded("a1", digest, b"post")
    return book << c.ScheduleOutcome("a1", OPENED_S + 1.0) << None


def submitting() -> Playbook:
    """The update is on its way."""
    book = ended(DIGEST).at(OPENED_S + 1.0) >> e.TickReached("a1")
    return book << c.UploadAndSubmit("a1", DIGEST, b"post", b"res") << None


def telling() -> Playbook:
    """No update was told."""
    book = ended("").at(OPENED_S + 1.0) >> e.TickReached("a1")
    return book << c.SendNoUpdate("a1", b"post", b"res") << None


def test_a_round_from_order_to_acknowledgement() -> None:
    """Accept, fetch, open, train, wait for the tick, hand in, close."""
    book = submitting() >> e.UpdateAcknowledged("a1") << c.CloseAttempt("a1", "post") << None
    assert book.agent.attempts == ()
    assert book.agent.workers == ("job-1",)


def test_both_outcomes_wait_for_the_same_tick() -> None:
    """An update, no update and a crash at the same moment are told at the same moment."""
    for digest in (DIGEST, ""):
        for after_s in (0.51, 0.7, 1.0):
            ended(digest, OPENED_S + after_s)


@pytest.mark.parametrize(
    ("now_s", "expected"), [(100.0, 100.5), (100.2, 100.5), (100.5, 100.5), (100.6, 101.0)]
)
def test_ticks_count_from_the_opening(now_s: float, expected: float) -> None:
    """Multiples of the tick, never the opening itself, never the past."""
    assert next_tick_s(OPENED_S, TICK_S, now_s) == pytest.approx(expected)


def test_a_clock_that_was_set_back_delays_an_outcome_by_one_tick_at_most() -> None:
    """The opening seems to lie in the future: the wait begins now."""
    assert next_tick_s(1.0e6, TICK_S, OPENED_S) == OPENED_S + TICK_S


def test_without_data_there_is_no_tick() -> None:
    """What depends on nobody need not be hidden."""
    book = preparing() >> e.DataOpened("a1", OPENED_S, 0.0) << None
    book = book.at(OPENED_S + 0.123) >> e.TrainingEnded("a1", DIGEST, b"post")
    assert book.asked == (c.ScheduleOutcome("a1", OPENED_S + 0.123),)


def test_a_repeated_order_is_answered_alike_until_the_tick() -> None:
    """Fetching, ready, preparing, training, over: the same words, and no work is begun twice."""
    busy = fetching(preparing(), B1) >> e.ModelReady("b1") << None
    cases = [
        (fetching(connected()), A1),
        (busy, B1),
        (preparing(), A1),
        (training(), A1),
        (ended(DIGEST), A1),
        (ended(""), A1),
    ]
    for book, one in cases:
        assert (book >> e.OrderReceived(one)).asked == (c.SendAccepted(one.attempt_id, b"res"),)


def test_a_repeated_order_after_the_tick_gets_the_outcome_again() -> None:
    """The same bytes, or the same no; never another training."""
    again = c.UploadAndSubmit("a1", DIGEST, b"post", b"res")
    assert (submitting() >> e.OrderReceived(A1)).asked == (again,)
    assert (telling() >> e.OrderReceived(A1)).asked == (c.SendNoUpdate("a1", b"post", b"res"),)


def test_an_order_that_is_being_judged_is_not_judged_twice() -> None:
    """The answer is on its way."""
    book = connected() >> e.OrderReceived(A1) << c.JudgeOrder(A1)
    assert (book >> e.OrderReceived(A1)).asked == ()


def test_the_same_attempt_with_other_terms_is_reported_and_ignored() -> None:
    """Only the hospital hears of it."""
    other = order("a1", release_steps=6)
    assert (training() >> e.OrderReceived(other)).asked == (c.ReportConflict("a1"),)


def test_a_refusal_is_told_and_forgotten() -> None:
    """The database remembers it; the machine need not."""
    book = connected() >> e.OrderReceived(A1) << c.JudgeOrder(A1)
    book = book >> e.OrderRefused("a1", "NOISE_TOO_LOW", "m", b"void")
    book = book << c.SendRefused("a1", "NOISE_TOO_LOW", "m", b"void") << None
    assert book.agent.attempts == ()


def test_an_order_that_was_spent_long_ago_gets_its_no_again() -> None:
    """A coordinator that was restored from a backup asks again: posted, and no update."""
    book = connected() >> e.OrderReceived(A1) << c.JudgeOrder(A1)
    book = book >> e.OrderSpent("a1", b"post") << c.SendNoUpdate("a1", b"post") << None
    assert book.agent.attempts == ()


def test_an_unreadable_order_is_refused_without_a_signature() -> None:
    """There is no statement that could be signed."""
    book = connected() >> e.OrderUnreadable("a1", "ORDER_INVALID", "m")
    assert book.asked == (c.SendRefused("a1", "ORDER_INVALID", "m", b""),)


@pytest.mark.parametrize("book", [fetching(connected()), preparing()])
def test_what_fails_before_the_opening_is_withdrawn(book: Playbook) -> None:
    """No model or no worker: the reservation is voided, then refused by name."""
    book = book >> e.WorkImpossible("a1", "WORKER_FAILED", "m")
    book = book << c.Withdraw(A1, "WORKER_FAILED", "m") << None
    book = book >> e.OrderReceived(A1) << None
    book = book >> e.OrderRefused("a1", "WORKER_FAILED", "m", b"void")
    book << c.SendRefused("a1", "WORKER_FAILED", "m", b"void") << None


def test_orders_of_a_second_job_wait_until_the_first_ones_outcome_may_be_told() -> None:
    """The second begins at the tick: its beginning tells nothing about the first one's data."""
    book = fetching(training(), B1) >> e.ModelReady("b1") << None
    book = book.at(OPENED_S + 0.7) >> e.TrainingEnded("a1", DIGEST, b"post")
    book = book << c.ScheduleOutcome("a1", OPENED_S + 1.0) << None
    book = book.at(OPENED_S + 1.0) >> e.TickReached("a1")
    book = book << c.UploadAndSubmit("a1", DIGEST, b"post", b"res")
    book = book << c.OpenAndTrain(B1, DUE_S) << None
    assert book.agent.workers == ("job-1", "job-2")


def test_jobs_whose_rounds_alternate_keep_their_workers() -> None:
    """Two workers live; a third job ends the one that was not used for longest."""
    book = submitting() >> e.UpdateAcknowledged("a1") << c.CloseAttempt("a1", "post")
    for attempt_id, job_id in (("b1", "job-2"), ("a2", "job-1"), ("c1", "job-3")):
        one = order(attempt_id, job_id=job_id)
        book = fetching(book, one) >> e.ModelReady(attempt_id)
        if job_id == "job-3":
            book = book << c.StopWorker("job-2")
        book = book << c.OpenAndTrain(one, book.now_s + DEADLINE_S) << None
        book = book >> e.DataOpened(attempt_id, book.now_s, 0.0) << None
        book = book >> e.TrainingEnded(attempt_id, DIGEST, b"post")
        book = book << c.ScheduleOutcome(attempt_id, book.now_s) << None
        book = book >> e.TickReached(attempt_id)
        book = book << c.UploadAndSubmit(attempt_id, DIGEST, b"post", b"res") << None
    assert book.agent.workers == ("job-1", "job-3")


def test_an_order_of_a_higher_priority_is_worked_at_first() -> None:
    """Of those that wait; what is under way is not cut."""
    urgent = order("b2", job_id="job-2", priority=5)
    book = fetching(fetching(training(), order("a2", round=2)), urgent)
    book = book >> e.ModelReady("a2") << None
    book = book >> e.ModelReady("b2") << None
    book = book >> e.TrainingEnded("a1", DIGEST, b"post") << c.ScheduleOutcome("a1", 100.5) << None
    book = book >> e.TickReached("a1") << c.UploadAndSubmit("a1", DIGEST, b"post", b"res")
    book << c.OpenAndTrain(urgent, DUE_S) << None


def test_a_node_that_is_too_slow_says_how_many_steps_it_can_do() -> None:
    """It never opened the data, so that nothing is charged; it may be asked for less."""
    book = preparing() >> e.WorkImpossible("a1", "STEPS_TOO_MANY", "m", 3)
    book = book << c.Withdraw(A1, "STEPS_TOO_MANY", "m", 3) << None
    book = book >> e.OrderRefused("a1", "STEPS_TOO_MANY", "m", b"void", 3)
    book << c.SendRefused("a1", "STEPS_TOO_MANY", "m", b"void", 3) << None


@pytest.mark.parametrize(
    ("tick_s", "rehearsal_s", "available_s", "possible"),
    [
        (1.0, 2.0, 8.0, 10),  # 4 x 2 s fit exactly
        (1.0, 2.0, 7.9, 8),  # 7 whole ticks hold 4 x 1.6 s, and not 4 x 1.8 s
        (1.0, 2.0, 0.9, 0),  # not one tick
        (0.0, 9.0, 0.0, 10),  # nothing is read, so that there is no outcome to fix
        (0.0, 9.0, -1.0, 10),  # nor is there where it is past the deadline already
        (1.0, 0.0, 0.5, 0),
        (1.0, 0.001, 5.0, 10),
        (1.0, 2.0, math.inf, 10),
    ],
)
def test_the_steps_that_fit_are_known_before_the_data_is_opened(
    tick_s: float, rehearsal_s: float, available_s: float, possible: int
) -> None:
    """The largest number whose outcome leaves in time; one more would not."""
    assert steps_that_fit(tick_s, rehearsal_s, 10, available_s) == possible
    if 0 < possible < 10:
        for steps, fits in ((possible, True), (possible + 1, False)):
            assert (outcome_after_s(tick_s, rehearsal_s * steps / 10) <= available_s) is fits


@pytest.mark.parametrize(
    ("until_due_s", "rehearsal_s", "reason", "possible"),
    [
        (60.0, 1.0, "", 0),
        (3.0, 1.0, "STARTED_LATE", 10),  # the whole deadline would do
        (3.0, 20.0, "STEPS_TOO_MANY", 4),  # 36 s of 60 hold 4 of the 8 s that each step takes
        (60.0, 20.0, "STEPS_TOO_MANY", 4),
        (60.0, 400.0, "TOO_SLOW", 0),
    ],
)
def test_what_a_node_says_about_its_time(
    until_due_s: float, rehearsal_s: float, reason: str, possible: int
) -> None:
    """A late start is not a slow node: the next order finds its worker up."""
    one = order("a1", release_steps=10)
    found = ("", 0)
    try:
        Training._check_time(None, one, 1.0, rehearsal_s, until_due_s)  # type: ignore[arg-type]
    except Impossible as error:
        found = (error.reason, error.steps_possible)
    assert found == (reason, possible)


def test_the_next_round_of_the_same_job_keeps_the_worker() -> None:
    """A round does not pay for starting Python again."""
    second = order("a2", round=2)
    book = submitting() >> e.UpdateAcknowledged("a1") << c.CloseAttempt("a1", "post")
    book = fetching(book, second) >> e.ModelReady("a2")
    book << c.OpenAndTrain(second, book.now_s + DEADLINE_S) << None


def test_a_lost_stream_loses_nothing() -> None:
    """Said in vain while away; after Welcome the outcomes are said again."""
    away = ended("") >> e.Disconnected() << None
    away = away >> e.TickReached("a1") << None
    back = away >> e.Connected() << c.SendHello(("a1",)) << None
    back >> e.WelcomeReceived() << c.SendNoUpdate("a1", b"post", b"res") << None
    away = ended(DIGEST) >> e.Disconnected() << None
    away = away >> e.TickReached("a1") << c.UploadAndSubmit("a1", DIGEST, b"post", b"res") << None
    back = away >> e.Connected() << c.SendHello(("a1",)) << None
    back >> e.WelcomeReceived() << c.UploadAndSubmit("a1", DIGEST, b"post", b"res") << None


def test_a_second_stream_says_hello_and_changes_nothing_until_its_welcome() -> None:
    """Heartbeats and outcomes go on; the Welcome then has what may have been lost said again."""
    book = telling() >> e.SecondOpened() << c.SendHello(("a1",)) << None
    book = book >> e.HeartbeatDue() << c.SendHeartbeat() << None
    book = book >> e.OrderReceived(A1) << c.SendNoUpdate("a1", b"post", b"res") << None
    book >> e.WelcomeReceived() << c.SendNoUpdate("a1", b"post", b"res") << None


def test_a_reservation_that_came_while_away_is_accepted_when_the_order_comes_again() -> None:
    """Work begins all the same."""
    book = connected() >> e.OrderReceived(A1) << c.JudgeOrder(A1)
    book = book >> e.Disconnected() << None
    due = c.ScheduleAcceptance("a1", book.now_s + ACCEPTANCE_S)
    book = book >> e.OrderReserved("a1", b"res") << due << c.FetchModel(A1) << None
    book = book >> e.AcceptanceDue("a1") << None  # nobody listens
    book = book >> e.Connected() << c.SendHello(("a1",)) << None
    book = book >> e.WelcomeReceived() << None
    book >> e.OrderReceived(A1) << c.SendAccepted("a1", b"res") << None


def test_welcome_closes_what_the_coordinator_has_resolved() -> None:
    """Booked alike, and not told again."""
    book = telling() >> e.Connected() << c.SendHello(("a1",)) << None
    book = book >> e.WelcomeReceived((("a1", "post"),))
    book = book << c.CloseAttempt("a1", "post") << c.Abandon("a1") << None
    assert book.agent.attempts == ()


def test_closing_an_attempt_that_gets_ready_stops_its_worker_and_begins_the_next() -> None:
    """The round went on without us: what is under way helps nobody."""
    book = fetching(preparing(), B1) >> e.ModelReady("b1") << None
    book = book >> e.AttemptClosedReceived("a1", "post")
    book = book << c.CloseAttempt("a1", "post") << c.Abandon("a1") << c.StopWorker("job-1")
    book << c.OpenAndTrain(B1, DUE_S) << None


@pytest.mark.parametrize("is_over", [False, True])
def test_closing_an_attempt_tells_nothing_of_how_long_its_data_took(is_over: bool) -> None:
    """Training or over: the worker ends, and the next one begins at the moment of the outcome, for
    which it would have begun had nothing been closed."""
    book = fetching(training(), B1) >> e.ModelReady("b1") << None
    if is_over:
        book = book.at(OPENED_S + 0.1) >> e.TrainingEnded("a1", DIGEST, b"post")
        book = book << c.ScheduleOutcome("a1", OPENED_S + TICK_S) << None
    book = book.at(OPENED_S + 0.2) >> e.AttemptClosedReceived("a1", "post")
    book = book << c.CloseAttempt("a1", "post") << c.Abandon("a1") << c.StopWorker("job-1")
    book = book << c.ScheduleOutcome("a1", OPENED_S + TICK_S) << None
    # What the stopped worker's end brings is too late to matter; so is the closed one's order.
    book = book >> e.TrainingEnded("a1", "", b"post") << None
    book = book >> e.OrderReceived(A1) << c.JudgeOrder(A1) << None
    book = book.at(OPENED_S + TICK_S) >> e.TickReached("a1")
    book = book << c.OpenAndTrain(B1, DUE_S) << None
    book >> e.TickReached("a1") << None


def test_until_its_moment_an_attempt_counts_as_under_way_for_every_order() -> None:
    """Training or over: what a second order is answered must not tell which."""
    for book in (training(), ended(DIGEST), ended("")):
        assert (book >> e.OrderReceived(B1)).asked == (c.JudgeOrder(B1, frozenset({"a1"})),)
    for book in (preparing(), submitting(), telling()):
        assert (book >> e.OrderReceived(B1)).asked == (c.JudgeOrder(B1),)


def test_closing_a_waiting_attempt_leaves_the_worker_alone() -> None:
    """Only the one at work has a worker."""
    book = fetching(training(), B1) >> e.AttemptClosedReceived("b1", "void")
    book << c.CloseAttempt("b1", "void") << c.Abandon("b1") << None


def test_an_unknown_closed_attempt_is_left_to_the_database() -> None:
    """It may be one that this process has forgotten."""
    book = connected() >> e.AttemptClosedReceived("old", "post")
    book << c.CloseAttempt("old", "post") << None


def test_the_end_of_a_job_ends_its_worker_and_posts_what_was_open() -> None:
    """Only the node can void, so the coordinator has posted whatever it did not hear of."""
    book = training() >> e.JobEndedReceived("job-1")
    book = book << c.CloseAttempt("a1", "post") << c.Abandon("a1") << c.StopWorker("job-1")
    book = book << c.ScheduleOutcome("a1", OPENED_S + TICK_S) << c.ForgetModels() << None
    book = book >> e.TickReached("a1") << None
    assert book.agent == Agent(welcomed=True, idle_since_s=OPENED_S)


def test_the_end_of_another_job_touches_nothing() -> None:
    """But its models are not needed any more."""
    book = training() >> e.JobEndedReceived("job-9") << c.ForgetModels() << None
    assert book.phase("a1") is Phase.TRAINING


def test_an_update_that_is_never_taken_stays_posted() -> None:
    """The coordinator's no is final; nothing is trained again under this id."""
    submitting() >> e.UpdateRejected("a1") << c.CloseAttempt("a1", "post") << None


def test_an_order_that_comes_again_brings_its_new_deadline() -> None:
    """The coordinator was away, and gives the whole time again: work is not judged by the old."""
    book = fetching(connected()).at(OPENED_S + 50.0) >> e.OrderReceived(A1)
    book = book << c.SendAccepted("a1", b"res") << None
    book = book >> e.ModelReady("a1") << c.OpenAndTrain(A1, DUE_S + 50.0) << None


def test_an_update_that_vanished_is_no_update() -> None:
    """A disk lost it: it was charged, and a second training would be a second release."""
    book = submitting() >> e.UpdateVanished("a1") << c.SendNoUpdate("a1", b"post", b"res") << None
    attempt = book.agent.find("a1")
    assert attempt is not None
    assert attempt.digest == ""
    assert book.phase("a1") is Phase.TELLING


def test_after_a_restart_everything_goes_on_from_where_it_was() -> None:
    """Reserved is fetched, spooled is handed in, lost is told; each outcome at a tick."""
    spooled, lost = order("s1"), order("l1")
    kept = (
        e.Resumed(A1, "reserved", accepted=b"res"),
        e.Resumed(spooled, "spooled", 99.8, TICK_S, DIGEST, b"res", b"post"),
        e.Resumed(lost, "no_update", 99.8, TICK_S, "", b"res", b"post"),
    )
    book = Playbook() >> e.Restarted(kept) << c.FetchModel(A1)
    at_s: Any = pytest.approx(100.3)
    book = book << c.ScheduleOutcome("s1", at_s) << c.ScheduleOutcome("l1", at_s) << None
    book = book >> e.TickReached("s1") << c.UploadAndSubmit("s1", DIGEST, b"post", b"res") << None
    book = book >> e.Connected() << c.SendHello(("a1", "s1", "l1")) << None
    book = book >> e.WelcomeReceived() << c.UploadAndSubmit("s1", DIGEST, b"post", b"res") << None
    book = book >> e.ModelReady("a1") << None
    book = book >> e.TickReached("l1") << c.SendNoUpdate("l1", b"post", b"res") << None
    # Until the coordinator says it again, nobody knows by when, nor whether it is wanted.
    again = replace(A1, deadline_s=60.0)
    book = book >> e.OrderReceived(again) << c.SendAccepted("a1", b"res")
    book << c.OpenAndTrain(A1, book.now_s + 60.0) << None


def test_what_was_closed_while_the_agent_was_away_is_not_begun_after_its_restart() -> None:
    """The model may be here before the coordinator is reached: the data stays closed until then,
    and where the Welcome closes the attempt, for good."""
    book = Playbook() >> e.Restarted((e.Resumed(A1, "reserved", accepted=b"res"),))
    book = book << c.FetchModel(A1) << None
    book = book >> e.ModelReady("a1") << None
    book = book >> e.Connected() << c.SendHello(("a1",)) << None
    book = book >> e.WelcomeReceived((("a1", "post"),))
    book = book << c.CloseAttempt("a1", "post") << c.Abandon("a1") << None
    assert book.agent.attempts == ()


def test_work_that_takes_longer_than_a_moment_is_accepted_before_its_outcome() -> None:
    """What is over sooner says so once: the outcome carries the same signature."""
    due = e.AcceptanceDue("a1")
    training() >> due << c.SendAccepted("a1", b"res") << None
    ended(DIGEST) >> due << c.SendAccepted("a1", b"res") << None
    submitting() >> due << None
    telling() >> due << None


def test_what_was_due_for_an_order_that_came_again_is_late() -> None:
    """It ended before its acceptance was due, and the same order is judged anew."""
    book = fetching(connected()) >> e.AttemptClosedReceived("a1", "void")
    book = Playbook(book.agent, now_s=book.now_s)
    assert book.agent.find("a1") is None
    book = book >> e.OrderReceived(A1) << c.JudgeOrder(A1) << None
    book >> e.AcceptanceDue("a1") << None


def test_heartbeats_are_for_those_who_listen() -> None:
    """None before Welcome and none on a broken stream."""
    assert (Playbook() >> e.HeartbeatDue()).asked == ()
    assert (connected() >> e.HeartbeatDue()).asked == (c.SendHeartbeat(),)
    assert (connected() >> e.Disconnected() >> e.HeartbeatDue()).asked == ()


def test_a_worker_that_waits_too_long_for_the_next_round_is_ended() -> None:
    """Its memory is the hospital's; a worker at work is left alone."""
    idle = submitting() >> e.UpdateAcknowledged("a1") << c.CloseAttempt("a1", "post")
    late_s = OPENED_S + 1.0 + WORKER_IDLE_S
    book = idle.at(late_s) >> e.HeartbeatDue() << c.SendHeartbeat()
    book = book << c.StopWorker("job-1") << c.ForgetModels() << None
    assert book.agent.workers == ()
    assert (training().at(late_s) >> e.HeartbeatDue()).asked == (c.SendHeartbeat(),)


def test_a_worker_that_waits_for_a_coordinator_that_is_gone_is_ended_too() -> None:
    """It may hold an allocation of a cluster; nobody has to be connected for that."""
    idle = submitting() >> e.UpdateAcknowledged("a1") << c.CloseAttempt("a1", "post")
    alone = idle >> e.Disconnected() << None
    book = alone.at(OPENED_S + 1.0 + WORKER_IDLE_S) >> e.HeartbeatDue()
    assert book.asked == (c.StopWorker("job-1"), c.ForgetModels())


@pytest.mark.parametrize("event", [e.DrainReceived(), e.PolicyChanged()])
def test_drain_and_a_new_policy_open_another_stream(event: e.Event) -> None:
    """Nothing under way is touched."""
    book = training() >> event << c.Reconnect() << None
    assert book.phase("a1") is Phase.TRAINING


def test_a_stopping_agent_takes_nothing_up() -> None:
    """No orders, no work; a worker that ends now was ended by us, so nothing is withdrawn."""
    book = preparing() >> e.StopRequested() << c.StopWorker("job-1") << None
    book = book >> e.OrderReceived(B1) << None
    book = book >> e.WorkImpossible("a1", "WORKER_FAILED", "m") << None
    assert book.phase("a1") is Phase.PREPARING


@pytest.mark.parametrize(
    ("book", "event"),
    [
        (fetching(connected()), e.DataOpened("a1", 0.0, 0.5)),
        (preparing(), e.TrainingEnded("a1", DIGEST, b"")),
        (training(), e.TickReached("a1")),
        (training(), e.WorkImpossible("a1", "R", "m")),
        (ended(DIGEST), e.UpdateAcknowledged("a1")),
        (connected(), e.Outcome),
    ],
)
def test_what_cannot_happen_is_an_error(book: Playbook, event: Any) -> None:
    """An unknown pair of state and event stops the agent instead of being guessed at."""
    with pytest.raises(InvariantBroken):
        book >> event


def test_the_end_of_a_job_ends_a_worker_that_waits_for_its_next_round() -> None:
    """Nothing of it is open any more; its memory is the hospital's."""
    idle = submitting() >> e.UpdateAcknowledged("a1") << c.CloseAttempt("a1", "post")
    book = idle >> e.JobEndedReceived("job-1") << c.StopWorker("job-1") << c.ForgetModels() << None
    assert book.agent.workers == ()


@pytest.mark.parametrize(
    "event", [e.OrderRefused("a1", "NOISE_TOO_LOW", "m", b"void"), e.OrderSpent("a1", b"post")]
)
def test_what_is_judged_while_away_is_told_when_the_order_comes_again(event: e.Event) -> None:
    """Nobody listens to it now, and the database gives the same answer then."""
    book = connected() >> e.OrderReceived(A1) << c.JudgeOrder(A1)
    book = book >> e.Disconnected() << None
    book = book >> event << None
    assert book.agent.attempts == ()


def test_an_agent_that_did_nothing_for_long_has_nothing_to_end() -> None:
    """Only its heartbeats go on."""
    book = connected().at(OPENED_S + 2 * WORKER_IDLE_S) >> e.HeartbeatDue()
    assert book.asked == (c.SendHeartbeat(),)


def test_a_closed_attempt_that_read_no_record_keeps_no_place() -> None:
    """There is no outcome whose moment could tell anything: the next one begins at once."""
    book = preparing() >> e.DataOpened("a1", OPENED_S, 0.0) << None
    book = fetching(book, B1) >> e.ModelReady("b1") << None
    book = book >> e.AttemptClosedReceived("a1", "post")
    book = book << c.CloseAttempt("a1", "post") << c.Abandon("a1") << c.StopWorker("job-1")
    book = book << c.OpenAndTrain(B1, DUE_S) << None
    assert book.agent.over == ()


def test_a_stopping_agent_hands_in_what_is_due_and_begins_nothing() -> None:
    """Data that is opened now would be charged for no update."""
    book = fetching(ended(DIGEST), B1) >> e.ModelReady("b1") << None
    book = book >> e.StopRequested() << c.StopWorker("job-1") << None
    book = book.at(OPENED_S + 1.0) >> e.TickReached("a1")
    book << c.UploadAndSubmit("a1", DIGEST, b"post", b"res") << None


def test_an_agent_restarts_once() -> None:
    """What is under way would be forgotten."""
    with pytest.raises(InvariantBroken):
        training() >> e.Restarted(())
