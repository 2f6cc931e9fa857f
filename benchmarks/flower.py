"""A Flower federation in deployment mode with TLS: its processes, measured from outside.

It runs in a virtual environment of its own, never its simulation.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.federation import FREE_MEMORY_BYTES_MIN
from benchmarks.floor import write_credentials
from benchmarks.measuring import TreeTrace
from feddp.demo.ports import free_ports, is_listening
from protos.errors import FeddpError

APP: Final = Path(__file__).parent / "flower_app"
HOST: Final = "localhost"
START_S_MAX: Final = 60.0
LOOK_S: Final = 0.5
TAIL_LINES: Final = 15


class PeerFailed(FeddpError):
    """Flower did not finish; the message shows how its log ends."""


@dataclass(frozen=True, slots=True)
class PeerRounds:
    """What a server and its sub-processes took; the first round, which starts clients, is out.

    Attributes:
        round_s: from each round's end to the next one's.
        server_cpu_s: per round.
        server_peak_mib: resident memory of all its processes together, sampled.
    """

    round_s: tuple[float, ...]
    server_cpu_s: float
    server_peak_mib: float


def run_flower(
    binaries: Path, folder: Path, nodes: int, parameters: int, rounds: int, seconds_max: float
) -> PeerRounds:
    """Run one warm-up round and `rounds` more.

    Args:
        binaries: where `flower-superlink` and the others are installed.
        folder: empty; logs, certificates and Flower's home go there.

    Raises:
        PeerFailed: PEER_FAILED.
    """
    write_credentials(folder, (HOST,))
    moments = folder / "moments"
    with ExitStack() as running:
        flower = _Flower(running, binaries, folder)
        (port,) = free_ports(1)
        link = flower.start(
            "flower-superlink",
            "superlink",
            "--disable-runtime-dependency-installation",
            *flower.serving(port),
        )
        flower.until_listening(port)
        own = ("--root-certificates", folder / "bundle.pem", "--superlink", f"{HOST}:{port}")
        for number in range(nodes):
            (node_port,) = free_ports(1)
            flower.start("flower-supernode", f"node-{number}", *own, *flower.serving(node_port))
            # Until it listens, its port could be chosen again.
            flower.until_listening(node_port)
        trace = running.enter_context(TreeTrace(link.pid))
        config = f'nodes={nodes} parameters={parameters} rounds={rounds + 1} moments="{moments}"'
        flower.submit(port, config)
        flower.until(lambda: len(_times(moments)) == rounds + 2, seconds_max, "the run did not end")
        time.sleep(2 * LOOK_S)
    _, first, *others = _times(moments)
    ends = (first, *others)
    spans = tuple(after - before for before, after in zip(ends, others, strict=False))
    return PeerRounds(spans, trace.between(first, others[-1]) / rounds, trace.peak_mib)


class _Flower:
    """Its processes, killed with the stack, each with a log."""

    def __init__(self, running: ExitStack, binaries: Path, folder: Path) -> None:
        self._running, self._binaries, self._folder = running, binaries, folder
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._home = folder / "home"
        self._home.mkdir()
        self._environment = {
            **os.environ,
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            # It starts its sub-processes by name.
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        self._environment.pop("PYTHONPATH", None)

    def serving(self, port: int) -> tuple[object, ...]:
        """Arguments of a process that listens with our certificate."""
        return (
            *("--host", HOST, "--port", port),
            *("--ssl-certfile", self._folder / "server.crt"),
            *("--ssl-keyfile", self._folder / "server.key"),
            *("--ssl-ca-certfile", self._folder / "bundle.pem"),
        )

    def start(self, program: str, name: str, *arguments: object) -> "subprocess.Popen[bytes]":
        """Start one of Flower's programs."""
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(self._binaries / program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        self._started[name] = process
        self._running.callback(_kill_tree, process)
        return process

    def until_listening(self, port: int) -> None:
        """Wait for a process that was started."""
        self.until(lambda: is_listening(port), START_S_MAX, "a process did not listen")

    def submit(self, port: int, config: str) -> None:
        """`flwr run`; it returns when the run is queued."""
        described = (
            '[superlink]\ndefault = "bench"\n[superlink.bench]\n'
            f'address = "{HOST}:{port}"\nroot-certificates = "{self._folder / "bundle.pem"}"\n'
        )
        (self._home / "config.toml").write_text(described)
        asked = self.start("flwr", "run", "run", APP, "bench", "--run-config", config)
        del self._started["run"]
        self.until(lambda: asked.poll() is not None, START_S_MAX, "flwr run did not return")
        if asked.returncode:
            raise self._failed("flwr run was refused", "run")

    def until(self, condition: Callable[[], bool], seconds_max: float, what: str) -> None:
        """Wait while every process runs and memory lasts."""
        deadline_s = time.monotonic() + seconds_max
        while not condition():
            for name, process in self._started.items():
                if process.poll() is not None:
                    raise self._failed(f"{name} ended by itself", name)
            if time.monotonic() > deadline_s:
                raise self._failed(f"{what} within {seconds_max:.0f} s", "superlink")
            if psutil.virtual_memory().available < FREE_MEMORY_BYTES_MIN:
                raise self._failed("the machine has less than 2 GiB of memory left", "superlink")
            time.sleep(LOOK_S)

    def _failed(self, what: str, name: str) -> PeerFailed:
        text = (self._folder / f"{name}.log").read_text(errors="replace")
        tail = "\n".join(f"  {line}" for line in text.splitlines()[-TAIL_LINES:])
        return PeerFailed("PEER_FAILED", f"{what}; the end of its log:\n{tail}")


def _times(moments: Path) -> list[float]:
    """When the run began and when each round ended, as the server app wrote it down."""
    return [float(line) for line in moments.read_text().split()] if moments.exists() else []


def _kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """Kill it with all that it has started, some of it in sessions of its own."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
