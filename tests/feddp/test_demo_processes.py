"""The demo's processes and what it refuses, without training anything."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from command_line import Run
from job_scripts import job_in

from feddp.cli.ledgers import Check
from feddp.demo.ports import choose_ports, free_ports
from feddp.demo.processes import DemoFailed, Processes
from feddp.demo.result import print_summary, result_of
from protos.errors import Malformed
from protos.feddp.v1.budgets_pb2 import BudgetAccount

WAIT_S = 60.0


def _until(done, what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["coordinator", "agents"])
def test_a_folder_with_an_earlier_demo_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    """Nothing of it is touched."""
    kept = tmp_path / "d" / name / "kept"
    kept.mkdir(parents=True)
    ran = run("demo", "--dir", "d")
    assert ran.code == 2
    assert "--dir" in ran.err
    assert kept.is_dir()


def test_a_port_in_use_is_exit_2_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    """It is found before anything is written or started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = run("demo", "--dir", "d", "--port-base", port - 1)
    assert ran.code == 2
    assert f"port {port}" in ran.err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--epsilon", "0"],
        ["--epsilon", "nan"],
        ["--delta", "1"],
        ["--delta", "-1"],
        ["--epsilon", "2", "--no-dp"],
        ["--json", "-"],
        ["--json", "absent/result.json"],
    ],
)
def test_options_that_make_no_sense_are_usage(run: Run, tmp_path: Path, words: list[str]) -> None:
    """Before anything is started or made."""
    assert run("demo", "--dir", "d", *words).code == 2
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "absent").exists()


def test_ports_are_the_base_and_the_two_after_it() -> None:
    """N gRPC, N+1 enrolment, N+2 health; without a base three different free ones."""
    free = choose_ports(None)
    assert len(set(free)) == 3
    for base in range(free[0], 65000, 7):
        try:
            assert choose_ports(base) == (base, base + 1, base + 2)
        except Malformed:
            continue
        break


def _sleeper(folder: Path, code: str) -> Processes:
    """A process that runs `code` in place of `python -m feddp`."""
    package = folder / "feddp"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(code)
    return Processes(folder)


def test_a_process_that_ends_by_itself_is_named_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last lines say why, and where the rest is."""
    monkeypatch.chdir(tmp_path)
    processes = _sleeper(tmp_path, "print('the reason'); raise SystemExit(7)")
    processes.start("agent-a", [])
    _until(processes.ended, "it did not end")
    with pytest.raises(DemoFailed) as failed:
        processes.require_all()
    for word in ("agent-a", "exit code 7", "the reason", "logs/agent-a.log"):
        assert word in failed.value.message
    processes.stop()


def test_a_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing outlives the demo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("feddp.demo.processes.STOP_S_MAX", 0.2)
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    processes = _sleeper(tmp_path, f"{code}print('ready', flush=True)\ntime.sleep(600)")
    processes.start("deaf", [])
    _until(lambda: "ready" in processes.log_of("deaf").read_text(), "it did not start")
    processes.stop()
    assert processes.ended() == {"deaf": -signal.SIGKILL}


PARENT = """
import sys, time
from pathlib import Path
from feddp.demo.processes import Processes
folder = Path(sys.argv[1])
config = str(folder / "c" / "coordinator.yaml")
processes = Processes(folder)
processes.start("coordinator", ["coordinator", "serve", "--config", config])
time.sleep(600)
"""


def test_a_demo_that_is_killed_leaves_no_process(tmp_path: Path, run: Run) -> None:
    """kill -9 of the demo takes its processes with it."""
    port, enrollment_port, health_port = choose_ports(None)
    ports = ["--port", port, "--enrollment-port", enrollment_port, "--health-port", health_port]
    assert run("coordinator", "init", "--dir", tmp_path / "c", *ports).code == 0
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    log = tmp_path / "logs/coordinator.log"
    _until(lambda: log.exists() and "coordinator_ready" in log.read_text(), "it did not start")
    (child,) = psutil.Process(parent.pid).children()
    assert os.getsid(child.pid) == child.pid
    parent.kill()
    parent.wait()
    _until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "it lives")


def test_the_result_has_the_fixed_form(capsys: pytest.CaptureFixture[str]) -> None:
    """The guarantee is the highest limit ever; without noise the spent epsilon is null."""
    job = job_in("completed", 2)
    job.model_digest = "d" * 64
    job.nodes[0].ClearField("epsilon_spent")
    account = BudgetAccount(node="a", epsilon_limit=3.0, delta=1e-6, epsilon_guarantee=4.0)
    metrics = {
        "accuracy": 0.8,
        "auc": 0.9,
        "brier": 0.1,
        "per_node": {"a": {"accuracy": 0.8, "auc": None}},
    }
    check = Check([], 0, {"reserve": 2})
    result = result_of(job, [account], Path("m"), metrics, (check, 4), 1.26)
    assert result == {
        "status": "completed",
        "rounds": 2,
        "job_id": "j1",
        "model": {"path": "m", "digest": "d" * 64},
        "nodes": [
            {
                "name": "a",
                "class": "edge",
                "epsilon_spent": None,
                "epsilon_limit": 3.0,
                "epsilon_guarantee": 4.0,
                "delta": 1e-6,
                "rounds_participated": 2,
            }
        ],
        "metrics": metrics,
        "ledger": {"verified": True, "entries": 4},
        "seconds": 1.3,
    }
    print_summary(result, "")
    text = capsys.readouterr().out
    assert "no guarantee" in text
    assert "RUNNING EPSILON" in text
    assert "GUARANTEE is the highest limit that was ever in force" in text


def test_a_job_without_a_model_has_a_result_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A failed demo still says what was spent."""
    result = result_of(job_in("failed"), [], None, None, (Check([], 0, {}), 0), 1.0)
    assert result["model"] is None
    assert result["metrics"]["accuracy"] is None
    print_summary(result, "too few nodes")
    assert "too few nodes" in capsys.readouterr().out


def test_free_ports_are_none_that_an_outgoing_connection_is_given() -> None:
    """Nor one that was given out shortly before and does not listen yet, nor one that does."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = [port for _ in range(50) for port in free_ports(3)]
    assert len(set(found)) == 150
    assert max(found) < lowest
    with socket.socket() as taken:
        (port,) = free_ports(1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(Malformed) as refused:
            choose_ports(port)
    assert refused.value.reason == "PORT_IN_USE"
