"""Workers that a cluster's scheduler starts on another machine: Slurm, Kubernetes.

None outlives its use: the agent cancels, and at its start cancels what an earlier life of it left;
a worker whose agent is silent, or whose folder is gone, ends by itself; the scheduler ends whatever
reaches its time limit.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from node_agent.launchers.base import Limits, WorkerDied
from node_agent.launchers.local import START_S_MAX, environment
from node_agent.launchers.mailbox import (
    AGENT_SILENT_S,
    BEAT_S,
    WORKER_SILENT_S,
    Mailbox,
    Silence,
)
from node_agent.outcome_time import REHEARSALS
from node_agent.sources.database import PASSED_ON_PREFIX

log = structlog.get_logger(__name__)

POLL_FIRST_S: Final = 0.05
POLL_MOST_S: Final = 0.5
LOOK_S: Final = 10.0
"""Between two questions to the scheduler about one job."""

GONE_S_MAX: Final = 30.0

END_MARGIN_S: Final = 60.0

EXCHANGE_S: Final = 1.0
"""Added to what a rehearsal took: four times this, a request and its answer are surely there. An
attempt whose answer came late would be lost, and paid for."""


class SchedulerUnavailable(OSError):
    """The scheduler's command failed; a sentence for the hospital's log."""


class Stage(Enum):
    """Where a scheduler's job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a scheduler is asked to run.

    Attributes:
        name: of the scheduler's job; tells which agent and which job of ours it is for.
        environment: the worker's whole one. Schedulers show it to whoever may look at jobs.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log_path: Path
    limits: Limits


class Scheduler(Protocol):
    """Something that runs a command on another machine. Each may raise SchedulerUnavailable."""

    @property
    def time_limit_s(self) -> float:
        """After which it ends a job."""
        ...

    async def check(self) -> None:
        """Return if it would take a worker; it is asked, and nothing is begun."""
        ...

    async def submit(self, ticket: Ticket) -> str:
        """Ask for a job; its id."""
        ...

    async def stage(self, job: str) -> tuple[Stage, str]:
        """Where a job stands, and the scheduler's own word for it."""
        ...

    async def cancel(self, job: str) -> None:
        """End a job, running or not; one that is gone is no error."""
        ...

    async def left(self) -> list[str]:
        """Jobs of this agent's folder that wait or run, whoever asked for them."""
        ...


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Starts workers by a scheduler.

    Attributes:
        prefix: of the names of this agent's jobs.
        boxes: a folder that the agent's machine and the workers' see under one path.
        writable: what a worker may write besides.
        silent_s: after which a worker believes its agent dead.
    """

    scheduler: Scheduler
    prefix: str
    boxes: Path
    writable: tuple[Path, ...]
    silent_s: float = AGENT_SILENT_S

    async def start(
        self, job_id: str, log_path: Path, limits: Limits | None = None
    ) -> "ScheduledWorker":
        """Ask for a worker; its first answer comes once the scheduler has started it.

        Raises:
            OSError: the scheduler refuses, or cannot be reached.
        """
        limits = limits or Limits()
        os.close(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        box = await asyncio.to_thread(Mailbox.make, self.boxes)
        command = [
            *(sys.executable, "-P", "-m", "node_agent.worker"),
            *(f"--nice={limits.nice}", f"--memory-bytes-max={limits.memory_bytes_max}"),
            *(f"--writable={folder}" for folder in (*self.writable, box.folder)),
            *(f"--mailbox={box.folder}", f"--silent-s={self.silent_s}", f"--log={log_path}"),
        ]
        # A scheduler keeps a job's variables where others may see them.
        kept = {
            name: value
            for name, value in environment(dict(os.environ), limits.threads).items()
            if not name.startswith(PASSED_ON_PREFIX) and name != "TMPDIR"
        }
        name = f"{self.prefix}{job_id}-{box.folder.name[:8]}"
        try:
            job = await self.scheduler.submit(Ticket(name, command, kept, log_path, limits))
        except BaseException:
            await asyncio.to_thread(box.remove)
            raise
        log.info("worker_submitted", job_id=job_id, allocation=job, name=name)
        return ScheduledWorker(job_id, job, box, self.scheduler)

    async def reap(self) -> None:
        """Cancel what an earlier life of this agent left; nothing of it can be used."""
        for path in list(self.boxes.glob("*")) + list(self.boxes.glob(".*")):
            Mailbox(path).remove()
        try:
            for job in await self.scheduler.left():
                log.warning("allocation_left_over", allocation=job)
                await self.scheduler.cancel(job)
        except SchedulerUnavailable as error:
            # Their workers end by themselves: their folders are gone.
            log.error("allocations_not_looked_at", detail=str(error))


class ScheduledWorker:
    """One job's worker on another machine.

    Attributes:
        job: the scheduler's id of it.
    """

    def __init__(self, job_id: str, job: str, box: Mailbox, scheduler: Scheduler) -> None:
        self.job = job
        self._job_id = job_id
        self._box = box
        self._scheduler = scheduler
        self._turn = asyncio.Lock()
        self._number = 0
        self._up_since_s: float | None = None
        self._dead = ""
        self._watching = asyncio.create_task(self._watch())

    async def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Put one request and wait for its answer; callers take turns.

        Raises:
            WorkerDied: the scheduler's job ended, or the worker answered nonsense; it is gone now.
        """
        async with self._turn:
            try:
                answer = await self._exchange(message)
                if message.get("op") == "check" and "rehearsal_s" in answer:
                    needed_s = float(answer["rehearsal_s"]) + EXCHANGE_S
                    self._check_end(needed_s)
                    answer["rehearsal_s"] = needed_s
                return answer
            except (OSError, ValueError, EOFError):
                await self.stop()
                raise WorkerDied(
                    f"the worker of job {self._job_id} (allocation {self.job}) ended before it"
                    f" answered: {self._dead or 'its log says why'}"
                ) from None
            except BaseException:
                # Nobody would wait for what it does now.
                await asyncio.shield(self.stop())
                raise

    async def stop(self) -> None:
        """End the worker and the allocation, and wait until it is gone; safe to call again."""
        self._watching.cancel()
        self._dead = self._dead or "it was stopped"
        await asyncio.to_thread(self._box.remove)
        deadline_s = time.monotonic() + GONE_S_MAX
        try:
            await self._scheduler.cancel(self.job)
            while (await self._scheduler.stage(self.job))[0] is not Stage.GONE:
                if time.monotonic() > deadline_s:
                    log.error("allocation_stays", allocation=self.job)
                    return
                await asyncio.sleep(POLL_MOST_S)
        except SchedulerUnavailable as error:
            # The worker sees that its folder is gone, and the agent's next start looks again.
            log.error("allocation_not_cancelled", allocation=self.job, detail=str(error))
            return
        log.info("worker_stopped", job_id=self._job_id, allocation=self.job)

    async def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._dead:
            raise EOFError
        self._number += 1
        number, pause_s = self._number, POLL_FIRST_S
        await asyncio.to_thread(self._box.post, "request", number, message)
        while True:
            # In this order: what a worker answered before it ended counts.
            dead = self._dead
            line = await asyncio.to_thread(self._box.find, "answer", number)
            if line is not None:
                answer = json.loads(line)
                if not isinstance(answer, dict):
                    raise EOFError
                return answer
            if dead:
                raise EOFError
            up_s = time.monotonic() - (self._up_since_s or time.monotonic())
            if message.get("op") == "prepare" and up_s > START_S_MAX:
                # How long it waited in the scheduler's queue is not the worker's.
                self._dead = f"it hung: it had not answered after {START_S_MAX:.0f} s"
            await asyncio.sleep(pause_s)
            pause_s = min(POLL_MOST_S, pause_s * 1.2)

    def _check_end(self, attempt_s: float) -> None:
        """Give up a worker, before it opens the data, whose allocation would end in the middle."""
        if self._up_since_s is None:
            return
        left_s = self._scheduler.time_limit_s - (time.monotonic() - self._up_since_s)
        if left_s < REHEARSALS * attempt_s + END_MARGIN_S:
            self._dead = "its allocation ends too soon for another attempt"
            raise EOFError

    async def _watch(self) -> None:
        """Beat, and see whether the other side still lives."""
        silence = Silence(time.monotonic())
        looked_s, waited_for = time.monotonic(), ""
        while True:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._box.beat, of_agent=True)
            now_s = time.monotonic()
            if self._up_since_s is None and await asyncio.to_thread(self._box.is_taken):
                self._up_since_s = now_s
                log.info("worker_started", job_id=self._job_id, allocation=self.job)
            beat = await asyncio.to_thread(self._box.last_beat, of_agent=False)
            silent_s = silence.length_s(beat, now_s)
            if beat and silent_s > WORKER_SILENT_S:
                self._dead = f"it has been silent for {silent_s:.0f} s"
                return
            if now_s - looked_s >= LOOK_S:
                looked_s = now_s
                try:
                    stage, word = await self._scheduler.stage(self.job)
                except SchedulerUnavailable as error:
                    log.warning("scheduler_unavailable", detail=str(error))
                else:
                    if stage is Stage.WAITING and word != waited_for:
                        waited_for = word
                        log.info("worker_waits", allocation=self.job, scheduler_says=word)
                    if stage is Stage.GONE:
                        self._dead = f"the scheduler says {word}"
                        return
            await asyncio.sleep(BEAT_S)


async def run_command(arguments: Sequence[str], said: str = "", limit_s: float = 30.0) -> str:
    """What a scheduler's command prints.

    Raises:
        SchedulerUnavailable: it is not there, fails, or takes too long.
    """
    program = arguments[0]
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError:
        raise SchedulerUnavailable(f"{program} cannot be started on this machine") from None
    try:
        async with asyncio.timeout(limit_s):
            printed, complained = await process.communicate(said.encode())
    except TimeoutError:
        raise SchedulerUnavailable(f"{program} did not end within {limit_s:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                process.kill()
    if process.returncode != 0:
        text = " ".join(complained.decode(errors="replace").split())[:500]
        raise SchedulerUnavailable(f"{program} failed: {text}")
    return printed.decode(errors="replace")
