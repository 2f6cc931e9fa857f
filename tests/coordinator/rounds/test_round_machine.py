"""The round machine, read as transcripts."""

from dataclasses import replace

import pytest

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine
from coordinator.rounds.phases import (
    Aggregating,
    AttemptState,
    Closing,
    Ended,
    Publishing,
    Reserving,
    Selecting,
    Training,
)
from protos.errors import InvariantBroken
from tests.coordinator.playbook import (
    PLAN,
    Playbook,
    begun,
    grants,
    offers,
    posted,
    surveyed,
    training,
    update,
)

BROKE = e.Absence("c", "BUDGET", "spent", for_good=True)
AWAY = e.Absence("c", "OFFLINE", "is not connected")


def folded(number: int, *, settled: bool = False) -> e.UpdatesFolded:
    return e.UpdatesFolded(number, f"m{number}", 400, 0.1, 0.01, settled)


def aggregating(number: int, book: Playbook) -> Playbook:
    """Hand in a, b and c's updates of a round."""
    for node in "abc":
        book = book >> update(f"{node}{number}") << posted(f"{node}{number}")
    return book << c.FoldUpdates(number) << None


def test_a_job_runs_its_planned_rounds_and_hands_over_an_answer() -> None:
    """Two planned rounds: each reserves, trains, folds and publishes; the last gives the answer."""
    book = aggregating(1, training("a", "b", "c"))
    book = book >> folded(1) << c.PublishModel(1, "m1", 400) << None
    book = book >> e.ModelPublished(1, None) << c.Survey() << c.ForgetUpdates(1) << None
    assert book.phase.course.model == "m1"
    book = book >> surveyed("a", "b", "c") << c.ReserveBudgets(2, offers("a", "b", "c"), 3) << None
    book = aggregating(
        2,
        (book >> grants(2, "a", "b", "c"))
        << c.SendOrder("a2")
        << c.SendOrder("b2")
        << c.SendOrder("c2")
        << None,
    )
    book = book >> folded(2) << c.PublishLast(2, "m2", 400) << None
    book = book >> e.ModelPublished(2, "answer") << c.EndJob() << None
    assert isinstance(book.phase, Ended)
    assert (book.phase.status, book.phase.answer) == ("completed", "answer")
    assert [one.model for one in book.phase.course.done] == ["m1", "m2"]


def test_a_job_converges_after_enough_settled_rounds() -> None:
    """`convergence_patience` settled rounds in a row end the job; one unsettled starts anew."""
    plan = replace(PLAN, rounds_planned=9)
    phase: object = training("a", "b", "c", plan=plan).phase
    book = Playbook(phase, [])  # type: ignore[arg-type]
    for number, settled in ((1, True), (2, False), (3, True), (4, True)):
        if number > 1:
            book = Playbook((book >> surveyed("a", "b", "c") >> grants(number, *"abc")).phase, [])
        book = aggregating(number, book)
        last = number == 4
        publish = c.PublishLast if last else c.PublishModel
        book = book >> folded(number, settled=settled) << publish(number, f"m{number}", 400)
        book = book >> e.ModelPublished(number, "answer" if last else None)
    assert book.phase.status == "converged"


def test_a_last_round_that_settles_the_model_says_that_it_converged() -> None:
    """Both are true of it; that the model stands still is what the next job is planned by."""
    plan = replace(PLAN, rounds_planned=1, convergence_patience=1)
    book = aggregating(1, training("a", "b", "c", plan=plan))
    assert (book >> folded(1, settled=True)).phase.status == "converged"


def test_fewer_nodes_than_needed_wait_and_say_for_whom() -> None:
    """With two of three, the job waits in Selecting, names the third, and goes on when it comes."""
    book = begun() >> surveyed("a", "b", absent=(AWAY,)) << None
    assert book.phase.waiting == (AWAY,)
    assert book.phase.ready == ("a", "b")
    book = book >> e.NodeReturned("c") << c.Survey() << None
    book = book >> surveyed("a", "b", "c") << c.ReserveBudgets << None
    assert isinstance(book.phase, Reserving)


def test_budgets_that_keep_the_job_below_quorum_for_good_end_it() -> None:
    """Three holders, one spent: no round can ever begin, so the job is exhausted, not waiting."""
    book = begun() >> surveyed("a", "b", absent=(BROKE,)) << c.EndJob() << None
    assert book.phase.status == "budget_exhausted"
    assert "c" in book.phase.message


def test_a_spent_node_beside_an_absent_one_does_not_end_the_job() -> None:
    """Four holders, one spent, one away: the quorum can still come together, so the job waits."""
    away = e.Absence("d", "OFFLINE", "is not connected")
    book = begun() >> surveyed("a", "b", absent=(BROKE, away)) << None
    assert isinstance(book.phase, Selecting)


def test_exhaustion_after_published_rounds_still_hands_over_an_answer() -> None:
    """The rounds that were paid for are not lost: the answer is made from them."""
    book = aggregating(1, training("a", "b", "c")) >> folded(1) >> e.ModelPublished(1, None)
    book = book >> surveyed("a", "b", absent=(BROKE,)) << c.WriteAnswer(1) << None
    assert isinstance(book.phase, Closing)
    book = book >> e.AnswerWritten("answer") << c.EndJob() << None
    assert (book.phase.status, book.phase.answer) == ("budget_exhausted", "answer")


def test_reservations_below_quorum_go_back_to_selecting() -> None:
    """The ledger granted nothing, so nothing was ordered and nothing is owed."""
    book = begun() >> surveyed("a", "b", "c") >> e.BudgetsReserved((), (BROKE,))
    book = book << c.Survey() << None
    assert isinstance(book.phase, Selecting)


def test_retry_of_same_update_is_not_charged_twice() -> None:
    """A node that lost our reply sends the same bytes again: no new charge, no error."""
    book = training("a", "b", "c") >> update("a1") << posted("a1") << None
    before = book.phase
    book = book >> update("a1") << None
    assert book.phase == before


def test_one_lost_node_of_four_does_not_hold_the_round_and_is_posted_whole() -> None:
    """Quorum with nobody left to wait for folds; the silent node's reservation is spent."""
    book = training("a", "b", "c", "d")
    for node in "abc":
        book = book >> update(f"{node}1") << posted(f"{node}1") << None
    book = book >> e.NodeWasLost("d") << c.PostCharge("d1", b"")
    book = book << c.NotifyClosed("d1", "d", "post") << c.FoldUpdates(1) << None
    attempt = book.phase.round.attempt("d1")
    assert attempt.state is AttemptState.LOST


def test_two_lost_nodes_of_four_make_the_round_wait_with_the_updates_it_has() -> None:
    """Below quorum nothing is folded, closed or forgotten; the waiting list names the lost."""
    book = training("a", "b", "c", "d") >> update("a1") << posted("a1") << None
    book = book >> update("b1") << posted("b1") << None
    book = book >> e.NodeWasLost("c") << None
    book = book >> e.NodeWasLost("d") << c.Survey() << None
    book = book >> surveyed("a", "b", absent=(AWAY,)) << None
    assert {a.node for a in book.phase.waiting} == {"c", "d"}
    assert len(book.phase.round.received) == 2


def test_a_returning_node_gets_its_open_order_again_and_completes_the_round() -> None:
    """The same attempt goes on: no second reservation for work that was never resolved."""
    book = training("a", "b", "c", "d")
    for event in (update("a1"), update("b1"), e.NodeWasLost("c"), e.NodeWasLost("d")):
        book = book >> event
    book = book >> e.NodeReturned("c") << c.SendOrder("c1") << None
    book = book >> update("c1") << posted("c1")
    book = book << c.PostCharge("d1", b"") << c.NotifyClosed << c.FoldUpdates(1) << None
    assert isinstance(book.phase, Aggregating)


def test_a_node_without_an_update_is_tried_again_under_a_new_attempt_below_quorum() -> None:
    """The first attempt is spent whole; the second has a new id and its own reservation."""
    book = training("a", "b", "c") >> update("a1") >> update("b1")
    book = book >> e.NoUpdateReceived("c1", b"sig") << posted("c1") << c.Survey() << None
    book = book >> surveyed("a", "b", "c") << c.ReserveBudgets(1, offers("c"), 0) << None
    again = e.BudgetsReserved((e.Grant("c-again", offers("c")[0]),), ())
    book = book >> again << c.SendOrder("c-again") << None
    book = book >> e.NoUpdateReceived("c-again", b"sig") << posted("c-again") << c.Survey() << None
    book = book >> surveyed("a", "b", "c") << None
    assert [a.node for a in book.phase.waiting] == ["c"], "two tries a round, then people must look"


def test_a_round_does_not_wait_for_the_other_job_of_a_node_that_it_could_not_order() -> None:
    """Or the node would be kept for it, and the other job's next round with it."""
    busy = e.Absence("c", "BUSY", "works for job x")
    book = training("a", "b", "c") >> update("a1") >> update("b1")
    book = book >> e.NoUpdateReceived("c1", b"sig") << posted("c1") << c.Survey() << None
    book = book >> surveyed("a", "b", absent=(busy,)) << None
    assert book.phase.waiting == (busy,)
    book = book >> surveyed("a", "b", "c") << c.ReserveBudgets(1, offers("c"), 0) << None
    book = book >> e.BudgetsReserved((e.Grant("c2", offers("c")[0]),), ()) << c.SendOrder("c2")
    book = book >> e.NoUpdateReceived("c2", b"sig") << posted("c2") << c.Survey() << None
    book = book >> surveyed("a", "b", absent=(busy,)) << None
    assert [(a.node, a.reason) for a in book.phase.waiting] == [("c", "NO_UPDATE")]


def test_a_node_without_an_update_is_left_alone_with_quorum() -> None:
    """With quorum reached nobody's budget is spent on a second try."""
    book = (
        training("a", "b", "c", "d") >> update("a1") >> update("b1") >> update("c1") << posted("c1")
    )
    book = book << None
    book = book >> e.NoUpdateReceived("d1", b"sig") << posted("d1") << c.FoldUpdates(1) << None


def test_a_refusal_is_voided_with_the_nodes_signature() -> None:
    """Data that was never opened costs nothing; the node's signature proves it."""
    book = training("a", "b", "c", "d")
    book = book >> e.OrderWasRefused("d1", "NOISE_TOO_LOW", "asks for more noise", b"void")
    book = book << c.VoidCharge("d1", b"void") << None
    assert book.phase.round.attempt("d1").state is AttemptState.REFUSED


def test_acceptance_keeps_the_nodes_signature_once() -> None:
    """The reserve entry gets the node's signature with the first acceptance."""
    book = training("a", "b", "c") >> e.OrderWasAccepted("a1", b"sig")
    book = book << c.KeepSignature("a1", b"sig") << None
    _ = book >> e.OrderWasAccepted("a1", b"sig") << None


def test_the_deadline_closes_a_round_with_quorum_only() -> None:
    """Late nodes are posted whole when there is quorum; below it the round keeps waiting."""
    book = training("a", "b", "c", "d") >> update("a1") >> update("b1")
    waiting = book >> e.DeadlinePassed(1) << c.Survey() << None
    assert isinstance(waiting.phase, Training)
    done = waiting >> update("c1") << posted("c1") << c.PostCharge("d1", b"")
    _ = done << c.NotifyClosed("d1", "d", "post") << c.FoldUpdates(1) << None
    assert done.phase.round.attempt("d1").state is AttemptState.LATE


def test_a_stale_deadline_changes_nothing() -> None:
    """The deadline of another round does not touch this one."""
    book = training("a", "b", "c")
    assert (book >> e.DeadlinePassed(7) << None).phase == book.phase


def test_a_restart_gives_nodes_the_whole_deadline_again() -> None:
    """Time in which the coordinator was away is not held against the nodes."""
    book = training("a", "b", "c") >> e.CoordinatorRestarted() << None
    assert book.phase.deadline_at_s == book.now_s + PLAN.deadline_s
    late = training("a", "b", "c") >> e.GracePassed(1, "a") << None
    late = Playbook((late >> e.DeadlinePassed(1)).phase, [], late.now_s)
    late = late >> e.CoordinatorRestarted() << None
    assert not late.phase.deadline_passed
    assert not any(one.overdue for one in late.phase.round.attempts)


@pytest.mark.parametrize("received", [0, 1, 2])
def test_cancel_books_what_is_open_and_ends(received: int) -> None:
    """Open attempts may have been released: they are posted; resolved ones are not touched."""
    book = training("a", "b", "c")
    for node in "abc"[:received]:
        book = book >> update(f"{node}1")
    book = book >> e.CancelRequested("operator")
    for node in "abc"[received:]:
        book = book << c.PostCharge(f"{node}1", b"") << c.NotifyClosed(f"{node}1", node, "post")
    book = book << c.EndJob() << None
    assert book.phase.status == "cancelled"
    reasons = {one.node: one.reason for one in book.phase.unfinished.attempts}
    assert {reasons[node] for node in "abc"[received:]} == {"JOB_ENDED"}
    silent = training("a", "b", "c") >> e.NodeWasLost("a")
    silent = Playbook(silent.phase, [], silent.now_s) >> e.CancelRequested("operator")
    assert silent.phase.unfinished.attempt("a1").reason == "OFFLINE"


def test_late_messages_after_the_end_change_nothing() -> None:
    """An ended job ignores whatever was still under way."""
    ended = training("a", "b", "c") >> e.CancelRequested("operator")
    for event in (update("a1"), folded(1), e.NodeReturned("a"), surveyed("a"), grants(1, "a")):
        assert (ended >> event << None).phase == ended.phase


def test_an_impossible_event_is_an_error_not_a_shrug() -> None:
    """A fold while nodes still train is a bug, and stops the job from going on from nonsense."""
    with pytest.raises(InvariantBroken, match="UpdatesFolded cannot happen while Training"):
        _ = training("a", "b", "c") >> folded(1)


@pytest.mark.parametrize(
    ("phase", "asked"),
    [
        (begun().phase, [c.Survey()]),
        ((begun() >> surveyed(*"abc")).phase, [c.ReserveBudgets(1, offers(*"abc"), 3)]),
        ((training(*"abc") >> update("a1")).phase, [c.SendOrder("b1"), c.SendOrder("c1")]),
        (aggregating(1, training(*"abc")).phase, [c.FoldUpdates(1)]),
        ((aggregating(1, training(*"abc")) >> folded(1)).phase, [c.PublishModel(1, "m1", 400)]),
        ((training(*"abc") >> e.CancelRequested("x")).phase, [c.EndJob()]),
    ],
)
def test_every_phase_knows_what_to_ask_for_after_a_restart(
    phase: Publishing, asked: list[c.Command]
) -> None:
    """What was under way when the process died is asked for again."""
    assert machine.resume(phase) == asked


def test_a_round_that_waits_says_of_each_node_what_is_so_now() -> None:
    """A node that was away and is back is no longer called away, whatever its attempt ended in."""
    book = training("a", "b", "c") >> update("a1") >> e.NodeWasLost("b") >> e.NodeWasLost("c")
    book = book >> e.StepFailed("a disk") >> e.ResumeRequested("operator", "r1")
    gone = (e.Absence("b", "OFFLINE", "is not connected"), e.Absence("c", "OFFLINE", "is away"))
    book = Playbook(book.phase, [], book.now_s) >> surveyed(absent=gone) << None
    assert [(a.node, a.reason) for a in book.phase.waiting] == [("b", "OFFLINE"), ("c", "OFFLINE")]
    back = (e.Absence("b", "TASK_NOT_ALLOWED", "its policy forbids it"), gone[1])
    book = book >> surveyed(absent=back) << None
    assert [(a.node, a.reason) for a in book.phase.waiting] == [
        ("b", "TASK_NOT_ALLOWED"),
        ("c", "OFFLINE"),
    ]


def test_a_node_that_refused_is_asked_again_after_a_while_or_when_it_comes_back() -> None:
    """A refusal may pass (a worker that could not start); asking each second would be noise."""
    book = training("a", "b", "c") >> update("a1") >> update("b1")
    book = book >> e.OrderWasRefused("c1", "WORKER_FAILED", "could not start", b"void")
    book = Playbook(book.phase, [], book.now_s) >> surveyed("a", "b", "c") << None
    assert [a.reason for a in book.phase.waiting] == ["WORKER_FAILED"]
    later = Playbook(book.phase, [], book.now_s + PLAN.refused_again_s)
    _ = later >> surveyed("a", "b", "c") << c.ReserveBudgets(1, offers("c"), 0) << None
    back = (book >> e.NodeReturned("c")) << c.Survey() << None
    _ = back >> surveyed("a", "b", "c") << c.ReserveBudgets(1, offers("c"), 0) << None


@pytest.mark.parametrize("reason", ["BUDGET_REFUSED", "EPSILON_PER_JOB", "TARGET_EXCEEDED"])
def test_a_nodes_own_ledger_can_end_the_job_as_exhausted(reason: str) -> None:
    """The node is the authority on its budget: three holders, one that cannot pay, no quorum."""
    book = training("a", "b", "c") >> update("a1") >> update("b1")
    book = book >> e.OrderWasRefused("c1", reason, "its own ledger refuses", b"void")
    book = Playbook(book.phase, [], book.now_s) >> surveyed("a", "b", "c") << c.EndJob() << None
    assert book.phase.status == "budget_exhausted"
    assert "c" in book.phase.message


def test_a_job_that_cannot_go_on_ends_when_whoever_works_has_had_its_say() -> None:
    """An order that is refused a moment later is voided; ended at once it would be charged."""
    book = training("a", "b", "c")
    for node in "abc":
        book = book >> e.OrderWasRefused(f"{node}1", "BUDGET_REFUSED", "no", b"void")
        book = book << c.VoidCharge(f"{node}1", b"void") << c.Survey() << None
        book = book >> surveyed("a", "b", "c")
        if node != "c":
            book = book << None
    assert (book << c.EndJob() << None).phase.status == "budget_exhausted"


def test_a_node_that_comes_back_may_try_again_but_not_for_ever() -> None:
    """Its hospital may have mended what was broken; four charges in a round are the most."""
    book = training("a", "b", "c") >> update("a1") >> update("b1")
    attempt_id, charged = "c1", 0
    for number in range(8):
        book = book >> e.NoUpdateReceived(attempt_id, b"sig") >> e.NodeReturned("c")
        charged += 1
        book = book >> surveyed("a", "b", "c")
        if not isinstance(book.commands[:1] and book.commands[0], c.ReserveBudgets):
            break
        attempt_id = f"c-{number}"
        book = book >> e.BudgetsReserved((e.Grant(attempt_id, offers("c")[0]),), ())
    assert charged == PLAN.attempts_per_round_max


def test_a_failed_step_ends_the_job_with_its_reason() -> None:
    """The coordinator's own failure is told, and open attempts are booked."""
    book = training("a", "b", "c") >> e.StepFailed("the disk is gone")
    assert (book.phase.status, book.phase.message) == ("failed", "the disk is gone")
    assert all(not a.is_open for a in book.phase.unfinished.attempts)


def test_a_restored_job_fails_and_leaves_its_open_attempts_to_their_nodes() -> None:
    """Nothing is booked for them here: the node knows what it released after the backup."""
    book = training("a", "b", "c") >> update("a1") >> e.CoordinatorRestored(0.0)
    assert book.commands == [c.EndJob()]
    assert book.phase.status == "failed"
    assert book.phase.message.startswith("RESTORED: ")
    assert "1970-01-01 00:00 UTC" in book.phase.message
    reasons = {a.node: a.reason for a in book.phase.unfinished.attempts}
    assert reasons == {"a": "", "b": "RESTORED", "c": "RESTORED"}
    book = book >> e.ResumeRequested("operator", "r1")
    assert isinstance(book.phase, Training)
    assert [a.node for a in book.phase.round.received] == ["a"]
