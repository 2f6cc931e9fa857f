"""An order is held against what was signed and what this ledger knows, when it comes and again just
before the data is opened."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from certs.mandates import config_digest, sign
from node_agent.folder.config import Folder
from node_agent.policy.admission import Admission, Refused, Reserved, Terms
from node_agent.policy.judgement import UNRESOLVED_MAX, Refusal
from node_agent.policy.orders import Order
from node_agent.policy.steward import Steward
from node_agent.state.notes import ROLLED_BACK_NOTE
from node_agent.state.state import State
from privacy.filters import make_filter
from protos.feddp.v1.mandates_pb2 import SignedMandate
from tests.certs.test_mandates import KEY, MANDATE
from tests.node_agent.samples import (
    LEDGER_KEY,
    NO_DATA,
    NODE,
    POLICY,
    TASKS,
    order,
    write_rules,
)

FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)
COST = FILTER.cost_units(order().release)
ANNA = {"name": "anna", "public_key": MANDATE.public_key, "projects": ["default"]}


@dataclass
class Node:
    """A node whose policy takes what anna has signed."""

    folder: Path
    state: State
    now_s: float = 1_000.0

    def pin(self, *engineers: dict[str, Any]) -> None:
        """The steward pins these keys, and no others."""
        write_rules(self.folder, {**POLICY, "who_may_ask": {"engineers": list(engineers)}})

    def admission(self) -> Admission:
        """Of an agent that was just started."""
        steward = Steward(Folder(self.folder))
        return Admission(NODE, self.state, steward, lambda: TASKS, 1 << 20, lambda: self.now_s)

    def signed(self, attempt_id: str, round_: int = 1, epsilon_max: float = 8.0) -> Order:
        """An order of a job that anna has signed for an hour."""
        plain = order(attempt_id)
        mandate = replace(
            MANDATE,
            project=plain.project,
            data_set=plain.data_set,
            task=plain.task,
            task_hash=plain.task_hash,
            task_config_digest=config_digest(plain.task_config()),
            initial_model=plain.base_model_digest,
            nodes=(NODE,),
            mechanism="dp",
            epsilon_max=epsilon_max,
            rounds_max=100,
            noise_multiplier=None,
            max_grad_norm=None,
            proximal_mu=None,
            delta=None,
            signed_at_s=1_000,
            expires_at_s=4_600,
        )
        made = sign(KEY, mandate)
        kept = SignedMandate(body=made.body, signature=made.signature)
        return order(attempt_id, job_id=mandate.job_id, round=round_, mandate=kept)

    def release(self, one: Order) -> None:
        """It was worked at, and its job ends nothing."""
        attempt_id = one.attempt_id
        self.state.open(attempt_id, 1.0, 1.0)
        self.state.lose(attempt_id)
        self.state.close_attempt(attempt_id, "post")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Without entries."""
    state = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    made = Node(tmp_path, state)
    made.pin(ANNA)
    yield made
    state.close()


def test_what_was_signed_bounds_all_releases_of_a_job_together(node: Node) -> None:
    """Two keep within it, and a third, which would alone, does not."""
    most = FILTER.epsilon_of(2 * COST) * 1.0001
    for round_ in (1, 2):
        one = node.signed(f"a{round_}", round_, most)
        assert isinstance(node.admission().decide(one), Reserved)
        node.release(one)
    answer = node.admission().decide(node.signed("a3", 3, most))
    assert isinstance(answer, Refused)
    assert answer.reason == "MANDATE_EPSILON"


def test_what_is_no_longer_signed_for_does_not_open_the_data(node: Node) -> None:
    """Its time may have ended while it waited, and the steward may have taken the key away."""
    one = node.signed("a1")
    assert isinstance(node.admission().decide(one), Reserved)
    assert isinstance(node.admission().terms(one), Terms)
    node.now_s = 4_600.0
    ended = node.admission().terms(one)
    assert isinstance(ended, Refusal)
    assert ended.reason == "MANDATE_EXPIRED"
    node.now_s = 1_001.0
    node.pin()
    unpinned = node.admission().terms(one)
    assert isinstance(unpinned, Refusal)
    assert unpinned.reason == "ENGINEER_UNKNOWN"


def test_an_old_ledger_does_not_open_the_data(node: Node) -> None:
    """Found out between the order and its turn."""
    one = node.signed("a1")
    assert isinstance(node.admission().decide(one), Reserved)
    node.state.notes.keep(ROLLED_BACK_NOTE, "it lacks something")
    found = node.admission().terms(one)
    assert isinstance(found, Refusal)
    assert found.reason == "LEDGER_ROLLED_BACK"


def test_so_many_attempts_are_under_way_at_once(node: Node) -> None:
    """Of all jobs together."""
    write_rules(node.folder)
    for number in range(UNRESOLVED_MAX):
        node.state.reserve(order(f"a{number}", job_id=f"job-{number}"), FILTER)
    answer = node.admission().decide(order("b", job_id="job-b"))
    assert isinstance(answer, Refused)
    assert answer.reason == "BUSY"


def test_a_job_is_signed_once_also_for_an_agent_that_was_restarted(node: Node) -> None:
    """Whoever has got hold of the key signs no higher epsilon for a job that is known here; with
    what was signed first it goes on."""
    assert isinstance(node.admission().decide(node.signed("a1")), Reserved)
    node.release(node.signed("a1"))
    answer = node.admission().decide(node.signed("a2", 2, epsilon_max=9.0))
    assert isinstance(answer, Refused)
    assert answer.reason == "MANDATE_REWRITTEN"
    assert isinstance(node.admission().decide(node.signed("a3", 2)), Reserved)


def test_an_order_whose_records_are_gone_does_not_open_them(node: Node) -> None:
    """It would be charged for nothing. What reads none goes on."""
    write_rules(node.folder)
    for one in (order("a1"), order("a2", job_id="job-2", **NO_DATA)):
        assert isinstance(node.admission().decide(one), Reserved)
    (node.folder / "train.csv").unlink()
    found = node.admission().terms(order("a1"))
    assert isinstance(found, Refusal)
    assert found.reason == "SOURCE_MISSING"
    assert isinstance(node.admission().terms(order("a2", job_id="job-2", **NO_DATA)), Terms)


def test_the_outcome_of_what_reads_records_waits_for_its_moment(node: Node) -> None:
    """When it leaves would tell how long the records took; of what reads none it tells nothing."""
    write_rules(node.folder, {**POLICY, "outcome_tick_s": 3.0})
    ticks: dict[str, float] = {}
    for name, changes in (("records", {}), ("none", NO_DATA)):
        one = order(name, job_id=name, **changes)
        answer = node.admission().decide(one)
        assert isinstance(answer, Reserved)
        later = node.admission().terms(one)
        assert isinstance(later, Terms)
        assert answer.terms == later
        ticks[name] = later.tick_s
    assert ticks == {"records": 3.0, "none": 0.0}


def test_what_an_old_coordinator_ordered_is_not_worked_at_once_it_is_closed(node: Node) -> None:
    """The coordinator came from a backup, and this attempt was told to be over meanwhile."""
    write_rules(node.folder)
    node.state.epochs.note_closed("a1")
    answer = node.admission().decide(order("a1"))
    assert isinstance(answer, Refused)
    assert answer.reason == "LEDGER_RECONCILING"
    assert isinstance(node.admission().decide(order("a2")), Reserved)


def test_an_account_counts_elsewhere_as_it_does_for_orders(node: Node) -> None:
    """By the steward's files, and never by more than the coordinator's limit; an account that they
    do not name counts by nothing."""
    write_rules(node.folder)
    account = f"{NODE}/patients"
    for limit in (10.0, 2.0):
        by_policy = make_filter("gdp", 0, limit, 1.0e-5)
        assert node.admission().filter_of_account(account) == by_policy
        node.state.coordinator_limits.keep({"patients": 2.0})
    assert node.admission().filter_of_account(f"{NODE}/others") is None
    (node.folder / "policy.yaml").write_text("accounts: [")
    assert node.admission().filter_of_account(account) is None
