"""What holds for every command: help, usage errors, bugs, missing extras, what is imported."""

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command_line import Run
from fake_coordinator import Coordinator

from feddp.cli import output
from feddp.cli.app import app

COMMANDS = [
    "demo",
    *(f"coordinator {verb}" for verb in ("init", "serve", "check", "gateway", "reissue")),
    *(f"coordinator {verb}" for verb in ("backup", "restore", "pause", "resume")),
    "coordinator copy-keys",
    "coordinator upgrade",
    *(f"coordinator ca-rollover {verb}" for verb in ("status", "begin", "switch", "finish")),
    *(f"node {verb}" for verb in ("token", "list", "show", "disable", "enable")),
    *(f"node {verb}" for verb in ("approve", "reject", "release", "revoke")),
    *(f"user {verb}" for verb in ("invite", "list", "revoke")),
    *(f"profile {verb}" for verb in ("join", "show", "renew")),
    *(f"agent {verb}" for verb in ("join", "run", "status", "doctor")),
    *(f"agent {verb}" for verb in ("install-service", "leave", "move", "backup", "restore")),
    *(f"agent {verb}" for verb in ("logs", "outbox", "digest")),
    *(f"agent ledger {verb}" for verb in ("heads", "export", "import", "settle")),
    *(f"agent limit {verb}" for verb in ("key", "propose", "approve", "apply")),
    "agent vouch",
    "agent approve",
    *(f"agent policy {verb}" for verb in ("check", "show", "explain")),
    *(f"job {verb}" for verb in ("quote", "submit", "list", "show", "watch", "cancel", "resume")),
    *(f"job key {verb}" for verb in ("new", "show")),
    *(f"model {verb}" for verb in ("list", "show", "download", "evaluate")),
    *(f"budget {verb}" for verb in ("show", "ledger", "verify")),
]


def names(group: typer.Typer, before: str = "") -> list[str]:
    """Every command of a group and of the groups in it."""
    found = [
        before + (one.name or one.callback.__name__)  # type: ignore[union-attr]
        for one in group.registered_commands
    ]
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        found += names(inner.typer_instance, f"{before}{inner.name} ")
    return found


def test_the_commands_are_exactly_these() -> None:
    """A command that is not in the list has no help test."""
    assert sorted(names(app)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    """A usage line and a sentence, exit code 0."""
    ran = run(*command.split(), "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: feddp {command}")
    assert ran.err == ""


@pytest.mark.parametrize("noun", sorted({command.rpartition(" ")[0] for command in COMMANDS}))
def test_a_list_of_commands_has_whole_sentences(run: Run, noun: str) -> None:
    """Nobody guesses the end of one."""
    listed = run(*noun.split(), "--help").out.partition("\nCommands:\n")[2]
    assert listed
    assert "..." not in listed


def test_the_lists_begin_with_what_comes_first(run: Run) -> None:
    """An installation and an agent are made, then run."""
    for noun, first in (("coordinator", "init"), ("agent", "join")):
        listed = run(noun, "--help").out.partition("\nCommands:\n")[2]
        assert listed.split()[0] == first


@pytest.mark.parametrize(
    "words", [["no-such"], ["node", "show"], ["node", "list", "--no-such"], ["job", "submit"]]
)
def test_wrong_usage_is_exit_2_and_points_to_the_help(run: Run, words: list[str]) -> None:
    """One line on stderr."""
    ran = run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "--help` shows the usage" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_wrong_usage_with_json_is_json(run: Run) -> None:
    """A program that asked for JSON can read every error."""
    ran = run("node", "list", "--json", "--no-such")
    assert (ran.code, ran.error["reason"]) == (2, "USAGE")


def test_a_bug_is_one_line_without_a_traceback_or_its_words(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The log holds the incident and the places; neither it nor the line holds what it said."""

    def broken(*_: object) -> None:
        raise RuntimeError("patient 17 has 1.25")

    monkeypatch.setattr("feddp.profile.Selection.of", broken)
    ran = run("node", "list")
    log = tmp_path / "state/feddp/errors.log"
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert "Traceback" not in ran.err
    assert str(log) in ran.err
    incident = ran.err.partition("incident ")[2][:8]
    text = log.read_text()
    assert f"incident {incident}: RuntimeError in feddp node list" in text
    assert "options.py" in text
    for told in (ran.err, text):
        assert "patient 17" not in told


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        (
            ["coordinator", "check", "--config", "c.yaml"],
            "coordinator.checking.check",
            "coordinator",
        ),
        (["agent", "join", "TOKEN", "--dir", "d"], "node_agent.joining.enrol", "agent"),
        (["demo"], "feddp.demo.runner", "demo"),
    ],
)
def test_a_missing_extra_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], module: str, extra: str
) -> None:
    """With the command that installs it, exit code 2."""

    class Absent:
        def find_spec(self, name: str, *_: object) -> None:
            if name == module:
                raise ModuleNotFoundError("no module named numpy", name="numpy")

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    ran = run(*words)
    assert ran.code == 2
    assert f"pip install 'feddp[{extra}]'" in ran.err


@pytest.mark.parametrize("verb", ["run", "status"])
def test_a_folder_without_an_agent_is_exit_3(run: Run, tmp_path: Path, verb: str) -> None:
    """And says how to join."""
    ran = run("agent", verb, "--dir", tmp_path)
    assert (ran.code, ran.out) == (3, "")
    assert "feddp agent join" in ran.err


def test_a_token_that_is_none_is_exit_2_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    """Nothing half-done: the folder is not even made."""
    assert run("agent", "join", "nonsense", "--dir", tmp_path / "a").code == 2
    assert not (tmp_path / "a").exists()


def _loaded(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after `code`."""
    text = f"import sys\n{code}\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_the_commands_load_without_what_only_some_of_them_need() -> None:
    """`feddp --help` stays quick, and an idle agent small."""
    loaded = _loaded("import feddp.cli.app")
    heavy = {"grpc", "numpy", "torch", "sqlalchemy", "pygal", "rich.live", "cryptography", "yaml"}
    assert loaded & heavy == set()


def test_an_idle_agent_has_not_loaded_what_only_training_needs() -> None:
    """What `feddp agent run` imports before it waits for work."""
    code = "import feddp.cli.app\nimport feddp.logging\nimport node_agent.agent"
    heavy = {"numpy", "torch", "sqlalchemy", "pygal", "dp_accounting", "pyarrow", "pandas"}
    assert _loaded(code) & heavy == set()


def test_the_client_loads_without_the_coordinators_extra() -> None:
    """A bare install gives the command line and the client."""
    heavy = {"numpy", "torch", "sqlalchemy", "dp_accounting", "pyarrow", "pygal"}
    assert _loaded("import feddp.client, feddp.cli.ledgers, feddp.cli.following") & heavy == set()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (2.0, "2"),
        (1.10001, "1.1001"),
        (1.1, "1.1"),
        (0.0, "0"),
        (float("inf"), "unbounded"),
    ],
)
def test_an_epsilon_is_never_shown_smaller_than_it_is(value: float | None, text: str) -> None:
    """Rounded up, never to nearest."""
    assert output.epsilon(value) == text


def test_python_m_feddp_is_the_same_command() -> None:
    """The version, from a fresh process."""
    ran = subprocess.run(
        [sys.executable, "-m", "feddp", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("feddp 0.")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/f"),
        OSError("a library's own words"),
        sqlite3.DatabaseError("file is not a database"),
    ],
)
def test_a_file_or_database_that_cannot_be_used_is_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Exit code 2, and no words that are neither ours nor the system's."""

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("feddp.profile.Selection.of", broken)
    ran = run("node", "list")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert "something went wrong inside" not in ran.err
    assert "own words" not in ran.err


def test_a_database_that_may_not_be_opened_is_not_called_damaged(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever puts a backup in its place loses what was spent since."""
    monkeypatch.setattr(
        "feddp.profile.Selection.of", lambda *_: sqlite3.connect(tmp_path / "nowhere" / "state.db")
    )
    ran = run("node", "list")
    assert (ran.code, "cannot be opened or written" in ran.err) == (2, True)
    assert "damaged" not in ran.err
    assert "backup" not in ran.err


def test_a_disk_that_fails_is_told_from_a_full_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's log is looked at before anything is put back."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_FSYNC"

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("feddp.profile.Selection.of", broken)
    ran = run("node", "list", "--json")
    assert (ran.code, ran.error["reason"]) == (1, "DISK_FAILING")
    assert "dmesg" in ran.error["message"]


def test_what_a_command_writes_is_its_owners_only(tmp_path: Path) -> None:
    """From a process whose umask would let others read."""
    folder = tmp_path / "parent" / "i"
    subprocess.run(
        [sys.executable, "-m", "feddp", "coordinator", "init", "--dir", str(folder)],
        check=True,
        capture_output=True,
        umask=0o022,
    )
    for made in (folder.parent, folder, *folder.rglob("*")):
        assert made.stat().st_mode & 0o077 == 0, made


def test_grpcs_own_lines_do_not_come_before_ours(tmp_path: Path, coordinator: Coordinator) -> None:
    """A coordinator that is gone is one line on stderr."""
    coordinator.stop()
    ran = subprocess.run(
        [sys.executable, "-m", "feddp", "node", "list", "--profile", str(coordinator.profile)],
        check=False,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "GRPC_VERBOSITY"},
    )
    assert (ran.returncode, len(ran.stderr.splitlines())) == (5, 1)
