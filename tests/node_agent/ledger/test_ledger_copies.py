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
from node_agent.state.state import State
from node_agent.status import status
from privacy.filters import make_filter
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
