"""Workers as Slurm jobs: that they train, and that no allocation stays behind, whoever dies.

Each test's name ends in what it ran against: a slurmctld of this machine, or recorded answers.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from node_agent.folder.config import Folder, load_config
from node_agent.launchers import mailbox, scheduled
from node_agent.launchers.base import Limits, WorkerDied
from node_agent.launchers.choice import launcher_of, tag_of
from node_agent.launchers.scheduled import Scheduled, SchedulerUnavailable, Stage, Ticket
from node_agent.launchers.settings import SlurmSettings
from node_agent.launchers.slurm import Slurm, batch_script, sbatch_arguments
from node_agent.tasks import registry
from protos.content import digest_of_file
from tests.node_agent.launchers.test_launcher import ENDLESS, requests, training_begun
from tests.node_agent.slurm_cluster import IS_INSTALLED, Cluster, cluster, until, version

ROOT = Path(__file__).resolve().parents[3]
PREFIX = "feddp-0123456789ab-"
NO_DATA = {"mechanism": "no_data", "noise_multiplier": None, "sample_rate": 1.0, "steps": 0}


@pytest.fixture(scope="module", params=[version()])
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests of the file."""
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def slurm(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, found by the commands that a test's agent runs; without jobs afterwards."""
    for name, value in running.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # What the agent waits between two looks is for real clusters.
    monkeypatch.setattr(scheduled, "LOOK_S", 0.2)
    monkeypatch.setattr(scheduled, "BEAT_S", 0.2)
    yield running
    for job in running.jobs():
        running.run("scancel", job)
    until(lambda: not running.jobs())


def launcher(folder: Path, minutes: int = 5, **change: Any) -> Scheduled:
    """As an agent with `folder` has it."""
    settings = SlurmSettings(kind="slurm", time_limit_minutes=minutes)
    return Scheduled(Slurm(settings, PREFIX), PREFIX, folder / "workers", (folder,), **change)


def null_requests(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Prepare, check and train of the task that needs neither torch nor data."""
    prepare, train = requests(folder)
    config = {"parameters": 10}
    base = folder / "base.safetensors"
    base.write_bytes(registry.initial_model(registry.NULL, config, 0))
    null = registry.installed()[registry.NULL].content_hash
    task = {"task": registry.NULL, "task_hash": null, "task_config": config}
    digest = {"base_model": str(base), "base_model_digest": digest_of_file(base)}
    train = {**train, **digest, "release": NO_DATA}
    attempt = {name: value for name, value in train.items() if name not in ("attempt_id", "round")}
    return {**prepare, **task}, {**attempt, "op": "check"}, train


def test_a_worker_trains_in_an_allocation_and_leaves_none(tmp_path: Path, slurm: Cluster) -> None:
    """Real training, real answers; the job's name says whose it is; stopped, it is gone."""

    async def scenario() -> None:
        prepare, train = requests(tmp_path)
        worker = await launcher(tmp_path).start("job-1", tmp_path / "worker.log")
        assert slurm.jobs() == [worker.job]
        named = slurm.run("squeue", "--noheader", f"--jobs={worker.job}", "--format=%j")
        assert named.startswith(f"{PREFIX}job-1-")
        assert await worker.request(prepare) == {"op": "prepared"}
        answer = await worker.request(train)
        assert (answer["op"], answer["digest"]) == ("trained", digest_of_file(Path(train["out"])))
        assert (await worker.request({**train, "attempt_id": "a2"}))["op"] == "trained"
        await worker.stop()
        await worker.stop()
        await asyncio.to_thread(until, lambda: not slurm.jobs())
        with pytest.raises(WorkerDied):
            await worker.request(train)

    asyncio.run(scenario())
    assert list((tmp_path / "workers").iterdir()) == []
    assert (tmp_path / "worker.log").stat().st_mode & 0o777 == 0o600


def test_an_allocation_that_slurm_ends_is_a_worker_that_died(
    tmp_path: Path, slurm: Cluster
) -> None:
    """In mid-training, by an operator, a time limit or a node's failure: told with Slurm's word."""

    async def scenario() -> None:
        prepare, train = requests(tmp_path)
        worker = await launcher(tmp_path).start("j", tmp_path / "worker.log")
        await worker.request(prepare)
        training = asyncio.create_task(worker.request({**train, "release": ENDLESS}))
        await training_begun(tmp_path / "worker.log")
        await asyncio.to_thread(slurm.run, "scancel", worker.job)
        with pytest.raises(WorkerDied, match="the scheduler says"):
            await asyncio.wait_for(training, 30)
        await asyncio.to_thread(until, lambda: not slurm.jobs())

    asyncio.run(scenario())
    assert not (tmp_path / "out.safetensors").exists()


def test_a_job_that_waits_in_the_queue_is_cancelled_when_nobody_waits_for_it(
    tmp_path: Path, slurm: Cluster
) -> None:
    """Its round is over: no worker is there to end by itself. Meanwhile the log says why it waits.

    The partition has no room for so long a job; the recorded answers know no queue.
    """

    async def scenario() -> None:
        prepare, _, _ = null_requests(tmp_path)
        worker = await launcher(tmp_path, minutes=9999).start("j", tmp_path / "worker.log")
        assert slurm.jobs() == [worker.job]
        with capture_logs() as logs, pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.request(prepare), 3.0 if slurm.is_real else 0.01)
        await asyncio.to_thread(until, lambda: not slurm.jobs())
        if slurm.is_real:
            waits = [one["scheduler_says"] for one in logs if one["event"] == "worker_waits"]
            assert waits[-1].startswith("PENDING (Partition")

    asyncio.run(scenario())


AGENT = """
import asyncio, json, sys
from pathlib import Path
from node_agent.launchers import scheduled
from tests.node_agent.launchers.test_slurm import launcher
folder, prepare, silent_s = Path(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])
async def main():
    worker = await launcher(folder, silent_s=silent_s).start("j", folder / "worker.log")
    await worker.request(prepare)
    print("job", worker.job, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def killed_agent(folder: Path, silent_s: float) -> str:
    """An agent with a worker in an allocation, killed; the allocation."""
    prepare, _, _ = null_requests(folder)
    command = [sys.executable, "-c", AGENT, str(folder), json.dumps(prepare), str(silent_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as agent:
        assert agent.stdout is not None
        job = next(line for line in agent.stdout if line.startswith("job ")).split()[1]
        agent.kill()
    return job


def test_a_dead_agents_allocation_ends_by_itself(tmp_path: Path, slurm: Cluster) -> None:
    """Nobody cancels it: the worker hears no beat."""
    job = killed_agent(tmp_path, silent_s=15.0)
    assert slurm.jobs() == [job]
    until(lambda: not slurm.jobs(), limit_s=60.0)


def sleeping(slurm: Cluster, folder: Path, name: str) -> str:
    """A job that does nothing; its id."""
    return slurm.run(
        *("sbatch", "--parsable", f"--job-name={name}", "--export=NONE"),
        f"--output={folder / 'sleeping.log'}",
        said="#!/bin/sh\nexec sleep 600\n",
    )


def test_an_agents_start_cancels_what_its_earlier_life_left_and_nothing_else(
    tmp_path: Path, slurm: Cluster
) -> None:
    """By name, so also a job whose id was never noted; another's job of the same account stays."""
    job = killed_agent(tmp_path, silent_s=600.0)
    # One that does not listen to its folder either, as a worker that hangs.
    hangs, other = (sleeping(slurm, tmp_path, name) for name in (f"{PREFIX}j-0", "feddp-another-j"))
    assert sorted(slurm.jobs()) == sorted([job, hangs, other])
    asyncio.run(launcher(tmp_path).reap())
    until(lambda: slurm.jobs() == [other])
    assert list((tmp_path / "workers").iterdir()) == []


def test_a_worker_ends_though_slurm_cannot_be_asked(tmp_path: Path, slurm: Cluster) -> None:
    """Its folder goes; the agent says what it could not do and does not hang."""

    async def scenario() -> None:
        prepare, _, _ = null_requests(tmp_path)
        worker = await launcher(tmp_path).start("j", tmp_path / "worker.log")
        await worker.request(prepare)
        [process] = [
            one
            for one in psutil.process_iter(["cmdline"])
            if f"--mailbox={worker._box.folder}" in (one.info["cmdline"] or [])
        ]
        await asyncio.to_thread(slurm.control_stops)
        try:
            with capture_logs() as logs:
                await worker.stop()
            _, alive = psutil.wait_procs([process], timeout=10)
            assert not alive
            assert "allocation_not_cancelled" in [one["event"] for one in logs]
            with pytest.raises(OSError, match=r"sbatch (failed|did not end)"):
                await launcher(tmp_path).start("j", tmp_path / "worker.log")
        finally:
            await asyncio.to_thread(slurm.control_starts)

    asyncio.run(scenario())


def test_a_worker_whose_allocation_would_end_in_mid_attempt_is_given_up_before(
    tmp_path: Path, slurm: Cluster
) -> None:
    """The check's own estimate is compared with the time that is left: no data is open yet."""

    async def scenario() -> None:
        prepare, check, _ = null_requests(tmp_path)
        worker = await launcher(tmp_path).start("j", tmp_path / "worker.log")
        await worker.request(prepare)
        answer = await worker.request(check)
        assert answer["op"] == "checked"
        # What files take to be seen is part of what an attempt takes.
        assert answer["rehearsal_s"] >= scheduled.EXCHANGE_S
        await asyncio.to_thread(until, lambda: worker._up_since_s is not None)
        worker._up_since_s -= 250.0
        with pytest.raises(WorkerDied, match="ends too soon"):
            await worker.request(check)
        await asyncio.to_thread(until, lambda: not slurm.jobs())

    asyncio.run(scenario())


@pytest.mark.skipif(not IS_INSTALLED, reason="only a slurmctld knows a job's limits")
def test_slurm_keeps_the_limits_that_it_is_given(tmp_path: Path, slurm: Cluster) -> None:
    """It ends the job at its time limit and never starts it anew: that could train twice."""

    async def scenario() -> str:
        worker = await launcher(tmp_path).start("j", tmp_path / "worker.log", Limits(threads=2))
        try:
            return slurm.run("scontrol", "show", "job", "-o", worker.job)
        finally:
            await worker.stop()

    said = asyncio.run(scenario())
    assert "TimeLimit=00:05:00" in said
    assert "Requeue=0" in said
    assert "CPUs/Task=2" in said


def test_a_job_that_slurm_refuses_is_told(tmp_path: Path, slurm: Cluster) -> None:
    """A partition that is not there: with sbatch's own sentence, and no folder stays."""
    if not slurm.is_real:
        (slurm.folder / "down").touch()
    settings = SlurmSettings(kind="slurm", partition="none")
    refused = Scheduled(Slurm(settings, PREFIX), PREFIX, tmp_path / "workers", ())
    try:
        with pytest.raises(SchedulerUnavailable, match="sbatch failed: "):
            asyncio.run(refused.start("j", tmp_path / "worker.log"))
    finally:
        (slurm.folder / "down").unlink(missing_ok=True)
    assert list((tmp_path / "workers").iterdir()) == []


TICKET = Ticket("n", ["/p y", "-m", "w'"], {"A": "b c"}, Path("/logs/100%.log"), Limits(threads=3))


def test_what_sbatch_is_asked() -> None:
    """Only what the hospital set, and what keeps an attempt from running twice."""
    settings = SlurmSettings(kind="slurm", partition="gpu", gres="gpu:1", memory_mib=2048)
    arguments = sbatch_arguments(settings, TICKET)
    assert arguments[:3] == ["sbatch", "--parsable", "--no-requeue"]
    assert {"--partition=gpu", "--gres=gpu:1", "--mem=2048M", "--cpus-per-task=3"} <= set(arguments)
    assert {"--time=240", "--export=NONE", "--output=/logs/100%%.log"} <= set(arguments)
    assert not [one for one in arguments if one.startswith(("--account", "--qos"))]


def test_the_script_passes_its_own_variables_and_slurms_and_no_other() -> None:
    """A path or value with spaces or quotes is one word; a variable that is unset stays so."""
    printing = Ticket("n", ["env"], {"A": "b 'c"}, Path("/l"), Limits())
    done = subprocess.run(
        ["/bin/sh"],
        input=batch_script(printing),
        env={"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "0,1", "SECRET": "x"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(done.stdout.splitlines()) == ["A=b 'c", "CUDA_VISIBLE_DEVICES=0,1"]


def test_a_data_sets_password_is_not_given_to_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its script and its job are there for others to read."""
    monkeypatch.setenv("FEDDP_SOURCE_PASSWORD", "s3cret")
    tickets: list[Ticket] = []

    class Noting:
        """Takes a ticket and has no machine for it."""

        time_limit_s = 300.0

        async def submit(self, ticket: Ticket) -> str:
            tickets.append(ticket)
            raise SchedulerUnavailable("no machine")

    noting = Scheduled(Noting(), PREFIX, tmp_path / "w", ())  # type: ignore[arg-type]
    with contextlib.suppress(SchedulerUnavailable):
        asyncio.run(noting.start("j", tmp_path / "worker.log"))
    assert "s3cret" not in batch_script(tickets[0])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("slurm", "launcher"),
        ({"kind": "lsf"}, "launcher"),
        ({"kind": "slurm", "partition": "x; rm"}, "partition"),
        ({"kind": "slurm", "time_limit_minutes": 0}, "time_limit_minutes"),
        ({"kind": "slurm", "colour": 1}, "colour"),
    ],
)
def test_a_wrong_launcher_is_named(tmp_path: Path, value: Any, said: str) -> None:
    """Key and file, before anything starts."""
    with pytest.raises(Exception, match=said):
        agent(tmp_path, value)


def agent(path: Path, value: Any) -> tuple[Folder, Any]:
    """A folder whose agent.yaml names a launcher, and that as it loads."""
    folder = Folder(path)
    config = {
        "coordinator": "127.0.0.1:1",
        "trust_domain": "hospitals.example",
        "node": "alpha",
        "node_class": "hpc",
        "launcher": value,
    }
    folder.agent_yaml.write_text(json.dumps(config))
    return folder, load_config(folder)


def test_the_configuration_chooses_the_launcher(tmp_path: Path) -> None:
    """Local unless said; two agents of one account tell their jobs apart."""
    folder, config = agent(tmp_path, {"kind": "local"})
    assert type(launcher_of(folder, config)).__name__ == "LocalLauncher"
    folder, config = agent(tmp_path, {"kind": "slurm", "partition": "main"})
    chosen = launcher_of(folder, config)
    assert isinstance(chosen, Scheduled)
    assert isinstance(chosen.scheduler, Slurm)
    assert tag_of(folder, config) in chosen.prefix
    assert tag_of(Folder(tmp_path / "other"), config) != tag_of(folder, config)


def test_a_mailbox_is_taken_once_and_only_by_its_owner(tmp_path: Path) -> None:
    """A job that is started anew, and a folder that others may write, serve nobody."""
    box = mailbox.Mailbox.make(tmp_path)
    box.take()
    with pytest.raises(mailbox.Refused, match="another worker"):
        box.take()
    open_ = mailbox.Mailbox.make(tmp_path)
    open_.folder.chmod(0o770)
    with pytest.raises(mailbox.Refused, match="others may"):
        open_.take()
    link = mailbox.Mailbox(tmp_path / "link")
    link.folder.symlink_to(mailbox.Mailbox.make(tmp_path).folder)
    with pytest.raises(mailbox.Refused, match="not this account's"):
        link.take()
    box.remove()
    assert not box.exists()
    with pytest.raises(mailbox.Refused, match="gone"):
        box.take()


def test_silence_is_counted_from_the_last_new_beat() -> None:
    """By one clock only; a beat that is there again is none."""
    silence = mailbox.Silence(0.0)
    assert silence.length_s(b"", 5.0) == 5.0
    assert silence.length_s(b"a", 6.0) == 0.0
    assert silence.length_s(b"a", 9.0) == 3.0
    assert silence.length_s(b"b", 10.0) == 0.0


def test_states_of_slurm(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that Slurm never had, or forgot, is gone; one that cannot be asked after is not."""
    for name, value in running.variables.items():
        monkeypatch.setenv(name, value)
    asked = Slurm(SlurmSettings(kind="slurm"), PREFIX)
    assert asyncio.run(asked.stage("99999"))[0] is Stage.GONE
    asyncio.run(asked.cancel("99999"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerUnavailable, match="cannot be started"):
        asyncio.run(asked.stage("1"))
