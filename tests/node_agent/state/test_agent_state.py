"""The agent's database: crash points, the node's own chain, and what is never forgotten."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node_agent.folder.config import Folder
from node_agent.policy.admission import Admission, Refused, Reserved, Spent
from node_agent.policy.judgement import UNRESOLVED_MAX, Standing
from node_agent.policy.orders import Order
from node_agent.policy.steward import Steward
from node_agent.state.notes import ROLLED_BACK_NOTE
from node_agent.state.state import State
from privacy.filters import make_filter
from privacy.ledger import signature_ok, verify
from protos.errors import Malformed, NotFound
from protos.feddp.v1.mandates_pb2 import SignedMandate
from tests.certs.test_mandates import MANDATE
from tests.node_agent.samples import (
    DATA_SET,
    EPOCHS_DROPPED,
    LEDGER_KEY,
    NODE,
    POLICY,
    TASKS,
    order,
    write_rules,
)
from tests.stewards import vouched

FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)
PUBLIC = LEDGER_KEY.public_key().public_bytes_raw()
COST = FILTER.cost_units(order().release)
Reopen = Callable[[], State]


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Reopen]:
    """Opens the database anew, as a process does after `kill -9`: the old one is just dropped."""
    opened: list[State] = []

    def open_() -> State:
        opened.append(State(tmp_path / "state.db", NODE, LEDGER_KEY))
        return opened[-1]

    yield open_
    for state in opened:
        state.close()


def kinds(state: State) -> list[str]:
    return [entry.statement.kind for entry in state.ledger.entries()]


def verified(state: State) -> bool:
    filters = {
        one.account: one.filter(one.epsilon_limit_highest) for one in state.ledger.accounts()
    }
    return verify(state.ledger.entries(), filters, {NODE: PUBLIC}).ok


def test_each_step_survives_a_crash_right_after_it(reopen: Reopen) -> None:
    """The database is opened anew after every transaction: state and ledger say the same."""
    state = reopen()
    signature = state.reserve(order(), FILTER)
    assert signature_ok(PUBLIC, order().statement(NODE, "reserve"), signature)
    state = reopen()
    assert (state.attempts.counts(), kinds(state)) == ({"reserved": 1}, ["reserve"])
    assert state.standing(order("other")).pending[0].units == COST
    assert state.open("a1", 100.0, 0.5)
    state = reopen()
    assert (state.attempts.counts(), kinds(state)) == ({"opened": 1}, ["reserve"])
    signature = state.spool("a1", "d" * 64) or b""
    assert signature_ok(PUBLIC, order().statement(NODE, "post"), signature)
    state = reopen()
    assert (state.attempts.counts(), kinds(state)) == ({"spooled": 1}, ["reserve", "post"])
    assert state.standing(order("other")) == Standing(
        fixed=state.fixed_filter("patients"),
        posted_units=COST,
        job_units=COST,
        purpose_units=COST,
        project_units=COST,
        job_round=1,
    )
    state.close_attempt("a1", "post")
    state = reopen()
    assert (state.attempts.counts(), kinds(state)) == ({"closed": 1}, ["reserve", "post"])
    assert state.attempts.live() == []
    assert verified(state)


def test_a_step_that_fails_in_the_middle_leaves_nothing(
    reopen: Reopen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger entry cannot be written: the attempt's new state is not there either."""
    state = reopen()
    state.reserve(order(), FILTER)
    state.open("a1", 100.0, 0.5)

    def broken(*_: object, **__: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(state.ledger, "append", broken)
    with pytest.raises(OSError, match="disk full"):
        state.spool("a1", "d" * 64)
    monkeypatch.undo()
    assert (reopen().attempts.counts(), kinds(reopen())) == ({"opened": 1}, ["reserve"])


def test_an_opened_attempt_that_was_lost_is_posted_whole_and_never_trained_again(
    reopen: Reopen,
) -> None:
    """After a crash while the data was open: charged, no update, and no second opening."""
    state = reopen()
    state.reserve(order(), FILTER)
    state.open("a1", 100.0, 0.5)
    state = reopen()
    assert state.recover() == ["a1"]
    assert (state.attempts.counts(), kinds(state)) == ({"no_update": 1}, ["reserve", "post"])
    assert not state.open("a1", 200.0, 0.5)
    assert reopen().recover() == []
    assert state.ledger.accounts()[0].posted_units == COST


def test_a_reserved_attempt_goes_on_after_a_crash(reopen: Reopen) -> None:
    """Nothing was opened, so nothing is lost."""
    reopen().reserve(order(), FILTER)
    state = reopen()
    assert state.recover() == []
    assert [row.order for row in state.attempts.live()] == [order()]
    assert state.open("a1", 100.0, 0.5)


def test_the_coordinators_outcome_is_booked_where_none_was(reopen: Reopen) -> None:
    """A reservation ends as the coordinator says; what was opened is posted whatever it says."""
    state = reopen()
    for attempt_id, number in (("a1", 1), ("a2", 2), ("a3", 3)):
        state.reserve(order(attempt_id, round=number), FILTER)
    state.open("a3", 100.0, 0.5)
    state.close_attempt("a1", "void")
    state.close_attempt("a2", "post")
    state.close_attempt("a3", "void")
    state.close_attempt("a3", "post")
    assert kinds(state) == ["reserve"] * 3 + ["void", "post", "post"]
    assert state.ledger.accounts()[0].posted_units == 2 * COST
    assert verified(state)
    assert state.close_attempt("never", "post") is None


def test_each_purpose_and_project_is_added_up_by_itself(reopen: Reopen) -> None:
    """What was voided counts for neither."""
    state = reopen()
    for attempt_id, project, purpose in (
        ("a", "one", "training"),
        ("b", "two", "training"),
        ("c", "one", "evaluation"),
        ("d", "one", "evaluation"),
    ):
        wanted = order(attempt_id, job_id=f"job-{attempt_id}", project=project)
        state.reserve(wanted, FILTER, purpose)  # type: ignore[arg-type]
    state.withdraw("d", "WORKER_FAILED", "it could not start")
    found = reopen().standing(order("e", project="one"), "training")
    assert (found.purpose_units, found.project_units) == (2 * COST, 2 * COST)
    found = reopen().standing(order("e", project="two"), "evaluation")
    assert (found.purpose_units, found.project_units) == (COST, COST)


def test_a_database_of_0_1_0_is_taken_over(reopen: Reopen, tmp_path: Path) -> None:
    """Its attempts are known to their projects; the other ledger is followed from now on."""
    state = reopen()
    state.reserve(order(project="one"), FILTER)
    state.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as old:
        old.executescript(
            "ALTER TABLE attempts DROP COLUMN project; ALTER TABLE attempts DROP COLUMN purpose;"
            "DROP TABLE seen_heads; DROP TABLE seen_attempts; DROP TABLE seen_checkpoints;"
            "DROP TABLE disputes; DROP TABLE settled; DROP TABLE raises; DROP TABLE payers;"
            "DROP TABLE job_mandates; DROP TABLE approvals; DROP TABLE known_projects;"
            f"{EPOCHS_DROPPED}PRAGMA user_version = 1;"
        )
    state = reopen()
    assert state.standing(order("other", project="one")).project_units == COST
    assert state.standing(order("other", project="two")).project_units == 0
    assert state.disputes.all() == []
    assert verified(state)


def test_a_database_from_before_raises_is_taken_over(reopen: Reopen, tmp_path: Path) -> None:
    """Its accounts keep the limit that they had, and can be raised from there."""
    state = reopen()
    state.reserve(order(), FILTER)
    state.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as old:
        old.executescript(
            "DROP TABLE raises; DROP TABLE payers; DROP TABLE job_mandates; DROP TABLE approvals;"
            "DROP TABLE known_projects;"
            f"{EPOCHS_DROPPED}PRAGMA user_version = 2;"
        )
    state = reopen()
    assert state.ledger.accounts()[0].epsilon_limit == 10.0
    assert state.ledger.raise_counts() == {}
    assert verified(state)


def test_nothing_is_done_twice(reopen: Reopen) -> None:
    """A late or repeated step changes nothing: no second opening, posting or withdrawal."""
    state = reopen()
    state.reserve(order(), FILTER)
    assert state.open("a1", 100.0, 0.5)
    assert not state.open("a1", 101.0, 0.5)
    assert state.withdraw("a1", "R", "m") is None
    assert state.lose("a1")
    assert state.lose("a1") is None
    assert state.spool("a1", "d" * 64) is None
    assert kinds(state) == ["reserve", "post"]


def test_a_release_without_noise_voids_the_guarantee_for_ever(reopen: Reopen) -> None:
    """Posting it costs no units and marks the account; a void would not have."""
    state = reopen()
    bare = order(release_mechanism="none", release_noise_multiplier=None)
    state.reserve(bare, FILTER)
    assert state.ledger.accounts()[0].guarantee
    state.open("a1", 100.0, 0.5)
    state.lose("a1")
    assert not reopen().ledger.accounts()[0].guarantee
    state = reopen()
    state.reserve(order("a2", job_id="job-2"), FILTER)
    state.open("a2", 100.0, 0.5)
    state.lose("a2")
    assert not reopen().ledger.accounts()[0].guarantee, "also after a release with noise"


def test_a_lower_limit_does_not_break_the_chain_that_a_higher_one_allowed(reopen: Reopen) -> None:
    """The steward lowers the limit below what was spent: the past still verifies."""
    state = reopen()
    state.reserve(order(), FILTER)
    state.open("a1", 1.0, 0.5)
    state.lose("a1")
    state.lower("patients", 0.1, {})
    free = order("a2", release_noise_multiplier=1000.0)
    state.reserve(free, make_filter("gdp", 0, 0.1, 1.0e-5))
    state.lower("patients", 5.0, {})
    assert verified(state)
    assert state.ledger.accounts()[0].epsilon_limit == 0.1


def test_another_nodes_ledger_is_not_continued(reopen: Reopen, tmp_path: Path) -> None:
    """A state database that was copied from another node is refused, not written into."""
    reopen()
    with pytest.raises(Malformed) as caught:
        State(tmp_path / "state.db", "beta", LEDGER_KEY)
    assert caught.value.reason == "STATE_OF_ANOTHER_NODE"


@pytest.fixture
def admission(reopen: Reopen, tmp_path: Path) -> Callable[[], Admission]:
    """Opens the desk that takes orders, anew each time."""
    write_rules(tmp_path)
    steward = Steward(Folder(tmp_path))
    return lambda: Admission(NODE, reopen(), steward, lambda: TASKS, 1 << 20)


def test_the_same_order_gets_the_same_answer_at_every_stage(
    admission: Callable[[], Admission], reopen: Reopen
) -> None:
    """Reserved, opened and spooled answer alike; closed answers that it is spent."""
    first = admission().decide(order())
    assert isinstance(first, Reserved)
    state = reopen()
    state.open("a1", 1.0, 0.5)
    assert admission().decide(order()) == first
    state.spool("a1", "d" * 64)
    assert admission().decide(order()) == first
    state.close_attempt("a1", "post")
    assert isinstance(admission().decide(order()), Spent)
    assert kinds(state) == ["reserve", "post"]


@pytest.mark.parametrize("digest", ["d" * 64, ""])
def test_no_refusal_tells_whether_training_is_over(
    admission: Callable[[], Admission], reopen: Reopen, digest: str
) -> None:
    """Until the outcome is due, a refusal, which costs nothing, is the same while the data is open
    and once the attempt is booked."""
    waiting = [order(f"w{n}", job_id=f"job-w{n}") for n in range(UNRESOLVED_MAX - 1)]
    assert all(isinstance(admission().decide(one), Reserved) for one in [order(), *waiting])
    state = reopen()
    state.open("a1", 1.0, 60.0)
    state.mandates.keep(replace(MANDATE, job_id="job-1"), "digest")

    def answers(turn: str) -> list[object]:
        asked = (order(f"{turn}-round"), order(f"{turn}-busy", job_id="job-2"))
        found = [admission().decide(one, {"a1"}) for one in asked]
        assert all(isinstance(one, Refused) for one in found)
        reasons = [one.reason for one in found if isinstance(one, Refused)]
        return [*reasons, state.mandates.seen("job-1", 1)]

    during = answers("during")
    assert during[:2] == ["ROUND_NOT_ADVANCING", "BUSY"]
    assert state.spool("a1", digest) if digest else state.lose("a1")
    assert answers("over") == during
    # From that moment on it has its outcome, and counts as over.
    assert isinstance(admission().decide(order("after", job_id="job-3")), Reserved)


def test_a_renamed_account_is_no_fresh_budget(
    admission: Callable[[], Admission], tmp_path: Path
) -> None:
    """What its patients have spent stays with them: the old name stays, or nothing is allowed."""
    first = POLICY["accounts"][0]
    assert isinstance(admission().decide(order()), Reserved)
    renamed = {**first, "name": "others"}
    moved = [{**DATA_SET, "account": "others"}]
    write_rules(tmp_path, {**POLICY, "accounts": [renamed]}, moved)
    for account in ("others", "patients"):
        refused = admission().decide(order(f"a-{account}", account=account))
        assert isinstance(refused, Refused)
        assert refused.reason == "ACCOUNT_LEFT_OUT"
    # An account that is only taken out allows nothing, and is no fault.
    write_rules(tmp_path, {**POLICY, "accounts": [], "allow": []}, [])
    gone = admission().decide(order("a3"))
    assert isinstance(gone, Refused)
    assert gone.reason != "ACCOUNT_LEFT_OUT"
    allow = [{**POLICY["allow"][0], "data_set": "clinic"}]
    signed = vouched({"patients": [], "others": ["clinic"]})
    both = {**POLICY, "accounts": [first, renamed], "allow": allow, **signed}
    write_rules(tmp_path, both, [{**moved[0], "name": "clinic", "source": "clinic.csv"}])
    other = order("a4", account="others", data_set="clinic", job_id="job-2")
    assert isinstance(admission().decide(other), Reserved)


def test_a_refusal_is_for_ever(admission: Callable[[], Admission], tmp_path: Path) -> None:
    """The node has signed that it never opens the data, so a milder policy changes nothing."""
    strict = {**POLICY["accounts"][0], "noise_multiplier_min": 20.0}
    write_rules(tmp_path, {**POLICY, "accounts": [strict]})
    first = admission().decide(order())
    assert isinstance(first, Refused)
    assert first.reason == "NOISE_TOO_LOW"
    assert signature_ok(PUBLIC, order().statement(NODE, "void"), first.signature)
    write_rules(tmp_path)
    assert admission().decide(order()) == first
    assert isinstance(admission().decide(order("a2")), Reserved)


def test_a_known_attempt_with_other_terms_gets_no_signature(
    admission: Callable[[], Admission],
) -> None:
    """The first order's statement may be spent: signing a void of a second would be a lie."""
    admission().decide(order())
    answer = admission().decide(order(release_noise_multiplier=20.0))
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.signature) == ("ATTEMPT_CONFLICT", b"")


def test_an_unreadable_policy_refuses_everything(
    admission: Callable[[], Admission], tmp_path: Path
) -> None:
    """The steward is in the middle of an edit: refused, and nothing of the file is told."""
    (tmp_path / "policy.yaml").write_text("accounts: [secret-name")
    answer = admission().decide(order())
    assert isinstance(answer, Refused)
    assert answer.reason == "POLICY_INVALID"
    assert "secret-name" not in answer.message


def test_the_budget_is_refused_by_the_nodes_own_ledger(
    admission: Callable[[], Admission], tmp_path: Path
) -> None:
    """Orders go on until the steward's limit, pending ones included; the next is refused."""
    account = {**POLICY["accounts"][0], "epsilon_limit": 5.0}
    write_rules(tmp_path, {**POLICY, "accounts": [account]})
    limit = make_filter("gdp", 0, 5.0, 1.0e-5)
    fitting = limit.limit_units // limit.cost_units(order(release_noise_multiplier=4.0).release)
    answers = [
        admission().decide(order(f"a{n}", job_id=f"job-{n}", release_noise_multiplier=4.0))
        for n in range(fitting + 1)
    ]
    assert [type(answer) for answer in answers] == [Reserved] * fitting + [Refused]
    assert isinstance(answers[-1], Refused)
    assert answers[-1].reason == "BUDGET_REFUSED"


def test_a_larger_model_than_the_agent_takes_is_refused(
    admission: Callable[[], Admission],
) -> None:
    """Before a byte of it is fetched."""
    answer = admission().decide(order(base_model_bytes=(1 << 20) + 1))
    assert isinstance(answer, Refused)
    assert answer.reason == "MODEL_TOO_LARGE"


def test_rounds_from_before_an_engineer_resumed_the_job_do_not_count(reopen: Reopen) -> None:
    """A coordinator that was restored from a backup goes on from an earlier round, once somebody
    has signed that; what was signed before allows no such thing."""

    def signed(attempt_id: str, round_: int, resumption: int) -> Order:
        body = replace(MANDATE, resumption=resumption).body()
        return order(attempt_id, round=round_, mandate=SignedMandate(body=body, signature=b"s"))

    state = reopen()
    for number in (1, 2, 3):
        state.reserve(signed(f"a{number}", number, 0), FILTER)
        state.open(f"a{number}", 100.0, 0.0)
        state.spool(f"a{number}", "d" * 64)
    state = reopen()
    assert state.standing(signed("again", 2, 0)).job_round == 3
    assert state.standing(order("unsigned", round=2)).job_round == 3
    assert state.standing(signed("resumed", 2, 1)).job_round == 0
    state.reserve(signed("resumed", 2, 1), FILTER)
    assert state.standing(signed("older", 1, 1)).job_round == 2
    assert state.standing(signed("next", 3, 1)).job_round <= 3
    unreadable = order("x", round=2, mandate=SignedMandate(body=b"no mandate", signature=b"s"))
    assert state.standing(unreadable).job_round == 3


@pytest.mark.parametrize("is_replaced", [False, True])
def test_no_record_is_read_once_the_ledger_has_lost_its_name(
    reopen: Reopen, tmp_path: Path, is_replaced: bool
) -> None:
    """Linux lets a process write on into a file that was removed, and all that it books then is
    forgotten with the process. A file put in its place is another one."""
    state = reopen()
    state.reserve(order(), FILTER)
    path = tmp_path / "state.db"
    path.rename(tmp_path / "away.db")
    if is_replaced:
        path.write_bytes((tmp_path / "away.db").read_bytes())
    for step in (
        lambda: state.open("a1", 100.0, 0.5),
        lambda: state.reserve(order("a2", round=2), FILTER),
    ):
        with pytest.raises(NotFound, match="while the agent ran") as caught:
            step()
        assert caught.value.reason == "LEDGER_MISSING"
    assert state.attempts.counts() == {"reserved": 1}
    (tmp_path / "away.db").rename(path)
    assert state.open("a1", 100.0, 0.5)


def test_a_ledger_that_went_back_in_time_gives_nothing_back(reopen: Reopen) -> None:
    """What is reserved in it may have been opened and sent since: it signs no void and books none,
    whatever the coordinator says, until a copy is imported."""
    state = reopen()
    state.reserve(order(), FILTER)
    state.notes.keep(ROLLED_BACK_NOTE, "it lacks a post")
    assert state.withdraw("a1", "TOO_SLOW", "it does not fit") is None
    state.close_attempt("a1", "void")
    assert (state.attempts.counts(), kinds(state)) == ({"reserved": 1}, ["reserve"])
    state.notes.keep(ROLLED_BACK_NOTE, "")
    assert state.withdraw("a1", "TOO_SLOW", "it does not fit")
    assert kinds(state) == ["reserve", "void"]


def test_what_was_reserved_in_a_copy_is_posted_at_the_next_start(reopen: Reopen) -> None:
    """Nobody can say that it was not opened after the copy was made."""
    state = reopen()
    state.reserve(order(), FILTER)
    state.become_copy()
    state = reopen()
    assert state.recover() == ["a1"]
    assert kinds(state) == ["reserve", "post"]
    assert state.withdraw("a1", "TOO_SLOW", "it does not fit") is None


def test_a_coordinator_that_was_left_binds_no_more(reopen: Reopen) -> None:
    """What it held an account to is its word, and the next one's is not known yet."""
    state = reopen()
    state.coordinator_limits.keep({"patients": 2.0})
    assert state.coordinator_limits.of(f"{NODE}/patients") == 2.0
    state.leave()
    assert state.coordinator_limits.of(f"{NODE}/patients") is None
