"""Memory and CPU seconds of a process, as the kernel counts them."""

import threading
import time
from pathlib import Path
from typing import Final, Self

import numpy as np
import psutil

MIB: Final = 1 << 20


def resident_mib(pid: int) -> float:
    """Memory that the process holds now, its mapped files included."""
    return _status_mib(pid, "VmRSS")


def peak_mib(pid: int) -> float:
    """The most that it has held since it started or since `forget_peak`; exact, not sampled."""
    return _status_mib(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Let the peak start again from what the process holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of all its threads so far; in ticks of 10 ms."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def give_way() -> None:
    """If memory runs out, let the kernel end this or what it starts, not the machine's others."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def _status_mib(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has ended, so it has no {name}")


class CpuTrace:
    """A process's CPU seconds over time, so that any span can be asked for afterwards.

    Rounds are known by their times only when the job has ended: nobody may watch it before.
    """

    sample_s = 0.02

    def __init__(self, pid: int) -> None:
        """Nothing is sampled before the `with`."""
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._times: list[float] = []
        self._cpu_s: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def between(self, start: float, end: float) -> float:
        """CPU seconds between two times, in seconds since the epoch."""
        at_start, at_end = np.interp([start, end], self._times, self._cpu_s)
        return float(at_end - at_start)

    def _run(self) -> None:
        while not self._ended.wait(self.sample_s):
            try:
                value = self._sample()
            except psutil.NoSuchProcess:
                return
            self._times.append(time.time())
            self._cpu_s.append(value)

    def _sample(self) -> float:
        return cpu_s(self._pid)


class TreeTrace(CpuTrace):
    """CPU seconds of a process and all it has started, and the most memory they held together."""

    sample_s = 0.1

    def __init__(self, pid: int) -> None:
        """Nothing is sampled before the `with`."""
        super().__init__(pid)
        self.peak_mib = 0.0

    def _sample(self) -> float:
        root = psutil.Process(self._pid)
        total_s, resident = 0.0, 0
        for process in (root, *root.children(recursive=True)):
            try:
                times = process.cpu_times()
                resident += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            # What a child took that has ended is in its parent's account.
            total_s += times.user + times.system + times.children_user + times.children_system
        self.peak_mib = max(self.peak_mib, resident / MIB)
        return total_s
