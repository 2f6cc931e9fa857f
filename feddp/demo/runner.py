"""The demo: a coordinator and four hospital agents on loopback, from nothing to a report."""

import contextlib
import importlib.util
import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from feddp.cli import output
from feddp.cli.failures import FAILED
from feddp.cli.following import code_of, follow, write_report
from feddp.cli.ledgers import check, from_client
from feddp.cli.verify.witnesses import place_said
from feddp.client import Client
from feddp.demo import heart
from feddp.demo.hospital import write_hospital
from feddp.demo.job import TASK, job_file
from feddp.demo.ports import choose_ports, is_listening
from feddp.demo.processes import DemoFailed, Processes
from feddp.demo.result import print_summary, result_of
from feddp.profile import DEMO_RESULT, Profile
from feddp.signing import make_key
from protos.content import write_durable
from protos.errors import Conflict, FeddpError, Malformed
from protos.feddp.v1.jobs_pb2 import Job

TRUST_DOMAIN: Final = "demo.feddp.local"
START_S_MAX: Final = 60.0
"""How long the coordinator, and then the agents, may take to be there."""

WITNESSED_S_MAX: Final = 10.0
"""How long the nodes may take, after the job's end, to read its entries and countersign them."""

_NEEDED: Final = ("torch", "opacus", "pyarrow", "sqlalchemy", "alembic", "dp_accounting", "sklearn")
_INSTALLATIONS: Final = ("coordinator", "agents")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options of `feddp demo` say.

    Attributes:
        folder: everything of the demo goes there.
        json_file: a second place for the result.
        port_base: of the three ports; None for free ones.
        seed: of the initial weights; never of noise.
        split_seed: of the split into training and held-out rows.
        epsilon: limit of each hospital's account, and the job's target.
        private: False trains without noise and is booked as without a guarantee.
        keep: leave the coordinator's and the agents' folders.
    """

    folder: Path
    json_file: Path | None
    port_base: int | None
    seed: int
    split_seed: int
    epsilon: float
    delta: float
    private: bool
    keep: bool


def run(settings: Settings) -> int:
    """Run the demo and stop all it started.

    Returns:
        The exit code that the job's status stands for; 1 if the ledger does not verify.

    Raises:
        FeddpError: nothing could be started, or something ended that had to go on.
    """
    started_s = time.monotonic()
    _check(settings)
    hospitals = heart.hospitals(settings.split_seed)
    folder = settings.folder.absolute()
    ports = choose_ports(settings.port_base)
    folder.mkdir(parents=True, exist_ok=True)
    processes = Processes(folder)
    with _stoppable():
        try:
            return _run(settings, folder, hospitals, ports, processes, started_s)
        except DemoFailed:
            raise
        except FeddpError as error:
            # Whatever it was, the coordinator's log says more.
            raise processes.failed("coordinator", f"the demo failed: {error.message}") from None
        except KeyboardInterrupt:
            output.note("interrupted; everything is being stopped")
            raise
        finally:
            with _undisturbed():
                processes.stop()
                if not settings.keep:
                    _clear(folder)


def _check(settings: Settings) -> None:
    for module in _NEEDED:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"no module named {module}", name=module)
    if not (0 < settings.epsilon <= 1000 and math.isfinite(settings.epsilon)):
        raise Malformed("EPSILON_INVALID", "--epsilon must be above 0 and at most 1000")
    if not 0 < settings.delta < 0.1:
        raise Malformed("DELTA_INVALID", "--delta must be above 0 and below 0.1")
    for name in _INSTALLATIONS:
        if (settings.folder / name).exists():
            raise Conflict(
                "ALREADY_INITIALISED",
                f"{settings.folder} holds {name}/ of an earlier demo; remove {settings.folder}, or "
                "choose another folder with --dir",
            )


def _run(
    settings: Settings,
    folder: Path,
    hospitals: Mapping[str, heart.Hospital],
    ports: tuple[int, int, int],
    processes: Processes,
    started_s: float,
) -> int:
    _start_coordinator(folder / "coordinator", ports, processes)
    profile = Profile.load(folder / "coordinator" / "operator")
    engineer_key = make_key(profile.folder)
    with Client(profile) as client:
        _wait(
            lambda: is_listening(ports[0]), processes, "coordinator", "it did not start to listen"
        )
        output.line(f"coordinator on 127.0.0.1:{ports[0]}; logs in {folder / 'logs'}")
        _start_agents(settings, folder, hospitals, engineer_key, client, processes)
        job = client.submit(_write_job(settings, folder), settings.seed)
        output.line(f"job {job.job_id} submitted")
        job = follow(client, job.job_id, "people", lambda: _require_some(processes))
        _await_witnesses(client, processes)
        return _conclude(settings, folder, hospitals, client, job, started_s)


def _start_coordinator(folder: Path, ports: tuple[int, int, int], processes: Processes) -> None:
    from coordinator.installation import init

    port, enrollment_port, health_port = ports
    init(
        folder,
        TRUST_DOMAIN,
        host="127.0.0.1",
        port=port,
        enrollment_port=enrollment_port,
        health_port=health_port,
    )
    config = str(folder / "coordinator.yaml")
    processes.start("coordinator", ["coordinator", "serve", "--config", config])


def _start_agents(
    settings: Settings,
    folder: Path,
    hospitals: Mapping[str, heart.Hospital],
    engineer_key: str,
    client: Client,
    processes: Processes,
) -> None:
    from node_agent.joining.enrol import join

    for name, hospital in hospitals.items():
        agent = folder / "agents" / name
        agent.mkdir(parents=True)
        write_hospital(
            agent,
            hospital,
            epsilon_limit=settings.epsilon,
            delta=settings.delta,
            unaccounted="refuse" if settings.private else "allow",
            tasks=[TASK],
            engineer_key=engineer_key,
        )
        join(client.create_token(name, hospital.node_class).token, agent)
        processes.start(name, ["agent", "run", "--dir", str(agent)])

    def missing() -> list[str]:
        connected = {node.name for node in client.nodes() if node.connected}
        return [name for name in hospitals if name not in connected]

    _wait(lambda: not missing(), processes, "coordinator", "not every agent connected")
    output.line(f"{len(hospitals)} agents joined and are connected: {', '.join(hospitals)}")


def _wait(done: Callable[[], bool], processes: Processes, name: str, complaint: str) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while not done():
        processes.require_all()
        if time.monotonic() > deadline_s:
            raise processes.failed(name, f"{complaint} within {START_S_MAX:.0f} s")
        time.sleep(0.1)


def _require_some(processes: Processes) -> None:
    """Agents may be killed and the job waits; without any agent it would wait for ever."""
    ended = processes.ended()
    agents = [name for name in heart.NODES if name in ended]
    if len(agents) == len(heart.NODES):
        raise processes.failed(agents[0], "all four agents have ended")


def _await_witnesses(client: Client, processes: Processes) -> None:
    """The agents are stopped after this, and with them goes who vouches for the ledger: a node
    reads and countersigns what is new a second after the job's end, and not again before its next
    session, which a demo does not have."""
    ended = processes.ended()
    entries = {one.account: one.entries for one in client.accounts("") if one.node not in ended}
    deadline_s = time.monotonic() + WITNESSED_S_MAX
    while time.monotonic() < deadline_s:
        seen = {(one.account, one.seq) for one in client.checkpoints().countersigned}
        if all((account, count) in seen for account, count in entries.items() if count):
            return
        time.sleep(0.1)
    output.note("not every node has countersigned its account's last entry in the ledger")


def _write_job(settings: Settings, folder: Path) -> Path:
    path = folder / "job.yaml"
    epsilon = settings.epsilon if settings.private else None
    write_durable(path, job_file(epsilon, settings.delta), mode=0o644)
    return path


def _conclude(
    settings: Settings,
    folder: Path,
    hospitals: Mapping[str, heart.Hospital],
    client: Client,
    job: Job,
    started_s: float,
) -> int:
    """Model, figures on the held-out rows (once, now), ledger, report and result."""
    model, metrics = None, None
    if job.model_digest:
        model = folder / "model.safetensors"
        client.download(job.model_digest, model, force=True)
        metrics = heart.evaluate(model, hospitals)
    accounts = client.accounts(heart.DATA_SET)
    ledger = from_client(client, heart.DATA_SET)
    checked = check(ledger)
    seconds = time.monotonic() - started_s
    result = result_of(job, accounts, model, metrics, (checked, checked.entries), seconds)
    text = f"{json.dumps(result, indent=2, allow_nan=False)}\n".encode()
    for path in filter(None, (folder / DEMO_RESULT, settings.json_file)):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        write_durable(path.absolute(), text, mode=0o644)
    print_summary(result, job.message)
    output.line(f"result         {folder / DEMO_RESULT}")
    if write_report(client, job, folder / "report.html", metrics):
        output.line(f"report         {folder / 'report.html'}")
    for account, seq, what in checked.problems:
        output.note(f"ledger: {place_said(account, seq)}: {what}")
    return code_of(job) if checked.ok else FAILED


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: through the code that stops everything."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Nobody's impatience may leave a process behind; stopping takes 10 s at most."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _clear(folder: Path) -> None:
    """Remove what holds keys and records; the logs and results stay."""
    for name in _INSTALLATIONS:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "pids.json").unlink(missing_ok=True)
