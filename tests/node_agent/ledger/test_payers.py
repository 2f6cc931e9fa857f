"""A population pays from one account for ever: data sets that move, accounts that are left out."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from certs.authority import Authority
from feddp.cli.app import app
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.ledger.copies import export, heads, restore
from node_agent.ledger.payers import Payment, require_kept, source_digest
from node_agent.policy.admission import Admission, Decision, Refused, Reserved, Terms
from node_agent.policy.judgement import Refusal
from node_agent.policy.policy import Policy
from node_agent.policy.steward import Steward
from node_agent.session.greeting import hello
from node_agent.state.state import State
from node_agent.status import status
from privacy.filters import make_filter
from privacy.ledger import to_json, verify
from protos.errors import Malformed, WrongPhase
from tests.node_agent.agent_federation import (
    TRUST_DOMAIN,
    FakeCoordinator,
    FakeWorker,
    RunningAgent,
    make_agent,
    real_order,
)
from tests.node_agent.samples import (
    DATA_SET,
    EPOCHS_DROPPED,
    LEDGER_KEY,
    NO_DATA,
    NODE,
    POLICY,
    TASKS,
    data_set,
    order,
    write_rules,
)
from tests.node_agent.session.test_session_driver import play
from tests.stewards import vouched

HEART, CLINIC = {**DATA_SET}, {**DATA_SET, "name": "clinic", "source": "clinic.csv"}
OTHERS = {"account": "others"}
RELEASED = Path(__file__).parent / "state_0_1_0.sql"


def declare(folder: Path, *sets: dict[str, Any]) -> None:
    """Two accounts, `patients` and `others`; a steward has signed for these data sets."""
    first, tasks = POLICY["accounts"][0], POLICY["allow"][0]["tasks"]
    paid_by: dict[str, list[str]] = {"patients": [], "others": []}
    for one in sets:
        paid_by[one.get("account", "patients")].append(one["name"])
    content = {
        **POLICY,
        "accounts": [{**first, "name": name} for name in paid_by],
        "allow": [{"data_set": one["name"], "tasks": tasks} for one in sets],
        **vouched(paid_by),
    }
    write_rules(folder, content, list(sets))


class Node:
    """A folder with its ledger; each order is a new attempt of a new job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.orders = 0
        self.state = State(folder / "state.db", NODE, LEDGER_KEY)

    def reopen(self) -> None:
        self.state.close()
        self.state = State(self.folder / "state.db", NODE, LEDGER_KEY)

    @property
    def admission(self) -> Admission:
        steward = Steward(Folder(self.folder))
        return Admission(NODE, self.state, steward, lambda: TASKS, 1 << 20)

    def decide(self, name: str, account: str = "patients", **changes: Any) -> Decision:
        self.orders += 1
        attempt, job = f"new-{self.orders}", f"new-job-{self.orders}"
        return self.admission.decide(
            order(attempt, job_id=job, data_set=name, account=account, **changes)
        )

    def refusal(self, name: str, account: str = "patients") -> tuple[str, str]:
        """(reason, message); the attempt is never opened."""
        answer = self.decide(name, account)
        assert isinstance(answer, Refused), answer
        return answer.reason, answer.message


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Data set heart has paid from account patients."""
    (tmp_path / "node").mkdir()
    made = Node(tmp_path / "node")
    declare(made.folder, HEART)
    assert isinstance(made.decide("heart"), Reserved)
    yield made
    made.state.close()


def test_a_data_set_that_has_paid_may_not_move_to_another_account(node: Node) -> None:
    """Refused whichever account the order names, also with a signature; put back, it goes on."""
    declare(node.folder, {**HEART, **OTHERS})
    for account in ("others", "patients"):
        reason, message = node.refusal("heart", account)
        assert reason == "DATA_SET_MOVED"
        assert "has paid from account patients and is declared on account others" in message
        assert "Put `account: patients` back" in message
        assert "`feddp agent vouch`" in message
    assert {one.account for one in node.state.ledger.accounts()} == {f"{NODE}/patients"}
    declare(node.folder, HEART)
    assert isinstance(node.decide("heart"), Reserved)


@pytest.mark.parametrize(
    "disguise",
    [
        {"source": "train.csv"},
        {"source": "deeper/../train.csv"},
        {"source": "link.csv"},
        {"source": "train.csv", "patient": "other_id"},
    ],
)
def test_the_same_file_under_a_new_name_is_the_same_data_set(
    node: Node, disguise: dict[str, Any]
) -> None:
    """By another path, by a link, by another patient column: refused, with both names, no path."""
    (node.folder / "deeper").mkdir()
    (node.folder / "link.csv").symlink_to("train.csv")
    declare(node.folder, {**HEART, **OTHERS, "name": "fresh", **disguise})
    reason, message = node.refusal("fresh", "others")
    assert reason == "DATA_SET_MOVED"
    assert "reads the source that data set heart has paid for from account patients" in message
    assert ".csv" not in message
    declare(node.folder, {**HEART, "name": "fresh", **disguise})
    assert isinstance(node.decide("fresh"), Reserved)


def test_other_patients_in_a_file_of_their_own_pay_from_another_account(node: Node) -> None:
    """While a data set that moved is refused beside them."""
    declare(node.folder, {**HEART, **OTHERS}, {**CLINIC, **OTHERS})
    assert isinstance(node.decide("clinic", "others"), Reserved)
    assert node.refusal("heart", "others")[0] == "DATA_SET_MOVED"


def test_a_name_that_has_paid_is_not_used_again_for_other_patients(node: Node) -> None:
    """The ledgers know a data set by its name, whatever file it reads now."""
    declare(node.folder, {**HEART, **OTHERS, "source": "clinic.csv"})
    assert node.refusal("heart", "others")[0] == "DATA_SET_MOVED"


def test_what_is_about_to_be_read_counts_and_not_what_was_declared_before(node: Node) -> None:
    """The file is changed between reservation and opening: refused if another account has paid
    for it, else kept as paid for."""
    first = order("late", job_id="late")
    assert isinstance(node.admission.decide(first), Reserved)
    declare(node.folder, {**HEART, "source": "other.csv"})
    assert isinstance(node.admission.terms(first), Terms)
    declare(node.folder, HEART, {**CLINIC, **OTHERS, "source": "other.csv"})
    assert "data set heart has paid for" in node.refusal("clinic", "others")[1]
    declare(node.folder, HEART, {**CLINIC, **OTHERS})
    assert isinstance(node.decide("clinic", "others"), Reserved)
    declare(node.folder, {**HEART, "source": "clinic.csv"})
    found = node.admission.terms(first)
    assert isinstance(found, Refusal)
    assert (found.reason, "data set clinic has paid for" in found.message) == (
        "DATA_SET_MOVED",
        True,
    )


def test_an_order_that_reads_nothing_says_nothing_of_the_file(node: Node) -> None:
    """Its name is in the ledger; the file is still nobody's."""
    declare(node.folder, HEART, CLINIC)
    first = order("null", job_id="null", data_set="clinic", **NO_DATA)
    assert isinstance(node.admission.decide(first), Reserved)
    assert isinstance(node.admission.terms(first), Terms)
    declare(node.folder, HEART, {**CLINIC, **OTHERS})
    assert node.refusal("clinic", "others")[0] == "DATA_SET_MOVED"
    declare(node.folder, HEART, {**CLINIC, **OTHERS, "name": "fresh"})
    assert isinstance(node.decide("fresh", "others"), Reserved)


def test_what_was_taken_over_from_the_coordinators_chain_counts_by_its_name(node: Node) -> None:
    """A ledger that was restored from an older copy knows no source of what it lost."""
    lost = order("lost", data_set="clinic").statement(NODE, "post")
    node.state.ledger.append(lost.resolved("reserve"))
    node.state.ledger.append(lost)
    declare(node.folder, HEART, {**CLINIC, **OTHERS})
    assert node.refusal("clinic", "others")[0] == "DATA_SET_MOVED"


def test_what_is_kept_of_a_source_is_told_to_nobody(node: Node) -> None:
    """Neither entries, nor what is signed for officers, nor the greeting holds it."""
    spec = data_set(source=str(node.folder / "train.csv"))
    kept = source_digest(spec)
    assert node.state.payers.payments() == [Payment("heart", kept, f"{NODE}/patients")]
    rules = Steward(Folder(node.folder)).rules()
    greeting = hello(rules, TASKS, node.state.fixed_filter, [], lambda *_: 0)
    told = [str(to_json(one)) for one in node.state.ledger.entries()] + [str(greeting)]
    assert len(told) == 2
    assert "heart" in told[0]
    assert "heart" in told[1]
    assert not any(kept in one or "train.csv" in one for one in told)


def test_a_data_set_that_moved_is_published_as_one_that_cannot_be_used(node: Node) -> None:
    """So that a quote names the hospital and why; the log says what to do."""
    declare(node.folder, {**HEART, **OTHERS}, {**CLINIC, **OTHERS})
    rules = Steward(Folder(node.folder)).rules()
    with structlog.testing.capture_logs() as logs:
        said = hello(
            rules, TASKS, node.state.fixed_filter, [], lambda *_: 0, moved=node.state.payers.moved
        )
    assert [(one.name, one.unavailable) for one in said.data_sets] == [
        ("heart", "DATA_SET_MOVED"),
        ("clinic", ""),
    ]
    (line,) = [one for one in logs if one["event"] == "data_set_moved"]
    assert (line["data_set"], line["log_level"]) == ("heart", "error")
    assert "Put `account: patients` back" in line["do"]


def _move(folder: Folder, **changes: Any) -> None:
    declare(folder.root, {**HEART, **OTHERS, **changes})


def test_a_running_agent_withdraws_a_data_set_that_moves(tmp_path: Path) -> None:
    """At the session's start and as soon as the file changes: nobody plans a round on it."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        coordinator.orders = [real_order()]
        async with RunningAgent(folder, worker):
            await coordinator.heard("hello")
            await coordinator.until_submitted()
            coordinator.orders = []
            await coordinator.heard("heartbeat")
            _move(folder)
            (told,) = (await coordinator.heard("hello")).data_sets
            assert (told.name, told.unavailable) == ("heart", "DATA_SET_MOVED")
        async with RunningAgent(folder, worker):
            (told,) = (await coordinator.heard("hello")).data_sets
            assert told.unavailable == "DATA_SET_MOVED"
            await coordinator.heard("heartbeat")
            _move(folder, account="patients")
            (told,) = (await coordinator.heard("hello")).data_sets
            assert (told.name, told.unavailable) == ("heart", "")
            await coordinator.heard("heartbeat")
            folder.policy_yaml.unlink()
            said = await coordinator.heard("hello")
            assert [one.unavailable for one in said.data_sets] == ["POLICY_INVALID"]
            assert not said.accounts

    play(tmp_path, scene)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A joined agent whose data set heart has paid from account patients."""
    made = make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 9)
    declare(made.root, HEART)
    with ledger_of(made) as state:
        book(state, made.root / "train.csv")
    return made


@contextlib.contextmanager
def ledger_of(folder: Folder) -> Iterator[State]:
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    try:
        yield state
    finally:
        state.close()


def book(state: State, path: Path) -> None:
    """One posted attempt on heart, from this file."""
    source = source_digest(data_set(source=str(path)))
    state.reserve(order(), make_filter("gdp", 0, 10.0, 1.0e-5), source=source)
    state.open("a1", 1.0, 0.5)
    state.lose("a1")


def test_status_names_a_data_set_that_moved(folder: Folder) -> None:
    """Exit code 1 until it is back."""
    asked = ["agent", "status", "--dir", str(folder.root)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    _move(folder, name="fresh")
    answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 1
    assert "WRONG: data set fresh on account others reads the source" in answer.stdout
    _move(folder, account="patients")
    assert CliRunner().invoke(app, asked).exit_code == 0


def test_who_has_paid_survives_export_and_import(folder: Folder, tmp_path: Path) -> None:
    """In a folder that lost its ledger: neither a move nor a new name is let through."""
    copy = tmp_path / "copy.db"
    export(folder.root, copy)
    with ledger_of(folder) as state:
        before = state.payers.payments()
    folder.state_db.unlink()
    restore(folder.root, copy)
    with ledger_of(folder) as state:
        assert state.payers.payments() == before
    for name in ("heart", "fresh"):
        _move(folder, name=name)
        (found,) = status(folder.root)["data_sets"]
        assert "second budget" in found["message"]


def test_a_copy_that_lacks_a_source_does_not_forget_the_folders_own(
    folder: Folder, tmp_path: Path
) -> None:
    """As one that has caught up from the coordinator's chain does."""
    copy = tmp_path / "copy.db"
    export(folder.root, copy)
    with contextlib.closing(sqlite3.connect(copy)) as opened:
        opened.execute("UPDATE payers SET source = ''")
        opened.commit()
    restore(folder.root, copy)
    _move(folder, name="fresh")
    (found,) = status(folder.root)["data_sets"]
    assert "reads the source that data set heart has paid for" in found["message"]


@pytest.fixture
def released(tmp_path: Path) -> Iterator[Node]:
    """A node whose ledger version 0.1.0 wrote, opened by this one."""
    (tmp_path / "old").mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / "old" / "state.db")) as old:
        old.executescript(RELEASED.read_text())
    made = Node(tmp_path / "old")
    yield made
    made.state.close()


def test_in_a_ledger_of_0_1_0_the_names_count(released: Node) -> None:
    """Its entries say which data set paid, and from what account; what they do not say, the file,
    is known from the next reservation on."""
    public = LEDGER_KEY.public_key().public_bytes_raw()
    state = released.state
    filters = {one.account: one.filter(10.0) for one in state.ledger.accounts()}
    assert verify(state.ledger.entries(), filters, {NODE: public}).ok
    declare(released.folder, HEART, CLINIC)
    assert released.refusal("clinic")[0] == "DATA_SET_MOVED"
    declare(released.folder, HEART, {**HEART, **OTHERS, "name": "fresh"})
    assert isinstance(released.decide("heart"), Reserved)
    assert "data set heart has paid for" in released.refusal("fresh", "others")[1]
    released.reopen()
    assert released.refusal("fresh", "others")[0] == "DATA_SET_MOVED"


def test_a_data_set_that_moved_before_belongs_where_it_paid_first(released: Node) -> None:
    """Version 0.1.0 let it: what the second account was charged stays, and nothing is added."""
    declare(released.folder, {**HEART, **OTHERS}, {**CLINIC, **OTHERS})
    assert "paid from account patients" in released.refusal("heart", "others")[1]
    declare(released.folder, HEART, {**CLINIC, **OTHERS})
    assert isinstance(released.decide("heart"), Reserved)
    assert isinstance(released.decide("clinic", "others"), Reserved)


@pytest.mark.parametrize("version", [2, 3])
def test_a_ledger_of_the_schemas_between_is_taken_over(node: Node, version: int) -> None:
    """By its names; nothing else in it changes."""
    before = node.state.ledger.entries()
    node.state.close()
    with contextlib.closing(sqlite3.connect(node.folder / "state.db")) as old:
        raises = "DROP TABLE raises;" if version == 2 else ""
        old.executescript(
            f"DROP TABLE payers; DROP TABLE job_mandates; DROP TABLE approvals;"
            f"DROP TABLE known_projects; {raises}"
            f"{EPOCHS_DROPPED}PRAGMA user_version = {version};"
        )
    node.reopen()
    assert node.state.ledger.entries() == before
    assert node.state.payers.payments() == [Payment("heart", "", f"{NODE}/patients")]


def accounts(*names: str) -> Policy:
    """A policy with these accounts."""
    first = POLICY["accounts"][0]
    listed = [{**first, "name": name} for name in names]
    signature = vouched({name: [] for name in names})
    return Policy.model_validate({**POLICY, "accounts": listed, **signature})


@pytest.mark.parametrize(
    ("declared", "kept", "missing"),
    [
        (["others"], ["patients"], "patients"),
        (["others"], ["patients", "others"], "patients"),
        (["patients", "fresh"], ["patients", "others"], "others"),
        (["patients"], ["patients", "others"], "others"),
        (["patients", "others"], ["patients", "others"], ""),
        (["patients", "fresh"], ["patients"], ""),
        ([], ["patients", "others"], ""),
    ],
)
def test_an_account_with_entries_is_left_out_only_with_all_others(
    declared: list[str], kept: list[str], missing: str
) -> None:
    """Also beside one that has entries itself: its data sets could be declared on that one."""
    if not missing:
        require_kept(accounts(*declared), kept)
        return
    with pytest.raises(WrongPhase) as caught:
        require_kept(accounts(*declared), kept)
    assert caught.value.reason == "ACCOUNT_LEFT_OUT"
    assert f"account {missing} has entries" in caught.value.message
    assert "take its data sets out of allow" in caught.value.message


def test_of_two_accounts_with_entries_neither_is_dropped(node: Node) -> None:
    """With its data set on the other one, which has paid too: every order is refused."""
    declare(node.folder, HEART, {**CLINIC, **OTHERS})
    assert isinstance(node.decide("clinic", "others"), Reserved)
    write_rules(node.folder, data_sets=[HEART, CLINIC])
    for name in ("heart", "clinic"):
        assert node.refusal(name)[0] == "ACCOUNT_LEFT_OUT"


def test_a_retired_account_stays_declared_and_needs_no_data_set(node: Node) -> None:
    """Its data set is withdrawn; the other account goes on, and the signature still holds."""
    declare(node.folder, HEART, {**CLINIC, **OTHERS})
    assert isinstance(node.decide("clinic", "others"), Reserved)
    declared = (node.folder / "policy.yaml").read_text()
    declare(node.folder, HEART)
    (node.folder / "policy.yaml").write_text(declared)
    assert isinstance(node.decide("heart"), Reserved)


def rules_of(folder: Path, signed: dict[str, list[str]], *sets: dict[str, Any]) -> list[str]:
    """Names of the data sets that are taken, with a signature for others."""
    content = {**POLICY, "accounts": accounts(*signed).model_dump()["accounts"], **vouched(signed)}
    write_rules(folder, content, list(sets))
    return [one.name for one in Steward(Folder(folder)).rules().data_sets]


def test_a_data_set_that_nobody_has_signed_is_refused_beside_a_second_account(
    tmp_path: Path,
) -> None:
    """A new one, and one on another account; what was signed and is withdrawn needs nothing."""
    signed = {"patients": ["heart"], "others": ["clinic"]}
    clinic = {**CLINIC, **OTHERS}
    assert rules_of(tmp_path, signed, HEART, clinic) == ["heart", "clinic"]
    assert rules_of(tmp_path, signed, HEART) == ["heart"]
    new, moved = {**CLINIC, "name": "new"}, {**HEART, **OTHERS}
    for sets in ([HEART, clinic, new], [HEART, CLINIC], [moved, clinic]):
        with pytest.raises(Malformed, match="has not signed that its patients are in no") as caught:
            rules_of(tmp_path, signed, *sets)
        assert caught.value.reason == "DATA_SET_UNSIGNED"
    assert rules_of(tmp_path, {"patients": []}, HEART, {**CLINIC}) == ["heart", "clinic"]


def test_officers_files_hold_no_source(folder: Folder) -> None:
    """What a hospital gives away for verification is signed heads and terms."""
    kept = source_digest(data_set(source=str(folder.root / "train.csv")))
    with ledger_of(folder) as state:
        assert state.payers.payments()[0].source == kept
    found = heads(folder.root)
    assert found["accounts"]
    assert kept not in str(found)
