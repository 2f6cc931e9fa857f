"""The agent as a process: its lock, its status, its end, and what it does not load."""

import json
import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from certs.authority import Authority
from certs.enrolment import new_ledger_key, save_private_key
from feddp.cli.app import app
from node_agent.agent import plain, run
from node_agent.folder.config import Folder, load_config
from node_agent.folder.installation import locked
from node_agent.joining.identity import load_identity
from node_agent.ledger.account_filters import FixedFilter
from node_agent.ledger.copies import export, restore
from node_agent.policy.steward import Steward
from node_agent.session.greeting import hello, warn_of_limits
from node_agent.state.state import State
from node_agent.status import status
from node_agent.tasks.registry import installed
from privacy.accounting import epsilon_spent
from privacy.filters import make_filter
from privacy.heads import Head
from protos.errors import Conflict, Malformed, NotFound
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import NODE, POLICY, TASKS, order, policy, write_rules

HEAVY = ("numpy", "torch", "pyarrow", "sqlalchemy", "pandas", "dp_accounting", "opacus")
REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An agent that has joined; nobody listens at its coordinator's address."""
    return make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 9)


def spend(folder: Folder, limit: float = 10.0, *, kind: str = "gdp", rdp_order: int = 0) -> None:
    """One posted attempt in the agent's database."""
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    state.reserve(order(), make_filter(kind, rdp_order, limit, 1.0e-5))
    state.open("a1", 1.0, 0.5)
    state.lose("a1")
    state.close()


def test_an_idle_agent_has_not_loaded_what_training_needs() -> None:
    """Memory: torch and its like belong to the worker, sqlalchemy to the coordinator."""
    script = (
        "import sys, node_agent.agent, node_agent.joining.enrol\n"
        "node_agent.agent.installed()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_two_agents_never_run_in_one_folder(folder: Folder) -> None:
    """The second is refused by name; looking at the status is always possible."""
    with locked(folder):
        assert status(folder.root)["running"]
        with pytest.raises(Conflict) as caught:
            run(folder.root)
        assert caught.value.reason == "AGENT_RUNNING"
    assert not status(folder.root)["running"]


def test_an_agent_ends_cleanly_at_sigterm(folder: Folder) -> None:
    """Exit code 0, also while its coordinator cannot be reached; and it says that it waits."""
    script = f"import pathlib, node_agent.agent as a; a.run(pathlib.Path({str(folder.root)!r}))"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = b""
    try:
        while b"coordinator_unreachable" not in said:
            readable, _, _ = select.select([process.stdout], [], [], 30)
            assert readable, said
            piece = os.read(process.stdout.fileno(), 65536)
            assert piece, said
            said += piece
        assert b"127.0.0.1:9" in said
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, said + rest
    assert b"agent_stopped" in rest


def test_status_tells_what_was_spent_and_checks_the_nodes_own_chain(folder: Folder) -> None:
    """Spent, limit and remaining per account; attempts by state; the ledger verifies."""
    spend(folder)
    found = status(folder.root)
    (account,) = found["accounts"]
    assert found["attempts"] == {"no_update": 1}
    assert found["ledger"]["verified"]
    assert found["ledger"]["entries"] == 2
    assert account["epsilon_limit"] == 10.0
    assert account["epsilon_spent"] + account["epsilon_remaining"] == pytest.approx(10.0)
    assert account["epsilon_spent"] > 0
    assert (found["node"], found["connected"], found["running"]) == (NODE, False, False)
    assert found["data_sets"][0]["name"] == "heart"


def test_status_prints_what_an_rdp_account_starts_at(folder: Folder) -> None:
    """The person who wrote `filter: rdp` reads the conversion cost, in the text and as JSON."""
    write_rules(folder.root, _with_account(filter="rdp", rdp_order=4))
    (account,) = status(folder.root)["accounts"]
    assert account["epsilon_start"] == pytest.approx(3.0879, abs=1e-3)
    said = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)]).stdout
    assert "its first release takes 3.0879" in said
    assert "the limit, which is the guarantee" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"filter": "rdp", "rdp_order": 4, "epsilon_limit": 3.0}, "starts at epsilon 3.09"),
        ({"delta": 0.006}, "delta must be below 1/199"),
    ],
)
def test_status_says_why_an_account_cannot_be_used(
    folder: Folder, changes: dict[str, Any], said: str
) -> None:
    """A limit below the conversion cost, or a delta of 1/n: seen without waiting for an order."""
    write_rules(folder.root, _with_account(**changes))
    (account,) = status(folder.root)["accounts"]
    assert said in account["message"]
    assert said in CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)]).stdout


def test_the_first_announcement_of_an_account_is_logged_with_its_cost(folder: Folder) -> None:
    """While nothing counts by it the log says how it will count; one that is refused says why."""
    rules = Steward(folder).rules()
    for changes, event in (({}, "account_announced"), ({"epsilon_limit": 3.0}, "account_unusable")):
        rdp = policy(filter="rdp", rdp_order=4, **changes)
        with structlog.testing.capture_logs() as logs:
            said = hello(replace(rules, policy=rdp), {}, lambda _: None, [], lambda *_: 0)
        (line,) = logs
        assert line["event"] == event
        assert len(said.accounts) == (event == "account_announced")
        assert line.get("epsilon_start", 3.0879) == pytest.approx(3.0879, abs=1e-3)
    with structlog.testing.capture_logs() as logs:
        hello(rules, {}, lambda _: FixedFilter("gdp", 0, 1.0e-5), [], lambda *_: 0)
    assert logs == []


def test_limits_within_an_account_are_announced_with_what_the_own_ledger_counts(
    folder: Folder,
) -> None:
    """The policy's numbers and a sum of units; a project that spent nothing has spent nothing."""
    spend(folder)
    limits = {
        "epsilon_per_purpose": {"training": 0.8},
        "epsilon_per_project": {"default": 0.7, "other": 0.6},
    }
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    rules = replace(Steward(folder).rules(), policy=policy(**limits))
    said = hello(rules, installed(), state.fixed_filter, [], state.share_units)
    spent = state.ledger.accounts()[0].posted_units
    assert spent > 0
    assert [
        (one.kind, one.name, one.epsilon_limit, one.used_units) for one in said.accounts[0].shares
    ] == [
        ("purpose", "training", 0.8, spent),
        ("project", "default", 0.7, spent),
        ("project", "other", 0.6, 0),
    ]
    unlimited = replace(rules, policy=policy())
    (account,) = hello(unlimited, {}, state.fixed_filter, [], state.share_units).accounts
    assert not account.shares
    state.close()


def test_status_shows_what_is_spent_of_limits_within_an_account(folder: Folder) -> None:
    """With the warning from 80 % on; a limit for queries may be set, nothing spends from it."""
    spend(folder)
    (account,) = status(folder.root)["accounts"]
    spent, units = account["epsilon_spent"], account["posted_units"]
    assert account["shares"] == []
    limits = {
        "epsilon_per_purpose": {"training": spent / 0.9, "queries": 1.0},
        "epsilon_per_project": {"default": spent * 2, "other": 0.6},
    }
    write_rules(folder.root, _with_account(**limits))
    (account,) = status(folder.root)["accounts"]
    assert {one["name"]: (one["used_units"], one["stage"]) for one in account["shares"]} == {
        "training": (units, "nearly_spent"),
        "queries": (0, ""),
        "default": (units, ""),
        "other": (0, ""),
    }
    told = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)])
    assert told.exit_code == 0
    (line,) = [one for one in told.stdout.splitlines() if one.startswith("limits in patients")]
    assert re.search(r"purpose training: booked epsilon [\d.]+ of [\d.]+, 80 % spent or more", line)
    assert "purpose queries: booked epsilon 0 of 1" in line


@pytest.mark.parametrize(
    ("changes", "fixed", "reason"),
    [
        ({"delta": 0.2}, None, "DELTA_TOO_LARGE"),
        ({"delta": 1.0e-6}, FixedFilter("gdp", 0, 1.0e-5), "POLICY_FILTER_CHANGED"),
    ],
)
def test_an_account_that_cannot_be_used_is_the_reason_of_its_data_sets(
    folder: Folder, changes: dict[str, Any], fixed: FixedFilter | None, reason: str
) -> None:
    """The account itself is not announced, and the hospital is still named with its reason."""
    write_rules(folder.root, _with_account(**changes))
    said = hello(Steward(folder).rules(), TASKS, lambda _: fixed, [], lambda *_: 0)
    assert not said.accounts
    assert [one.unavailable for one in said.data_sets] == [reason]
    assert said.tasks


def test_files_that_refuse_every_order_name_the_data_sets_and_no_account(folder: Folder) -> None:
    """By what they say now, or by what was greeted with before if they cannot be read."""
    rules = Steward(folder).rules()
    said = hello(rules, TASKS, lambda _: None, [], lambda *_: 0, fault="ACCOUNT_LEFT_OUT")
    assert [one.unavailable for one in said.data_sets] == ["ACCOUNT_LEFT_OUT"]
    assert not said.accounts
    gone = hello(None, {}, lambda _: None, [], lambda *_: 0, fault="POLICY_INVALID", before=said)
    assert [(one.name, one.unavailable) for one in gone.data_sets] == [("heart", "POLICY_INVALID")]
    assert [one.name for one in gone.tasks] == [one.name for one in said.tasks]
    assert not gone.accounts


def test_a_greeting_says_what_each_task_is_for(folder: Folder) -> None:
    """So that the coordinator knows which limit a job counts against."""
    tasks = installed()
    allow = [{"data_set": "heart", "tasks": [f"{t.name}@{t.content_hash}" for t in tasks.values()]}]
    write_rules(folder.root, {**POLICY, "allow": allow})
    said = hello(Steward(folder).rules(), tasks, lambda _: None, [], lambda *_: 0)
    assert {task.name: task.purpose for task in said.tasks} == {
        name: info.purpose for name, info in tasks.items()
    }
    assert {"training", "evaluation"} == {task.purpose for task in said.tasks}


def _with_account(**changes: Any) -> dict[str, Any]:
    return {**POLICY, "accounts": [{**POLICY["accounts"][0], **changes}]}


def test_what_else_is_to_be_said_of_an_account_follows_its_figures(folder: Folder) -> None:
    """A limit that the policy alone does not raise is told in a sentence of its own, at the end."""
    spend(folder)
    write_rules(folder.root, _with_account(epsilon_limit=20.0))
    said = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)]).stdout
    assert "on the way to the limit, which is the guarantee. The policy asks for" in said


def test_a_limit_below_what_was_spent_is_a_warning_and_not_the_guarantee(folder: Folder) -> None:
    """Limit 10, then 0.1 in the policy with more spent: status and log say what stays promised."""
    spend(folder)
    write_rules(folder.root, _with_account(epsilon_limit=0.1))
    (account,) = status(folder.root)["accounts"]
    assert account["epsilon_spent"] > account["epsilon_limit"] == 0.1
    assert (account["epsilon_guarantee"], account["stage"]) == (10.0, "over_limit")
    said = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)]).stdout
    assert "the guarantee is 10, its highest limit ever" in said
    assert "limit 0.1 now at delta 1e-05; booked epsilon" in said
    assert "LIMIT BELOW WHAT IS SPENT" in said
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    for limit, lines in ((10.0, 0), (0.1, 1)):
        state.lower("patients", limit, {})
        with structlog.testing.capture_logs() as logs:
            warn_of_limits(state.ledger.accounts(), state.ledger.epsilon_guarantee)
        assert [one["event"] for one in logs] == ["limit_below_spent"] * lines
    assert (logs[0]["epsilon_limit"], logs[0]["epsilon_guarantee"]) == (0.1, 10.0)
    assert logs[0]["delta"] == 1e-5
    assert logs[0]["epsilon_booked"] == logs[0]["epsilon_spent"] > 0.1
    state.close()


def test_a_hospitals_own_commands_call_their_figure_booked_beside_the_guarantee(
    folder: Folder,
) -> None:
    """The running epsilon is another figure, which the coordinator tells; `epsilon_spent` stays as
    0.1.0 called it. A lowered limit is told apart from what stays promised."""
    spend(folder)
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    state.lower("patients", 0.1, {})
    state.close()
    for command in ("status", "outbox", "digest"):
        asked = ["agent", command, "--dir", str(folder.root)]
        said = CliRunner().invoke(app, asked).stdout
        assert "booked epsilon" in said, command
        assert "running epsilon" not in said
        assert "at delta 1e-05; " in said
        assert "the guarantee is 10, its highest limit ever" in said
        (one,) = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["accounts"]
        assert one["epsilon_booked"] == one["epsilon_spent"] > 0.1
        assert one["epsilon_guarantee"] == 10.0
    with sqlite3.connect(folder.state_db) as database:
        database.execute("UPDATE accounts SET guarantee = 0")
    for command in ("status", "outbox", "digest"):
        said = CliRunner().invoke(app, ["agent", command, "--dir", str(folder.root)]).stdout
        assert "NO GUARANTEE: something was released without accounting" in said


def test_the_conversion_cost_was_taken_once_something_was_released(folder: Folder) -> None:
    """Before the first release it is what that takes; after it, what it took."""
    write_rules(folder.root, _with_account(filter="rdp", rdp_order=4))
    asked = ["agent", "status", "--dir", str(folder.root)]
    assert "of which its first release takes 3.0879" in CliRunner().invoke(app, asked).stdout
    spend(folder, kind="rdp", rdp_order=4)
    assert "of which its first release took 3.0879" in CliRunner().invoke(app, asked).stdout
    (account,) = status(folder.root)["accounts"]
    running = epsilon_spent([order().release], 1e-5)
    assert running is not None
    assert account["epsilon_booked"] > 1.01 * running, "the booked figure is another one"


@pytest.mark.parametrize("fault", ["policy", "account", "column"])
def test_status_is_exit_1_while_the_stewards_files_are_not_in_order(
    folder: Folder, fault: str
) -> None:
    """An unreadable policy, an account that cannot be used, a column that is not in the file."""
    asked = ["agent", "status", "--dir", str(folder.root)]
    answer = CliRunner().invoke(app, asked)
    assert (answer.exit_code, "in order" in answer.stdout) == (0, True)
    if fault == "policy":
        folder.policy_yaml.write_text("polizy: 1")
    elif fault == "account":
        write_rules(folder.root, _with_account(delta=0.006))
    else:
        (folder.root / "train.csv").write_text("id,age,disease\nsecret7,60,1\n")
    answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 1
    assert not re.search(r"steward's files\s+in order", answer.stdout)
    said = {"policy": "polizy", "account": "delta must be", "column": "'patient_id' is missing"}
    assert said[fault] in answer.stdout
    assert "secret7" not in answer.stdout
    assert not status(folder.root)["in_order"]


def test_a_purpose_limit_above_the_accounts_own_is_said(folder: Folder) -> None:
    """It never binds; a policy that lowers the account's limit may leave it there."""
    write_rules(folder.root, _with_account(epsilon_per_purpose={"training": 12.0}))
    said = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)])
    assert "purpose training is above the account's own, 10" in said.stdout
    assert said.exit_code == 0
    rules = Steward(folder).rules()
    with structlog.testing.capture_logs() as logs:
        hello(rules, {}, lambda _: FixedFilter("gdp", 0, 1.0e-5), [], lambda *_: 0)
    assert [one["event"] for one in logs] == ["share_above_limit"]


def test_status_finds_a_ledger_that_was_changed_by_hand(folder: Folder) -> None:
    """A cheaper release in the past, or a smaller balance, does not go unseen."""
    spend(folder)
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    connection = state._connection
    connection.execute("UPDATE accounts SET posted_units = 1")
    assert not status(folder.root)["ledger"]["verified"]
    connection.execute("UPDATE entries SET entry = replace(entry, '10.0', '99.0')")
    found = status(folder.root)["ledger"]
    assert not found["verified"]
    assert "entry 1" in found["problems"][0]
    state.close()


@pytest.mark.parametrize("fault", ["dispute", "own ledger"])
def test_status_is_exit_1_while_a_ledger_is_disputed_or_does_not_verify(
    folder: Folder, fault: str
) -> None:
    """A script that asks hears it, by the exit code and by `in_order`; the files are in order."""
    spend(folder)
    asked = ["agent", "status", "--dir", str(folder.root)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    if fault == "dispute":
        assert state.compare([Head(f"{NODE}/patients", 3, "0" * 64)], frozenset(), 1.0)
    else:
        state._connection.execute("UPDATE accounts SET posted_units = 1")
    answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 1
    assert re.search(r"steward's files\s+in order", answer.stdout)
    assert ("DISPUTED" if fault == "dispute" else "does NOT verify") in answer.stdout
    answer = CliRunner().invoke(app, [*asked, "--json"])
    found = json.loads(answer.stdout)
    assert (answer.exit_code, found["in_order"], found["files_in_order"]) == (1, False, True)
    if fault == "dispute":
        command = f"feddp agent ledger settle {NODE}/patients --dir {folder.root}"
        assert command in found["ledger"]["disputes"][0]["do"]
        state.settle(f"{NODE}/patients")
        assert CliRunner().invoke(app, asked).exit_code == 0
    state.close()


def test_status_says_that_a_lost_ledger_is_missing_until_a_copy_is_back(
    folder: Folder, tmp_path: Path
) -> None:
    """Never "0 entries, verifies": the one command that mends it is named, and does."""
    spend(folder)
    copy = tmp_path / "copy.db"
    export(folder.root, copy)
    for one in folder.root.glob("state.db*"):
        one.unlink()
    asked = ["agent", "status", "--dir", str(folder.root)]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 1
    assert re.search(r"own ledger\s+MISSING: .*feddp agent ledger import FILE", told.stdout)
    told = CliRunner().invoke(app, [*asked, "--json"])
    found = json.loads(told.stdout)
    assert (told.exit_code, found["in_order"], found["ledger"]["verified"]) == (1, False, False)
    assert "is missing" in found["ledger"]["missing"]
    assert not folder.state_db.exists()  # looking makes no empty one
    put_back = ["agent", "ledger", "import", str(copy), "--dir", str(folder.root)]
    assert CliRunner().invoke(app, put_back).exit_code == 0
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.stdout
    assert "2 entries, verifies" in told.stdout


def test_a_copy_of_another_ledger_key_is_not_put_in_a_lost_ones_place(
    folder: Folder, tmp_path: Path
) -> None:
    """Nobody could go on with it: its entries are signed by another key than the folder's."""
    spend(folder)
    copy = tmp_path / "copy.db"
    export(folder.root, copy)
    folder.state_db.unlink()
    key = folder.identity / "ledger.key"
    key.unlink()
    save_private_key(key, new_ledger_key())
    with pytest.raises(Malformed) as caught:
        restore(folder.root, copy)
    assert caught.value.reason == "LEDGER_INVALID"
    assert not folder.state_db.exists()


def test_status_works_before_the_first_run_and_with_a_broken_policy(folder: Folder) -> None:
    """It says what is wrong with the rules and shows the rest."""
    assert status(folder.root)["ledger"]["entries"] == 0
    spend(folder)
    folder.policy_yaml.write_text("polizy: 1")
    found = status(folder.root)
    assert not found["rules"]["ok"]
    assert "polizy" in found["rules"]["message"]
    assert found["accounts"][0]["epsilon_spent"] > 0


def test_a_wrong_policy_stops_the_start(folder: Folder) -> None:
    """The steward hears of a mistake at once, not at the first order."""
    folder.policy_yaml.write_text("polizy: 1")
    with pytest.raises(Malformed) as caught:
        run(folder.root)
    assert caught.value.reason == "POLICY_INVALID"


def test_a_folder_without_an_agent_says_how_to_join(tmp_path: Path) -> None:
    """No agent.yaml: the command stands in the error."""
    for function in (run, status):
        with pytest.raises(NotFound) as caught:
            function(tmp_path)
        assert caught.value.reason == "NOT_JOINED"
        assert "feddp agent join" in caught.value.message


def test_another_nodes_certificate_is_not_used(folder: Folder) -> None:
    """agent.yaml and the certificate must name the same node."""
    text = folder.agent_yaml.read_text()
    folder.agent_yaml.write_text(text.replace("node: alpha", "node: beta"))
    with pytest.raises(Malformed) as caught:
        run(folder.root)
    assert caught.value.reason == "IDENTITY_MISMATCH"


@pytest.mark.parametrize(
    ("line", "key"),
    [("coordinator: nowhere", "coordinator"), ("node_class: laptop", "node_class"), ("x: 1", "x")],
)
def test_a_wrong_agent_yaml_names_the_key(folder: Folder, line: str, key: str) -> None:
    """One wrong line is enough to find it."""
    lines = [
        one for one in folder.agent_yaml.read_text().splitlines() if not one.startswith(f"{key}:")
    ]
    folder.agent_yaml.write_text("\n".join([*lines, line]))
    with pytest.raises(Malformed) as caught:
        load_config(folder)
    assert caught.value.reason == "CONFIG_INVALID"
    assert f"key {key}" in caught.value.message


@pytest.mark.parametrize(
    ("cause", "is_plain"),
    [
        (NotFound("LEDGER_MISSING", "it is gone"), True),
        (FileNotFoundError(2, "No such file or directory", "/a/spool/models/x"), True),
        (sqlite3.OperationalError("disk I/O error"), True),
        (ValueError("a bug"), False),
    ],
)
def test_what_a_disk_or_a_person_did_to_the_folder_is_said_as_that(
    cause: Exception, is_plain: bool
) -> None:
    """Whatever cannot be written ends the agent out of a group of tasks: the command names the file
    all the same. Only a fault of ours is one "inside feddp"."""
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [cause])])
    assert plain(group, Path("/a/state.db")) is (cause if is_plain else group)
    both = ExceptionGroup("tasks", [cause, ValueError("a bug beside it")])
    assert plain(both, Path("/a/state.db")) is both


def test_a_ledger_that_is_damaged_while_the_agent_runs_is_told_by_its_name(tmp_path: Path) -> None:
    """As at the start: what is to be moved away and what is to be put in its place."""
    file = tmp_path / "state.db"
    file.write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        sqlite3.connect(file).execute("SELECT 1 FROM entries")
    found = plain(ExceptionGroup("tasks", [caught.value]), file)
    assert isinstance(found, Malformed)
    assert (found.reason, str(file) in found.message) == ("LEDGER_INVALID", True)


def test_status_says_that_what_is_booked_is_unknown_without_the_ledger(folder: Folder) -> None:
    """Not "booked epsilon 0", which is what a ledger says in which nothing was spent."""
    folder.state_db.write_bytes(b"no database" * 100)
    for change in (lambda: None, folder.state_db.unlink):
        change()
        shown = CliRunner().invoke(app, ["agent", "status", "--dir", str(folder.root)])
        assert shown.exit_code == 1
        account = next(one for one in shown.stdout.splitlines() if one.startswith("account"))
        assert "UNKNOWN" in account
        assert "booked epsilon" not in account
