"""A script of deploy/upgrade that is stopped by hand, or whose terminal is closed, ends as where a
step fails: with the way back.

`feddp` and `curl` are stand-ins: what is ready never comes, so that each waits there.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.versions import SCRIPTS, way_back

FEDDP = """#!/bin/sh
case "$*" in
  *--plan*) echo '{"needs_stop": false, "migrations": []}' ;;
  *verify*--json*) echo '{"verified": true, "entries": 1}' ;;
  *ledger*) echo '{"entries": [{"attempt_id": "a", "kind": "void"}]}' ;;
esac
"""
CURL = """#!/bin/sh
case "$*" in
  */ready*) touch "$(dirname "$0")/asked"; trap 'touch "$(dirname "$0")/ended"; exit 1' TERM
            sleep 60 & wait $! ;;
esac
"""
WAITED_S_MAX = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The stand-ins, in the order in which PATH finds them."""
    for name in ("old/bin/feddp", "new/bin/feddp", "curl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CURL if name == "curl" else FEDDP)
        path.chmod(0o755)
    return tmp_path


def words(folder: Path, name: str, *more: str) -> list[str]:
    """A script's, with one process."""
    replicas = {"rolling": ["a"], "rollback": ["a"], "blue_green": ["blue", "green"]}[name]
    return [
        *(sys.executable, str(SCRIPTS / f"{name}.py"), "--dir", "/x", "--backup", f"{folder}/b"),
        *("--old", f"{folder}/old", "--new", f"{folder}/new", "--stop", "true stop-{name}"),
        *("--switch", "true {version} {name}", "--start", "true start-{name}", "--run", *more),
        *(word for one in replicas for word in ("--replica", f"{one}=http://127.0.0.1:1")),
    ]


def at_a_terminal() -> None:
    """Nothing is ignored, whatever started the tests: they may run under nohup, or behind an &."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def begun(
    folder: Path, name: str, *more: str, before: Callable[[], object] = at_a_terminal
) -> subprocess.Popen[str]:
    """A script that waits until something is ready."""
    process = subprocess.Popen(
        words(folder, name, *more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        start_new_session=True,
        preexec_fn=before,
    )
    deadline_s = time.monotonic() + WAITED_S_MAX
    while not (folder / "asked").exists():
        assert time.monotonic() < deadline_s
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ended whatever a test finds."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for one in found:
        one.kill()
        one.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("name", "more", "back"),
    [
        ("rolling", (), ["true stop-a", "true {old} a", "true start-a"]),
        ("rollback", (), ["true stop-a", "true {old} a", "true start-a"]),
        (
            "blue_green",
            ("--copy", "true copy", "--green-dir", "/y"),
            ["true stop-green", "true start-blue"],
        ),
    ],
)
def test_a_script_that_is_stopped_says_the_way_back(
    folder: Path,
    started: list[subprocess.Popen[str]],
    name: str,
    more: tuple[str, ...],
    back: list[str],
    number: signal.Signals,
) -> None:
    """With the step and the signal, on the screen and in a file; what was under way ends first."""
    process = begun(folder, name, *more)
    started.append(process)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=WAITED_S_MAX)
    assert process.returncode == 1
    assert "Traceback" not in printed
    assert (folder / "ended").exists()
    begun_last = [one for one in printed.splitlines() if one.endswith("...")][-1]
    assert begun_last.endswith("wait until it is ready ...")
    step = int(begun_last.partition(".")[0])
    assert f"stopped at step {step}: interrupted by {number.name}" in printed
    told = [" ".join(one) for one in way_back(printed)]
    assert told[: len(back)] == [one.format(old=f"{folder}/old") for one in back]
    assert "to begin again after that: give another --backup" in printed
    assert (folder / "b.log").read_text() in printed


def test_the_way_back_is_in_a_file_where_the_terminal_is_gone(
    folder: Path, started: list[subprocess.Popen[str]]
) -> None:
    """As after a lost session, whose screen nobody reads any more."""
    process = begun(folder, "rolling")
    started.append(process)
    assert process.stdout is not None
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(WAITED_S_MAX) == 1
    kept = (folder / "b.log").read_text()
    assert "interrupted by SIGHUP" in kept
    assert way_back(kept)[0] == ["true", "stop-a"]


def test_a_script_under_nohup_goes_on_when_the_session_ends(
    folder: Path, started: list[subprocess.Popen[str]]
) -> None:
    """What is ignored when it starts stays so."""
    ignored = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731 - as nohup does it
    process = begun(folder, "rolling", before=ignored)
    started.append(process)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=WAITED_S_MAX)
    assert "interrupted by SIGTERM" in printed


def test_blue_is_not_gone_back_to_once_green_may_have_worked(
    folder: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Nobody knows what was booked by the time that the last step is interrupted."""
    (folder / "curl").write_text("#!/bin/sh\necho '{\"ready\": true}'\n")
    (folder / "new/bin/feddp").write_text(
        FEDDP.replace('"needs_stop": false', '"served_by": ""').replace(
            "esac", f"  *resume*) touch {folder}/asked; sleep 60 & wait $! ;;\nesac"
        )
    )
    process = begun(folder, "blue_green", "--copy", "true copy", "--green-dir", "/y")
    started.append(process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=WAITED_S_MAX)
    assert process.returncode == 1
    assert "there is no way back from here" in printed
    assert "start-blue" not in printed.partition("stopped at step")[2]
