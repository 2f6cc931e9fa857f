"""Raising a limit at the node: two stewards, their keys, and what the policy alone cannot do."""

import json
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml
from typer.testing import CliRunner

from certs.authority import Authority
from feddp.cli.app import app
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.ledger import raising
from node_agent.ledger.account_filters import FixedFilter, filter_of
from node_agent.ledger.copies import export, heads, restore
from node_agent.ledger.proposals import load
from node_agent.ledger.raising import Outlook, approve, make_key, propose, record, vouch
from node_agent.policy.admission import Admission, Refused, Reserved
from node_agent.policy.judgement import judge_spending
from node_agent.policy.policy import Policy, load_policy
from node_agent.policy.steward import Steward
from node_agent.session.greeting import hello
from node_agent.state.notes import RESTORED_NOTE
from node_agent.state.state import State
from node_agent.status import status
from privacy.filters import make_filter
from privacy.heads import LimitInForce, signed_by
from privacy.ledger import LimitChange
from privacy.wire import limit_from_wire
from protos.errors import FeddpError, Malformed, NotAllowed, WrongPhase
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import (
    DATA_SET,
    NODE,
    POLICY,
    TASKS,
    data_set,
    order,
    policy,
    write_rules,
)

ACCOUNT = f"{NODE}/patients"
PEOPLE = ("anna", "bert", "carla")


@dataclass
class Hospital:
    """A node whose policy names three stewards, and their keys."""

    folder: Folder
    keys: Path
    public_keys: dict[str, str]

    def write(self, limit: float, people: tuple[str, ...] = PEOPLE) -> None:
        """The policy, with this limit and these stewards."""
        account = {**POLICY["accounts"][0], "epsilon_limit": limit}
        stewards = [{"name": one, "public_key": self.public_keys[one]} for one in people]
        write_rules(self.folder.root, {**POLICY, "accounts": [account], "stewards": stewards})

    def state(self) -> State:
        return State(self.folder.state_db, NODE, load_identity(self.folder.identity).ledger_key)

    def look(self, read: Callable[[State], Any]) -> Any:
        """What `state.db` says now."""
        state = self.state()
        try:
            return read(state)
        finally:
            state.close()

    def spend(self, attempt_id: str = "a1", limit: float = 10.0) -> None:
        """One posted attempt."""

        def work(state: State) -> None:
            state.reserve(order(attempt_id), make_filter("gdp", 0, limit, 1.0e-5))
            state.open(attempt_id, 1.0, 0.5)
            state.lose(attempt_id)

        self.look(work)

    def limit(self) -> float:
        return float(self.look(lambda state: state.ledger.account(ACCOUNT).epsilon_limit))

    def file(self, name: str = "raise.json") -> Path:
        return self.keys / name

    def propose(self, name: str = "anna", file: str = "raise.json") -> Outlook:
        key = self.keys / f"{name}.key"
        reason = "a second study"
        return propose(self.folder.root, "patients", name, key, reason, self.file(file))

    def approve(self, name: str = "bert", file: str = "raise.json") -> Outlook:
        return approve(self.folder.root, self.file(file), name, self.keys / f"{name}.key")

    def record(self, file: str = "raise.json", *, dry_run: bool = False) -> Outlook:
        return record(self.folder.root, self.file(file), dry_run=dry_run)

    def raise_to(self, limit: float, file: str = "raise.json") -> None:
        """All of it."""
        self.write(limit)
        self.propose(file=file)
        self.approve(file=file)
        self.record(file)


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """With one release posted under a limit of 10."""
    folder = make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 9)
    keys = tmp_path / "keys"
    keys.mkdir()
    made = Hospital(folder, keys, {one: make_key(one, keys / f"{one}.key") for one in PEOPLE})
    made.write(10.0)
    made.spend()
    return made


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(FeddpError) as caught:
        work()
    return caught.value.reason


def test_a_stewards_key_is_their_own_and_is_not_written_over(hospital: Hospital) -> None:
    """Readable by nobody else."""
    path = hospital.keys / "anna.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert refused(lambda: make_key("anna", path)) == "FILE_EXISTS"
    assert refused(lambda: make_key("no name", hospital.keys / "x")) == "NAME_INVALID"


@pytest.mark.parametrize(
    ("stewards", "said"),
    [
        ([("anna", "1" * 64), ("Anna", "2" * 64)], "a name is given twice"),
        ([("anna", "1" * 64), ("bert", "1" * 64)], "a key is given twice"),
        ([("anna", "1" * 63)], "must be 64 of the digits"),
        ([("no name", "1" * 64)], "must be a name"),
    ],
)
def test_the_policy_names_two_people_by_two_keys(
    stewards: list[tuple[str, str]], said: str
) -> None:
    """One person under two spellings, or two with one key, would not be two."""
    listed = [{"name": name, "public_key": key} for name, key in stewards]
    with pytest.raises(ValueError, match=said):
        Policy.model_validate({**POLICY, "stewards": listed})


def test_two_people_raise_a_limit(hospital: Hospital) -> None:
    """The proposal says what it means; the entry is in the node's chain, and in force."""
    hospital.write(20.0)
    outlook = hospital.propose()
    assert (outlook.epsilon_limit_old, outlook.epsilon_limit_new) == (10.0, 20.0)
    assert outlook.epsilon_spent is not None
    assert 0 < outlook.epsilon_spent < 10
    assert hospital.limit() == 10.0
    assert hospital.approve().agreed_by == "bert"
    hospital.record(dry_run=True)
    assert hospital.limit() == 10.0
    hospital.record()
    assert hospital.limit() == 20.0
    (change,) = hospital.look(lambda state: state.ledger.raises(ACCOUNT))
    assert (change.terms.asked_by, change.agreed_by) == ("anna", "bert")
    found = status(hospital.folder.root)
    assert found["ledger"]["verified"], found["ledger"]["problems"]
    (account,) = found["accounts"]
    assert (account["epsilon_limit"], account["raises"], account["raises_unseen"]) == (20.0, 1, 1)


def test_a_higher_number_in_the_policy_alone_does_nothing(hospital: Hospital) -> None:
    """The old limit is enforced and announced, and whoever wrote it is told what to do."""
    hospital.write(20.0)
    rules = Steward(hospital.folder).rules()
    fixed = hospital.look(lambda state: state.fixed_filter("patients"))
    account = rules.policy.accounts[0]
    assert filter_of(account, rules.data_sets, fixed).epsilon_limit == 10.0
    with structlog.testing.capture_logs() as logs:
        said = hello(rules, {}, lambda _: fixed, [], lambda *_: 0)
    assert said.accounts[0].epsilon_limit == 10.0
    assert [one["event"] for one in logs] == ["limit_not_raised"]
    assert "feddp agent limit propose patients" in logs[0]["do"]
    (shown,) = status(hospital.folder.root)["accounts"]
    assert shown["epsilon_limit"] == 10.0
    told = CliRunner().invoke(app, ["agent", "status", "--dir", str(hospital.folder.root)]).stdout
    assert "the limit of account patients stays 10 until two" in told


def test_an_order_beyond_the_old_limit_is_refused_with_the_way_to_raise_it() -> None:
    """By the node's own ledger, whatever the policy's number is."""
    wanted = order(release_noise_multiplier=1.0)
    raised = policy(epsilon_limit=1000.0, epsilon_per_job_max=1000.0)
    standing = State(Path(":memory:"), NODE, _key()).standing(wanted)
    assert judge_spending(raised, [data_set()], wanted, NODE, standing) is None
    fixed = replace(standing, fixed=FixedFilter("gdp", 0, 1.0e-5, 1.0))
    refusal = judge_spending(raised, [data_set()], wanted, NODE, fixed)
    assert refusal is not None
    assert refusal.reason == "BUDGET_REFUSED"
    assert "stays 1 until two of the hospital's stewards raise it" in refusal.message


def _key() -> Any:
    from tests.node_agent.samples import LEDGER_KEY

    return LEDGER_KEY


def test_the_node_admits_by_the_raised_limit_once_it_is_recorded(hospital: Hospital) -> None:
    """The same order, refused before and taken after."""
    big = {"release_noise_multiplier": 0.9}  # epsilon 14 for five steps
    account = {**POLICY["accounts"][0], "epsilon_per_job_max": 100.0}

    def decide(attempt_id: str) -> Any:
        def work(state: State) -> Any:
            steward = Steward(hospital.folder)
            desk = Admission(NODE, state, steward, lambda: TASKS, 1 << 20)
            wanted = order(attempt_id, job_id=attempt_id, **big)
            return desk.decide(wanted)

        return hospital.look(work)

    def write(limit: float) -> None:
        stewards = [{"name": n, "public_key": k} for n, k in hospital.public_keys.items()]
        rules = {**POLICY, "accounts": [{**account, "epsilon_limit": limit}], "stewards": stewards}
        write_rules(hospital.folder.root, rules)

    write(40.0)
    first = decide("b1")
    assert isinstance(first, Refused)
    assert first.reason == "BUDGET_REFUSED"
    hospital.propose()
    hospital.approve()
    assert isinstance(decide("b2"), Refused)
    hospital.record()
    assert isinstance(decide("b3"), Reserved)
    assert status(hospital.folder.root)["ledger"]["verified"]


@pytest.mark.parametrize("people", [(), ("anna",)])
def test_fewer_than_two_stewards_raise_nothing(hospital: Hospital, people: tuple[str, ...]) -> None:
    """The sentence says what to add."""
    hospital.write(20.0, people)
    with pytest.raises(NotAllowed) as caught:
        hospital.propose()
    assert caught.value.reason == "STEWARDS_MISSING"
    assert "feddp agent limit key NAME" in caught.value.message


def test_one_person_alone_raises_nothing(hospital: Hospital) -> None:
    """Not without a second, not as the second, and not with the second's name."""
    hospital.write(20.0)
    hospital.propose()
    assert refused(hospital.record) == "NOT_AGREED"
    assert refused(lambda: hospital.approve("anna")) == "ONE_PERSON"
    mine = hospital.keys / "anna.key"
    as_bert = lambda: approve(hospital.folder.root, hospital.file(), "bert", mine)  # noqa: E731
    assert refused(as_bert) == "STEWARD_UNKNOWN"
    forged = json.loads(hospital.file().read_text())
    forged |= {
        "agreed_by": "bert",
        "agreed_key": forged["asked_key"],
        "agreed_signature": forged["asked_signature"],
    }
    hospital.file("forged.json").write_text(json.dumps(forged))
    assert refused(lambda: hospital.record("forged.json")) == "STEWARD_UNKNOWN"
    forged["agreed_key"] = hospital.public_keys["bert"]
    hospital.file("forged.json").write_text(json.dumps(forged))
    assert refused(lambda: hospital.record("forged.json")) == "PROPOSAL_INVALID"
    assert hospital.limit() == 10.0


@pytest.mark.parametrize(
    ("field", "value"),
    [("epsilon_limit_new", 20.5), ("reason", "another"), ("asked_by", "carla"), ("number", 2)],
)
def test_a_proposal_that_was_changed_is_refused(
    hospital: Hospital, field: str, value: object
) -> None:
    """By whoever carries it from one to the other, or after both have signed."""
    hospital.write(20.0)
    hospital.propose()
    whole = hospital.file().read_text()
    hospital.file().write_text(json.dumps({**json.loads(whole), "asked_signature": "zz"}))
    assert refused(hospital.approve) == "PROPOSAL_INVALID"
    hospital.file().write_text(json.dumps({**json.loads(whole), field: value}))
    assert refused(hospital.approve) in ("PROPOSAL_INVALID", "PROPOSAL_STALE", "STEWARD_UNKNOWN")
    hospital.file().write_text(whole)
    hospital.approve()
    hospital.file().write_text(
        json.dumps({**json.loads(hospital.file().read_text()), field: value})
    )
    if field == "epsilon_limit_new":
        hospital.write(20.5)
    assert refused(hospital.record) in ("PROPOSAL_INVALID", "PROPOSAL_STALE", "STEWARD_UNKNOWN")
    assert hospital.limit() == 10.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 1}'])
def test_what_is_no_proposal_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    """One sentence, whatever the file holds."""
    path = tmp_path / "raise.json"
    path.write_text(text)
    assert refused(lambda: load(path)) == "PROPOSAL_INVALID"
    assert refused(lambda: load(tmp_path / "none")) == "FILE_MISSING"


def test_an_old_raise_is_not_used_again(hospital: Hospital) -> None:
    """Neither at once, nor after the steward lowered the limit again."""
    hospital.raise_to(20.0)
    assert refused(hospital.record) == "PROPOSAL_STALE"
    hospital.write(10.0)
    hospital.look(lambda state: state.lower("patients", 10.0, state.ledger.raise_counts()))
    assert hospital.limit() == 10.0
    hospital.write(20.0)
    assert refused(hospital.record) == "PROPOSAL_STALE"
    assert refused(hospital.approve) == "PROPOSAL_STALE"
    assert hospital.limit() == 10.0


def test_a_raise_holds_for_the_state_that_it_was_signed_about(hospital: Hospital) -> None:
    """Another number in the policy, another limit or another steward since, and it is void."""
    hospital.write(20.0)
    hospital.propose()
    hospital.approve()
    hospital.write(30.0)
    assert refused(hospital.record) == "PROPOSAL_STALE"
    for left in (("anna", "carla"), ("bert", "carla")):
        hospital.write(20.0, left)
        assert refused(hospital.record) == "STEWARD_UNKNOWN"
    hospital.write(20.0)
    hospital.look(lambda state: state.lower("patients", 5.0, {}))
    assert refused(hospital.record) == "PROPOSAL_STALE"
    assert hospital.limit() == 5.0


def test_raises_go_on_from_each_other(hospital: Hospital) -> None:
    """Two of them, with a lowering between; the chain verifies."""
    hospital.raise_to(20.0)
    counts = hospital.look(lambda state: state.ledger.raise_counts())
    hospital.look(lambda state: state.lower("patients", 12.0, counts))
    hospital.raise_to(15.0, "second.json")
    assert hospital.limit() == 15.0
    changes = hospital.look(lambda state: state.ledger.raises(ACCOUNT))
    numbers = [(one.terms.number, one.terms.epsilon_limit_old) for one in changes]
    assert numbers == [(1, 10.0), (2, 12.0)]
    assert status(hospital.folder.root)["ledger"]["verified"]


def test_a_raised_limit_that_is_lowered_again_stays_the_guarantee(hospital: Hospital) -> None:
    """What was released under the raised limit was promised no less."""
    hospital.raise_to(20.0)
    hospital.look(lambda state: state.lower("patients", 12.0, state.ledger.raise_counts()))
    hospital.raise_to(15.0, "second.json")
    (account,) = status(hospital.folder.root)["accounts"]
    assert (account["epsilon_limit"], account["epsilon_guarantee"]) == (15.0, 20.0)


def test_an_old_number_that_was_read_before_a_raise_lowers_nothing(hospital: Hospital) -> None:
    """An agent that says Hello while the raise is recorded must not take it back."""
    hospital.raise_to(20.0)
    hospital.look(lambda state: state.lower("patients", 10.0, {}))
    assert hospital.limit() == 20.0


def test_a_number_that_raises_nothing_is_no_proposal(hospital: Hospital) -> None:
    """The policy says first what is wanted; without entries it is all that is needed."""
    assert refused(hospital.propose) == "NOT_A_RAISE"
    with sqlite3.connect(hospital.folder.state_db) as database:
        for table in ("accounts", "entries"):
            database.execute(f"DELETE FROM {table}")  # noqa: S608
    hospital.write(20.0)
    assert refused(hospital.propose) == "NOTHING_PROMISED"


def test_a_raise_goes_on_from_what_the_coordinator_holds_where_that_is_less(
    hospital: Hospital,
) -> None:
    """An older agent followed its policy upwards; the coordinator never did."""
    hospital.look(lambda state: state.coordinator_limits.keep({"patients": 4.0}))
    hospital.write(20.0)
    assert hospital.propose().epsilon_limit_old == 4.0
    hospital.approve()
    hospital.record()
    assert hospital.limit() == 20.0
    assert status(hospital.folder.root)["ledger"]["verified"]
    hospital.write(30.0)
    next_one = hospital.propose(file="next.json")
    assert next_one.epsilon_limit_old == 20.0, "what it said before the raise counts no more"


def test_an_account_with_entries_at_the_coordinator_alone_is_raised_too(
    hospital: Hospital,
) -> None:
    """Each order on it was refused here, so that our own chain has nothing of it."""
    with sqlite3.connect(hospital.folder.state_db) as database:
        for table in ("accounts", "entries"):
            database.execute(f"DELETE FROM {table}")  # noqa: S608
    hospital.look(lambda state: state.coordinator_limits.keep({"patients": 4.0}))
    hospital.raise_to(20.0)
    assert hospital.limit() == 20.0
    found = status(hospital.folder.root)["ledger"]
    assert (found["verified"], found["entries"]) == (True, 1)


def test_the_first_entry_begins_no_higher_than_the_coordinators_chain(hospital: Hospital) -> None:
    """The policy went up after the coordinator's first entry and before ours: a raise from our
    number would go on from more than the chain there shows, and be refused for ever."""
    with sqlite3.connect(hospital.folder.state_db) as database:
        for table in ("accounts", "entries", "attempts"):
            database.execute(f"DELETE FROM {table}")  # noqa: S608

    def decide(state: State) -> Any:
        state.coordinator_limits.keep({"patients": 4.0})
        steward = Steward(hospital.folder)
        return Admission(NODE, state, steward, lambda: TASKS, 1 << 20).decide(order("b1"))

    assert isinstance(hospital.look(decide), Reserved)
    assert hospital.limit() == 4.0
    hospital.write(20.0)
    assert hospital.propose().epsilon_limit_old == 4.0


def test_a_raise_goes_on_from_no_more_than_was_last_announced(hospital: Hospital) -> None:
    """The coordinator may hold to a number whose answer was lost."""
    with sqlite3.connect(hospital.folder.state_db) as database:
        for table in ("accounts", "entries"):
            database.execute(f"DELETE FROM {table}")  # noqa: S608
    hospital.look(lambda state: state.coordinator_limits.keep({"patients": 4.0}))
    hospital.look(lambda state: state.lower("patients", 8.0, {}))
    assert hospital.look(lambda state: state.coordinator_limits.of(ACCOUNT)) == 4.0
    hospital.look(lambda state: state.lower("patients", 2.0, {}))
    hospital.write(20.0)
    assert hospital.propose().epsilon_limit_old == 2.0


def test_nothing_is_raised_while_the_ledger_is_in_doubt(hospital: Hospital) -> None:
    """Restored and not caught up, or disputed."""
    hospital.write(20.0)
    hospital.look(lambda state: state.notes.keep(RESTORED_NOTE, "yes"))
    assert refused(hospital.propose) == "LEDGER_CATCHING_UP"
    hospital.look(lambda state: state.notes.keep(RESTORED_NOTE, ""))
    with sqlite3.connect(hospital.folder.state_db) as database:
        database.execute("INSERT INTO disputes VALUES (?, 1, 'x', 1.0)", (ACCOUNT,))
    assert refused(hospital.propose) == "LEDGER_DISPUTED"


def test_a_raise_survives_export_and_import(hospital: Hospital, tmp_path: Path) -> None:
    """And a copy from before it is not put back over it."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    export(hospital.folder.root, old)
    hospital.raise_to(20.0)
    export(hospital.folder.root, new)
    assert refused(lambda: restore(hospital.folder.root, old)) == "LEDGER_NEWER"
    assert restore(hospital.folder.root, new) == 3
    assert hospital.limit() == 20.0
    (change,) = hospital.look(lambda state: state.ledger.raises(ACCOUNT))
    assert change.terms.epsilon_limit_new == 20.0


def test_a_hello_brings_what_the_coordinator_has_not_shown_yet(hospital: Hospital) -> None:
    """With the node's signature; no more once it was seen in the coordinator's chain."""
    hospital.raise_to(20.0)
    unseen = hospital.look(lambda state: state.ledger.unseen_raises())
    said = hello(None, {}, lambda _: None, [], lambda *_: 0, unseen)
    (message,) = said.limits
    change = limit_from_wire(message)
    assert isinstance(change, LimitChange)
    assert change.terms.epsilon_limit_new == 20.0
    assert len(message.node_signature) == 64
    with sqlite3.connect(hospital.folder.state_db) as database:
        database.execute("INSERT INTO seen_attempts VALUES (?, 'limit')", (change.digest(),))
    assert hospital.look(lambda state: state.ledger.unseen_raises()) == []
    (account,) = status(hospital.folder.root)["accounts"]
    assert (account["raises"], account["raises_unseen"]) == (1, 0)


def test_the_commands_say_what_a_raise_means(hospital: Hospital) -> None:
    """From, to, spent, and that the guarantee becomes the new limit from the beginning."""
    hospital.write(20.0)
    at = ["--dir", str(hospital.folder.root)]
    file, runner = str(hospital.file()), CliRunner()
    words = ["propose", "patients", "--by", "anna", "--key", str(hospital.keys / "anna.key")]
    proposed = runner.invoke(
        app, ["agent", "limit", *words, "--reason", "a second study", "--out", file, *at]
    )
    assert proposed.exit_code == 0, proposed.output
    assert "10 -> 20 at delta 1e-05" in proposed.stdout
    assert re.search(r"^booked +epsilon [\d.]+$", proposed.stdout, re.MULTILINE)
    assert "The guarantee becomes epsilon 20, for every patient" in proposed.stdout
    words_of_it = " ".join(proposed.stdout.split())
    assert "holds with delta 1e-05; all 2 up to this one, together, with delta 2e-05" in words_of_it
    words = ["approve", file, "--by", "bert", "--key", str(hospital.keys / "bert.key")]
    assert runner.invoke(app, ["agent", "limit", *words, *at]).exit_code == 0
    dry = runner.invoke(app, ["agent", "limit", "apply", file, "--dry-run", "--json", *at])
    assert json.loads(dry.stdout)["applied"] is False
    assert hospital.limit() == 10.0
    done = runner.invoke(app, ["agent", "limit", "apply", file, "--json", *at])
    assert json.loads(done.stdout)["applied"] is True
    assert hospital.limit() == 20.0


def test_a_raise_that_stays_below_an_earlier_limit_leaves_the_guarantee_there(
    hospital: Hospital,
) -> None:
    """Raised to 12, lowered to 1, raised to 10: each of the three commands says 12."""
    hospital.raise_to(12.0, "first.json")
    hospital.look(lambda state: state.lower("patients", 1.0, state.ledger.raise_counts()))
    hospital.write(10.0)
    at = ["--dir", str(hospital.folder.root)]
    file, runner = str(hospital.file("second.json")), CliRunner()
    words = ["patients", "--by", "anna", "--key", str(hospital.keys / "anna.key")]
    told = [
        runner.invoke(app, ["agent", "limit", *command, *at])
        for command in (
            ["propose", *words, "--reason", "a second study", "--out", file],
            ["approve", file, "--by", "bert", "--key", str(hospital.keys / "bert.key")],
            ["apply", file],
        )
    ]
    assert [one.exit_code for one in told] == [0, 0, 0], told
    assert all("1 -> 10" in one.stdout for one in told)
    assert all("The guarantee stays epsilon 12, for every" in one.stdout for one in told)
    assert not any("becomes" in one.stdout for one in told)
    assert all("all 3 up to this one" in one.stdout for one in told)
    assert all("\ndelta 3e-05, since" in one.stdout for one in told)
    (account,) = status(hospital.folder.root)["accounts"]
    assert account["epsilon_guarantee"] == 12.0


def test_a_reason_is_given(hospital: Hospital) -> None:
    """It stays for ever, so it is not empty."""
    hospital.write(20.0)
    key = hospital.keys / "anna.key"
    for reason in ("", "  ", "x" * 501):
        with pytest.raises(Malformed):
            propose(hospital.folder.root, "patients", "anna", key, reason, hospital.file())


def test_a_dry_run_needs_all_that_the_real_one_needs(hospital: Hospital) -> None:
    """It is refused for the same reasons."""
    hospital.write(20.0)
    hospital.propose()
    with pytest.raises(WrongPhase):
        raising.record(hospital.folder.root, hospital.file(), dry_run=True)


def test_a_raise_that_is_not_finished_leaves_nothing(hospital: Hospital) -> None:
    """The entry, the limit and the number are one transaction."""
    hospital.write(20.0)
    hospital.propose()
    hospital.approve()
    change = load(hospital.file()).change()

    def broken(state: State) -> None:
        with state.raising() as own:
            own.record(change)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        hospital.look(broken)
    assert hospital.limit() == 10.0
    assert hospital.look(lambda state: state.ledger.raise_counts()) == {}
    assert status(hospital.folder.root)["ledger"]["entries"] == 2
    hospital.record()
    assert hospital.limit() == 20.0


def test_status_says_that_an_account_with_entries_is_missing(hospital: Hospital) -> None:
    """A renamed account would be a fresh budget: nothing is in order until the old one is back."""
    hospital.write(10.0)
    hospital.spend("a9")
    assert status(hospital.folder.root)["in_order"]
    renamed = {**POLICY["accounts"][0], "name": "others"}
    data_sets = [{**DATA_SET, "account": "others"}]
    write_rules(hospital.folder.root, {**POLICY, "accounts": [renamed]}, data_sets)
    found = status(hospital.folder.root)
    assert not found["in_order"]
    assert "account patients has entries in this node's ledger" in found["rules"]["message"]


def test_a_steward_vouches_with_a_command_and_two_accounts_are_taken(tmp_path: Path) -> None:
    """While the policy is refused for want of it; what it prints goes into the file as it is, also
    where YAML would read a data set's name as a number."""
    key = tmp_path / "roe.key"
    first = POLICY["accounts"][0]
    content = {
        **POLICY,
        "accounts": [first, {**first, "name": "others"}],
        "stewards": [{"name": "roe", "public_key": make_key("roe", key)}],
        "disjoint_patients": "two clinics, since 2026-01-01",
    }
    write_rules(tmp_path, content, [DATA_SET, {**DATA_SET, "name": "2027", "account": "others"}])
    with pytest.raises(Malformed, match="no steward has signed it"):
        load_policy(tmp_path / "policy.yaml")
    asked = ["agent", "vouch", "--dir", str(tmp_path), "--by", "roe", "--key", str(key)]
    answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 0
    assert "  others: 2027\n  patients: heart\n" in answer.stdout
    lines = answer.stdout.split("in policy.yaml:\n")[1]
    with (tmp_path / "policy.yaml").open("a") as file:
        file.write(lines)
    assert len(Steward(Folder(tmp_path)).rules().data_sets) == 2
    moved, written = [{**DATA_SET, "account": "others"}], (tmp_path / "policy.yaml").read_text()
    write_rules(tmp_path, yaml.safe_load(written), moved)
    with pytest.raises(Malformed, match="roe has not signed"):
        Steward(Folder(tmp_path)).rules()
    write_rules(tmp_path, {**yaml.safe_load(written), "disjoint_data_sets": "to be mended"}, moved)
    assert "  others: heart\n  patients: no data set\n" in CliRunner().invoke(app, asked).stdout


def test_nobody_vouches_for_a_data_set_of_no_account(tmp_path: Path) -> None:
    """Its account is not in the policy, so that nothing can be said of its patients."""
    key = tmp_path / "roe.key"
    first = POLICY["accounts"][0]
    content = {
        **POLICY,
        "accounts": [first, {**first, "name": "others"}],
        "stewards": [{"name": "roe", "public_key": make_key("roe", key)}],
        "disjoint_patients": "two clinics",
    }
    write_rules(tmp_path, content, [{**DATA_SET, "account": "strangers"}])
    assert refused(lambda: vouch(tmp_path, "roe", key)) == "DATASETS_INVALID"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accounts": POLICY["accounts"]}, "ONE_ACCOUNT"),
        ({"disjoint_patients": ""}, "NOTHING_SAID"),
        ({"stewards": []}, "STEWARD_UNKNOWN"),
        ({"accounts": [*POLICY["accounts"], {"name": "others"}]}, "POLICY_INVALID"),
    ],
)
def test_nobody_vouches_for_what_is_not_there(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    """One account needs nobody; no words, no steward and no valid account give no signature."""
    key = tmp_path / "roe.key"
    first = POLICY["accounts"][0]
    content = {
        **POLICY,
        "accounts": [first, {**first, "name": "others"}],
        "stewards": [{"name": "roe", "public_key": make_key("roe", key)}],
        "disjoint_patients": "two clinics",
        **changes,
    }
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(FeddpError) as caught:
        vouch(tmp_path, "roe", key)
    assert caught.value.reason == reason


def test_what_a_node_says_to_officers_has_its_limit_in_force_signed(hospital: Hospital) -> None:
    """Lowered or raised: nothing else shows a lowered one, and a raise is told by its number."""

    def told() -> tuple[float, int, float]:
        found = heads(hospital.folder.root)
        (one,) = found["accounts"]
        limit = LimitInForce(one["account"], one["epsilon_limit"], one["raises"])
        key, signature = found["ledger_public_key"], one["limit_signature"]
        assert signed_by(bytes.fromhex(key), limit, bytes.fromhex(signature))
        return limit.epsilon_limit, limit.raises, one["epsilon_limit_highest"]

    assert told() == (10.0, 0, 10.0)
    hospital.look(lambda state: state.lower("patients", 4.0, {}))
    assert told() == (4.0, 0, 10.0)
    hospital.raise_to(6.0)
    assert told() == (6.0, 1, 10.0)
