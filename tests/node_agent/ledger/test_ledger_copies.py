"""A copy of a node's ledger that is put back: what is in no entry of it, and what must follow from
them."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from certs.authority import Authority
from certs.enrolment import new_ledger_key
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.ledger.copies import export, restore
from node_agent.ledger.disputes import Dispute
from node_agent.state.state import State
from node_agent.status import status
from privacy.filters import make_filter
from privacy.heads import sign_checkpoint
from privacy.limits import LimitChange, LimitTerms, sign_terms
from protos.errors import Malformed
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import NODE, order

PATIENTS = f"{NODE}/patients"
FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)


def raised(limit: float) -> LimitChange:
    """From 10, by two people."""
    asked, agreed = new_ledger_key(), new_ledger_key()
    asked_key, agreed_key = (one.public_key().public_bytes_raw().hex() for one in (asked, agreed))
    terms = LimitTerms(
        PATIENTS, NODE, 1, "gdp", 0, 1.0e-5, 10.0, limit, "more jobs", "anna", asked_key
    )
    signatures = [sign_terms(one, terms) for one in (asked, agreed)]
    return LimitChange(terms, signatures[0], "bert", agreed_key, signatures[1])


def spent(folder: Folder) -> State:
    """An agent's ledger, opened, in which one order was posted under a limit of 10."""
    key = load_identity(folder.identity).ledger_key
    state = State(folder.state_db, NODE, key)
    state.reserve(order("spent"), FILTER)
    state.open("spent", 1.0, 1.0)
    state.lose("spent")
    state.close_attempt("spent", "post")
    return state


@pytest.fixture
def agent(tmp_path: Path) -> Folder:
    """A joined agent whose account has an entry."""
    made = make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 9)
    spent(made).close()
    return made


def test_a_copy_from_before_the_limit_was_lowered_does_not_lift_it(
    agent: Folder, tmp_path: Path
) -> None:
    """No entry says it, so that the copy lacks none; a higher limit takes two people all the same.
    A copy made after a raise keeps that."""
    export(agent.root, tmp_path / "copy.db")
    key = load_identity(agent.identity).ledger_key
    state = State(agent.state_db, NODE, key)
    state.lower("patients", 5.0, state.ledger.raise_counts())
    state.close()
    restore(agent.root, tmp_path / "copy.db")
    state = State(agent.state_db, NODE, key)
    (kept,) = state.ledger.accounts()
    assert (kept.epsilon_limit, kept.epsilon_limit_highest) == (5.0, 10.0)
    state.ledger.record(raised(12.0))
    state.close()
    export(agent.root, tmp_path / "raised.db")
    agent.state_db.unlink()
    (tmp_path / "copy.db").rename(agent.state_db)
    restore(agent.root, tmp_path / "raised.db")
    state = State(agent.state_db, NODE, key)
    assert [one.epsilon_limit for one in state.ledger.accounts()] == [12.0]
    state.close()


def opened(folder: Folder) -> State:
    """The agent's ledger."""
    return State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)


def test_an_older_copy_lets_nothing_in_that_the_steward_has_refused_since(
    agent: Folder, tmp_path: Path
) -> None:
    """No entry says it: a project that was taken back, a job that was refused, an order that was
    void. What was let in since is asked about again."""
    state = opened(agent)
    for job_id, project in (("one", "old"), ("two", "kept")):
        state.approvals.ask(job_id, project, 1.0)
        state.approvals.approve(job_id, 1.0)
    state.close()
    export(agent.root, tmp_path / "copy.db")
    state = opened(agent)
    state.approvals.withdraw("old", 2.0)
    state.approvals.reject("three", "kept", 2.0)
    state.approvals.ask("four", "new", 2.0)
    state.approvals.approve("four", 2.0)
    state.refuse(order("void"), "OUTSIDE_HOURS", "later")
    state.close()
    restore(agent.root, tmp_path / "copy.db")
    state = opened(agent)
    known = [project for project in ("old", "kept", "new") if state.approvals.is_known(project)]
    assert known == ["kept"]
    assert state.approvals.is_rejected("three")
    refused = state.attempts.find("void")
    assert refused is not None
    assert (refused.state, refused.outcome) == ("refused", "void")
    state.close()


def test_a_copy_that_is_newer_than_the_ledger_keeps_what_was_let_in_since(
    agent: Folder, tmp_path: Path
) -> None:
    """As after a snapshot of the disk was put back: the later answer counts."""
    state = opened(agent)
    state.approvals.ask("one", "study", 1.0)
    state.approvals.approve("one", 1.0)
    state.approvals.withdraw("study", 2.0)
    state.approvals.reject("two", "study", 2.0)
    state.disputes.add(Dispute(PATIENTS, 3, "settled since", 2.0))
    state.close()
    export(agent.root, tmp_path / "snapshot.db")
    state = opened(agent)
    state.settle(PATIENTS)
    state.approvals.approve("two", 3.0)
    state.reserve(order("later"), FILTER)
    state.close()
    export(agent.root, tmp_path / "newer.db")
    (tmp_path / "snapshot.db").replace(agent.state_db)
    restore(agent.root, tmp_path / "newer.db")
    state = opened(agent)
    assert state.approvals.is_known("study")
    assert not state.approvals.is_rejected("two")
    assert state.disputes.all() == []
    state.close()


def test_an_older_copy_ends_no_dispute_and_forgets_no_checkpoint(
    agent: Folder, tmp_path: Path
) -> None:
    """Only the steward's `settle` ends one; checkpoints are what a fork is found out by, and the
    highest limit that the coordinator told is kept for ever."""
    signer = new_ledger_key()
    first = sign_checkpoint(signer, None, [])
    second = sign_checkpoint(signer, first, [])
    key = signer.public_key().public_bytes_raw()
    state = opened(agent)
    state.follow_checkpoints(key, [first], [], [], 1.0)
    state.close()
    export(agent.root, tmp_path / "copy.db")
    state = opened(agent)
    state.follow_checkpoints(key, [second], [], [], 2.0)
    state.disputes.add(Dispute(PATIENTS, 3, "void there, posted here", 2.0))
    state.coordinator_limits.keep({}, {"patients": 20.0})
    state.close()
    restore(agent.root, tmp_path / "copy.db")
    state = opened(agent)
    assert [one.text for one in state.disputes.all()] == ["void there, posted here"]
    assert state.witnessed.checkpoints() == [first, second]
    assert state.coordinator_limits.highest_of(PATIENTS) == 20.0
    state.close()


def test_checkpoints_of_another_history_are_not_put_together(agent: Folder, tmp_path: Path) -> None:
    """Where the copy has seen another one of the same number, its own stay."""
    signer = new_ledger_key()
    key = signer.public_key().public_bytes_raw()
    first = sign_checkpoint(signer, None, [])
    other = sign_checkpoint(signer, None, ["0" * 64])
    after = sign_checkpoint(signer, other, [])
    state = opened(agent)
    state.follow_checkpoints(key, [first], [], [], 1.0)
    state.close()
    export(agent.root, tmp_path / "copy.db")
    agent.state_db.unlink()
    state = spent(agent)
    state.follow_checkpoints(key, [other, after], [], [], 1.0)
    state.close()
    restore(agent.root, tmp_path / "copy.db")
    state = opened(agent)
    assert state.witnessed.checkpoints() == [first]
    state.close()


def test_an_older_copy_knows_that_what_was_signed_of_a_job_is_used_up(
    agent: Folder, tmp_path: Path
) -> None:
    """Its end, and a resumption that came since."""
    export(agent.root, tmp_path / "copy.db")
    insert = "INSERT INTO job_mandates VALUES (?, 'key', ?, 'digest', ?)"
    for path, rows in (
        (agent.state_db, [("ended", 0, 1), ("resumed", 2, 0), ("before", 0, 1)]),
        (tmp_path / "copy.db", [("ended", 0, 0), ("resumed", 1, 1), ("before", 1, 0)]),
    ):
        with contextlib.closing(sqlite3.connect(path)) as written:
            written.executemany(insert, rows)
            written.commit()
    restore(agent.root, tmp_path / "copy.db")
    state = opened(agent)
    seen = {name: state.mandates.seen(name, 1) for name in ("ended", "resumed", "before")}
    assert {n: (s.resumption, s.ended) for n, s in seen.items() if s} == {
        "ended": (0, True),
        "resumed": (2, False),
        "before": (1, False),
    }
    state.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("posted_units = 0", "the balance kept is not what its entries add up to"),
        ("guarantee = 0", "the balance kept is not what its entries add up to"),
        ("epsilon_limit = 11", "the limit kept, 11, is above what its entries show, 10"),
    ],
)
def test_a_copy_whose_figures_do_not_follow_from_its_entries_is_refused(
    agent: Folder, tmp_path: Path, change: str, text: str
) -> None:
    """Orders are admitted by these figures, not by the entries; `status` says it of a ledger."""
    export(agent.root, tmp_path / "copy.db")
    for path in (tmp_path / "copy.db", agent.state_db):
        with contextlib.closing(sqlite3.connect(path)) as opened:
            opened.execute(f"UPDATE accounts SET {change}")  # noqa: S608 - of this test
            opened.commit()
    for refused in (
        lambda: restore(agent.root, tmp_path / "copy.db"),
        lambda: export(agent.root, tmp_path / "again.db"),
    ):
        with pytest.raises(Malformed) as caught:
            refused()
        assert caught.value.reason == "LEDGER_INVALID"
        assert f"account {PATIENTS}: {text}" in caught.value.message
    assert status(agent.root)["ledger"]["problems"] == [f"{PATIENTS}: {text}"]


@pytest.mark.parametrize("with_raise", [False, True])
def test_a_lost_ledger_that_is_read_again_under_a_lower_policy_can_be_copied(
    agent: Folder, tmp_path: Path, with_raise: bool
) -> None:
    """Its own signatures show that the first limit was higher than today's, which is in force all
    the same; the chain verifies, and what is read is no dispute."""
    key = load_identity(agent.identity).ledger_key
    state = State(agent.state_db, NODE, key)
    if with_raise:
        state.ledger.record(raised(12.0))
    there = state.ledger.entries()
    units = state.account_units("patients")
    state.close()
    agent.state_db.unlink()
    low = make_filter("gdp", 0, 0.5, 1.0e-5)
    assert low.limit_units < units
    state = State(agent.state_db, NODE, key)
    state.become_copy()
    assert state.follow(PATIENTS, there, low, 1.0) is None
    (kept,) = state.ledger.accounts()
    assert kept.posted_units == units
    assert kept.epsilon_limit == (12.0 if with_raise else 0.5)
    assert kept.filter(kept.epsilon_limit_highest).limit_units >= units
    assert kept.epsilon_limit_highest == 10.0 if with_raise else kept.epsilon_limit_highest < 1.0
    state.close()
    assert export(agent.root, tmp_path / "copy.db") == len(there)
    assert restore(agent.root, tmp_path / "copy.db") == len(there)
