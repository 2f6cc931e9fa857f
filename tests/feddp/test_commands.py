"""Commands against a server with real mutual TLS: exit codes and what is on each stream."""

import json
import socket
from pathlib import Path

import pytest
from command_line import Run
from fake_coordinator import Coordinator
from job_scripts import SPEC, job_in

from feddp.cli.job_text import Changes
from protos import errors
from protos.content import digest_of
from protos.feddp.v1.models_pb2 import Model
from protos.feddp.v1.nodes_pb2 import Node, NodeDataSet


def test_a_token_alone_is_on_stdout(coordinator: Coordinator, run: Run) -> None:
    """A script can pass the output on as it is."""
    ran = run(
        "node", "token", "a", "--class", "hpc", "--ttl", "30m", "--profile", coordinator.profile
    )
    assert (ran.code, ran.out, ran.err) == (0, "feddp1.a.hpc.1800\n", "")


def test_a_token_as_json(coordinator: Coordinator, run: Run) -> None:
    """`token` is the fixed name."""
    ran = run("node", "token", "a", "--json", "--profile", coordinator.profile)
    assert ran.json["token"] == "feddp1.a.edge.86400"


@pytest.mark.parametrize("words", [["--ttl", "soon"], ["--ttl", "99999d"], ["--class", "laptop"]])
def test_a_wrong_option_of_token_is_usage(
    coordinator: Coordinator, run: Run, words: list[str]
) -> None:
    """Nothing is asked of the coordinator."""
    ran = run("node", "token", "a", *words, "--profile", coordinator.profile)
    assert ran.code == 2
    assert coordinator.state.calls == []


def test_nodes_are_listed_shown_and_disabled(coordinator: Coordinator, run: Run) -> None:
    """Every field of a node is in the JSON, with bytes in hexadecimal."""
    data_set = NodeDataSet(name="heart", account="a/patients", declared_n=199)
    coordinator.state.nodes["a"] = Node(
        name="a", status="enrolled", data_sets=[data_set], ledger_public_key=b"\x01\xff"
    )
    where = ("--profile", coordinator.profile)
    assert run("node", "list", "--json", *where).json["nodes"][0]["name"] == "a"
    shown = run("node", "show", "a", "--json", *where).json
    assert shown["ledger_public_key"] == "01ff"
    assert shown["data_sets"][0]["declared_n"] == 199
    assert run("node", "disable", "a", "--json", *where).json["status"] == "disabled"
    assert run("node", "enable", "a", "--json", *where).json["status"] == "enrolled"
    assert "199 patients declared" in run("node", "show", "a", *where).out
    assert "enrolled" in run("node", "list", *where).out
    coordinator.state.nodes["a"].data_sets[0].unavailable = "SCHEMA_MISMATCH"
    assert "UNAVAILABLE: SCHEMA_MISMATCH" in run("node", "show", "a", *where).out


@pytest.mark.parametrize(
    ("status", "command"),
    [
        ("disabled", "feddp node enable a"),
        ("quarantined", "feddp node release a"),
        ("revoked", "feddp node token a"),
    ],
)
def test_a_node_that_is_shut_out_is_shown_with_what_lets_it_in(
    coordinator: Coordinator, run: Run, status: str, command: str
) -> None:
    """The reason, and the command that settles it."""
    coordinator.state.nodes["a"] = Node(
        name="a", status=status, quarantine="a copy runs" if status == "quarantined" else ""
    )
    shown = run("node", "show", "a", "--profile", coordinator.profile).out
    assert command in shown
    assert "shut out" in shown or "a copy runs" in shown
    assert status in run("node", "list", "--profile", coordinator.profile).out.lower()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Malformed("JOB_INVALID", "said"), 2),
        (errors.Conflict("NODE_EXISTS", "said"), 2),
        (errors.Unauthenticated("CERTIFICATE_UNKNOWN", "said"), 3),
        (errors.NotAllowed("NOT_ALLOWED", "said"), 3),
        (errors.NotFound("NODE_UNKNOWN", "said"), 3),
        (errors.BudgetRefused("BUDGET_REFUSED", "said"), 4),
        (errors.WrongPhase("JOB_ENDED", "said"), 1),
        (errors.Limited("TOO_MANY", "said", retry_after_s=1.0), 1),
        (errors.Internal("INTERNAL", "said"), 1),
    ],
)
def test_the_kind_of_error_is_the_exit_code(
    coordinator: Coordinator, run: Run, error: errors.FeddpError, code: int
) -> None:
    """What the coordinator said goes to stderr, and stdout stays empty."""
    coordinator.state.faults["ListNodes"] = [error, error]
    ran = run("node", "list", "--json", "--profile", coordinator.profile)
    assert (ran.code, ran.out, ran.error) == (code, "", {"reason": error.reason, "message": "said"})
    ran = run("node", "list", "--profile", coordinator.profile)
    assert (ran.code, ran.out, ran.err) == (code, "", "error: said\n")


def test_an_absent_coordinator_is_exit_5(coordinator: Coordinator, run: Run) -> None:
    """The message names the address and the profile."""
    coordinator.stop()
    ran = run("node", "list", "--profile", coordinator.profile)
    assert ran.code == 5
    assert f"127.0.0.1:{coordinator.port}" in ran.err


def test_submit_prints_the_job(coordinator: Coordinator, run: Run, tmp_path: Path) -> None:
    """Without --watch it returns at once."""
    (tmp_path / "job.yaml").write_bytes(SPEC)
    ran = run("job", "submit", "job.yaml", "--json", "--profile", coordinator.profile)
    assert (ran.code, ran.json["job_id"]) == (0, "j1")


@pytest.mark.parametrize("watch", [False, True])
def test_submit_says_which_hospital_cannot_take_part_now(
    coordinator: Coordinator, run: Run, tmp_path: Path, watch: bool
) -> None:
    """Beside the job's id, before anybody waits for it."""
    warning = "b cannot take part now, SCHEMA_MISMATCH: its columns differ"
    coordinator.state.submission_warnings = [warning]
    coordinator.state.watches = [[job_in("completed", 2)]]
    (tmp_path / "job.yaml").write_bytes(SPEC)
    words = ("submit", "job.yaml", *(["--watch"] if watch else []))
    ran = run("job", *words, "--profile", coordinator.profile)
    assert ran.code == 0
    first, second = ran.out.splitlines()[:2]
    assert first.startswith("job j1 submitted, not signed")
    assert second == f"warning: {warning}"


@pytest.mark.parametrize(
    ("status", "code"),
    [("converged", 0), ("completed", 0), ("budget_exhausted", 4), ("failed", 1), ("cancelled", 1)],
)
def test_the_exit_code_of_watch_is_the_jobs(
    coordinator: Coordinator, run: Run, tmp_path: Path, status: str, code: int
) -> None:
    """As fixed for submit --watch, watch and demo."""
    coordinator.state.watches = [[job_in("running"), job_in(status, 2)]]
    ran = run("job", "watch", "j1", "--profile", coordinator.profile)
    assert ran.code == code
    assert (tmp_path / "feddp-report-j1.html").read_text().startswith("<!doctype html>")


def test_submit_and_watch_as_json_is_the_ended_job(
    coordinator: Coordinator, run: Run, tmp_path: Path
) -> None:
    """One JSON value on stdout; where the report is goes to stderr."""
    (tmp_path / "job.yaml").write_bytes(SPEC)
    coordinator.state.watches = [[job_in("running"), job_in("completed", 2)]]
    words = ("submit", "job.yaml", "--watch", "--json", "--report", tmp_path / "r.html")
    ran = run("job", *words, "--profile", coordinator.profile)
    assert ran.code == 0
    assert ran.json["status"] == "completed"
    assert ran.json["nodes"][0]["epsilon_spent"] == pytest.approx(1.40002)
    assert "r.html" in ran.err
    assert (tmp_path / "r.html").exists()


def test_watch_as_json_is_one_line_a_change(coordinator: Coordinator, run: Run) -> None:
    """The stream's repetitions are no change."""
    running, done = job_in("running"), job_in("completed", 2)
    coordinator.state.watches = [[running, running, done]]
    ran = run("job", "watch", "j1", "--json", "--profile", coordinator.profile)
    assert [json.loads(text)["status"] for text in ran.out.splitlines()] == ["running", "completed"]


def test_watch_in_a_pipe_says_what_changes(coordinator: Coordinator, run: Run) -> None:
    """For whom the job waits, each round, the end; a running epsilon is called one, rounded up."""
    coordinator.state.watches = [
        [
            job_in("running"),
            job_in("waiting", waiting="b"),
            job_in("running"),
            job_in("running", 1),
            job_in("completed", 2),
        ]
    ]
    ran = run("job", "watch", "j1", "--profile", coordinator.profile)
    assert ran.out.splitlines() == [
        "round 1 of 2 began",
        "waiting for b: OFFLINE: it is not connected",
        "no longer waiting",
        "round 1 of 2 done, 1 update, running epsilon at most 0.7001",
        "guarantee at a: epsilon 10 at delta 1e-05, over all jobs (limit now 10)",
        "a guarantee is the highest limit that an account ever had; a running epsilon is a figure "
        "of this job on the way",
        "round 2 of 2 began",
        "round 2 of 2 done, 1 update, running epsilon at most 1.4001",
        "completed after 2 rounds",
    ]


def test_a_job_tells_the_highest_limit_as_the_guarantee_and_not_the_lowered_one(
    coordinator: Coordinator, run: Run
) -> None:
    """Limit 10 lowered to 1.5 after a release: the guarantee stays 10; whoever lost it has none."""
    job = job_in("completed", 2)
    job.nodes[0].account_epsilon_limit = 1.5
    lost = job.nodes.add(name="b", account_epsilon_limit=10.0, epsilon_limit=2.0, delta=1e-5)
    old = job.nodes.add(name="c", epsilon_limit=2.0, epsilon_spent=1.0, delta=1e-5)
    assert not lost.HasField("epsilon_guarantee")
    coordinator.state.jobs["j1"], coordinator.state.specs["j1"] = job, SPEC
    where = ("--profile", coordinator.profile)
    text = run("job", "show", "j1", *where).out
    (header,) = [line for line in text.splitlines() if line.startswith("NODE")]
    for node, guarantee in (("a", "10 "), ("b", "none "), (old.name, "not told ")):
        (row,) = [line for line in text.splitlines() if line.startswith(f"{node} ")]
        assert row[header.index("GUARANTEE") :].startswith(guarantee)
    (row,) = [line for line in text.splitlines() if line.startswith("a ")]
    assert row[header.index("LIMIT") :].startswith("1.5 ")
    assert "highest limit that was ever in force" in text
    assert "The guarantee is the limit" not in text
    changes = list(Changes().of(job))
    assert changes.count("guarantee at a: epsilon 10 at delta 1e-05, over all jobs (limit now 1.5)")
    assert changes.count("guarantee at b: none, something was released without accounting") == 1
    assert changes.count("guarantee at c: `feddp budget show` tells it") == 1


def test_guarantees_are_said_once_and_again_when_a_limit_has_changed() -> None:
    """A watch of a hundred rounds says them once, and hospitals of the same terms together."""
    changes, job = Changes(), job_in("running", 1)
    job.nodes.add().CopyFrom(job.nodes[0])
    job.nodes[1].name = "b"
    assert [line for line in changes.of(job) if line.startswith("guarantee at a, b: epsilon 10")]
    later = job_in("running", 2)
    del later.nodes[:]
    later.nodes.extend(job.nodes)
    assert not [line for line in changes.of(later) if "guarantee" in line]
    ended = job_in("completed", 2)
    ended.rounds.add(number=3, ended_at=1.7e9).participation.extend(job.rounds[0].participation)
    ended.nodes[0].account_epsilon_limit = 1.5
    said = list(changes.of(ended))
    assert "guarantee at a: epsilon 10 at delta 1e-05, over all jobs (limit now 1.5)" in said


def test_one_round_is_one_round() -> None:
    """In the last line of a watch."""
    assert list(Changes().of(job_in("completed", 1)))[-1] == "completed after 1 round"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_submission_that_has_ended_already_says_so_with_its_exit_code(
    coordinator: Coordinator, run: Run, tmp_path: Path, as_json: bool
) -> None:
    """No budget can pay for it: exit code 4 as `quote` and `watch` give, and nothing to follow."""
    (tmp_path / "job.yaml").write_bytes(SPEC)
    coordinator.state.ended_at_once = "budget_exhausted"
    words = ("job", "submit", "job.yaml", *(["--json"] if as_json else []))
    ran = run(*words, "--profile", coordinator.profile)
    assert ran.code == 4
    if as_json:
        assert ran.json["status"] == "budget_exhausted"
        return
    assert "job j1 has ended: budget_exhausted: no budget is left" in ran.out
    assert "follow it" not in ran.out


def test_ctrl_c_of_a_submission_says_that_the_job_may_run(
    coordinator: Coordinator, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever submits it again pays twice, so they are told where to look first."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "job.yaml").write_bytes(SPEC)
    monkeypatch.setattr("feddp.client.Client.submit", interrupted)
    ran = run("job", "submit", "job.yaml", "--profile", coordinator.profile)
    assert (ran.code, ran.out) == (130, "")
    assert "the job may have begun" in ran.err
    assert "feddp job list" in ran.err


def test_ctrl_c_stops_watching_and_not_the_job(
    coordinator: Coordinator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how to go on watching and how to end the job."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("feddp.client.Client.watch", interrupted)
    ran = run("job", "watch", "j1", "--profile", coordinator.profile)
    assert ran.code == 130
    assert "job j1 goes on" in ran.err
    assert "feddp job cancel j1" in ran.err
    assert coordinator.state.called("CancelJob") == 0


def test_a_job_is_listed_shown_and_cancelled(coordinator: Coordinator, run: Run) -> None:
    """`show` holds the file that was submitted."""
    where = ("--profile", coordinator.profile)
    coordinator.state.jobs["j1"] = job_in("waiting", 1, waiting="b")
    coordinator.state.specs["j1"] = SPEC
    assert run("job", "list", "--json", *where).json["jobs"][0]["job_id"] == "j1"
    assert run("job", "show", "j1", "--json", *where).json["spec"] == SPEC.decode()
    text = run("job", "show", "j1", *where).out
    assert "TARGET" in text
    coordinator.state.jobs["j1"].target_epsilon = 0.0
    shown = run("job", "show", "j1", *where).out
    assert "TARGET" not in shown
    assert "LIMIT" in shown
    assert "b: OFFLINE: it is not connected" in text
    assert "RUNNING EPSILON" in text
    assert run("job", "show", "j2", *where).code == 3
    assert run("job", "cancel", "j1", "--json", *where).json["status"] == "cancelled"


def test_a_failed_job_is_resumed(coordinator: Coordinator, run: Run) -> None:
    """The command says where it goes on; a job that did not fail is refused with its status."""
    where = ("--profile", coordinator.profile)
    coordinator.state.jobs["j1"] = job_in("failed", 1)
    assert "running, at round 2" in run("job", "resume", "j1", *where).out
    again = run("job", "resume", "j1", *where)
    assert again.code != 0
    assert "job j1 is running" in again.err


def test_a_job_that_fails_again_at_once_is_not_called_resumed(
    coordinator: Coordinator, run: Run
) -> None:
    """What it failed for may still be so: the command says it, and its exit code is the job's."""
    coordinator.state.jobs["j1"] = job_in("failed", 1)
    coordinator.state.jobs["j1"].phase = "ended"
    coordinator.state.jobs["j1"].message = "the file of a model is gone"
    ran = run("job", "resume", "j1", "--profile", coordinator.profile)
    assert ran.code == 1
    assert "ended again: failed: the file of a model is gone" in ran.out


def test_a_hospital_that_is_left_out_is_shown_and_said_once(
    coordinator: Coordinator, run: Run
) -> None:
    """Watching says it when it begins, `show` as long as it lasts."""
    where = ("--profile", coordinator.profile)
    sights = []
    for number in (3, 4):
        job = job_in("running", number)
        job.warnings.append(f"delta was left out of the last {number} rounds (OFFLINE)")
        sights.append(job)
    coordinator.state.jobs["j1"] = sights[-1]
    assert "delta was left out of the last 4 rounds" in run("job", "show", "j1", *where).out
    changes = Changes()
    lines = [line for job in sights for line in changes.of(job)]
    assert sum("warning: delta was left out" in line for line in lines) == 1


def test_a_model_is_listed_shown_and_downloaded(
    coordinator: Coordinator, run: Run, tmp_path: Path
) -> None:
    """The file's digest is the model's id; a second download is refused without --force."""
    where = ("--profile", coordinator.profile)
    digest = digest_of(b"weights")
    coordinator.state.blobs[digest] = b"weights"
    coordinator.state.models = [Model(digest=digest, job_id="j1", kind="answer", bytes=7)]
    assert run("model", "list", "--json", *where).json["models"][0]["digest"] == digest
    assert run("model", "show", "j1", "--json", *where).json["kind"] == "answer"
    out = tmp_path / "m.safetensors"
    ran = run("model", "download", "j1", "--out", out, "--json", *where)
    assert ran.json == {"path": str(out), "digest": digest, "bytes": 7}
    assert out.read_bytes() == b"weights"
    assert run("model", "download", "j1", "--out", out, *where).code == 2
    assert run("model", "download", "j1", "--out", out, "--force", *where).code == 0
    assert run("model", "show", "j2", *where).code == 3
    folder = run("model", "download", "j1", "--out", tmp_path, "--force", *where)
    assert (folder.code, f"{tmp_path} is a folder" in folder.err) == (2, True)


def test_models_of_a_job_that_there_is_not_are_no_empty_table(
    coordinator: Coordinator, run: Run
) -> None:
    """A mistyped id looks otherwise like a job that has made none yet."""
    where = ("--profile", coordinator.profile)
    coordinator.state.jobs["j1"] = job_in("running", 0)
    assert run("model", "list", "--job", "j1", *where).code == 0
    assert run("model", "list", "--job", "j2", *where).code == 3


def test_names_from_other_machines_cannot_steer_the_terminal(
    coordinator: Coordinator, run: Run
) -> None:
    """Control characters are shown as question marks, and markup as text."""
    job = job_in("running")
    job.name = "\x1b[2J[red]x"
    coordinator.state.jobs["j1"] = job
    where = ("--profile", coordinator.profile)
    for words in (("list",), ("show", "j1")):
        out = run("job", *words, *where).out
        assert "\x1b" not in out
        assert "?[2J[red]x" in out


def test_an_installation_is_found_in_its_folder_and_in_a_demos(
    coordinator: Coordinator, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--dir and FEDDP_DIR take both; FEDDP_PROFILE takes a profile."""
    installation = tmp_path / "demo" / "coordinator"
    installation.mkdir(parents=True)
    (installation / "coordinator.yaml").write_text("{}")
    coordinator.profile.rename(installation / "operator")
    assert run("node", "list", "--dir", installation).code == 0
    assert run("node", "list", "--dir", tmp_path / "demo").code == 0
    monkeypatch.setenv("FEDDP_DIR", str(tmp_path / "demo"))
    assert run("node", "list").code == 0
    monkeypatch.setenv("FEDDP_PROFILE", str(installation / "operator"))
    assert run("node", "list").code == 0
    assert run("node", "list", "--dir", tmp_path).code == 3


def test_an_engineers_key_on_the_coordinators_disk_is_warned_of(
    coordinator: Coordinator, run: Run, tmp_path: Path
) -> None:
    """Whoever has that disk would sign; a profile anywhere else is made without a word."""
    apart = run("job", "key", "new", "--profile", coordinator.profile)
    assert (apart.code, "WARNING" in apart.err) == (0, False)
    (coordinator.profile / "orders.key").unlink()
    (coordinator.profile / "orders.pub").unlink()
    installation = tmp_path / "c"
    installation.mkdir()
    (installation / "coordinator.yaml").write_text("{}")
    coordinator.profile.rename(installation / "operator")
    beside = run("job", "key", "new", "--dir", installation)
    assert beside.code == 0
    assert f"WARNING: the key lies in the coordinator's installation {installation}" in beside.err


def test_no_installation_is_a_clear_usage_error(run: Run) -> None:
    """It names both options and both variables."""
    ran = run("node", "list", "--json")
    assert (ran.code, ran.error["reason"]) == (2, "SELECTION_MISSING")
    for word in ("--dir", "--profile", "FEDDP_DIR", "FEDDP_PROFILE"):
        assert word in ran.error["message"]


def test_a_damaged_profile_is_named(coordinator: Coordinator, run: Run) -> None:
    """The file, and what it must hold."""
    where = ("--json", "--profile", coordinator.profile)
    (coordinator.profile / "profile.yaml").write_text("address: 3")
    assert run("node", "list", *where).error["reason"] == "PROFILE_INVALID"
    (coordinator.profile / "key.pem").unlink()
    missing = run("node", "list", *where).error
    assert missing["reason"] == "PROFILE_MISSING"
    assert "key.pem" in missing["message"]


def test_a_free_port_is_not_waited_for(run: Run, coordinator: Coordinator) -> None:
    """A wrong port in a profile is exit code 5, not a hang."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (coordinator.profile / "profile.yaml").write_text(f"address: 127.0.0.1:{port}\nname: operator")
    assert run("job", "list", "--profile", coordinator.profile).code == 5
