"""First jobs of a project: what waits, what is shown of it, the answers; another coordinator."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from certs.authority import Authority
from certs.mandates import config_digest, sign
from feddp.cli.app import app
from node_agent.alerts.conditions import PROJECTS_TOLD_MAX, conditions
from node_agent.alerts.settings import AlertsConfig
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.policy.admission import Admission, Refused, Reserved
from node_agent.policy.approvals import UNSIGNED_S, WAITING_MAX, WAITING_PER_PROJECT_MAX
from node_agent.policy.orders import Order
from node_agent.policy.steward import Steward
from node_agent.state.state import State
from node_agent.tasks.registry import installed
from privacy.filters import make_filter
from protos.errors import NotFound, WrongPhase
from protos.feddp.v1.mandates_pb2 import SignedMandate
from tests.certs.test_mandates import KEY, MANDATE
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent, real_order
from tests.node_agent.samples import APPROVALS_BEFORE, NODE

FIRST, SECOND = b"f" * 32, b"s" * 32
FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)
ANNA = {
    "name": "anna",
    "public_key": MANDATE.public_key,
    "projects": ["default", "genomics", "other"],
}


@dataclass
class Desk:
    """The steward's side of a node, whose policy looks at first jobs."""

    folder: Folder
    state: State
    now_s: float = 1_000.0
    made: int = 0

    def decide(self, order: Order) -> str:
        """What becomes of an order: the reason of its refusal, or empty."""
        answer = self._admission().decide(order)
        assert isinstance(answer, Refused | Reserved)
        return answer.reason if isinstance(answer, Refused) else ""

    def comes(self, job_id: str, project: str = "default", **more: Any) -> str:
        """The next order of a job that nobody has signed."""
        return self.decide(self.order(job_id, project, **more))

    def order(self, job_id: str, project: str = "default", **more: Any) -> Order:
        """One of an attempt of its own."""
        self.made += 1
        wire = real_order(f"a{self.made}", job_id=job_id, project=project, round=self.made, **more)
        return Order.from_wire(wire)

    def signed(self, number: int, project: str = "default", days: float = 7.0) -> Order:
        """An order of a job that anna has signed, from now on for so many days."""
        job_id = f"job-{number:016x}"
        plain = self.order(job_id, project)
        mandate = replace(
            MANDATE,
            job_id=job_id,
            project=project,
            task_hash=plain.task_hash,
            task_config_digest=config_digest(plain.task_config()),
            nodes=(NODE,),
            rounds_max=1_000,
            initial_model=plain.base_model_digest,
            signed_at_s=int(self.now_s),
            expires_at_s=int(self.now_s + days * 86_400),
        )
        made = sign(KEY, mandate)
        self.made += 1
        wire = real_order(
            *(f"a{self.made}",),
            job_id=job_id,
            project=project,
            round=self.made,
            mandate=SignedMandate(body=made.body, signature=made.signature),
        )
        return Order.from_wire(wire)

    def waiting(self) -> list[str]:
        """Ids of jobs that wait, the oldest first."""
        return [one.job_id for one in self.state.approvals.waiting(self.now_s)]

    def alerts(self) -> list[tuple[str, str]]:
        """What is told about them."""
        identity = load_identity(self.folder.identity)
        config = AlertsConfig(disk_free_bytes_min=0)
        found = conditions(
            self.folder, identity, self.state, Steward(self.folder), config, self.now_s
        )
        return [(one.subject, one.text) for one in found if one.event == "APPROVAL_WAITING"]

    def policy(self, **keys: Any) -> None:
        """Write keys into the policy."""
        content = {**yaml.safe_load(self.folder.policy_yaml.read_text()), **keys}
        self.folder.policy_yaml.write_text(yaml.safe_dump(content))

    def terms(self, order: Order) -> str:
        """Why an order that was reserved before is not begun now; empty if it is."""
        return getattr(self._admission().terms(order), "reason", "")

    def release(self, project: str) -> None:
        """A release of a project that was not asked about."""
        order = self.order(f"job-of-{project}", project)
        self.state.reserve(order, FILTER)
        self.state.open(order.attempt_id, 1.0, 0.0)
        self.state.lose(order.attempt_id)

    def move(self, left: bytes, here: bytes) -> None:
        """From a coordinator to another."""
        if left:
            self.state.witnessed.keep_coordinator_key(left)
        self.state.leave()
        self.state.arrive(here)

    def _admission(self) -> Admission:
        steward = Steward(self.folder)
        return Admission(NODE, self.state, steward, installed, 1 << 30, lambda: self.now_s)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Nothing has come yet."""
    folder = make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 1)
    state = State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)
    made = Desk(folder, state)
    made.policy(
        work={"approve_first_job": True}, who_may_ask={"unsigned": "allow", "engineers": [ANNA]}
    )
    yield made
    state.close()


# Another coordinator


def test_a_project_of_another_coordinator_is_new_although_its_name_is_not(desk: Desk) -> None:
    """Every coordinator's first project is called default. What was let in counts again where the
    node comes back to, and what has worked there."""
    assert desk.comes("job-1") == "APPROVAL_NEEDED"
    desk.state.approvals.approve("job-1", 2.0)
    desk.release("worked")
    assert (desk.comes("job-1"), desk.comes("job-2", "worked")) == ("", "")
    desk.move(FIRST, SECOND)
    assert desk.comes("job-3") == "APPROVAL_NEEDED"
    assert desk.comes("job-4", "worked") == "APPROVAL_NEEDED"
    desk.state.approvals.approve("job-4", 3.0)
    assert [one.project for one in desk.state.approvals.projects()] == ["worked"]
    desk.move(SECOND, FIRST)
    assert [one.project for one in desk.state.approvals.projects()] == ["default", "worked"]
    assert desk.comes("job-5") == desk.comes("job-6", "worked") == ""
    desk.move(FIRST, SECOND)
    assert desk.comes("job-7") == "APPROVAL_NEEDED"
    assert desk.comes("job-8", "worked") == ""


def test_what_waits_from_a_coordinator_goes_with_it_and_what_was_refused_stays(desk: Desk) -> None:
    """It can never come; and what was refused may come from anybody."""
    for job in ("job-1", "job-2"):
        assert desk.comes(job) == "APPROVAL_NEEDED"
    desk.state.approvals.reject("job-2", "default", 2.0)
    desk.state.leave()
    assert (desk.waiting(), desk.alerts()) == ([], [])
    desk.state.arrive(SECOND)
    assert desk.comes("job-2") == "APPROVAL_REFUSED"
    assert desk.state.approvals.approve("job-2", desk.now_s).approved_at_s


def test_a_coordinator_whose_key_was_never_learned_is_none_that_is_known(desk: Desk) -> None:
    """The node cannot tell whether it came back to it, so it asks."""
    assert desk.comes("job-1") == "APPROVAL_NEEDED"
    desk.state.approvals.approve("job-1", 2.0)
    desk.move(b"", FIRST)
    assert desk.comes("job-2") == "APPROVAL_NEEDED"


def test_the_same_coordinator_after_a_leave_knows_its_projects(desk: Desk) -> None:
    """By the key that signs its checkpoints."""
    assert desk.comes("job-1") == "APPROVAL_NEEDED"
    desk.state.approvals.approve("job-1", 2.0)
    desk.move(FIRST, FIRST)
    assert desk.comes("job-2") == ""


@pytest.mark.parametrize("moved", [False, True])
def test_a_ledger_of_before_keeps_what_was_let_in_unless_it_had_moved(
    desk: Desk, moved: bool
) -> None:
    """Then nobody can tell whose the projects were, and they are asked about again."""
    desk.release("worked")
    if moved:
        desk.state.notes.keep("moved", "yes")
    desk.state.close()
    with contextlib.closing(sqlite3.connect(desk.folder.state_db)) as old:
        old.executescript(f"{APPROVALS_BEFORE}PRAGMA user_version = 6;")
        old.execute("INSERT INTO approvals VALUES ('job-1', 'default', 1.0, 2.0)")
        old.execute("INSERT INTO approvals VALUES ('job-2', 'other', 3.0, 0.0)")
        old.commit()
    key = load_identity(desk.folder.identity).ledger_key
    with contextlib.closing(State(desk.folder.state_db, NODE, key)) as state:
        known = [one.project for one in state.approvals.projects()]
        assert known == ([] if moved else ["default", "worked"])
        assert state.approvals.is_known("worked") is not moved
        waiting = [one.job_id for one in state.approvals.waiting(desk.now_s)]
        assert waiting == ([] if moved else ["job-2"])


# What waits


def test_a_job_that_is_over_waits_no_more_and_lets_no_project_in(desk: Desk) -> None:
    """The coordinator has said so; the alert ends with it."""
    assert desk.comes("job-1") == "APPROVAL_NEEDED"
    assert [subject for subject, _ in desk.alerts()] == ["default"]
    desk.state.end_job("job-1")
    assert (desk.waiting(), desk.alerts()) == ([], [])
    with pytest.raises(NotFound) as caught:
        desk.state.approvals.approve("job-1", 2.0)
    assert caught.value.reason == "APPROVAL_UNKNOWN"
    assert desk.comes("job-2") == "APPROVAL_NEEDED"


def test_a_job_waits_as_long_as_its_signature_holds(desk: Desk) -> None:
    """One that nobody signed, for a month from its last order."""
    assert desk.decide(desk.signed(1, days=2)) == "APPROVAL_NEEDED"
    assert desk.comes("job-plain", "other") == "APPROVAL_NEEDED"
    desk.now_s += 2 * 86_400
    assert desk.waiting() == ["job-plain"]
    with pytest.raises(NotFound):
        desk.state.approvals.approve(f"job-{1:016x}", desk.now_s)
    desk.now_s += UNSIGNED_S - 3 * 86_400
    assert desk.comes("job-plain", "other") == "APPROVAL_NEEDED"
    desk.now_s += 2 * 86_400
    assert desk.waiting() == ["job-plain"]
    desk.now_s += UNSIGNED_S
    assert (desk.waiting(), desk.alerts()) == ([], [])


def test_a_job_that_needs_no_answer_any_more_waits_no_more(desk: Desk) -> None:
    """Its project was let in by another, or the policy asks no more."""
    for job, project in (("job-1", "default"), ("job-2", "default"), ("job-3", "other")):
        assert desk.comes(job, project) == "APPROVAL_NEEDED"
    desk.state.approvals.approve("job-1", 2.0)
    assert desk.waiting() == ["job-3"]
    desk.policy(work={"approve_first_job": False})
    assert desk.comes("job-3", "other") == ""
    assert desk.waiting() == []


def test_invented_jobs_push_out_neither_a_new_one_nor_what_is_signed(desk: Desk) -> None:
    """Of one project a few, of all of them a bounded number; jobs that were let in fill nothing."""
    approvals, now_s = desk.state.approvals, desk.now_s
    assert desk.decide(desk.signed(1)) == "APPROVAL_NEEDED"
    for number in range(WAITING_PER_PROJECT_MAX + 3):
        approvals.ask(f"job-{number}", "default", now_s + number)
    kept = desk.waiting()
    assert len(kept) == WAITING_PER_PROJECT_MAX
    assert kept[:2] == [f"job-{1:016x}", "job-4"]
    for number in range(WAITING_MAX + 3):
        approvals.ask(f"job-x{number}", f"project-{number}", now_s + 100 + number)
    kept = desk.waiting()
    assert len(kept) == WAITING_MAX
    assert kept[0] == f"job-{1:016x}"
    assert kept[-1] == f"job-x{WAITING_MAX + 2}"
    approvals.ask(f"job-{1:016x}", "other", now_s + 5_000)
    signed = approvals.find(f"job-{1:016x}")
    assert signed is not None
    assert (signed.project, signed.expires_at_s) == ("default", int(now_s + 7 * 86_400))
    told = desk.alerts()
    assert len(told) == PROJECTS_TOLD_MAX + 1
    assert told[-1] == (
        "",
        f"first jobs of more than {PROJECTS_TOLD_MAX} projects wait for approval",
    )


# Answers


def test_a_job_that_is_rejected_is_refused_for_good_and_its_project_goes_on_waiting(
    desk: Desk,
) -> None:
    """Also once its project is let in by another job, and where nobody asks any more; until it is
    approved after all."""
    approvals = desk.state.approvals
    assert desk.comes("job-1") == "APPROVAL_NEEDED"
    before = approvals.revision()
    approvals.reject("job-1", "default", 2.0)
    assert approvals.revision() != before, "the agent would not say Hello again"
    assert (desk.waiting(), desk.alerts()) == ([], [])
    assert desk.comes("job-1") == "APPROVAL_REFUSED"
    assert desk.comes("job-2") == "APPROVAL_NEEDED"
    approvals.approve("job-2", 3.0)
    assert (desk.comes("job-1"), desk.comes("job-2")) == ("APPROVAL_REFUSED", "")
    desk.policy(work={"approve_first_job": False})
    assert desk.comes("job-1") == "APPROVAL_REFUSED"
    approvals.approve("job-1", 4.0)
    assert desk.comes("job-1") == ""


def test_a_rejected_job_that_is_over_lets_no_project_in(desk: Desk) -> None:
    """Nothing of it can run; resumed and signed anew, it can be answered again."""
    assert desk.comes("job-1") == "APPROVAL_NEEDED"
    desk.state.approvals.reject("job-1", "default", 2.0)
    desk.state.end_job("job-1")
    with pytest.raises(WrongPhase) as caught:
        desk.state.approvals.approve("job-1", 3.0)
    assert caught.value.reason == "APPROVAL_OVER"
    assert not desk.state.approvals.is_known("default")
    assert desk.comes("job-1") == "APPROVAL_REFUSED"
    desk.state.approvals.approve("job-1", 3.0)
    assert desk.comes("job-1") == ""


def test_what_was_reserved_is_not_begun_once_its_job_or_project_is_taken_back(desk: Desk) -> None:
    """It is given back, as its data was not opened; a job of a known project can be refused too."""
    approvals = desk.state.approvals
    assert desk.comes("job-1") == "APPROVAL_NEEDED"
    approvals.approve("job-1", 2.0)
    order = desk.order("job-1")
    assert (desk.decide(order), desk.terms(order)) == ("", "")
    approvals.reject("job-1", "default", 3.0)
    assert desk.terms(order) == "APPROVAL_REFUSED"
    approvals.approve("job-1", 4.0)
    assert desk.terms(order) == ""
    approvals.withdraw("default", 5.0)
    assert desk.terms(order) == "APPROVAL_NEEDED"


def test_a_project_that_is_taken_back_is_asked_about_again(desk: Desk) -> None:
    """Also one that had worked here before anybody was asked."""
    approvals = desk.state.approvals
    desk.release("default")
    assert desk.comes("job-1") == ""
    before = approvals.revision()
    approvals.withdraw("default", 2.0)
    assert approvals.revision() != before
    assert approvals.projects() == []
    assert desk.comes("job-1") == "APPROVAL_NEEDED"
    assert desk.waiting() == ["job-1"]
    with pytest.raises(NotFound) as caught:
        approvals.withdraw("default", 3.0)
    assert caught.value.reason == "PROJECT_UNKNOWN"
    approvals.approve("job-1", 4.0)
    assert desk.comes("job-1") == ""


# The command


@pytest.fixture
def run(desk: Desk) -> Callable[..., Any]:
    """`feddp agent VERB`, beside the agent that has the ledger open."""
    desk.now_s = time.time()

    def answer(verb: str, *words: str) -> Any:
        return CliRunner().invoke(app, ["agent", verb, *words, "--dir", str(desk.folder.root)])

    return answer


def test_approve_shows_who_signed_and_what_it_may_do_before_it_lets_it_in(
    desk: Desk, run: Callable[..., Any]
) -> None:
    """And says that the project is let in from now on, and how that is taken back."""
    job = f"job-{1:016x}"
    assert desk.decide(desk.signed(1, "genomics")) == "APPROVAL_NEEDED"
    listed = json.loads(run("approve", "--list", "--json").stdout)
    (one,) = listed["jobs"]
    assert (one["job_id"], one["state"], one["signed_by"]) == (job, "waits", "anna")
    assert (one["data_set"], one["epsilon"], one["rounds"]) == ("heart", 2.0, 1_000)
    assert one["task"].startswith("tabular-classifier@")
    assert one["signed_until_s"] == int(desk.now_s + 7 * 86_400)
    assert listed["projects"] == []
    table = run("approve", "--list").stdout
    for word in (job, "genomics", "anna", "heart", "tabular-classifier", "at most 2", "waits"):
        assert word in table, word
    done = run("approve", job)
    shown, _, said = done.output.partition(f"job {job} is let in")
    for word in ("anna", "tabular-classifier@", "heart", "at most 2", "at most 1000", "UTC"):
        assert word in shown, word
    assert "every later job of project genomics" in said
    assert "--withdraw genomics" in said
    listed = json.loads(run("approve", "--list", "--json").stdout)
    assert [one["state"] for one in listed["jobs"]] == ["let in"]
    assert [one["project"] for one in listed["projects"]] == ["genomics"]
    assert "project genomics is let in: since 20" in run("approve", "--list").stdout


def test_on_a_terminal_nothing_is_let_in_before_somebody_says_yes(
    desk: Desk, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the job is stands before the question."""
    shown: list[str] = []

    def said_no(text: str, **_: object) -> bool:
        shown.append(text)
        return False

    monkeypatch.setattr("typer.confirm", said_no)
    monkeypatch.setattr("feddp.cli.agent_approve.is_terminal", lambda: True)
    assert desk.comes("job-1", "genomics") == "APPROVAL_NEEDED"
    for words in (("job-1",), ("--reject", "job-1")):
        said = run("approve", *words)
        assert (said.exit_code, "nothing was changed" in said.output) == (1, True)
        assert "job-1 of project genomics" in said.output
    assert shown == ["Let in this job, and with it its project?", "Refuse it?"]
    assert desk.waiting() == ["job-1"]
    assert run("approve", "job-1", "--yes").exit_code == 0
    assert desk.waiting() == []


def test_reject_and_withdraw_are_commands_that_can_be_taken_back(
    desk: Desk, run: Callable[..., Any]
) -> None:
    """Each says what to do for that; a job that never came is not known."""
    assert desk.comes("job-1", "genomics") == "APPROVAL_NEEDED"
    said = run("approve", "--reject", "job-1")
    assert (said.exit_code, "`feddp agent approve job-1` lets it in" in said.output) == (0, True)
    assert "nobody: all of this is the coordinator's word" in said.output
    assert desk.comes("job-1", "genomics") == "APPROVAL_REFUSED"
    explained = run("policy", "explain", "job-1")
    assert "APPROVAL_REFUSED" in explained.output or explained.exit_code == 2
    assert "refused 20" in run("approve", "--list").stdout
    assert run("approve", "job-1").exit_code == 0
    assert desk.comes("job-1", "genomics") == ""
    assert run("approve", "--withdraw", "genomics").exit_code == 0
    assert desk.comes("job-1", "genomics") == "APPROVAL_NEEDED"
    for words in (("--reject", "job-9"), ("--withdraw", "nothing"), ("job-9",)):
        assert isinstance(run("approve", *words).exception, NotFound), words
    for words in ((), ("job-1", "--list"), ("--reject", "job-1", "--withdraw", "genomics")):
        assert run("approve", *words).exit_code == 2, words


def test_a_job_without_noise_is_shown_as_that(desk: Desk, run: Callable[..., Any]) -> None:
    """And one that reads nothing, and one that does not say what it spends."""
    account = yaml.safe_load(desk.folder.policy_yaml.read_text())["accounts"][0]
    desk.policy(accounts=[{**account, "unaccounted": "allow"}])
    bare = {"release_mechanism": "none", "release_noise_multiplier": None, "release_steps": 1}
    assert desk.comes("job-1", **bare) == "APPROVAL_NEEDED"
    assert desk.comes("job-2") == "APPROVAL_NEEDED"
    table = run("approve", "--list").stdout
    assert "WITHOUT NOISE" in table
    assert "not said" in table


def test_status_says_that_jobs_wait(desk: Desk, run: Callable[..., Any]) -> None:
    """It is no fault of this node: the exit code stays."""
    before = run("status").exit_code
    assert json.loads(run("status", "--json").stdout)["waiting"] == []
    for job, project in (("job-1", "genomics"), ("job-2", "other")):
        assert desk.comes(job, project) == "APPROVAL_NEEDED"
    said = run("status")
    assert said.exit_code == before
    assert "2 jobs of new projects (genomics, other) wait for the data steward" in said.stdout
    assert "`feddp agent approve --list`" in said.stdout
    waiting = json.loads(run("status", "--json").stdout)["waiting"]
    assert [one["job_id"] for one in waiting] == ["job-1", "job-2"]


def test_status_says_the_hours_by_which_clock_and_whether_it_is_outside_them(
    desk: Desk, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's clock is often UTC, and the coordinator alone was told OUTSIDE_HOURS."""
    assert json.loads(run("status", "--json").stdout)["hours"] is None
    desk.policy(work={"hours": ["20:00-06:00"]})

    class Noon(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Noon":
            return cls(2026, 6, 1, hour, 30, tzinfo=UTC)

    monkeypatch.setattr("node_agent.status.datetime", Noon)
    monkeypatch.setattr(Noon, "astimezone", lambda self, _=None: self)
    for hour, is_open in ((12, False), (22, True)):
        said = run("status").stdout
        assert f"work begins at 20:00-06:00 only, and it is {hour}:30 UTC on this machine" in said
        assert ("orders are refused until then (OUTSIDE_HOURS)" in said) is not is_open
