"""What `feddp agent policy explain` says is what the agent would do."""

from contextlib import closing
from pathlib import Path

import pytest

from certs.authority import Authority
from node_agent.joining.identity import load_identity
from node_agent.ledger.disputes import Dispute
from node_agent.policy.admission import Admission, Refused
from node_agent.policy.explaining import explain
from node_agent.policy.steward import Steward
from node_agent.state.notes import LEFT_NOTE, RESTORED_NOTE, ROLLED_BACK_NOTE
from node_agent.state.state import State
from node_agent.tasks.registry import installed
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import NODE, order


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        (RESTORED_NOTE, "LEDGER_CATCHING_UP"),
        (LEFT_NOTE, "LEDGER_CATCHING_UP"),
        (ROLLED_BACK_NOTE, "LEDGER_ROLLED_BACK"),
        ("", "LEDGER_DISPUTED"),
    ],
)
def test_what_suspends_every_order_is_explained_as_it_is_refused(
    tmp_path: Path, note: str, reason: str
) -> None:
    """A restored ledger refuses all until it has read on; nobody is told that it allows."""
    folder = make_agent(tmp_path / "a", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 1)
    key = load_identity(folder.identity).ledger_key
    with closing(State(folder.state_db, NODE, key)) as state:
        if note:
            state.notes.keep(note, "yes")
        else:
            state.disputes.add(Dispute(f"{NODE}/patients", 3, "another hash", 1.0))
        admission = Admission(NODE, state, Steward(folder), installed, 1 << 30)
        decided = admission.decide(order())
    assert isinstance(decided, Refused)
    found = next(one for one in explain(folder.root, order("a2")) if one.rule == "ledgers agree")
    assert (found.verdict, found.reason) == ("refuses", reason)
    assert found.reason == decided.reason
    assert found.message
