"""A real federation on loopback: processes, certificates, files; nothing in it is faked."""

import contextlib
import csv
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from coordinator import offline
from coordinator.installation import Installation, init
from feddp.client import Client
from feddp.demo.ports import choose_ports
from feddp.profile import Profile
from feddp.signing import make_key
from node_agent.joining.enrol import join
from node_agent.tasks.registry import installed
from privacy.ledger import Entry
from protos.errors import FeddpError, Unavailable
from protos.feddp.v1.jobs_pb2 import Job

NODES = ("alpha", "beta", "gamma", "delta")
FEATURES = [{"column": "x", "center": 0.0, "scale": 1.0}]
WAIT_S_MAX = 120.0

T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float = WAIT_S_MAX) -> None:
    """Wait until a condition about other processes holds; while none can be asked, it does not."""
    deadline_s = time.monotonic() + timeout_s
    away: Unavailable | None = None
    while time.monotonic() < deadline_s:
        try:
            if condition():
                return
            away = None
        except Unavailable as error:
            away = error
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {timeout_s:.0f} s") from away


def job_file(**changes: Any) -> bytes:
    """A small DP job on the federation's data set; `federation` and `privacy` are merged."""
    spec: dict[str, Any] = {
        "name": "small",
        "task": "tabular-classifier",
        "task_config": {"model": "logistic", "learning_rate": 0.5, "features": FEATURES},
        "dataset": "cohort",
        "federation": {"rounds": 3, "local_steps": 2},
        "privacy": {"target_epsilon": 2.0, "delta": 1.0e-5, "max_grad_norm": 1.0},
    }
    for key, value in changes.items():
        merged = isinstance(value, dict) and key in ("federation", "privacy")
        spec[key] = {**spec[key], **value} if merged else value
    return yaml.safe_dump(spec).encode()


def null_job(rounds: int, parameters: int = 100, **federation: Any) -> bytes:
    """A job that reads no data: exercises everything but training."""
    return job_file(
        task="null",
        task_config={"parameters": parameters},
        federation={"rounds": rounds, **federation},
        privacy={"target_epsilon": None, "max_grad_norm": None},
    )


class Federation:
    """One coordinator and its agents, each a process of `python -m feddp`."""

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        database_url: str = "",
        enrollment_host: str = "",
    ) -> None:
        self.folder = folder
        ports = choose_ports(None)
        self.installation: Installation = init(
            folder / "coordinator",
            "test.example",
            host=host,
            enrollment_host=enrollment_host,
            port=ports[0],
            enrollment_port=ports[1],
            health_port=ports[2],
            database_url=database_url,
        )
        self.address = f"{host}:{ports[0]}"
        self.health = f"http://127.0.0.1:{ports[2]}"
        self.engineer: dict[str, Any] = {
            "name": "operator",
            "public_key": make_key(self.installation.profile),
            "projects": ["default"],
        }
        self.trees: dict[str, Path] = {}
        """Name -> another release's code, which runs that process in place of this one's."""

        self.within: dict[str, list[str]] = {}
        """Name -> a command that runs that process, in a network namespace of its own say."""

        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._asking: Client | None = None
        # Faster than the defaults (30 s and 10 s), so that tests need not wait as long.
        self.configure(node_silent_s=12, node_disconnected_s=2, heartbeat_interval_s=5)

    def configure(self, **federation: Any) -> None:
        """Change the federation section of coordinator.yaml."""
        path = self.installation.config
        settings = yaml.safe_load(path.read_text())
        settings.setdefault("federation", {}).update(federation)
        path.write_text(yaml.safe_dump(settings))

    # Processes

    def start(self, name: str) -> None:
        """Start the coordinator or an agent."""
        if name == "coordinator":
            arguments = ["coordinator", "serve", "--config", str(self.installation.config)]
        else:
            arguments = ["agent", "run", "--dir", str(self.agent(name))]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*self.within.get(name, []), sys.executable, "-m", "feddp", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **of_tree(self.trees.get(name)),
            )
        if name == "coordinator":
            wait_for("the coordinator answers", self._answers)

    def listens(self) -> bool:
        """Whether the coordinator takes connections. A client that finds that it does not tries
        again by itself, each time later, and so may notice seconds after it does."""
        server = yaml.safe_load(self.installation.config.read_text())["server"]
        try:
            socket.create_connection((server["host"], server["port"]), 2).close()
        except OSError:
            return False
        return True

    def _answers(self) -> bool:
        assert self._running["coordinator"].poll() is None, self.log("coordinator")
        if not self.listens():
            return False
        try:
            with self.client() as client:
                client.nodes()
        except FeddpError:
            return False
        return True

    def kill(self, name: str) -> None:
        """kill -9."""
        self._hang_up()
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def is_running(self, name: str) -> bool:
        """Whether it was started here and not killed."""
        return name in self._running

    def terminate(self, name: str) -> None:
        """SIGTERM, and wait for the end."""
        self._hang_up()
        process = self._running.pop(name)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, self.log(name)

    def pid(self, name: str) -> int:
        """Process id."""
        return self._running[name].pid

    def stop(self) -> None:
        """End everything."""
        self._hang_up()
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def log(self, name: str) -> str:
        """What a process has written."""
        return (self.folder / f"{name}.log").read_text()

    # Nodes

    def agent(self, name: str) -> Path:
        """An agent's folder."""
        return self.folder / "agents" / name

    def add_node(self, name: str, *, rows: int = 60, **policy: Any) -> None:
        """Enrol a node with a data set of its own; `policy` changes its account's bounds."""
        with self.client() as client:
            token = client.create_token(name, "edge", 3600).token
        join(token, self.agent(name))
        write_data(self.agent(name), rows)
        self.set_policy(name, **policy)

    def set_policy(self, name: str, *, tick_s: float = 1.0, **account: Any) -> None:
        """Write a node's policy."""
        tasks = [f"{task.name}@{task.content_hash}" for task in installed().values()]
        bounds = {
            "name": "patients",
            "epsilon_limit": 10.0,
            "delta": 1.0e-5,
            "epsilon_per_job_max": 10.0,
            "noise_multiplier_min": 0.1,
            **account,
        }
        policy = {
            "accounts": [bounds],
            "allow": [{"data_set": "cohort", "tasks": tasks}],
            "outcome_tick_s": tick_s,
            "who_may_ask": {"engineers": [self.engineer]},
        }
        (self.agent(name) / "policy.yaml").write_text(yaml.safe_dump(policy))

    # Views

    @contextmanager
    def client(self) -> Iterator[Client]:
        """The operator's client."""
        with Client(Profile.load(self.installation.profile)) as client:
            yield client

    def submit(self, spec: bytes) -> str:
        """Submit a job."""
        with self.client() as client:
            return client.submit(spec).job_id

    def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return self.ask(lambda client: client.job(job_id))

    def ask(self, call: Callable[[Client], T]) -> T:
        """What the operator is answered. Who waits for something asks again and again, so the
        connection stays until it gives an error; whether that holds, a new one says."""
        if self._asking is not None:
            with contextlib.suppress(FeddpError):
                return call(self._asking)
            self._hang_up()
        self._asking = Client(Profile.load(self.installation.profile))
        try:
            return call(self._asking)
        except FeddpError:
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        if self._asking is not None:
            self._asking.close()
        self._asking = None

    def wait_for_end(self, job_id: str, timeout_s: float = WAIT_S_MAX) -> Job:
        """The job once it has ended."""
        wait_for("the job ends", lambda: self.job(job_id).ended_at > 0, timeout_s)
        return self.job(job_id)

    def wait_for_nodes(self, *names: str) -> None:
        """Wait until these nodes, and no fewer, are connected."""

        def connected() -> bool:
            nodes = self.ask(lambda client: client.nodes())
            return set(names) <= {node.name for node in nodes if node.connected}

        wait_for(f"{', '.join(names)} connect", connected)

    def entries(self, kind: str | None = None) -> list[Entry]:
        """The central ledger, read from the database."""
        found = offline.ledger(self.installation.folder).entries
        return [one for one in found if kind in (None, one.statement.kind)]

    def database(self) -> sqlite3.Connection:
        """The coordinator's database, for tests that play an attacker."""
        return sqlite3.connect(self.installation.folder / "coordinator.db", timeout=10)


def write_data(folder: Path, rows: int) -> None:
    """A data set whose label follows its one feature."""
    generator = random.Random(7)
    (folder / "data").mkdir(exist_ok=True)
    with (folder / "data/cohort.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient_id", "x", "label"])
        for number in range(rows):
            x = generator.gauss(0, 1)
            writer.writerow([f"p{number}", f"{x:.3f}", int(x > 0)])
    declared = {
        "data_sets": [
            {
                "name": "cohort",
                "source": "data/cohort.csv",
                "patient": "patient_id",
                "label": "label",
                "declared_n": rows,
                "version": 1,
                "columns": {"x": "number"},
            }
        ]
    }
    (folder / "datasets.yaml").write_text(yaml.safe_dump(declared))


def of_tree(tree: Path | None) -> dict[str, Any]:
    """What starts a process of `python -m feddp` with the code of `tree`; None: with this one's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if tree is None:
        return {"env": environment}
    return {"env": {**environment, "PYTHONPATH": str(tree)}, "cwd": tree}


def run_cli(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `feddp`."""
    done = subprocess.run(
        [sys.executable, "-m", "feddp", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


def cli_json(*arguments: str) -> Any:
    """What a command prints with --json."""
    code, out, err = run_cli(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)
