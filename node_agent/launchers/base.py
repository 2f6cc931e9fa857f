"""What an agent needs of a place where workers run; local processes are one, schedulers others."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol


class WorkerDied(Exception):
    """The worker ended, or answered nonsense, while a request was under way or before it.

    For the hospital: why a worker died may depend on the data.

    Attributes:
        exit_code: as of the process, negative for a signal; None when it is not known.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


WORKER_BYTES_MIN: Final = 512 << 20
"""A worker loads what trains, about 300 MiB, before it can say that there is too little."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use.

    Attributes:
        threads: CPU threads of the numeric libraries.
        nice: added to the niceness, so that training yields to the hospital's other work.
        memory_bytes_max: 0 for no limit.
        stop_grace_s: how long a worker may take to end by itself.
        gpus: that it may see, the first ones of the machine.
    """

    threads: int = 1
    nice: int = 5
    memory_bytes_max: int = 0
    stop_grace_s: float = 2.0
    gpus: int = 0


class Worker(Protocol):
    """A running worker of one job."""

    async def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer; one at a time.

        Raises:
            WorkerDied: there will be no answer, from this worker to anything.
        """
        ...

    async def stop(self) -> None:
        """End the worker and wait until it is gone; safe to call again."""
        ...


class StartWorker(Protocol):
    """Starts a worker for a job; its log goes to `log_path` on this machine."""

    async def __call__(self, job_id: str, log_path: Path, limits: Limits = ...) -> Worker: ...
