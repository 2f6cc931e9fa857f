"""Keys of policy.yaml: unknown ones, broken files, hours, machine limits, approvals, withdrawal."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml
from typer.testing import CliRunner

from certs.authority import Authority
from feddp.cli.app import app
from node_agent.agent import run
from node_agent.data.datasets import load_data_sets
from node_agent.doctor.files import check_policy, check_tasks
from node_agent.folder.config import Folder
from node_agent.folder.installation import locked
from node_agent.folder.templates import POLICY_YAML
from node_agent.joining.identity import load_identity
from node_agent.launchers.base import Limits
from node_agent.launchers.local import environment
from node_agent.policy.admission import Admission, Refused, Reserved
from node_agent.policy.policy import load_policy
from node_agent.policy.steward import Steward
from node_agent.policy.working import WorkPolicy
from node_agent.session.greeting import hello
from node_agent.state.state import State
from node_agent.status import status
from node_agent.tasks.made_up import Size, made_up
from node_agent.tasks.registry import installed
from node_agent.worker import _wrong_header
from protos.errors import Malformed, NotFound
from tests.node_agent.agent_federation import (
    TRUST_DOMAIN,
    WAIT_S,
    FakeCoordinator,
    FakeWorker,
    RunningAgent,
    make_agent,
    real_order,
)
from tests.node_agent.samples import LEDGER_KEY, NODE, POLICY, TASK, TASKS, order, write_rules


def changed(folder: Folder, **keys: Any) -> None:
    """Write keys into the policy of a folder."""
    content = {**yaml.safe_load(folder.policy_yaml.read_text()), **keys}
    folder.policy_yaml.write_text(yaml.safe_dump(content))


# Unknown keys and broken files


@pytest.mark.parametrize(
    ("text", "place", "meant"),
    [
        ("acounts: []", "acounts", "accounts"),
        ("withdrawm: []", "withdrawm", "withdrawn"),
        ("work: {hour: []}", "work.hour", "hours"),
        ("who_may_ask: {engineers: [{nam: a}]}", "engineers.0.nam", "name"),
        ("transfer: {megabits_per_second: 1.0}", "megabits_per_second", "megabits_per_second_max"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    tmp_path: Path, text: str, place: str, meant: str
) -> None:
    """At whatever depth it stands."""
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(Malformed, match="key") as caught:
        load_policy(path)
    assert f"{place}: there is no such key; did you mean {meant}?" in caught.value.message


def test_a_key_like_no_other_gets_the_known_ones(tmp_path: Path) -> None:
    """Nothing is guessed."""
    path = tmp_path / "policy.yaml"
    path.write_text("work: {xyzzy: 1}")
    with pytest.raises(Malformed, match="known here: approve_first_job, gpus_max, hours"):
        load_policy(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "accounts: [{name: patients, epsilon_per_purpose: {trainig: 8.0}}]",
            "key accounts.0.epsilon_per_purpose (patients): must be one of training, evaluation, "
            "queries; did you mean training?",
        ),
        (
            "accounts: [{name: patients, epsilon_per_purpose: {xyzzy: 8.0}}]",
            "(patients): must be one of training, evaluation, queries, for instance",
        ),
        (
            "accounts: [{name: patients, epsilon_per_project: {'a b': 8.0}}]",
            "key accounts.0.epsilon_per_project (patients): must be a name of 1 to 63 of A-Z",
        ),
        (
            "accounts: [{name: patients, delta: 1.0e-5}]",
            "key accounts.0.epsilon_limit (patients): it is missing, for instance "
            "`epsilon_limit: 10.0`",
        ),
        (
            "who_may_ask: {engineers: [{name: anna}]}",
            "key who_may_ask.engineers.0.public_key (anna): it is missing, for instance "
            "`public_key: 0123456789abcdef",
        ),
    ],
)
def test_what_is_wrong_with_a_key_says_what_to_write(tmp_path: Path, text: str, said: str) -> None:
    """In the file's own words: nothing of the library that reads it."""
    base = yaml.safe_load(text)
    if "accounts" in base and "delta" not in text:
        base["accounts"] = [{**POLICY["accounts"][0], **base["accounts"][0]}]
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(base))
    with pytest.raises(Malformed) as caught:
        load_policy(path)
    message = caught.value.message
    assert said in message
    assert "[key]" not in message
    assert "literal" not in message


def test_a_broken_file_keeps_the_rules_of_before_and_says_so(tmp_path: Path) -> None:
    """Until it is mended; a file that was taken away allows nothing."""
    write_rules(tmp_path)
    steward = Steward(Folder(tmp_path))
    before = steward.rules()
    path = tmp_path / "policy.yaml"
    path.write_text("accounts: [")
    assert steward.rules() == before
    assert "policy.yaml is not YAML" in steward.fault
    write_rules(tmp_path, {**POLICY, "withdrawn": ["heart"]})
    assert steward.rules().policy.withdrawn == ["heart"]
    assert steward.fault == ""
    path.unlink()
    with pytest.raises(Malformed):
        steward.rules()


# What the agent decides


Judge = Callable[..., Admission]


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """(state, a function that gives admission at a moment)."""
    write_rules(tmp_path)
    state = State(tmp_path / "state.db", NODE, LEDGER_KEY)

    def admission(now_s: float = 0.0) -> Admission:
        return Admission(
            NODE, state, Steward(Folder(tmp_path)), lambda: TASKS, 1 << 30, lambda: now_s
        )

    yield state, admission
    state.close()


def reason(answer: object) -> str:
    return answer.reason if isinstance(answer, Refused) else ""


def test_a_withdrawn_data_set_is_refused_and_published_without_tasks(
    node: Any, tmp_path: Path
) -> None:
    """Whatever `allow` says; an order that was reserved before is not begun."""
    _, admission = node
    assert isinstance(admission().decide(order()), Reserved)
    write_rules(tmp_path, {**POLICY, "withdrawn": ["heart"]})
    assert reason(admission().decide(order("a2", round=2))) == "DATA_SET_WITHDRAWN"
    assert admission().terms(order()).reason == "DATA_SET_WITHDRAWN"
    rules = Steward(Folder(tmp_path)).rules()
    (said,) = hello(rules, TASKS, lambda _: None, [], lambda *_: 0).data_sets
    assert (said.unavailable, list(said.tasks)) == ("DATA_SET_WITHDRAWN", [])


def test_nothing_is_begun_outside_the_hours(node: Any, tmp_path: Path) -> None:
    """By this machine's local time; an order that was reserved within them waits for them."""
    _, admission = node
    noon = datetime(2026, 6, 1, 12, 0)
    write_rules(tmp_path, {**POLICY, "work": {"hours": ["20:00-06:00"]}})
    night_s, noon_s = (noon + timedelta(hours=10)).timestamp(), noon.timestamp()
    assert isinstance(admission(night_s).decide(order()), Reserved)
    assert reason(admission(noon_s).decide(order("a2", round=2))) == "OUTSIDE_HOURS"
    assert admission(noon_s).terms(order()).reason == "OUTSIDE_HOURS"
    assert admission(noon_s).suspensions().reason("alpha/patients") == "OUTSIDE_HOURS"
    assert admission(night_s).suspensions().reason("alpha/patients") == ""


def test_the_first_job_of_a_project_waits_for_approval_and_later_ones_do_not(
    node: Any, tmp_path: Path
) -> None:
    """The job is on the list with the moment when it was asked for; approving it lets its project
    in. What would be refused anyway is not asked about."""
    state, admission = node
    write_rules(tmp_path, {**POLICY, "work": {"approve_first_job": True}})
    bad = order("a0", job_id="job-0", max_grad_norm=0.0)
    assert reason(admission(5.0).decide(bad)) == "CLIPPING_MISSING"
    answer = admission(5.0).decide(order("a1", job_id="job-1"))
    assert reason(answer) == "APPROVAL_NEEDED"
    assert "feddp agent approve job-1" in answer.message
    assert [(one.job_id, one.asked_at_s) for one in state.approvals.waiting(6.0)] == [
        ("job-1", 5.0)
    ]
    before = admission().suspensions()
    with pytest.raises(NotFound):
        state.approvals.approve("job-9", 6.0)
    state.approvals.approve("job-1", 6.0)
    assert admission().suspensions() != before, "the agent would not say Hello again"
    assert isinstance(admission(7.0).decide(order("a2", job_id="job-1")), Reserved)
    assert isinstance(admission(7.0).decide(order("a3", job_id="job-2")), Reserved)
    other = admission(7.0).decide(order("a4", job_id="job-3", project="other"))
    assert reason(other) == "APPROVAL_NEEDED"


def test_a_worker_gets_the_lower_of_both_limits_and_sees_no_gpu_unless_allowed() -> None:
    """The machine's by agent.yaml, the steward's by policy.yaml."""
    machine = Limits(threads=4, memory_bytes_max=0)
    assert WorkPolicy().within(machine) == machine
    least = 512 << 20
    lower = WorkPolicy(threads_max=2, memory_bytes_max=least, gpus_max=2).within(machine)
    assert (lower.threads, lower.memory_bytes_max, lower.gpus) == (2, least, 2)
    assert WorkPolicy(threads_max=9).within(machine).threads == 4
    low_memory = Limits(memory_bytes_max=3)
    assert WorkPolicy(memory_bytes_max=least).within(low_memory).memory_bytes_max == 3
    assert environment({"CUDA_VISIBLE_DEVICES": "0"}, 1)["CUDA_VISIBLE_DEVICES"] == ""
    assert environment({}, 1, 2)["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_orders_are_refused_unsigned_unless_the_policy_says_otherwise(
    node: Any, tmp_path: Path
) -> None:
    """A policy that says nothing of it, as those of 0.1.0, refuses."""
    _, admission = node
    write_rules(tmp_path, {key: POLICY[key] for key in POLICY if key != "who_may_ask"})
    answer = admission().decide(order())
    assert reason(answer) == "ORDER_UNSIGNED"
    assert "feddp job key new" in answer.message
    assert admission().terms(order()).reason == "ORDER_UNSIGNED"
    write_rules(tmp_path)
    assert isinstance(admission().decide(order("a2")), Reserved)


# While it runs


Scene = Callable[[FakeCoordinator, Folder, FakeWorker], Coroutine[Any, Any, None]]


def play(tmp_path: Path, scene: Scene) -> None:
    async def run() -> None:
        authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
        coordinator = FakeCoordinator(authority)
        await coordinator.start()
        folder = make_agent(tmp_path / "agent", authority, coordinator.port)
        try:
            await scene(coordinator, folder, FakeWorker())
        finally:
            await coordinator.stop()

    asyncio.run(run())


def test_a_withdrawal_ends_a_training_that_has_begun_and_it_stays_charged(tmp_path: Path) -> None:
    """The worker is stopped within a heartbeat; outside nothing but "no update" is heard."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        worker.script = ["hang"]
        async with RunningAgent(folder, worker):
            await coordinator.heard("hello")
            coordinator.send(work_order=real_order())
            async with asyncio.timeout(WAIT_S):
                await worker.training.wait()
                changed(folder, withdrawn=["heart"])
                await worker.stopped.wait()
            assert (await coordinator.heard("no_update")).attempt_id == "a1"
        assert status(folder.root)["accounts"][0]["posted_units"] > 0

    with structlog.testing.capture_logs() as logs:
        play(tmp_path, scene)
    said = [one["event"] for one in logs]
    assert "attempt_stopped" in said
    assert "training_too_long" not in said, "it ended by itself"


def test_a_broken_policy_changes_nothing_while_the_agent_runs(tmp_path: Path) -> None:
    """Orders are taken by the rules of before, and `status` says which these are."""

    async def scene(coordinator: FakeCoordinator, folder: Folder, worker: FakeWorker) -> None:
        async with RunningAgent(folder, worker):
            await coordinator.heard("hello")
            folder.policy_yaml.write_text("polizy: 1")
            coordinator.send(work_order=real_order())
            await coordinator.until_submitted()
            found = status(folder.root)
            assert not found["rules"]["ok"]
            assert "goes on by the rules that it read before" in found["rules"]["message"]

    play(tmp_path, scene)


# Commands


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """The folder of an agent that has joined."""
    return make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 1)


def cli(*words: str) -> Any:
    return CliRunner().invoke(app, [*words])


def test_status_gives_the_hash_that_a_policy_pins(folder: Folder) -> None:
    """As `allow` takes it; the comments of a fresh policy say that it stands there."""
    names = status(folder.root)["installed_tasks"]
    allowed = yaml.safe_load(folder.policy_yaml.read_text())["allow"][0]["tasks"]
    assert sorted(allowed) == names
    shown = cli("agent", "status", "--dir", str(folder.root)).stdout
    assert all(name in shown for name in names)
    assert "`feddp agent\n# status` lists the installed ones as NAME@HASH" in POLICY_YAML


def test_check_and_show_tell_the_policy_as_it_is_understood(folder: Folder) -> None:
    """`show` fills in what the file leaves out; `check` names what is wrong."""
    asked = ("agent", "policy", "show", "--dir", str(folder.root), "--json")
    shown = json.loads(cli(*asked).stdout)
    assert shown["who_may_ask"] == {"unsigned": "allow", "engineers": [], "days_max": 31.0}
    (folder.root / "train.csv").write_text("patient_id,disease,age\n")
    assert cli("agent", "policy", "check", "--dir", str(folder.root)).stdout == (
        "note: this node's ledger has no entry yet, so that nothing binds the accounts\n"
        "in order: 1 account, 1 data set\n"
    )
    changed(folder, werk={})
    failed = cli("agent", "policy", "check", "--dir", str(folder.root))
    assert "did you mean work?" in str(failed.exception)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"withdrawn": ["hart"]}, "withdrawn names hart"),
        ({"allow": [{"data_set": "hart", "tasks": []}]}, "allow names hart"),
        ({"work": {"memory_bytes_max": 1}}, "work.memory_bytes_max"),
        ({"accounts": [{**POLICY["accounts"][0], "delta": 0.4}]}, "delta must be"),
    ],
)
def test_what_a_policy_says_in_vain_is_an_error_everywhere(
    folder: Folder, keys: dict[str, Any], said: str
) -> None:
    """In check, status and doctor, with the nearest name; no agent starts on a mistyped one."""
    changed(folder, **keys)
    failed = cli("agent", "policy", "check", "--dir", str(folder.root))
    assert isinstance(failed.exception, Malformed)
    assert said in failed.exception.message
    told = json.dumps(status(folder.root))
    check, _ = check_policy(folder, load_identity(folder.identity))
    assert said in told
    assert (check.result, said in check.found) == ("failed", True)
    if "hart" in said:
        assert all("did you mean heart?" in one for one in (str(failed.exception), told))
        with pytest.raises(Malformed, match="names hart"):
            run(folder.root)


def test_a_mistyped_withdrawal_does_not_undo_the_others(tmp_path: Path) -> None:
    """The rest of the policy is in force; the log and the alerts say what is not."""
    write_rules(tmp_path)
    steward = Steward(Folder(tmp_path))
    steward.rules()
    write_rules(tmp_path, {**POLICY, "withdrawn": ["heart", "haert"]})
    assert steward.rules().policy.tasks_on("heart") == frozenset()
    assert "withdrawn names haert" in steward.slip
    write_rules(tmp_path, {**POLICY, "withdrawn": ["heart"]})
    steward.rules()
    assert steward.slip == ""


def test_what_is_in_force_is_told_of_a_broken_file_and_of_one_that_is_gone(folder: Folder) -> None:
    """While an agent runs: the rules of before, and nothing at all; in status and in doctor."""
    identity = load_identity(folder.identity)
    with locked(folder):
        folder.policy_yaml.write_text("polizy: 1")
        check, _ = check_policy(folder, identity)
        for told in (check.do, status(folder.root)["rules"]["message"]):
            assert "goes on by the rules that it read before" in told
            assert "othing is allowed" not in told
        folder.policy_yaml.unlink()
        check, _ = check_policy(folder, identity)
        for told in (check.do, status(folder.root)["rules"]["message"]):
            assert "Nothing is allowed while policy.yaml is gone" in told


def test_status_says_that_a_data_set_is_withdrawn(folder: Folder) -> None:
    """Not that no task is allowed."""
    changed(folder, withdrawn=["heart"])
    said = cli("agent", "status", "--dir", str(folder.root)).stdout
    assert "WITHDRAWN by the data steward" in said
    assert "0 tasks allowed" not in said


def test_a_worker_names_a_missing_opt_out_list(folder: Folder) -> None:
    """Not the columns of the source, which are in order."""
    (folder.root / "train.csv").write_text("patient_id,disease,age\n")
    (spec,) = Steward(folder).rules().data_sets
    answer = _wrong_header(spec.model_copy(update={"opt_out": folder.root / "gone.txt"}))
    assert answer is not None
    assert answer["reason"] == "OPT_OUT_UNREADABLE"
    assert "opted out" in answer["message"]
    assert "columns" not in answer["message"]


def test_a_data_set_whose_file_is_gone_is_a_warning_of_check(folder: Folder) -> None:
    """The policy itself holds: exit code 0."""
    (folder.root / "train.csv").unlink(missing_ok=True)
    answer = cli("agent", "policy", "check", "--dir", str(folder.root))
    assert (answer.exit_code, "WARNING: data set heart: " in answer.stdout) == (0, True)


@pytest.mark.parametrize("name", [TASK, "tabular-clasifier"])
def test_an_allowed_task_that_is_not_installed_is_warned_of_everywhere(
    folder: Folder, name: str
) -> None:
    """By check, status and doctor, in the same words, with the hash that is installed; the others
    count, exit codes stay."""
    (folder.root / "train.csv").write_text("patient_id,disease,age\n")
    dead, live = f"{name}@{'0' * 64}", f"{TASK}@{installed()[TASK].content_hash}"
    changed(folder, allow=[{"data_set": "heart", "tasks": [live, dead]}])
    place = ("--dir", str(folder.root))
    answer = cli("agent", "policy", "check", *place)
    (warned,) = [one for one in answer.stdout.splitlines() if "WARNING" in one]
    assert answer.exit_code == 0
    sentence = warned.removeprefix("WARNING: ").partition(";")[0]
    assert f"allow names {dead} on heart, which is not installed here" in sentence
    assert (f"{live} is" if name == TASK else "no task of that name is") in warned
    assert json.loads(cli("agent", "policy", "check", *place, "--json").stdout)["warnings"]
    found = status(folder.root)
    assert (found["in_order"], found["data_sets"][0]["tasks"]) == (True, [live])
    said = cli("agent", "status", *place)
    assert (said.exit_code, sentence in said.stdout) == (0, True), said.stdout
    assert "1 task allowed" in said.stdout
    policy, rules = check_policy(folder, load_identity(folder.identity))
    assert (policy.result, policy.found) == ("ok", "it holds; tasks allowed: 1 on heart")
    assert rules is not None
    (check,) = check_tasks(rules)
    assert (check.result, check.found.startswith(sentence)) == ("warning", True)
    changed(folder, allow=[{"data_set": "heart", "tasks": [live]}])
    assert "WARNING" not in cli("agent", "policy", "check", *place).stdout
    assert status(folder.root)["data_sets"][0]["not_installed"] == []


UNDECLARED = {"column": "shoe_size", "center": 0.0, "scale": 1.0}


def test_explain_prints_each_rule_with_its_verdict(folder: Folder, tmp_path: Path) -> None:
    """Of a job file: exit code 1 where a rule refuses, and every rule is still there."""
    file = tmp_path / "job.yaml"
    spec: dict[str, Any] = {
        "name": "small",
        "task": "tabular-classifier",
        "dataset": "heart",
        "federation": {"rounds": 4},
        "privacy": {"target_epsilon": 2.0, "delta": 1.0e-5},
    }
    asked = ("agent", "policy", "explain", str(file), "--dir", str(folder.root), "--json")
    (data_set,) = load_data_sets(folder.root)
    column = next(name for name, kind in data_set.columns.items() if kind == "number")
    known = {"column": column, "center": 0.0, "scale": 1.0}
    spec["task_config"] = {"model": "logistic", "learning_rate": 1.0, "features": [known]}
    file.write_text(yaml.safe_dump(spec))
    data_set.source.unlink(missing_ok=True)
    assert "SOURCE_MISSING" in cli(*asked).stdout, "as the agent would refuse it"
    data_set.source.parent.mkdir(exist_ok=True)
    made_up(data_set.source, data_set, Size(3, 1, 1.0))
    answer = cli(*asked)
    verdicts = {one["rule"]: one["verdict"] for one in json.loads(answer.stdout)["rules"]}
    assert (answer.exit_code, set(verdicts.values())) == (0, {"allows"}), answer.stdout
    assert {"who may ask", "hours", "least noise", "delta", "epsilon of a job"} <= set(verdicts)
    spec["task_config"]["features"] = [UNDECLARED]
    file.write_text(yaml.safe_dump(spec))
    assert "TASK_CONFIG_INVALID" in cli(*asked).stdout
    spec["task_config"]["features"] = [known]
    spec["privacy"] = {"target_epsilon": 6.0, "delta": 1.0e-6}
    file.write_text(yaml.safe_dump(spec))
    answer = cli(*asked)
    refused = {
        one["rule"]: one["reason"]
        for one in json.loads(answer.stdout)["rules"]
        if one["verdict"] == "refuses"
    }
    assert answer.exit_code == 1
    assert refused == {"delta": "DELTA_MISMATCH", "epsilon of a job": "EPSILON_PER_JOB"}
    changed(folder, who_may_ask={})
    rules = json.loads(cli(*asked).stdout)["rules"]
    assert [one["verdict"] for one in rules if one["rule"] == "who may ask"] == ["unknown"]


def test_explain_of_a_data_set_that_is_not_declared_says_so(folder: Folder, tmp_path: Path) -> None:
    """As the node would refuse it."""
    folder.datasets_yaml.write_text("data_sets: []\n")
    file = tmp_path / "job.yaml"
    spec = {
        "name": "small",
        "task": "tabular-classifier",
        "dataset": "heart",
        "federation": {"rounds": 4},
        "privacy": {"target_epsilon": 2.0, "delta": 1.0e-5},
    }
    file.write_text(yaml.safe_dump(spec))
    said = cli("agent", "policy", "explain", str(file), "--dir", str(folder.root))
    assert (said.exit_code, "DATA_SET_UNKNOWN" in said.stdout) == (1, True), said


def test_explain_and_approve_know_the_jobs_that_came(folder: Folder) -> None:
    """By id; a job that never came is not found, one that waits is let in."""
    changed(folder, work={"approve_first_job": True})
    from node_agent.joining.identity import load_identity
    from node_agent.policy.orders import Order

    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    admission = Admission(NODE, state, Steward(folder), installed, 1 << 30, time.time)
    assert reason(admission.decide(Order.from_wire(real_order(job_id="job-7")))) == (
        "APPROVAL_NEEDED"
    )
    state.close()
    place = ("--dir", str(folder.root))
    said = cli("agent", "policy", "explain", "job-7", *place)
    assert "approval" in said.stdout
    assert "asks" in said.stdout
    assert cli("agent", "policy", "explain", "job-8", *place).exit_code == 1
    assert "waits" in cli("agent", "approve", "--list", *place).stdout
    assert cli("agent", "approve", "job-7", *place).exit_code == 0
    assert "waits" not in cli("agent", "approve", "--list", *place).stdout
    assert cli("agent", "approve", *place).exit_code != 0
