"""Who takes part, how long one is waited for, and what a person is told about those left out."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine, participation, planner, training
from coordinator.rounds.phases import Aggregating, AttemptState, Ended, Selecting, Training
from tests.coordinator.playbook import PLAN, Playbook, grants, offers, posted, surveyed, update
from tests.coordinator.playbook import begun as begun_
from tests.coordinator.playbook import training as training_

PATIENT = replace(PLAN, rounds_planned=9, deadline_s=1000.0, grace_factor=3.0)


def next_round(book: Playbook, number: int, *nodes: str) -> Playbook:
    """From a round's fold to the orders of the next one."""
    book = Playbook(book.phase, [], book.now_s)
    book = book >> e.UpdatesFolded(number, f"m{number}", 400, 0.1, 0.01, False)
    book = Playbook((book >> e.ModelPublished(number, None)).phase, [], book.now_s)
    book = Playbook((book >> surveyed(*nodes)).phase, [], book.now_s)
    return Playbook((book >> grants(number + 1, *nodes)).phase, [], book.now_s)


def slow_d() -> Playbook:
    """Round 1 took d 100 s and the others 1; in round 2 the others have answered."""
    book = training_("a", "b", "c", "d", plan=PATIENT)
    for node in "abc":
        book = Playbook((book >> update(f"{node}1")).phase, [], book.now_s)
    book = Playbook(book.phase, [], book.now_s + 95)
    book = next_round(book >> update("d1"), 1, *"abcd")
    for node in "abc":
        book = Playbook((book >> update(f"{node}2")).phase, [], book.now_s)
    return book


def test_a_slow_hospital_is_given_its_own_time() -> None:
    """It took about 100 s before, so it is waited for three times as long, not three times the
    others' second."""
    book = slow_d()
    attempt = book.phase.round.attempt("d2")
    gives_up_s = participation.gives_up_at_s(book.phase, attempt)
    before = book.phase.course.done[0].attempt("d1")
    took_s = before.ended_at_s - before.ordered_at_s
    assert took_s > 90
    assert gives_up_s - attempt.ordered_at_s == 3 * took_s
    fast = replace(attempt, offer=replace(attempt.offer, node="a"))
    assert participation.gives_up_at_s(book.phase, fast) - attempt.ordered_at_s == 10.0
    soon = replace(book.phase, deadline_at_s=attempt.ordered_at_s + 50.0)
    assert participation.gives_up_at_s(soon, attempt) == soon.deadline_at_s
    twice = next_round(book >> update("d2"), 2, *"abcd").phase  # in some 5 s, this time
    attempt = twice.round.attempt("d3")
    assert participation.gives_up_at_s(twice, attempt) - attempt.ordered_at_s == 3 * took_s


def test_without_a_history_the_deadline_counts() -> None:
    """Nobody is given up in a first round before its deadline, nor with a factor of 0."""
    first = training_("a", "b", "c", "d", plan=PATIENT).phase
    attempt = first.round.attempt("d1")
    assert participation.gives_up_at_s(first, attempt) == first.deadline_at_s
    book = slow_d()
    course = replace(book.phase.course, plan=replace(PATIENT, grace_factor=0.0))
    phase = replace(book.phase, course=course)
    assert participation.gives_up_at_s(phase, phase.round.attempt("d2")) == phase.deadline_at_s


def test_a_round_with_its_quorum_closes_when_the_grace_is_over_and_says_so() -> None:
    """Who is given up is posted whole and named with the reason."""
    book = slow_d() >> e.GracePassed(2, "d") << c.PostCharge("d2", b"")
    book = book << c.NotifyClosed("d2", "d", "post") << c.FoldUpdates(2) << None
    assert isinstance(book.phase, Aggregating)
    attempt = book.phase.round.attempt("d2")
    assert (attempt.state, attempt.reason) == (AttemptState.LATE, "GRACE")
    (slow_d() >> e.GracePassed(1, "d")) << None  # of the round before, which is over


def test_below_quorum_nobody_is_given_up() -> None:
    """The grace is for rounds that can do without."""
    book = training_("a", "b", "c", plan=PATIENT) >> update("a1") << posted("a1") << None
    book = book >> e.GracePassed(1, "b") << None
    assert isinstance(book.phase, Training)
    book = book >> update("b1") << posted("b1") << None
    book = book >> update("c1") << posted("c1") << c.FoldUpdates(1) << None


def test_the_time_that_the_coordinator_was_away_is_nobodys_fault() -> None:
    """After a restart the grace counts from there."""
    book = slow_d()
    book = Playbook(book.phase, [], book.now_s + 5000) >> e.CoordinatorRestarted() << None
    attempt = book.phase.round.attempt("d2")
    assert participation.gives_up_at_s(book.phase, attempt) > book.now_s + 200


def test_a_clock_that_was_set_back_makes_no_round_wait_for_days() -> None:
    """A round with its quorum closes after the deadline from now on, a node that refused is asked
    again after its minute, and a job that looks for nodes is not the last of all."""
    book = training_("a", "b", "c", "d", plan=PATIENT)
    for node in "abc":
        book = Playbook((book >> update(f"{node}1")).phase, [], book.now_s)
    days_s = 49 * 3600.0
    book = Playbook(book.phase, [], book.now_s - days_s) >> e.CoordinatorRestarted() << None
    assert book.phase.deadline_at_s == book.now_s + PATIENT.deadline_s
    assert participation.gives_up_at_s(book.phase, book.phase.round.attempt("d1")) <= (
        book.now_s + PATIENT.deadline_s
    )
    book = training_("a", "b", "c") >> e.OrderWasRefused("a1", "POLICY_CHANGED", "m", b"v")
    book = Playbook(book.phase, [], book.now_s - days_s) >> e.CoordinatorRestarted() << None
    book = Playbook(book.phase, [], book.now_s + 61.0)
    (book >> surveyed(*"abc")) << c.ReserveBudgets(1, offers("a"), 0) << None
    looking = Playbook(begun_().phase, [], 100.0 - days_s) >> e.CoordinatorRestarted() << None
    assert looking.phase.since_s == looking.now_s


def test_a_hospital_that_works_for_another_job_is_waited_for_but_not_for_ever() -> None:
    """Two jobs take turns with all nodes, instead of each taking what is free at the moment."""
    busy = e.Absence("d", "BUSY", "works for job x")
    book = begun_() >> surveyed("a", "b", "c", absent=(busy,)) << None
    assert isinstance(book.phase, Selecting)
    assert book.phase.ready == ("a", "b", "c")
    assert book.phase.waiting == (busy,)
    (book >> surveyed(*"abcd")) << c.ReserveBudgets(1, offers(*"abcd"), 3) << None
    late = Playbook(book.phase, [], book.now_s + PLAN.busy_wait_s)
    (late >> surveyed("a", "b", "c", absent=(busy,))) << c.ReserveBudgets << None


def test_participants_are_chosen_in_turn() -> None:
    """Those who took part least come first; the others are named as not chosen."""
    plan = replace(PLAN, rounds_planned=9, participants=3)
    book = begun_(plan) >> surveyed(*"abcde")
    book = book << c.ReserveBudgets(1, offers(*"abc"), 3) << None
    assert [(a.node, a.reason) for a in book.phase.left_out] == [
        ("d", "NOT_CHOSEN"),
        ("e", "NOT_CHOSEN"),
    ]
    book = Playbook((book >> grants(1, *"abc")).phase, [])
    for node in "abc":
        book = Playbook((book >> update(f"{node}1")).phase, [])
    book = book >> e.UpdatesFolded(1, "m1", 400, 0.1, 0.01, False)
    book = Playbook((Playbook(book.phase, []) >> e.ModelPublished(1, None)).phase, [])
    book = book >> surveyed(*"abcde") << c.ReserveBudgets(2, offers(*"dea"), 3) << None


def test_over_selection_orders_more_and_closes_when_enough_have_answered() -> None:
    """Of five ordered the first three count; the others are charged, closed and named."""
    plan = replace(PLAN, participants=3, over_selection=0.5)
    book = begun_(plan) >> surveyed(*"abcdef") << c.ReserveBudgets(1, offers(*"abcde"), 3) << None
    book = Playbook((book >> grants(1, *"abcde")).phase, [])
    for node in "ab":
        book = book >> update(f"{node}1") << posted(f"{node}1") << None
    book = book >> update("e1") << posted("e1")
    for node in "cd":
        book = book << c.PostCharge(f"{node}1", b"") << c.NotifyClosed(f"{node}1", node, "post")
    book = book << c.FoldUpdates(1) << None
    assert {a.reason for a in book.phase.round.attempts if a.node in "cd"} == {"NOT_NEEDED"}


@pytest.mark.parametrize(
    ("participants", "over_selection", "ordered"),
    [
        (10, 0.1, 11),
        (20, 0.1, 22),
        (3, 0.3, 4),
        (3, 1.0, 6),
        (3, 0.0, 3),
        (0, 0.0, 0),
        (7, 1e-9, 8),
    ],
)
def test_the_share_of_over_selection_is_that_which_was_written(
    participants: int, over_selection: float, ordered: int
) -> None:
    """Up to the next whole node; 10 * 1.1 as a float is above 11, and one more would be charged."""
    assert participation.wanted(participants, over_selection) == ordered


def test_only_as_many_are_ordered_besides_as_are_missing() -> None:
    """Whoever is ordered trains and pays: in place of one that was lost one more is asked, in its
    turn and before those that have given nothing in this round; with over-selection its share."""
    plan = replace(PLAN, participants=3)
    book = Playbook(training_("a", "b", "c", plan=plan).phase, [], 100.0)
    for node in "bc":
        book = Playbook((book >> update(f"{node}1")).phase, [], book.now_s)
    book = book >> e.NoUpdateReceived("a1", b"sig") << posted("a1") << c.Survey() << None
    again = book >> surveyed(*"abcdefg") << c.ReserveBudgets(1, offers("d"), 0) << None
    (
        (again >> e.BudgetsReserved((e.Grant("d1x", offers("d")[0]),), ()))
        << c.SendOrder("d1x")
        << None
    )
    (book >> surveyed("a", "b", "c")) << c.ReserveBudgets(1, offers("a"), 0) << None
    working = Playbook(training_("a", "b", "c", plan=plan).phase, [], 100.0)
    working = working >> e.NoUpdateReceived("a1", b"sig") << posted("a1") << c.Survey() << None
    (working >> surveyed(*"abcdefg")) << c.ReserveBudgets(1, offers("d"), 0) << None
    more = replace(book.phase.course, plan=replace(plan, over_selection=0.5))
    over = Playbook(replace(book.phase, course=more), [], book.now_s)
    (over >> surveyed(*"abcdefg")) << c.ReserveBudgets(1, offers(*"def"), 0) << None


def test_at_its_deadline_a_round_orders_in_place_of_those_that_are_late() -> None:
    """Those it is not counted on any more; nobody beyond."""
    book = Playbook(training_("a", "b", "c", plan=replace(PLAN, participants=3)).phase, [], 100.0)
    book = Playbook((book >> update("a1")).phase, [], book.now_s)
    book = book >> e.DeadlinePassed(1) << c.Survey() << None
    book = book >> surveyed(*"abcdefg") << c.ReserveBudgets(1, offers(*"de"), 0) << None
    (book >> surveyed(*"abcdefg")) << None  # they are asked for already
    asked = machine.resume(book.phase)
    assert asked[-1] == c.ReserveBudgets(1, offers(*"de"), 0)
    granted = tuple(e.Grant(f"{one.node}1x", one) for one in offers(*"de"))
    book = book >> e.BudgetsReserved(granted, ()) << c.SendOrder("d1x") << c.SendOrder("e1x")
    assert not book.phase.deadline_passed
    assert book.phase.deadline_at_s == book.now_s + PLAN.deadline_s


def refused(attempt_id: str, possible: int) -> e.OrderWasRefused:
    """A node that can do fewer steps."""
    return e.OrderWasRefused(attempt_id, "STEPS_TOO_MANY", "m", b"v", possible)


def test_a_node_that_can_do_fewer_steps_is_ordered_again_at_once() -> None:
    """Although the others would be enough: the slow hospital takes part with what it can do."""
    book = training_("a", "b", "c", "d") >> refused("d1", 2) << c.VoidCharge("d1", b"v")
    book = book << c.Survey() << None
    for node in "abc":
        book = book >> update(f"{node}1") << posted(f"{node}1")
        book = book << c.Survey() << None
    assert isinstance(book.phase, Training)  # it waits for d's new order
    book = book >> surveyed(*"abcd") << c.ReserveBudgets(1, offers("d"), 0) << None
    again = e.BudgetsReserved((e.Grant("d1x", offers("d")[0]),), ())
    book = book >> again << c.SendOrder("d1x") << None
    book = book >> update("d1x") << posted("d1x") << c.FoldUpdates(1) << None
    assert len(book.phase.round.received) == 4


def test_a_node_that_always_can_do_fewer_steps_is_not_ordered_for_ever() -> None:
    """Its machine is too busy for any number: the round goes on without it after the third."""
    book = training_("a", "b", "c", "d")
    attempt_id, times = "d1", 0
    for number in range(8):
        book = Playbook((book >> refused(attempt_id, 2)).phase, [], book.now_s)
        book = book >> surveyed(*"abcd")
        if not book.commands:
            break
        times += 1
        attempt_id = f"d-{number}"
        again = e.BudgetsReserved((e.Grant(attempt_id, offers("d")[0]),), ())
        book = book << c.ReserveBudgets(1, offers("d"), 0) << None
        book = Playbook((book >> again).phase, [], book.now_s)
    assert times == training.REORDERS_MAX


def test_a_node_whose_own_ledger_is_spent_is_not_ordered_again() -> None:
    """Below quorum another one is; it would refuse as often as it is asked."""
    book = training_("a", "b", "c")
    book = book >> e.OrderWasRefused("a1", "BUDGET_REFUSED", "m", b"v")
    book = Playbook(book.phase, [], book.now_s + PLAN.refused_again_s)
    (book >> surveyed(*"abcd")) << c.ReserveBudgets(1, offers("d"), 0) << None


def test_a_node_that_can_no_longer_be_ordered_is_not_waited_for() -> None:
    """It went away between its refusal and the second order."""
    book = training_("a", "b", "c", "d") >> refused("d1", 2) << c.VoidCharge("d1", b"v")
    book = book << c.Survey() << None
    for node in "abc":
        book = Playbook((book >> update(f"{node}1")).phase, [], book.now_s)
    away = e.Absence("d", "OFFLINE", "is not connected")
    book = book >> surveyed("a", "b", "c", absent=(away,)) << c.FoldUpdates(1) << None


def test_a_hospital_that_is_left_out_again_and_again_is_warned_about() -> None:
    """After three rounds in a row, with the reasons; one round with it clears the warning."""
    plan = replace(PLAN, rounds_planned=9)
    away = e.Absence("d", "OFFLINE", "is not connected")
    not_its_turn = e.Absence("z", "NOT_CHOSEN", "3 of 5 nodes are chosen in turn, by the job")
    book = training_("a", "b", "c", plan=plan)
    out = (away, not_its_turn)
    phase = replace(book.phase, round=replace(book.phase.round, left_out=out))
    book = Playbook(phase, [], book.now_s)
    for number in (1, 2, 3):
        assert participation.warnings(book.phase.course) == ()
        for node in "abc":
            book = Playbook((book >> update(f"{node}{number}")).phase, [], book.now_s)
        book = next_round(book, number, *"abc")
        phase = replace(book.phase, round=replace(book.phase.round, left_out=out))
        book = Playbook(phase, [], book.now_s)
    assert participation.left_out(book.phase.course) == {"d": 3}
    (warning,) = participation.warnings(book.phase.course)
    assert "d was left out of the last 3 rounds (OFFLINE); last time it is not conn" in warning
    for node in "abc":
        book = Playbook((book >> update(f"{node}4")).phase, [], book.now_s)
    book = next_round(book, 4, *"abcd")
    for node in "abcd":
        book = Playbook((book >> update(f"{node}5")).phase, [], book.now_s)
    book = next_round(book, 5, *"abcd")
    assert participation.warnings(book.phase.course) == ()
    assert participation.left_out(book.phase.course) == {}


def test_a_hospital_that_is_always_too_slow_for_an_over_selected_round_is_warned_about() -> None:
    """It trains and pays, and its update is never taken: the warning says so and what to change."""
    plan = replace(PLAN, rounds_planned=9, participants=3, over_selection=0.3)
    book = training_("a", "b", "c", "d", plan=plan)
    for number in (1, 2, 3):
        assert participation.warnings(book.phase.course) == ()
        for node in "abc":
            book = Playbook((book >> update(f"{node}{number}")).phase, [], book.now_s)
        assert {a.reason for a in book.phase.round.attempts if a.node == "d"} == {"NOT_NEEDED"}
        book = next_round(book, number, *"abcd")
    (warning,) = participation.warnings(book.phase.course)
    assert warning.startswith("d was left out of the last 3 rounds (NOT_NEEDED); last time it had ")
    assert "charged all the same" in warning
    assert participation.left_out(book.phase.course) == {"d": 3}


def test_a_hospital_that_over_selection_charges_for_nothing_is_not_ordered_more_often() -> None:
    """Its turn follows from what it paid, not from what was taken of it; the rounds between, which
    were not its turn, do not hide that it is left out of all that were."""
    plan = replace(PLAN, rounds_planned=99, participants=3, over_selection=0.3)
    book = begun_(plan)
    ordered: Counter[str] = Counter()
    for number in range(1, 11):
        book = book >> surveyed(*"abcdef")
        reserve = next(one for one in book.commands if isinstance(one, c.ReserveBudgets))
        nodes = [one.node for one in reserve.offers]
        ordered.update(nodes)
        book = Playbook((book >> grants(number, *nodes)).phase, [])
        for node in [node for node in nodes if node != "f"][:3]:
            book = Playbook((book >> update(f"{node}{number}")).phase, [])
        book = book >> e.UpdatesFolded(number, f"m{number}", 400, 0.1, 0.01, False)
        book = Playbook((Playbook(book.phase, []) >> e.ModelPublished(number, None)).phase, [])
    assert max(ordered.values()) - min(ordered.values()) <= 1
    assert ordered["f"] >= 3
    assert participation.left_out(book.phase.course)["f"] == ordered["f"]
    assert any(
        one.startswith("f was left out of the last")
        for one in participation.warnings(book.phase.course)
    )


def test_a_hospital_that_took_part_at_its_second_try_was_not_left_out() -> None:
    """Its first came to nothing; what it gave counts."""
    book = training_("a", "b", "c") >> e.NoUpdateReceived("a1", b"sig")
    again = e.BudgetsReserved((e.Grant("a1x", offers("a")[0]),), ())
    book = Playbook(book.phase, [], book.now_s) >> surveyed(*"abc")
    book = Playbook((book >> again).phase, [], book.now_s)
    for attempt_id in ("a1x", "b1", "c1"):
        book = Playbook((book >> update(attempt_id)).phase, [], book.now_s)
    course = next_round(book, 1, *"abc").phase.course
    assert participation.left_out(course) == {}


def failed(*received: str) -> Playbook:
    """A job that failed in its first round with some updates on our disk."""
    book = training_("a", "b", "c", "d")
    for node in received:
        book = Playbook((book >> update(f"{node}1")).phase, [], book.now_s)
    book = Playbook((book >> e.StepFailed("the disk is broken")).phase, [], book.now_s)
    assert isinstance(book.phase, Ended)
    return book


def test_a_failed_job_is_resumed_with_the_updates_that_it_holds() -> None:
    """With a quorum of them it goes straight to the fold: no training is repeated."""
    book = failed("a", "b", "c") >> e.ResumeRequested("me") << c.FoldUpdates(1) << None
    assert isinstance(book.phase, Aggregating)
    book = failed("a") >> e.ResumeRequested("me") << c.Survey() << None
    assert isinstance(book.phase, Training)
    assert [a.node for a in book.phase.round.received] == ["a"]


def test_a_resumed_job_goes_on_without_an_update_that_was_lost() -> None:
    """With a quorum of the others straight to the fold; below it the node is ordered again, which
    costs it another release. It is not folded, nor the job resumed in vain for ever."""
    without = e.ResumeRequested("me", "r1", ("b1",))
    book = failed("a", "b", "c", "d") >> without << c.FoldUpdates(1) << None
    assert [a.node for a in book.phase.round.received] == ["a", "c", "d"]
    lost = book.phase.round.attempt("b1")
    assert (lost.reason, lost.digest) == ("UPDATE_LOST", "")
    book = failed("a", "b", "c") >> without << c.Survey() << None
    book = book >> surveyed(*"abc") << c.ReserveBudgets(1, offers("b"), 0) << None
    book = failed("b") >> without << c.Survey() << None
    assert isinstance(book.phase, Selecting)
    assert [a.reason for a in book.phase.course.abandoned[0].attempts if a.node == "b"] == [
        "UPDATE_LOST"
    ]


def test_a_resumed_round_orders_the_nodes_that_it_was_cut_off_from() -> None:
    """Their attempts are charged, and not held against them: below quorum they are needed again."""
    book = failed("a") >> e.ResumeRequested("me") << c.Survey() << None
    book = book >> surveyed(*"abcd") << c.ReserveBudgets(1, offers(*"bcd"), 0) << None
    assert isinstance(book.phase, Training)
    assert {a.state for a in book.phase.round.attempts if a.node != "a"} == {AttemptState.LATE}
    once = replace(book.phase.course, plan=replace(PLAN, attempts_per_round=1))
    book = Playbook(replace(failed("a").phase, course=once), [], book.now_s)
    book = book >> e.ResumeRequested("me") << c.Survey() << None
    (book >> surveyed(*"abcd")) << c.ReserveBudgets(1, offers(*"bcd"), 0) << None


@pytest.mark.parametrize("cut", [e.StepFailed("a disk"), e.CoordinatorRestored(50.0)])
def test_a_last_round_that_is_averaged_twice_has_settled_once(cut: e.Event) -> None:
    """It was cut off before its model was listed: the job has converged no more than before."""
    book = training_("a", "b", "c", plan=replace(PLAN, rounds_planned=1))
    for node in "abc":
        book = Playbook((book >> update(f"{node}1")).phase, [], book.now_s)
    settled = e.UpdatesFolded(1, "m1", 400, 0.0, 0.0, True)
    book = book >> settled << c.PublishLast(1, "m1", 400) << None
    book = Playbook((book >> cut).phase, [], book.now_s)
    book = book >> e.ResumeRequested("operator", "r1") << c.FoldUpdates(1) << None
    book = book >> settled << c.PublishLast(1, "m1", 400) << None
    assert book.phase.status == "completed"
    book = book >> e.ModelPublished(1, "answer") << c.EndJob() << None
    assert book.phase.course.settled_rounds == 1


def test_a_failed_job_without_updates_begins_its_round_again() -> None:
    """What its attempts cost stays known: they are kept apart."""
    book = failed() >> e.ResumeRequested("me") << c.Survey() << None
    assert isinstance(book.phase, Selecting)
    (cut,) = book.phase.course.abandoned
    assert {a.state for a in cut.attempts} == {AttemptState.LATE}


def test_only_a_failed_job_can_be_resumed() -> None:
    """A cancelled one stays cancelled; one that runs is left alone."""
    book = training_("a", "b", "c") >> e.ResumeRequested("me") << None
    ended = Playbook((book >> e.CancelRequested("me")).phase, []) >> e.ResumeRequested("me") << None
    assert ended.phase.status == "cancelled"


@pytest.mark.parametrize(
    "said", sorted({*planner._REFUSES.values(), *planner._UNAVAILABLE.values()})
)
def test_what_the_planner_says_of_a_node_makes_a_sentence(said: str) -> None:
    """Whether it begins with a verb, or with a subject of its own."""
    made = participation._last_time(said)
    assert made.endswith(said)
    assert not re.match(r"last time it (its|it|the|no|account)\b", made), made
    assert not re.match(r"last time: (begins|gets|has|is|refuses|works)\b", made), made


def test_a_nodes_own_sentences_are_quoted_and_not_made_a_predicate() -> None:
    """Ours go on from "it"; a refusal of the node's is told as it was said."""
    assert participation._last_time("is not connected") == "last time it is not connected"
    refused = "The data steward looks at it first. What to do: ask there."
    assert participation._last_time(refused) == f'the last time it said: "{refused[:-1]}"'
