"""The demo's processes: started apart from each other, watched, and stopped whatever happens."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from feddp.demo.tether import PARENT_VARIABLE
from protos.content import write_durable
from protos.errors import FeddpError

STOP_S_MAX: Final = 10.0
"""How long a process may take to end after SIGTERM."""

TAIL_LINES: Final = 15
_TAIL_BYTES: Final = 16384


class DemoFailed(FeddpError):
    """The demo could not go on; the message says whose log to read and how it ends."""


class Processes:
    """Processes of `python -m feddp`, each in a session of its own with a log of its own."""

    def __init__(self, folder: Path) -> None:
        """Logs go to `folder`/logs, process ids to `folder`/pids.json."""
        self._folder = folder
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, arguments: Sequence[str], added: Mapping[str, str] | None = None
    ) -> None:
        """Start `python -m feddp ARGUMENTS`, to end with this process even if that is killed.

        Args:
            added: to the environment.
        """
        environment = {
            **os.environ,
            **(added or {}),
            PARENT_VARIABLE: str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
        }
        # Five processes and their workers share one machine here.
        environment.setdefault("OMP_NUM_THREADS", "1")
        with self.log_of(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "feddp", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        pids = {known: process.pid for known, process in self._running.items()}
        write_durable(self._folder / "pids.json", f"{json.dumps(pids, indent=2)}\n".encode())

    def log_of(self, name: str) -> Path:
        """Where a process's output goes."""
        return self._logs / f"{name}.log"

    def ended(self) -> dict[str, int]:
        """Exit status of each process that has ended; negative for a signal."""
        polled = {name: process.poll() for name, process in self._running.items()}
        return {name: code for name, code in polled.items() if code is not None}

    def require_all(self) -> None:
        """Go on only while every process runs.

        Raises:
            DemoFailed: PROCESS_ENDED.
        """
        for name, code in self.ended().items():
            raise self.failed(name, f"{name} ended by itself ({_status(code)})")

    def failed(self, name: str, what: str) -> DemoFailed:
        """An error that shows the end of a process's log."""
        log = self.log_of(name)
        tail = "\n".join(f"  {text}" for text in _tail(log)) or "  (it is empty)"
        return DemoFailed("PROCESS_ENDED", f"{what}; the end of its log {log}:\n{tail}")

    def stop(self) -> None:
        """SIGTERM to those started last first, then, after `STOP_S_MAX`, SIGKILL."""
        running = list(reversed(self._running.values()))
        for process in running:
            _signal(process, signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_S_MAX
        for process in running:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()
        for process in running:
            # A worker that its agent left behind is in the same session.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-TAIL_LINES:]
