"""A ledger that went back never gives back what its earlier life may have released."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from node_agent.folder.config import Folder
from node_agent.ledger.reconciliation import Reconciliation
from node_agent.policy.admission import Admission, Refused, Reserved, Spent
from node_agent.policy.steward import Steward
from node_agent.state.notes import RESTORED_NOTE, ROLLED_BACK_NOTE
from node_agent.state.state import State
from privacy.ledger import KINDS, Entry, append, signature_ok
from tests.node_agent.ledger.test_rollback import FILTER, PUBLIC
from tests.node_agent.samples import LEDGER_KEY, NODE, POLICY, TASKS, order, write_rules

X = order("x")


def nothing(_state: State) -> None:
    """The copy was made before the order came."""


def reserved(state: State) -> None:
    """The copy was made when the order was accepted, and the data not opened."""
    state.reserve(X, FILTER)


@pytest.fixture
def second_life(tmp_path: Path) -> Callable[[Callable[[State], None]], State]:
    """A ledger whose first life went on after the copy, and posted the attempt."""

    def lived(before: Callable[[State], None]) -> State:
        write_rules(tmp_path)
        first = State(tmp_path / "state.db", NODE, LEDGER_KEY)
        before(first)
        first.close()
        shutil.copyfile(tmp_path / "state.db", tmp_path / "copy.db")
        first = State(tmp_path / "state.db", NODE, LEDGER_KEY)
        if first.attempts.find("x") is None:
            first.reserve(X, FILTER)
        first.open("x", 1.0, 0.0)
        posted = first.spool("x", "d" * 64)
        assert posted is not None
        assert signature_ok(PUBLIC, X.statement(NODE, "post"), posted)
        first.close()
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"state.db{suffix}").unlink(missing_ok=True)
        shutil.copyfile(tmp_path / "copy.db", tmp_path / "state.db")
        return State(tmp_path / "state.db", NODE, LEDGER_KEY)

    return lived


def admission(state: State) -> Admission:
    return Admission(NODE, state, Steward(Folder(state.folder)), lambda: TASKS, 1 << 20)


def imported(state: State) -> None:
    state.become_copy()
    state.recover()


def caught_up(state: State) -> None:
    """It has read the coordinator's chain, which holds the attempt reserved."""
    imported(state)
    state.memory.note_open(["x"])
    state.notes.keep(RESTORED_NOTE, "")


def rolled_back(state: State) -> None:
    state.notes.keep(ROLLED_BACK_NOTE, "it lacks something")


@pytest.mark.parametrize("gap", [imported, caught_up, rolled_back])
def test_an_order_that_comes_again_is_refused_without_a_void(
    second_life: Callable[[Callable[[State], None]], State], gap: Callable[[State], None]
) -> None:
    """The coordinator charges what is refused without a signature. Nothing is kept, so that it is
    refused the same way each time."""
    state = second_life(nothing)
    gap(state)
    for _ in range(2):
        decision = admission(state).decide(X)
        assert isinstance(decision, Refused)
        assert decision.reason in ("LEDGER_CATCHING_UP", "LEDGER_ROLLED_BACK")
        assert decision.signature == b""
        assert state.attempts.find("x") is None


def test_an_order_of_after_the_copy_is_judged_as_ever(
    second_life: Callable[[Callable[[State], None]], State],
) -> None:
    """Only what was open when the chain was read is in doubt."""
    state = second_life(nothing)
    caught_up(state)
    assert isinstance(admission(state).decide(order("y", job_id="job-y")), Reserved)


def test_what_a_copy_holds_reserved_is_posted_and_told_as_spent(
    second_life: Callable[[Callable[[State], None]], State],
) -> None:
    """It is not worked at again: its data may have been opened."""
    state = second_life(reserved)
    imported(state)
    state.close_attempt("x", "void")
    assert [one.kind for one in state.ledger.statements_of("x")] == ["reserve", "post"]
    decision = admission(state).decide(X)
    assert isinstance(decision, Spent)
    assert signature_ok(PUBLIC, X.statement(NODE, "post"), decision.signature)


def test_an_old_ledger_ends_nothing_and_books_nothing(
    second_life: Callable[[Callable[[State], None]], State],
) -> None:
    """A newer copy must be able to take its place, and hold all that it holds."""
    state = second_life(reserved)
    rolled_back(state)
    before = state.ledger.entries()
    assert state.withdraw("x", "POLICY", "The policy has changed.") is None
    state.close_attempt("x", "void")
    assert state.handing_in.owed(lambda _: FILTER) == []
    assert state.ledger.entries() == before


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_a_copy_takes_over_posts_that_nobody_signed(
    second_life: Callable[[Callable[[State], None]], State], signed: bool, copied: bool
) -> None:
    """What was charged because this node could not say that it never opened it; another ledger
    knows what came to it, and takes over what it has signed alone. Its order is told as spent."""
    state = second_life(nothing)
    if copied:
        caught_up(state)
    post = X.statement(NODE, "post")
    own = Reconciliation(NODE, state.ledger, state.attempts, state.memory, state.epochs, PUBLIC)
    entry = append(post, None, state.signature(X, "post") if signed else b"")
    assert own.adopt(entry, FILTER) == ""
    kinds = [one.kind for one in state.ledger.statements_of("x")]
    assert kinds == (["reserve", "post"] if signed or copied else [])
    if kinds:
        assert isinstance(admission(state).decide(X), Spent)
        other = order("x", round=7)
        assert admission(state).decide(other) == Refused(
            "ATTEMPT_CONFLICT", "This attempt was ordered with other terms.", b""
        )


def test_what_was_taken_over_counts_within_the_account_too(
    second_life: Callable[[Callable[[State], None]], State],
) -> None:
    """For its job, its project and, as no entry says which, every purpose: these limits do not
    begin anew with a copy. An attempt that is known here counts once."""
    state = second_life(nothing)
    imported(state)
    account, cost = f"{NODE}/patients", FILTER.cost_units(X.release)
    assert state.standing(X).job_units == 0
    entries: list[Entry] = []
    for kind in KINDS[:2]:
        said = X.statement(NODE, kind)
        entries.append(append(said, entries[-1] if entries else None, state.signature(X, kind)))
    assert state.follow(account, entries, FILTER, 1.0) is None
    state.notes.keep(RESTORED_NOTE, "")
    own = order("y", job_id="job-y", project="other")
    state.reserve(own, FILTER, "evaluation")
    for one in (state, State(state.folder / "state.db", NODE, LEDGER_KEY)):
        found = one.standing(order("z"), "training")
        assert (found.job_units, found.project_units, found.purpose_units) == (cost, cost, cost)
        found = one.standing(order("z", job_id="job-y", project="other"), "evaluation")
        assert (found.job_units, found.project_units, found.purpose_units) == (cost, cost, 2 * cost)
        assert one.standing(order("z", job_id="job-z", project="third")).project_units == 0
    per_job = {"epsilon_per_job_max": FILTER.epsilon_of(cost) * 1.01}
    write_rules(state.folder, {**POLICY, "accounts": [{**POLICY["accounts"][0], **per_job}]})
    decision = admission(state).decide(order("z", round=2))
    assert isinstance(decision, Refused)
    assert decision.reason == "EPSILON_PER_JOB"
    assert isinstance(admission(state).decide(order("z2", job_id="job-z")), Reserved)
