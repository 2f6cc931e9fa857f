"""Time of a round whose task does nothing: orders, transfers, journal, both ledgers."""

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.floor import floor_round_s
from coordinator.installation import init
from feddp.client import Client
from feddp.demo.processes import Processes, choose_ports
from feddp.profile import Profile
from node_agent.enrol import join
from node_agent.tasks.registry import NULL, installed
from protos.errors import FeddpError
from protos.feddp.v1.jobs_pb2 import Job

WARM_UP_ROUNDS = 3
START_S_MAX = 60.0


def null_round(nodes: int, parameters: int, rounds: int) -> list[dict[str, Any]]:
    """Median round with `nodes` nodes and a model of `parameters` float32 values."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        floor_s = floor_round_s(folder / "floor", nodes, 4 * parameters, rounds)
        job = _run_job(folder, nodes, parameters, rounds + WARM_UP_ROUNDS)
    ended = [one.ended_at for one in job.rounds]
    spans = [after - before for before, after in itertools.pairwise(ended)]
    value_s = statistics.median(spans[WARM_UP_ROUNDS:])
    case = f"null-{nodes}x{4 * parameters // 1000}KB"
    return [
        {
            "case": case,
            "metric": "round_time",
            "value": round(value_s * 1000, 2),
            "unit": "ms",
            "floor": round(floor_s * 1000, 2),
            "ratio": round(value_s / floor_s, 1),
        }
    ]


def _run_job(folder: Path, nodes: int, parameters: int, rounds: int) -> Job:
    ports = choose_ports(None)
    installation = init(
        folder / "coordinator",
        "bench.example",
        host="127.0.0.1",
        port=ports[0],
        enrollment_port=ports[1],
        health_port=ports[2],
    )
    processes = Processes(folder)
    try:
        processes.start(
            "coordinator", ["coordinator", "serve", "--config", str(installation.config)]
        )
        profile = Profile.load(installation.profile)
        _until(processes, lambda: _answers(profile))
        with Client(profile) as client:
            for number in range(nodes):
                _add_node(client, processes, folder, f"node-{number}")
            _until(processes, lambda: sum(n.connected for n in client.nodes()) == nodes)
            job_id = client.submit(_spec(parameters, rounds)).job_id
            job = next(j for j in client.watch(job_id) if j.ended_at)
            if job.status != "completed":
                raise processes.failed("coordinator", f"the job ended as {job.status}")
            return job
    finally:
        processes.stop()


def _add_node(client: Client, processes: Processes, folder: Path, name: str) -> None:
    home = folder / name
    join(client.create_token(name, "edge", 3600).token, home)
    (home / "none.csv").write_text("patient,label\n")
    declared = {
        "name": "none",
        "source": "none.csv",
        "patient": "patient",
        "label": "label",
        "declared_n": 1,
        "version": 1,
        "columns": {"x": "number"},
    }
    (home / "datasets.yaml").write_text(yaml.safe_dump({"data_sets": [declared]}))
    account = {
        "name": "patients",
        "epsilon_limit": 1.0,
        "delta": 1e-5,
        "epsilon_per_job_max": 1.0,
        "noise_multiplier_min": 1.0,
    }
    task = f"{NULL}@{installed()[NULL].content_hash}"
    policy = {"accounts": [account], "allow": [{"data_set": "none", "tasks": [task]}]}
    (home / "policy.yaml").write_text(yaml.safe_dump(policy))
    processes.start(name, ["agent", "run", "--dir", str(home)])


def _spec(parameters: int, rounds: int) -> bytes:
    spec = {
        "name": "bench",
        "task": NULL,
        "task_config": {"parameters": parameters},
        "dataset": "none",
        "federation": {"rounds": rounds},
    }
    return yaml.safe_dump(spec).encode()


def _answers(profile: Profile) -> bool:
    try:
        with Client(profile) as client:
            client.nodes()
    except FeddpError:
        return False
    return True


def _until(processes: Processes, condition: Any) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while not condition():
        processes.require_all()
        if time.monotonic() > deadline_s:
            raise TimeoutError("the processes were not ready in time; see their logs")
        time.sleep(0.1)
