"""Local workers as real processes: how they answer, and that none outlives its agent."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from node_agent.data.datasets import DataSetSpec
from node_agent.launchers.base import Limits, WorkerDied
from node_agent.launchers.local import LocalWorker, environment
from node_agent.tasks import registry
from protos.content import digest_of_file

RELEASE = {"mechanism": "gaussian", "noise_multiplier": 2.0, "sample_rate": 1.0, "steps": 2}
ENDLESS = {**RELEASE, "steps": 4_000_000_000}
CONFIG: dict[str, Any] = {
    "model": "logistic",
    "learning_rate": 2.0,
    "features": [{"column": "age", "center": 50.0, "scale": 10.0}],
}


def requests(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A good prepare and a good train over files in `folder`."""
    source, base = folder / "train.csv", folder / "base.safetensors"
    source.write_text("patient_id,age,disease\na,60,1\nb,40,0\nc,70,1\n")
    base.write_bytes(registry.initial_model(registry.TABULAR, CONFIG, 0))
    spec = DataSetSpec.model_validate(
        {
            "name": "d",
            "source": str(source),
            "patient": "patient_id",
            "label": "disease",
            "declared_n": 3,
            "version": 1,
            "columns": {"age": "number"},
        }
    )
    prepare = {
        "op": "prepare",
        "job_id": "j",
        "task": registry.TABULAR,
        "task_hash": registry.installed()[registry.TABULAR].content_hash,
        "task_config": CONFIG,
        "data_set": spec.model_dump(mode="json"),
        "declared_n": 3,
    }
    train = {
        "op": "train",
        "attempt_id": "a1",
        "round": 1,
        "base_model": str(base),
        "base_model_digest": digest_of_file(base),
        "out": str(folder / "out.safetensors"),
        "release": RELEASE,
        "declared_n": 3,
        "max_grad_norm": 0.1,
        "proximal_mu": 0.0,
    }
    return prepare, train


async def training_begun(log_path: Path, limit_s: float = 30.0) -> None:
    """Return once the worker's log says that it has read the records."""
    deadline = time.monotonic() + limit_s
    while "records_read" not in await asyncio.to_thread(log_path.read_text):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_rounds_after_the_first_use_the_same_process(tmp_path: Path) -> None:
    """Two rounds train in one process, and the second does not pay for imports again."""

    async def scenario() -> None:
        prepare, train = requests(tmp_path)
        worker = await LocalWorker.start("j", tmp_path / "worker.log")
        pid = worker.pid
        began = time.monotonic()
        assert await worker.request(prepare) == {"op": "prepared"}
        prepared = time.monotonic()
        assert psutil.Process(pid).nice() == min(19, os.nice(0) + Limits().nice)
        assert (await worker.request(train))["op"] == "trained"
        second = time.monotonic()
        assert (await worker.request({**train, "attempt_id": "a2"}))["op"] == "trained"
        done = time.monotonic()
        assert worker.pid == pid
        assert psutil.pid_exists(pid)
        assert done - second < (prepared - began) / 2
        await worker.stop()
        await worker.stop()
        assert not psutil.pid_exists(pid)
        with pytest.raises(WorkerDied):
            await worker.request(train)

    asyncio.run(scenario())
    assert (tmp_path / "worker.log").stat().st_mode & 0o777 == 0o600


def test_worker_killed_in_mid_training_is_reported(tmp_path: Path) -> None:
    """kill -9 of a training worker raises WorkerDied with its signal, and no file is there."""

    async def scenario() -> None:
        prepare, train = requests(tmp_path)
        worker = await LocalWorker.start("j", tmp_path / "worker.log")
        await worker.request(prepare)
        running = asyncio.create_task(worker.request({**train, "release": ENDLESS}))
        await training_begun(tmp_path / "worker.log")
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied) as caught:
            await running
        assert caught.value.exit_code == -signal.SIGKILL

    asyncio.run(scenario())
    assert not (tmp_path / "out.safetensors").exists()


def test_a_worker_that_hangs_as_it_starts_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else would: the agent works at one attempt at a time, and this one never begins."""
    monkeypatch.setattr("node_agent.launchers.local.START_S_MAX", 0.3)
    prepare, _ = requests(tmp_path)

    async def scene() -> None:
        worker = await LocalWorker.start("j", tmp_path / "worker.log")
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(WorkerDied, match="hung: it had not answered"):
            await worker.request(prepare)
        assert not psutil.pid_exists(worker.pid)

    asyncio.run(scene())


def test_stop_ends_a_worker_in_mid_training(tmp_path: Path) -> None:
    """A worker that is busy ends within the grace period; its caller gets WorkerDied."""

    async def scenario() -> None:
        prepare, train = requests(tmp_path)
        worker = await LocalWorker.start("j", tmp_path / "worker.log")
        await worker.request(prepare)
        running = asyncio.create_task(worker.request({**train, "release": ENDLESS}))
        await training_begun(tmp_path / "worker.log")
        await asyncio.wait_for(worker.stop(), 4)
        with pytest.raises(WorkerDied) as caught:
            await running
        # It ended by itself at the end of its stdin; nobody had to kill it.
        assert caught.value.exit_code == 0
        assert not psutil.pid_exists(worker.pid)

    asyncio.run(scenario())


def test_cancelled_request_ends_the_worker(tmp_path: Path) -> None:
    """An answer that nobody waits for must not be taken for the next request's."""

    async def scenario() -> None:
        prepare, _ = requests(tmp_path)
        worker = await LocalWorker.start("j", tmp_path / "worker.log")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.request(prepare), 0.05)
        assert not psutil.pid_exists(worker.pid)
        with pytest.raises(WorkerDied):
            await worker.request(prepare)

    asyncio.run(scenario())


AGENT = """
import asyncio, json, sys
from pathlib import Path
from node_agent.launchers.local import LocalWorker
folder, prepare, train = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
async def main():
    worker = await LocalWorker.start("j", folder / "worker.log")
    await worker.request(prepare)
    print("pid", worker.pid, flush=True)
    await worker.request(train)
asyncio.run(main())
"""


def test_worker_ends_with_a_killed_agent(tmp_path: Path) -> None:
    """kill -9 of the agent while its worker trains leaves no worker after 2 s."""
    prepare, train = requests(tmp_path)
    order = json.dumps({**train, "release": ENDLESS})
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(tmp_path), json.dumps(prepare), order],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    with agent:
        pid = next(line for line in agent.stdout if line.startswith("pid ")).split()[1]
        worker = psutil.Process(int(pid))
        asyncio.run(training_begun(tmp_path / "worker.log"))
        agent.kill()
        agent.wait()
    gone, alive = psutil.wait_procs([worker], timeout=2)
    assert not alive
    assert gone


ORPHANING_AGENT = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-m", "node_agent.worker"], stdin=int(sys.argv[1]))
print("pid", worker.pid, flush=True)
worker.wait()
"""


def test_worker_ends_with_its_agent_though_its_stdin_stays_open() -> None:
    """Another process that holds the pipe does not keep a dead agent's worker alive."""
    inner, outer = os.pipe()
    os.set_inheritable(inner, True)
    agent = subprocess.Popen(
        [sys.executable, "-c", ORPHANING_AGENT, str(inner)],
        stdout=subprocess.PIPE,
        pass_fds=[inner],
        text=True,
    )
    assert agent.stdout is not None
    with agent:
        worker = psutil.Process(int(agent.stdout.readline().split()[1]))
        # An answer shows that the worker is up.
        os.write(outer, b"{}\n")
        assert "REQUEST_MALFORMED" in agent.stdout.readline()
        agent.kill()
        agent.wait()
        _, alive = psutil.wait_procs([worker], timeout=2)
    os.close(outer)
    os.close(inner)
    assert not alive


def test_only_protocol_lines_reach_stdout(tmp_path: Path) -> None:
    """Whatever a library prints, from Python or from C, goes to the log."""
    code = (
        "import os, node_agent.worker as w\n"
        "answers = w.take_stdout()\n"
        "print('printed'); os.write(1, b'written'); answers.write(b'answer'); answers.flush()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"answer"
    assert b"printed" in done.stderr
    assert b"written" in done.stderr


def test_environment_of_a_worker_is_reduced() -> None:
    """Secrets and settings of the agent do not reach a worker; threads are set."""
    agent = {"PATH": "/bin", "FEDDP_TOKEN": "s3cret", "LD_PRELOAD": "x.so", "PYTHONPATH": "/p"}
    got = environment(agent, threads=2)
    assert got["PATH"] == "/bin"
    assert got["PYTHONPATH"] == "/p"
    assert got["OMP_NUM_THREADS"] == "2"
    assert not {"FEDDP_TOKEN", "LD_PRELOAD"} & set(got)


def test_worker_over_its_memory_limit_gives_no_update(tmp_path: Path) -> None:
    """A limit that training exceeds ends in no update, not in a dead machine."""

    async def scenario() -> None:
        prepare, train = requests(tmp_path)
        size = 64 << 20
        config = {"parameters": size}
        null = registry.installed()[registry.NULL].content_hash
        base = tmp_path / "base.safetensors"
        base.write_bytes(registry.initial_model(registry.NULL, config, 0))
        limits = Limits(memory_bytes_max=400 << 20)
        worker = await LocalWorker.start("j", tmp_path / "worker.log", limits)
        task = {"task": registry.NULL, "task_hash": null, "task_config": config}
        assert await worker.request({**prepare, **task}) == {"op": "prepared"}
        release = {"mechanism": "no_data", "sample_rate": 1.0, "steps": 0}
        order = {**train, "base_model_digest": digest_of_file(base), "release": release}
        answer = await worker.request(order)
        assert answer["op"] == "no_update"
        assert "MemoryError" in answer["detail"]
        await worker.stop()

    asyncio.run(scenario())
