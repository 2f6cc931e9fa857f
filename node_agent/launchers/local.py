"""Workers as child processes of the agent."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import structlog

from node_agent.launchers.base import Limits, WorkerDied
from node_agent.sources.database import PASSED_ON_PREFIX

log = structlog.get_logger(__name__)

ANSWER_BYTES_MAX: Final = 1 << 20

START_S_MAX: Final = 600.0
"""Until the first answer of a worker, which loads what trains; one that takes longer hangs."""

_GPUS_SEEN: Final = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

_PASSED_ON: Final = frozenset({"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH"})


def environment(agent: dict[str, str], threads: int, gpus: int = 0) -> dict[str, str]:
    """A worker's variables: those of the agent that it needs, and nothing that a job names."""
    prefixes = ("PYTHON", PASSED_ON_PREFIX)
    kept = {k: v for k, v in agent.items() if k in _PASSED_ON or k.startswith(prefixes)}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    seen = dict.fromkeys(_GPUS_SEEN, ",".join(map(str, range(gpus))))
    return {**kept, **dict.fromkeys(names, str(threads)), **seen, "PYTHONUNBUFFERED": "1"}


class LocalWorker:
    """One job's worker process. It ends with the agent: its stdin closes, however the agent dies.

    Attributes:
        pid: of the process.
    """

    def __init__(self, job_id: str, process: asyncio.subprocess.Process, limits: Limits) -> None:
        self.pid = process.pid
        self._job_id = job_id
        self._process = process
        self._limits = limits
        self._turn = asyncio.Lock()

    @classmethod
    async def start(
        cls,
        job_id: str,
        log_path: Path,
        limits: Limits | None = None,
        writable: Sequence[Path] = (),
    ) -> Self:
        """Start the process; it answers its first request once it is up.

        Args:
            writable: all that it may write besides, where the kernel allows; empty: everything.
            log_path: appended to; mode 0600, as a worker's log may hold counts of records.

        Raises:
            OSError: the log or the process cannot be made.
        """
        limits = limits or Limits()
        descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "node_agent.worker",
                f"--nice={limits.nice}",
                f"--memory-bytes-max={limits.memory_bytes_max}",
                *(f"--writable={folder}" for folder in writable),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=descriptor,
                env=environment(dict(os.environ), limits.threads, limits.gpus),
                # A Ctrl-C at the agent's terminal must reach the worker through the agent only.
                start_new_session=True,
                limit=ANSWER_BYTES_MAX,
            )
        finally:
            os.close(descriptor)
        log.info("worker_started", job_id=job_id, pid=process.pid)
        return cls(job_id, process, limits)

    async def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer; callers take turns.

        Raises:
            WorkerDied: the process ended or answered nonsense; it is gone now.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(START_S_MAX if message.get("op") == "prepare" else None):
                    return await self._exchange(message)
            except TimeoutError:
                await self._kill()
                raise WorkerDied(
                    f"the worker of job {self._job_id} hung: it had not answered after "
                    f"{START_S_MAX:.0f} s"
                ) from None
            except (OSError, ValueError, EOFError):
                exit_code = await self._kill()
                raise WorkerDied(
                    f"the worker of job {self._job_id} ended with exit code {exit_code} before it"
                    " answered; its log says why",
                    exit_code,
                ) from None
            except BaseException:
                # A cancelled caller leaves an answer under way that nobody could tell apart.
                await asyncio.shield(self._kill())
                raise

    async def stop(self) -> None:
        """Close stdin, wait for the grace period, then kill; returns when the process is gone."""
        if self._process.returncode is None and self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), self._limits.stop_grace_s)
        exit_code = await self._kill()
        log.info("worker_stopped", job_id=self._job_id, pid=self.pid, exit_code=exit_code)

    async def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None or stdin.is_closing():
            raise EOFError
        stdin.write(json.dumps(message).encode() + b"\n")
        await stdin.drain()
        line = await stdout.readline()
        answer = json.loads(line) if line.endswith(b"\n") else None
        if not isinstance(answer, dict):
            raise EOFError
        return answer

    async def _kill(self) -> int:
        # The worker leads a session of its own; whatever it started ends with it.
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                os.killpg(self.pid, signal.SIGKILL)
        return await self._process.wait()


@dataclass(frozen=True, slots=True)
class LocalLauncher:
    """Starts workers on this machine.

    Attributes:
        writable: all that they may write besides temporary files.
    """

    writable: tuple[Path, ...]

    async def start(self, job_id: str, log_path: Path, limits: Limits | None = None) -> LocalWorker:
        """See `LocalWorker.start`."""
        return await LocalWorker.start(job_id, log_path, limits, self.writable)

    async def reap(self) -> None:
        """Nothing: no worker outlives its agent."""
