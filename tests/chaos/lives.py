"""A federation whose processes are watched: one that dies is started again, as systemd would."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import points
from tests.integration.federation import Federation, wait_for

RESUME_S_MAX = 10.0
"""A coordinator that was killed goes on with its jobs within this time from its restart."""


class Nursery:
    """Starts processes of one role without the time that imports take.

    Args:
        within: a command that runs the one that follows it, as `unshare` does.
        environment: variables of its processes beside ours.
    """

    def __init__(
        self, role: str, within: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(points.ROOT)}
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.chaos.shim", "--nursery", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=points.ROOT,
            env={**os.environ, **own, **(environment or {})},
        )
        self._lock = threading.Lock()
        self.pid = self._process.pid
        assert self._answer() == "ready"

    def start(self, arguments: list[str], environment: dict[str, str], log: Path) -> int:
        """A new process; its id."""
        assert self._process.stdin is not None
        request = {"arguments": arguments, "environment": environment, "log": str(log)}
        with self._lock:
            self._process.stdin.write(f"{json.dumps(request)}\n")
            self._process.stdin.flush()
            return int(json.loads(self._answer())["pid"])

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End it; what it started is ended by whoever asked for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@dataclass(slots=True)
class Life:
    """One process from its start to its end."""

    pid: int
    descriptor: int

    def kill(self) -> None:
        """kill -9, if it still lives."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)


class WatchedFederation(Federation):
    """Restarts what dies, until told to leave it away."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        super().__init__(folder, host)
        self._nurseries = {role: Nursery(role) for role in points.TREES}
        self._own_nurseries: dict[str, Nursery] = {}
        self._lives: dict[str, Life] = {}
        self.commit_fault = folder / "commit.fault"
        self._away: set[str] = set()
        self._lock = threading.RLock()
        self._ending = threading.Event()
        self.deaths: dict[str, int] = {}
        self.born_at_s: dict[str, float] = {}
        self.rolling_job = ""
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    # Processes

    def start(self, name: str) -> None:
        """Start a process and keep it running."""
        with self._lock:
            self._away.discard(name)
            self._begin(name)
        if name == "coordinator":
            wait_for("the coordinator answers", self._answers, RESUME_S_MAX)

    def bear_in(self, name: str, nursery: Nursery) -> None:
        """Start a process from a nursery of its own from now on."""
        self._own_nurseries[name] = nursery

    def _begin(self, name: str) -> None:
        if name == "coordinator":
            role, arguments = name, ["coordinator", "serve", "--config"]
            arguments.append(str(self.installation.config))
        else:
            role, arguments = "agent", ["agent", "run", "--dir", str(self.agent(name))]
        nursery = self._own_nurseries.get(name) or self._nurseries[role]
        environment = {
            "FEDDP_COMMIT_FAULT": str(self.commit_fault) if role == "coordinator" else "",
            "FEDDP_KILL_FILE": str(self._kill_file(name)),
            "FEDDP_POINTS_SEEN": str(self.folder / f"{name}.seen"),
        }
        log = self.folder / f"{name}.log"
        pid = nursery.start(arguments, environment, log)
        self._lives[name] = Life(pid, os.pidfd_open(pid))
        self.born_at_s[name] = time.monotonic()

    def _answers(self) -> bool:
        if not self.listens():
            return False
        try:
            with self.client() as client:
                client.nodes()
        except Exception:  # noqa: BLE001 - whatever it is, the answer is no
            return False
        return True

    def _watch(self) -> None:
        while not self._ending.is_set():
            with self._lock:
                watched = {life.descriptor: name for name, life in self._lives.items()}
            ended, _, _ = select.select(list(watched), [], [], 0.02)
            with self._lock:
                for descriptor in ended:
                    self._bury(watched[descriptor], descriptor)

    def _bury(self, name: str, descriptor: int) -> None:
        life = self._lives.get(name)
        if life is None or life.descriptor != descriptor:
            return
        os.close(descriptor)
        del self._lives[name]
        self.deaths[name] = self.deaths.get(name, 0) + 1
        if name not in self._away and not self._ending.is_set():
            self._begin(name)

    def kill(self, name: str) -> None:
        """kill -9; it comes back by itself."""
        with self._lock:
            self._lives[name].kill()

    def send_away(self, name: str) -> None:
        """kill -9, and leave it away until `start`."""
        with self._lock:
            self._away.add(name)
            self._lives[name].kill()
        wait_for(f"{name} is gone", lambda: name not in self._lives, RESUME_S_MAX)

    @contextlib.contextmanager
    def leaving_away(self, name: str) -> Iterator[None]:
        """Whatever kills it, it stays away until `start`."""
        self._away.add(name)
        yield
        wait_for(f"{name} is gone", lambda: name not in self._lives, RESUME_S_MAX)

    def heal(self) -> None:
        """Start whatever a scenario that failed has left away."""
        for name in sorted(self._away - self._lives.keys()):
            self.start(name)

    def pid(self, name: str) -> int:
        """Process id of the present life."""
        with self._lock:
            return self._lives[name].pid

    def stop(self) -> None:
        """End everything."""
        self._hang_up()
        self._ending.set()
        self._watcher.join()
        for life in self._lives.values():
            life.kill()
            os.close(life.descriptor)
        self._lives.clear()
        for nursery in {*self._nurseries.values(), *self._own_nurseries.values()}:
            nursery.close()

    # Points

    def _kill_file(self, name: str) -> Path:
        return self.folder / f"{name}.kill"

    def _points_armed(self, name: str) -> list[str]:
        path = self._kill_file(name)
        return path.read_text().split() if path.exists() else []

    def _arm_only(self, name: str, wanted: list[str]) -> None:
        beside = self._kill_file(name).with_suffix(".beside")
        beside.write_text("\n".join(wanted))
        beside.replace(self._kill_file(name))

    def arm(self, name: str, point: str) -> None:
        """Let a process die the next time that it passes a point."""
        self._arm_only(name, [*self._points_armed(name), point])

    def armed(self, name: str, point: str) -> bool:
        """Whether a process has yet to die there."""
        return point in self._points_armed(name)

    def disarm(self, name: str) -> None:
        """Let it live."""
        self._arm_only(name, [])

    def seen(self, name: str) -> set[str]:
        """The points that a process has passed since `forget_seen`."""
        path = self.folder / f"{name}.seen"
        return set(path.read_text().split()) if path.exists() else set()

    def forget_seen(self) -> None:
        """Begin to note points anew."""
        for path in self.folder.glob("*.seen"):
            path.unlink()

    # Waiting

    def wait_for_nodes(self, *names: str) -> None:
        """As before, also while the coordinator dies and comes back."""
        self.again(lambda _: super(WatchedFederation, self).wait_for_nodes(*names))

    def again(self, call: Any, timeout_s: float = RESUME_S_MAX) -> Any:
        """What a call of a client answers once the coordinator is there to answer it."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            if not self.listens() and time.monotonic() < deadline_s:
                time.sleep(0.02)
                continue
            try:
                with self.client() as client:
                    return call(client)
            except Exception:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)
