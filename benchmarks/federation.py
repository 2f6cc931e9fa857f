"""A coordinator and its agents as real processes, that run jobs of the null task."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import yaml

from coordinator.installation import Installation, init
from feddp.client import Client
from feddp.demo.ports import choose_ports
from feddp.demo.processes import Processes
from feddp.profile import Profile
from node_agent.joining.enrol import join
from node_agent.tasks.registry import NULL, installed
from protos.errors import FeddpError
from protos.feddp.v1.jobs_pb2 import Job

COORDINATOR: Final = "coordinator"
POLL_S: Final = 2.0
"""Between two questions to the coordinator: each costs it, and it is what is measured."""

LOOK_S: Final = 0.2
START_S_MAX: Final = 60.0
START_S_PER_NODE: Final = 4.0
FREE_MEMORY_BYTES_MIN: Final = 2 << 30


@dataclass(slots=True)
class Federation:
    """An installation with enrolled nodes, and the processes that run now."""

    folder: Path
    installation: Installation
    names: tuple[str, ...]
    processes: Processes

    def profile(self) -> Profile:
        """The operator's."""
        return Profile.load(self.installation.profile)

    def pid(self, name: str) -> int:
        """Process id of `COORDINATOR` or of a node's agent."""
        return int(json.loads((self.folder / "pids.json").read_text())[name])

    def has(self, name: str) -> bool:
        """Whether there is such a process."""
        return name in json.loads((self.folder / "pids.json").read_text())

    def start_coordinator(self) -> None:
        """Start the coordinator, after `stop` or at first."""
        self.processes = Processes(self.folder)
        config = str(self.installation.config)
        self.processes.start(COORDINATOR, ["coordinator", "serve", "--config", config])

    def start_agents(self) -> None:
        """Start every agent; nothing is waited for."""
        for name in self.names:
            self.processes.start(name, ["agent", "run", "--dir", str(self.folder / name)])

    def stop(self) -> None:
        """Stop every process."""
        self.processes.stop()

    def until_answering(self) -> None:
        """Wait for the coordinator.

        Raises:
            DemoFailed: PROCESS_ENDED, also when it takes too long.
        """
        with Client(self.profile()) as client:
            self.until(lambda: _answers(client), START_S_MAX, "it did not answer", every_s=LOOK_S)

    def enrol(self) -> None:
        """Let every node join, and write what its steward would."""
        with Client(self.profile()) as client:
            for name in self.names:
                _prepare(client, self.folder / name)

    def until_connected(self) -> None:
        """Wait for every node.

        Raises:
            DemoFailed: PROCESS_ENDED, also when it takes too long.
        """
        with Client(self.profile()) as client:
            self.until(
                lambda: sum(node.connected for node in client.nodes()) == len(self.names),
                START_S_MAX + START_S_PER_NODE * len(self.names),
                "not every node was connected",
                every_s=LOOK_S,
            )

    def submit(self, parameters: int, rounds: int) -> str:
        """Submit a null job that every node must take part in; its id."""
        spec = {
            "name": "bench",
            "task": NULL,
            "task_config": {"parameters": parameters},
            "dataset": "none",
            "federation": {
                "rounds": rounds,
                "min_participants": max(2, len(self.names)),
                # A slow round must show as slow, not as one that closed without a node.
                "deadline": "3600s",
            },
        }
        with Client(self.profile()) as client:
            return client.submit(yaml.safe_dump(spec).encode()).job_id

    def until_ended(self, job_id: str, seconds_max: float) -> Job:
        """Wait for the end of a job, asking seldom; each round must have an update of each node.

        Raises:
            DemoFailed: PROCESS_ENDED: it ended otherwise or too late, or memory ran out.
        """
        found = Job()

        def ended() -> bool:
            found.CopyFrom(client.job(job_id))
            return found.ended_at > 0

        with Client(self.profile()) as client:
            self.until(ended, seconds_max, "the job did not end")
        if found.status != "completed":
            raise self.failed(f"the job ended as {found.status} ({found.message})")
        for one in found.rounds:
            if sum(p.outcome == "update" for p in one.participation) < len(self.names):
                raise self.failed(f"round {one.number} closed without some node's update")
        return found

    def until(
        self, condition: Callable[[], bool], seconds_max: float, what: str, every_s: float = POLL_S
    ) -> None:
        """Look after the processes until `condition`, which is asked every `every_s`."""
        deadline_s = time.monotonic() + seconds_max
        next_s = 0.0
        while True:
            self.processes.require_all()
            now_s = time.monotonic()
            if now_s > deadline_s:
                raise self.failed(f"{what} within {seconds_max:.0f} s")
            if psutil.virtual_memory().available < FREE_MEMORY_BYTES_MIN:
                raise self.failed("the machine has less than 2 GiB of memory left; stopped")
            if now_s >= next_s:
                try:
                    if condition():
                        return
                except FeddpError as error:
                    if not error.retryable:
                        raise
                next_s = time.monotonic() + every_s
            time.sleep(LOOK_S)

    def failed(self, what: str) -> FeddpError:
        """An error that shows the end of the coordinator's log."""
        return self.processes.failed(COORDINATOR, what)


@contextmanager
def federation(nodes: int, database_url: str = "") -> Iterator[Federation]:
    """A running coordinator with `nodes` connected agents; stopped and removed afterwards.

    Args:
        database_url: an empty PostgreSQL database instead of a SQLite file.
    """
    with tempfile.TemporaryDirectory(prefix="feddp-bench-") as name:
        folder = Path(name)
        port, enrollment_port, health_port = choose_ports(None)
        installation = init(
            folder / COORDINATOR,
            "bench.example",
            host="127.0.0.1",
            port=port,
            enrollment_port=enrollment_port,
            health_port=health_port,
            database_url=database_url,
        )
        names = tuple(f"node-{number}" for number in range(nodes))
        made = Federation(folder, installation, names, Processes(folder))
        try:
            made.start_coordinator()
            made.until_answering()
            made.enrol()
            made.start_agents()
            made.until_connected()
            yield made
        finally:
            made.stop()


def free_disk_bytes() -> int:
    """Where federations keep their files."""
    return shutil.disk_usage(tempfile.gettempdir()).free


def _answers(client: Client) -> bool:
    client.nodes()
    return True


def _prepare(client: Client, home: Path) -> None:
    join(client.create_token(home.name, "edge", 3600).token, home)
    (home / "none.csv").write_text("patient,label\n")
    declared: dict[str, Any] = {
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
    policy = {
        "accounts": [account],
        "allow": [{"data_set": "none", "tasks": [task]}],
        "who_may_ask": {"unsigned": "allow"},
    }
    (home / "policy.yaml").write_text(yaml.safe_dump(policy))
