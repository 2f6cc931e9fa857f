"""An old copy of the ledger gives no second budget: what this node has signed counts again."""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from typer.testing import CliRunner

from certs.authority import Authority
from certs.enrolment import new_ledger_key
from feddp.cli.app import app
from node_agent.alerts.conditions import _ledger as ledger_alerts
from node_agent.alerts.settings import AlertsConfig
from node_agent.doctor.files import check_policy
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.joining.leaving import leave
from node_agent.ledger.copies import export, restore, settle
from node_agent.ledger.disputes import EVERY_ACCOUNT, Dispute, left_out
from node_agent.ledger.own_ledger import KeptAccount
from node_agent.ledger.payers import FROM_CHAIN, Payment
from node_agent.policy.admission import Reserved
from node_agent.state.notes import RESTORED_NOTE
from node_agent.state.state import State
from node_agent.status import status
from privacy.entries import KINDS, Entry, append, sign
from privacy.filters import make_filter
from privacy.heads import head_of
from privacy.ledger import verify
from privacy.wire import entry_to_wire, head_to_wire
from protos.errors import NotFound, WrongPhase
from protos.feddp.v1 import witness_pb2, witness_pb2_grpc
from tests.node_agent.agent_federation import (
    TRUST_DOMAIN,
    FakeCoordinator,
    FakeWorker,
    RunningAgent,
    make_agent,
)
from tests.node_agent.ledger.test_payers import CLINIC, HEART, OTHERS, Node, declare
from tests.node_agent.samples import DATA_SET, LEDGER_KEY, NODE, POLICY, order, write_rules
from tests.node_agent.session.test_session_driver import play, until

PATIENTS = f"{NODE}/patients"
PUBLIC = LEDGER_KEY.public_key().public_bytes_raw()
FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)


def chain(
    account: str = "patients", data_sets: Sequence[str] = ("heart",), key: Any = LEDGER_KEY
) -> list[Entry]:
    """The coordinator's chain of one account: an attempt of each data set, posted and signed."""
    made: list[Entry] = []
    for number, name in enumerate(data_sets):
        wanted = order(
            f"{account}-{number}", job_id=f"{account}-{number}", data_set=name, account=account
        )
        for kind in KINDS[:2]:
            said = wanted.statement(NODE, kind)
            made.append(append(said, made[-1] if made else None, sign(key, said)))
    return made


def rename(folder: Path) -> None:
    """Account `patients` is called `others` in both files, and nothing else is there."""
    content = {**POLICY, "accounts": [{**POLICY["accounts"][0], "name": "others"}]}
    write_rules(folder, content, [{**HEART, **OTHERS}])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A ledger without entries, as an old copy is."""
    (tmp_path / "node").mkdir()
    made = Node(tmp_path / "node")
    yield made
    made.state.close()


def read(node: Node, account: str, entries: Sequence[Entry]) -> Dispute | None:
    """What the agent does with the coordinator's chain of an account, from where it has seen it."""
    full = f"{NODE}/{account}"
    new = entries[node.state.witnessed.head(full).seq :]
    return node.state.follow(full, new, node.admission.filter_of_account(full), 1.0)


def posted(node: Node) -> KeptAccount:
    kept = node.state.ledger.account(PATIENTS)
    assert kept is not None
    return kept


def test_an_account_that_was_renamed_after_an_old_copy_refuses_every_order(node: Node) -> None:
    """The ledger cannot book what it has signed: the account is named, and what to do."""
    rename(node.folder)
    found = read(node, "patients", chain())
    assert found is not None
    assert "Put account patients back in policy.yaml" in found.text
    assert found.advice().startswith("put account patients back in policy.yaml")
    for account in ("others", "patients"):
        reason, message = node.refusal("heart", account)
        assert reason == "ACCOUNT_LEFT_OUT"
        assert "Put account patients back in policy.yaml" in message
    assert node.state.payers.payments() == [Payment("heart", FROM_CHAIN, PATIENTS)]


def test_a_data_set_beside_the_account_that_is_back_does_not_pay_elsewhere(node: Node) -> None:
    """Also before the agent has read the chain once more, and for names after the dispute."""
    rename(node.folder)
    assert read(node, "patients", chain(data_sets=("heart", "clinic"))) is not None
    declare(node.folder, {**HEART, **OTHERS}, {**CLINIC, **OTHERS})
    for name in ("heart", "clinic"):
        reason, message = node.refusal(name, "others")
        assert reason == "DATA_SET_MOVED"
        assert "Put `account: patients` back" in message


def test_the_account_put_back_is_counted_and_the_dispute_ends(node: Node) -> None:
    """By itself, with all that was spent, in a chain that verifies."""
    entries = chain(data_sets=("heart", "clinic"))
    rename(node.folder)
    assert read(node, "patients", entries) is not None
    declare(node.folder, HEART, CLINIC)
    assert read(node, "patients", entries) is None
    assert node.state.disputes.all() == []
    order_units = FILTER.cost_units(order().release)
    assert posted(node).posted_units == 2 * order_units
    own = node.state.ledger.entries()
    assert verify(own, {PATIENTS: FILTER}, {NODE: PUBLIC}).ok
    assert isinstance(node.decide("heart"), Reserved)


def test_an_account_whose_terms_the_copy_knows_is_counted_without_the_policy(node: Node) -> None:
    """The copy holds its first attempt: the rest is booked by what that has fixed."""
    declare(node.folder, HEART, CLINIC)
    assert isinstance(node.decide("heart"), Reserved)
    rename(node.folder)
    assert read(node, "patients", chain(data_sets=("heart", "clinic"))) is None
    assert posted(node).posted_units == 2 * FILTER.cost_units(order().release)
    assert verify(node.state.ledger.entries(), {PATIENTS: FILTER}, {NODE: PUBLIC}).ok
    assert node.refusal("heart", "others")[0] == "ACCOUNT_LEFT_OUT"


def test_a_dispute_for_want_of_the_account_is_not_settled_away(node: Node) -> None:
    """The steward is told to put it back; every order stays refused."""
    rename(node.folder)
    read(node, "patients", chain())
    with pytest.raises(WrongPhase, match="put account patients back in policy") as caught:
        node.state.settle("patients")
    assert caught.value.reason == "ACCOUNT_LEFT_OUT"
    assert [one.account for one in node.state.disputes.all()] == [PATIENTS]
    assert node.refusal("heart", "others")[0] == "ACCOUNT_LEFT_OUT"


def test_settling_another_dispute_forgets_nothing_that_was_signed(node: Node) -> None:
    """The chain does not hold together; what this node signed in it is spent all the same."""
    entries = chain(data_sets=("heart", "clinic"))
    broken = [entries[0], replace(entries[1], hash="0" * 64), *entries[2:]]
    rename(node.folder)
    found = read(node, "patients", broken)
    assert found is not None
    assert "the hash of entry 2" in found.text
    assert node.refusal("heart", "others")[0] == "ACCOUNT_LEFT_OUT"
    node.state.settle("patients")
    assert node.refusal("heart", "others")[0] == "ACCOUNT_LEFT_OUT"
    # The chain that is taken as it is has been mended by then.
    found = read(node, "patients", entries)
    assert found is not None
    assert found.is_left_out
    declare(node.folder, HEART, CLINIC)
    assert read(node, "patients", entries) is None
    assert posted(node).posted_units == 2 * FILTER.cost_units(order().release)


def test_a_chain_that_is_taken_as_it_is_books_nothing_against_our_own_ledger(node: Node) -> None:
    """A signature of another key, and an attempt that is void here, add nothing."""
    declare(node.folder, HEART)
    wanted = order("patients-0", job_id="patients-0")
    assert isinstance(node.admission.decide(wanted), Reserved)
    assert node.state.withdraw("patients-0", "X", "x")
    before = node.state.ledger.entries()
    other = new_ledger_key()
    for entries in (chain(), chain("patients", ("heart", "clinic"), other)):
        node.state._connection.execute("INSERT OR REPLACE INTO settled VALUES (?)", (PATIENTS,))
        node.state._connection.execute("DELETE FROM seen_heads")
        assert read(node, "patients", entries) is None
        assert node.state.ledger.entries() == before


@pytest.mark.parametrize("first", ["patients", "others"])
def test_a_data_set_that_both_chains_name_pays_from_neither(node: Node, first: str) -> None:
    """Chains have no common clock, so the order in which they are read decides nothing."""
    second = "others" if first == "patients" else "patients"
    declare(node.folder, HEART, {**CLINIC, **OTHERS})
    for account in (first, second):
        assert read(node, account, chain(account)) is None
    for account in ("patients", "others"):
        declare(node.folder, {**HEART, "account": account}, {**CLINIC, **OTHERS})
        reason, message = node.refusal("heart", account)
        assert reason == "DATA_SET_MOVED"
        assert "has paid from accounts others and patients" in message
        assert "`feddp agent ledger import FILE`" in message
    assert isinstance(node.decide("clinic", "others"), Reserved)


@pytest.mark.parametrize("first", ["patients", "others"])
def test_what_the_ledger_has_kept_itself_says_which_account_was_first(
    node: Node, first: str
) -> None:
    """The copy is older than the second account's payment, and knows the first."""
    declare(node.folder, HEART)
    assert isinstance(node.decide("heart"), Reserved)
    second = "others" if first == "patients" else "patients"
    declare(node.folder, HEART, {**CLINIC, **OTHERS})
    for account in (first, second):
        read(node, account, chain(account))
    assert isinstance(node.decide("heart"), Reserved)
    declare(node.folder, {**HEART, **OTHERS})
    assert "has paid from account patients and is declared" in node.refusal("heart", "others")[1]


def test_a_copy_that_read_both_chains_learns_from_the_folder_which_was_first(node: Node) -> None:
    """By the import, so that what the ledger has kept itself comes after what the chains tell."""
    declare(node.folder, HEART, {**CLINIC, **OTHERS})
    for account in ("others", "patients"):
        assert read(node, account, chain(account)) is None
    node.state.payers.note(Payment("heart", "kept", PATIENTS))
    assert isinstance(node.decide("heart"), Reserved)
    declare(node.folder, {**HEART, **OTHERS}, {**CLINIC, **OTHERS})
    assert "has paid from account patients and is declared" in node.refusal("heart", "others")[1]


def test_a_refusal_that_was_signed_is_no_payment(node: Node) -> None:
    """Nor is what another key has signed: neither keeps a data set from its account."""
    wanted = order("x", job_id="x", account="others")
    reserve, void = (wanted.statement(NODE, kind) for kind in (KINDS[0], KINDS[2]))
    first = append(reserve, None, b"")
    entries = [first, append(void, first, sign(LEDGER_KEY, void))]
    read(node, "others", entries)
    node.state.note_signed(chain("others", key=new_ledger_key()))
    assert node.state.payers.payments() == []
    assert node.state.accounts_kept() == frozenset()


def test_what_the_chain_says_of_others_or_once_more_is_no_payment(node: Node) -> None:
    """Another node's name or account under this node's key, as of a folder that bore another name;
    and what the ledger has kept itself."""
    declare(node.folder, HEART)
    wanted = order("patients-0", job_id="patients-0")
    assert isinstance(node.admission.decide(wanted), Reserved)
    before = node.state.payers.payments()
    said = wanted.statement(NODE, "post")
    strange = replace(said, dataset="x", node="beta"), replace(said, dataset="x", account="beta/x")
    for one in (said, *strange):
        node.state.note_signed([append(one, None, sign(LEDGER_KEY, one))])
    assert node.state.payers.payments() == before
    assert [one.account for one in before] == [PATIENTS]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A joined agent with an old copy of its ledger, whose account was renamed and whose agent has
    read the coordinator's chain."""
    made = make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 9)
    rename(made.root)
    key = load_identity(made.identity).ledger_key
    state = State(made.state_db, NODE, key)
    assert state.follow(PATIENTS, chain(key=key), None, 1.0) is not None
    state.close()
    return made


def test_status_settle_alerts_and_doctor_say_to_put_the_account_back(folder: Folder) -> None:
    """Everywhere the same advice, and nowhere to settle it."""
    identity = load_identity(folder.identity)
    answer = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)])
    assert answer.exit_code == 1
    (line,) = [one for one in answer.stdout.splitlines() if one.startswith("DISPUTED")]
    assert "To do: put account patients back in policy.yaml" in line
    assert "settle" not in line
    found = status(folder.root)
    assert "Put account patients back in policy.yaml" in found["rules"]["message"]
    (dispute,) = found["ledger"]["disputes"]
    assert dispute["text"] == left_out(PATIENTS)
    with pytest.raises(WrongPhase, match="put account patients back"):
        settle(folder.root, "patients")
    state = State(folder.state_db, NODE, identity.ledger_key)
    (alert,) = ledger_alerts(state, AlertsConfig())
    state.close()
    assert alert.remedy.startswith("put account patients back in policy.yaml")
    check, rules = check_policy(folder, identity)
    assert (check.result, rules) == ("failed", None)
    assert "Put account patients back in policy.yaml" in check.found


def test_a_coordinator_that_alone_knows_what_was_spent_is_not_left(folder: Folder) -> None:
    """Nothing is removed; another coordinator's ledger would never tell of it."""
    before = {one for one in folder.root.rglob("*") if one.is_file()}
    with pytest.raises(WrongPhase, match="put account patients back in policy") as caught:
        leave(folder.root)
    assert caught.value.reason == "ACCOUNT_LEFT_OUT"
    assert {one for one in folder.root.rglob("*") if one.is_file()} == before | {folder.lock}


@pytest.mark.parametrize("account", [EVERY_ACCOUNT, PATIENTS])
def test_the_command_that_settles_a_dispute_can_be_pasted_into_a_shell(
    account: str, tmp_path: Path
) -> None:
    """A shell with files around takes it as one word each, with the folder: so the dispute ends."""
    one = Dispute(account, 6, "it is another one", 1.0)
    for folder in (tmp_path / "hungary", tmp_path / "two words"):
        command = one.advice(folder).partition("`")[2].partition("`")[0]
        taken = subprocess.run(
            ["/bin/sh", "-c", command.replace("feddp", "printf '%s\\n'", 1)],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        words = ["agent", "ledger", "settle", account, "--dir", str(folder)]
        assert taken.stdout.splitlines() == words


def test_settle_takes_the_accounts_name_alone_and_names_what_is_disputed(folder: Folder) -> None:
    """As its siblings do; a name that is not disputed is answered by those that are."""
    for name in ("elsewhere", f"{NODE}/elsewhere"):
        with pytest.raises(NotFound, match=rf"about account {name}; disputed: {PATIENTS} \(entry"):
            settle(folder.root, name)
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    broken = replace(chain("others")[0], seq=7)
    for name in ("others", f"{NODE}/others"):
        assert state.follow(f"{NODE}/others", [broken], FILTER, 1.0) is not None
        assert settle(folder.root, name).account == f"{NODE}/others"
    state.close()


def test_who_paid_by_the_chain_survives_export_and_import(folder: Folder, tmp_path: Path) -> None:
    """A copy of the copy, or the older copy once more, lets nothing through."""
    export(folder.root, tmp_path / "copy.db")
    restore(folder.root, tmp_path / "copy.db")
    key = load_identity(folder.identity).ledger_key
    older = tmp_path / "older.db"
    State(older, NODE, key).close()
    restore(folder.root, older)
    state = State(folder.state_db, NODE, key)
    assert state.payers.payments() == [Payment("heart", FROM_CHAIN, PATIENTS)]
    assert state.accounts_kept() == {"patients"}
    state.close()


class WitnessingCoordinator(FakeCoordinator, witness_pb2_grpc.WitnessServicer):
    """Serves one chain, an entry at a time; no heartbeat is asked for while a test runs."""

    heartbeat_s = 600

    def add_services(self, server: grpc.aio.Server) -> None:
        super().add_services(server)
        witness_pb2_grpc.add_WitnessServicer_to_server(self, server)
        self.chain: list[Entry] = []
        self.looks = 0

    async def ReadHeads(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.looks += 1
        heads = [head_to_wire(head_of(one)) for one in self.chain[-1:]]
        return witness_pb2.ReadHeadsResponse(heads=heads)

    async def ReadEntries(self, request: Any, context: Any) -> Any:  # noqa: N802
        for one in self.chain[request.after_seq :][:3]:
            yield witness_pb2.ReadEntriesResponse(entries=[entry_to_wire(one)])

    async def Countersign(self, request: Any, context: Any) -> Any:  # noqa: N802
        return witness_pb2.CountersignResponse()


@pytest.mark.parametrize("imported", [True, False])
def test_the_agent_greets_again_at_once_when_a_data_set_turns_out_to_have_moved(
    tmp_path: Path, imported: bool
) -> None:
    """Not at the next greeting: until then rounds would be planned on it, and quotes be false."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, WitnessingCoordinator)
        declare(folder.root, {**HEART, **OTHERS}, {**DATA_SET, **OTHERS, "name": "new"})
        state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
        state.notes.keep(RESTORED_NOTE, "yes" if imported else "")
        coordinator.chain = chain(key=load_identity(folder.identity).ledger_key)
        with structlog.testing.capture_logs() as logs:
            async with RunningAgent(folder, worker):
                first = await coordinator.heard("hello")
                assert [one.name for one in first.data_sets] == ["heart", "new"]
                second = await coordinator.heard("hello")
                said = [(one.name, one.unavailable) for one in second.data_sets]
                assert said == [("heart", "DATA_SET_MOVED"), ("new", "")]
        moved = [one for one in logs if one["event"] == "data_set_moved"]
        assert [one["data_set"] for one in moved] == ["heart"]
        assert state.notes.read(RESTORED_NOTE) == ""
        state.close()

    play(tmp_path, scene, WitnessingCoordinator)


def test_the_agent_reads_who_paid_behind_a_dispute_and_on_when_the_account_is_back(
    tmp_path: Path,
) -> None:
    """Over real calls, an entry at a time: names, the log's advice, and the way out of it."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        assert isinstance(coordinator, WitnessingCoordinator)
        rename(folder.root)
        state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
        key = load_identity(folder.identity).ledger_key
        coordinator.chain = chain(data_sets=("heart", "heart", "clinic"), key=key)
        coordinator.heartbeat_s = 1
        with structlog.testing.capture_logs() as logs:
            async with RunningAgent(folder, worker):
                await until(lambda: len(state.payers.payments()) == 2)
                assert [one.data_set for one in state.payers.payments()] == ["heart", "clinic"]
                await until(lambda: "ledger_disputed" in {one["event"] for one in logs})
                declare(folder.root, HEART, CLINIC)
                await until(lambda: not state.disputes.all())
                await until(lambda: state.witnessed.head(PATIENTS).seq == 6)
        disputed = [one for one in logs if one["event"] == "ledger_disputed"]
        assert "put account patients back in policy.yaml" in disputed[0]["do"]
        assert not any("settle" in one["do"] for one in disputed)
        kept = state.ledger.account(PATIENTS)
        assert kept is not None
        assert kept.posted_units == 3 * FILTER.cost_units(order().release)
        state.close()

    play(tmp_path, scene, WitnessingCoordinator)
