"""`feddp agent policy check` reads the node's own ledger, and refuses what its agent would."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from certs.authority import Authority
from certs.enrolment import load_ledger_key
from feddp.cli.app import app
from node_agent.folder.config import Folder
from node_agent.folder.installation import locked
from node_agent.joining.leaving import leave
from node_agent.state.state import State
from node_agent.status import status
from privacy.filters import make_filter
from privacy.heads import Head
from protos.errors import Malformed
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import DATA_SET, NODE, POLICY, order

ACCOUNT = POLICY["accounts"][0]
RDP = {**ACCOUNT, "filter": "rdp", "rdp_order": 12}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """The folder of an agent that has joined, with a sound data set; nothing is spent."""
    made = make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 1)
    (made.root / "train.csv").write_text("patient_id,disease,age\n")
    return made


def opened(folder: Folder) -> State:
    return State(folder.state_db, NODE, load_ledger_key(folder.identity / "ledger.key"))


@pytest.fixture
def spent(folder: Folder) -> Folder:
    """The same after a release that cost some 2 of the account's 10."""
    state = opened(folder)
    state.reserve(order(release_noise_multiplier=4.0), make_filter("gdp", 0, 10.0, 1e-5))
    state.open("a1", 1.0, 1.0)
    state.lose("a1")
    state.close_attempt("a1", "post")
    state.close()
    return folder


def write(folder: Folder, account: dict[str, Any], /, **data_set: Any) -> None:
    """The steward edits both files."""
    policy = yaml.safe_load(folder.policy_yaml.read_text()) | {"accounts": [account]}
    folder.policy_yaml.write_text(yaml.safe_dump(policy))
    declared = {"data_sets": [{**DATA_SET, **data_set}]}
    folder.datasets_yaml.write_text(yaml.safe_dump(declared))


def check(folder: Folder) -> tuple[int, dict[str, Any], str]:
    """(exit code, the answer as JSON, the answer in words)."""
    asked = ["agent", "policy", "check", "--dir", str(folder.root)]
    ran = CliRunner().invoke(app, [*asked, "--json"])
    words = CliRunner().invoke(app, asked)
    assert ran.exit_code == words.exit_code
    assert ran.stdout, ran.exception
    return ran.exit_code, json.loads(ran.stdout), words.stdout


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another delta": ({"delta": 1e-6}, "set filter and delta back"),
    "another filter": ({"filter": "rdp", "rdp_order": 12}, "set filter and delta back"),
    "a limit below what is spent": ({"epsilon_limit": 1.5}, "LIMIT BELOW WHAT IS SPENT"),
}


@pytest.mark.parametrize(("change", "said"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_policy_that_contradicts_the_ledger_is_refused(
    spent: Folder, change: dict[str, Any], said: str
) -> None:
    """It holds by itself; the agent refuses orders for it, and so does the check."""
    write(spent, {**ACCOUNT, **change})
    code, answer, words = check(spent)
    assert (code, answer["ok"]) == (1, False)
    (refused,) = answer["refused"]
    assert refused.startswith("account patients: ")
    assert said in refused
    assert f"REFUSED: {refused}" in words
    assert "NOT in order: 1 account, 1 data set" in words


def test_an_account_that_is_left_out_and_a_data_set_that_moved_are_refused(spent: Folder) -> None:
    """The patients have spent from the one, and the data set pays from it."""
    write(spent, {**ACCOUNT, "name": "others"}, account="others")
    code, answer, _ = check(spent)
    assert code == 1
    left_out, moved = answer["refused"]
    found = status(spent.root)
    assert left_out == found["rules"]["message"].removesuffix(".")
    assert moved == f"data set heart: {found['data_sets'][0]['moved']}".removesuffix(".")


def test_a_limit_that_nobody_has_raised_is_a_warning(spent: Folder) -> None:
    """The agent goes on by the old one, and says which command asks the second person."""
    write(spent, {**ACCOUNT, "epsilon_limit": 20.0, "epsilon_per_purpose": {"training": 15.0}})
    code, answer, words = check(spent)
    assert (code, answer["ok"]) == (0, True)
    not_raised, above = answer["warnings"]
    assert "feddp agent limit propose patients" in not_raised
    assert "purpose training is above the account's own, 10" in above
    assert words.count("WARNING: ") == 2


def test_a_dispute_and_an_old_copy_are_refused(spent: Folder) -> None:
    """As every order is."""
    state = opened(spent)
    state.deny(Head(f"{NODE}/patients", 3, "0" * 64), "it is another one", 1.0)
    state.notes.keep("rolled_back", "the ledger went back")
    state.close()
    code, answer, _ = check(spent)
    rolled_back, disputed = answer["refused"]
    assert (code, rolled_back) == (1, "the ledger went back")
    assert "entry 3: it is another one. To do: compare both" in disputed


def test_a_ledger_that_does_not_verify_or_is_gone_is_refused(spent: Folder) -> None:
    """Nothing that such a ledger says can be built on, and no agent starts without one."""
    with sqlite3.connect(spent.state_db) as database:
        database.execute("UPDATE accounts SET posted_units = 1")
    database.close()
    assert "balance kept is not what its entries add up to" in check(spent)[1]["refused"][0]
    spent.state_db.unlink()
    code, answer, _ = check(spent)
    assert (code, len(answer["refused"])) == (1, 1)
    assert "feddp agent ledger import" in answer["refused"][0]
    assert not spent.state_db.exists()


def test_what_is_in_order_is_so_beside_a_running_agent_too(spent: Folder) -> None:
    """It reads, and takes nothing from the agent."""
    with locked(spent):
        code, answer, words = check(spent)
    assert (code, answer["refused"], answer["warnings"], answer["notes"]) == (0, [], [], [])
    assert words == "in order: 1 account, 1 data set\n"


def test_the_conversion_cost_of_an_rdp_account_is_printed(folder: Folder) -> None:
    """Before the first entry fixes the order: what its first release takes of the limit."""
    write(folder, RDP)
    code, answer, words = check(folder)
    (starts,) = answer["starts"]
    start = next(one["epsilon_start"] for one in status(folder.root)["accounts"])
    assert (code, 0.73 < start < 0.74) == (0, True)
    assert "rdp of order 12: at delta 1e-05 it starts at epsilon 0.73" in starts
    assert "its conversion cost, of its limit 10" in starts
    assert starts in words
    write(folder, {**ACCOUNT, "filter": "gdp"})
    assert check(folder)[1]["starts"] == []


def test_there_may_be_no_ledger_yet(folder: Folder) -> None:
    """Before the folder has joined, the files are checked by themselves; and that is said."""
    write(folder, RDP)
    assert "no entry yet" in check(folder)[1]["notes"][0]
    folder.agent_yaml.unlink()
    folder.state_db.unlink()
    code, answer, words = check(folder)
    assert (code, answer["ok"], answer["refused"]) == (0, True, [])
    assert answer["notes"] == [
        "there is no ledger yet, as this folder has not joined: what was spent is unknown"
    ]
    assert "it starts at epsilon 0.73" in words
    (folder.root / "train.csv").unlink()
    assert "data set heart: " in check(folder)[1]["warnings"][0]


@pytest.mark.parametrize(
    "pinned", [None, {"engineers": []}, {"unsigned": "refuse"}, {"unsigned": "allow"}]
)
def test_a_policy_by_which_nobody_may_ask_is_warned_of(
    folder: Folder, pinned: dict[str, Any] | None
) -> None:
    """As every policy of 0.1.0 is: it holds, and no order is taken; what to do is said."""
    policy = yaml.safe_load(folder.policy_yaml.read_text())
    del policy["who_may_ask"]
    more = {} if pinned is None else {"who_may_ask": pinned}
    folder.policy_yaml.write_text(yaml.safe_dump(policy | more))
    code, answer, words = check(folder)
    assert (code, answer["ok"]) == (0, True)
    if pinned == {"unsigned": "allow"}:
        assert "ORDER_UNSIGNED" not in words
        return
    (warning,) = answer["warnings"]
    assert warning.startswith("no order will be taken (ORDER_UNSIGNED)")
    assert "`feddp job key new`" in warning
    assert f"WARNING: {warning}" in words


def faults(folder: Folder) -> list[str]:
    """What the command says of files that do not hold, by lines."""
    ran = CliRunner().invoke(app, ["agent", "policy", "check", "--dir", str(folder.root)])
    assert isinstance(ran.exception, Malformed)
    return ran.exception.message.splitlines()


def test_all_faults_of_both_files_are_told_at_once(folder: Folder) -> None:
    """A mistyped key is not told a second time as the one that is missing."""
    account = {**ACCOUNT, "epsilon_limit": "ten", "epsilon_per_job_mx": 2.0, "delta": -1.0}
    del account["epsilon_per_job_max"]
    policy = {"accounts": [account], "work": {"hours": ["25:00-06:00"]}, "withdrawn": "all"}
    folder.policy_yaml.write_text(yaml.safe_dump(policy))
    wrong = [{**DATA_SET, "declared_n": 0, "version": "one"}, {**DATA_SET, "labl": "x"}]
    folder.datasets_yaml.write_text(yaml.safe_dump({"data_sets": wrong}))
    of_policy, of_data_sets = faults(folder)
    assert " 5 faults: (1) key accounts.0.epsilon_per_job_mx" in of_policy
    for key in ("accounts.0.epsilon_limit", "accounts.0.delta", "work.hours", "withdrawn"):
        assert f"key {key}" in of_policy
    assert "missing" not in of_policy
    assert "hours.hours" not in of_policy
    for text in (
        "has 2 wrong data sets: 'heart': 2 faults: ",
        "key declared_n",
        "key version",
        "labl",
    ):
        assert text in of_data_sets


def test_what_the_files_say_together_is_told_at_once(folder: Folder) -> None:
    """Each by itself holds: an account that there is not, names of no data set, a delta."""
    policy = {
        "accounts": [{**ACCOUNT, "delta": 0.1}],
        "withdrawn": ["hart"],
        "who_may_ask": {"unsigned": "allow"},
    }
    folder.policy_yaml.write_text(yaml.safe_dump(policy))
    other = {**DATA_SET, "name": "lungs", "account": "others"}
    third = {**DATA_SET, "name": "liver", "account": "third"}
    folder.datasets_yaml.write_text(yaml.safe_dump({"data_sets": [DATA_SET, other, third]}))
    lungs, liver, withdrawn, delta = faults(folder)
    assert "lungs is paid by account others" in lungs
    assert "liver is paid by account third" in liver
    assert "did you mean heart?" in withdrawn
    assert "delta" in delta


def test_a_file_with_many_faults_tells_the_first_of_them(folder: Folder) -> None:
    """The line has a bound, and says how many there are."""
    folder.policy_yaml.write_text(yaml.safe_dump({"withdrawn": list(range(1000))}))
    (told,) = faults(folder)
    assert "1000 faults, the first 20: (1) key withdrawn.0" in told
    assert "(20) key withdrawn.19" in told
    assert "(21)" not in told


def test_a_folder_that_has_left_is_checked_by_the_ledger_that_it_kept(spent: Folder) -> None:
    """Who comes back is held to what was spent before."""
    leave(spent.root)
    code, answer, _ = check(spent)
    assert (code, answer["notes"]) == (0, [])
    write(spent, {**ACCOUNT, "epsilon_limit": 0.5})
    code, answer, _ = check(spent)
    assert code == 1
    assert any("patients" in one for one in answer["refused"])


def test_a_limit_of_a_project_that_nobody_is_of_is_warned_of(folder: Folder) -> None:
    """It is a name that was written wrong: nobody could order under it, and the right one's jobs
    are bounded by nothing."""
    policy = yaml.safe_load(folder.policy_yaml.read_text())
    engineer = {"name": "ana", "public_key": "ab" * 32, "projects": ["default", "lung"]}
    policy["who_may_ask"] = {"engineers": [engineer]}
    policy["accounts"] = [{**ACCOUNT, "epsilon_per_project": {"defalut": 1.0, "lung": 1.0}}]
    folder.policy_yaml.write_text(yaml.safe_dump(policy))
    code, answer, _ = check(folder)
    assert code == 0
    (said,) = [one for one in answer["warnings"] if "epsilon_per_project" in one]
    assert "names project defalut" in said
    assert "did you mean default?" in said
    policy["who_may_ask"]["unsigned"] = "allow"  # orders of any project may come
    folder.policy_yaml.write_text(yaml.safe_dump(policy))
    assert not [one for one in check(folder)[1]["warnings"] if "epsilon_per_project" in one]
