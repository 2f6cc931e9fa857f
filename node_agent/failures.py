"""What went wrong with attempts, for the hospital alone: logs/failures.jsonl and workers' logs.

Once data is open, the coordinator is told "no update" and nothing else; the sentence, the remedy
and the log stay here. Nothing written here holds a value of a record.
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from node_agent.policy.orders import Order
from protos.failures import AFTER_OPENING, BEFORE_OPENING, WHAT_TO_DO

log = structlog.get_logger(__name__)

FILE_BYTES_MAX: Final = 4 << 20
"""Then the file becomes the older one, of which there is one."""

LOG_DAYS_MAX: Final = 180
"""A worker's log is removed so long after it was written last: jobs come for years."""

DAY_S: Final = 86_400.0

NOTED_MAX: Final = 64
"""Attempts whose refusal is under way."""

DETAIL_CHARS_MAX: Final = 600

HERE: Final = (
    "this hospital's IT mends what is said above; `feddp agent doctor` asks the launcher, and the "
    "agent's own log has it as `worker_failed`"
)
"""In the place of a remedy that leads from the coordinator to `feddp agent logs`."""

NAME: Final = "failures.jsonl"
OLDER: Final = "failures.old.jsonl"


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that gave no update.

    Attributes:
        opened: whether the data was opened; if not, the coordinator was told reason and sentence.
        reason: stable, UPPER_SNAKE.
        detail: what the worker said, or why none could be started, which the coordinator is not
            told; empty where there is nothing to say.
    """

    at_s: float
    job_id: str
    round: int
    attempt_id: str
    data_set: str
    opened: bool
    reason: str
    sentence: str
    remedy: str
    detail: str = ""


class Failures:
    """Appends to the file of one agent; a full disk stops no attempt."""

    def __init__(self, logs: Path) -> None:
        self._path = logs / NAME
        self._why: dict[str, str] = {}

    def note_why(self, attempt_id: str, detail: str) -> None:
        """What to keep with an attempt that is about to be refused, for the hospital alone."""
        if len(self._why) >= NOTED_MAX:
            self._why.pop(next(iter(self._why)))
        self._why[attempt_id] = detail[:DETAIL_CHARS_MAX]

    def refused(self, order: Order, reason: str, message: str) -> None:
        """The data was not opened."""
        remedy = BEFORE_OPENING.get(reason, "")
        detail = self._why.pop(order.attempt_id, "")
        if detail:  # what `told` sends the coordinator's reader to is read here
            message, remedy = message.partition(WHAT_TO_DO)[0], HERE
        self._keep(order, reason, message, remedy=remedy, opened=False, detail=detail)

    def after_opening(self, order: Order, reason: str, detail: str = "") -> None:
        """The data was opened and no update came of it."""
        known = reason if reason in AFTER_OPENING else "TASK_FAILED"
        sentence, remedy = AFTER_OPENING[known]
        self._keep(order, known, sentence, remedy=remedy, opened=True, detail=detail)

    def _keep(
        self,
        order: Order,
        reason: str,
        sentence: str,
        *,
        remedy: str,
        opened: bool,
        detail: str = "",
    ) -> None:
        failure = Failure(
            time.time(),
            order.job_id,
            order.round,
            order.attempt_id,
            order.data_set,
            opened,
            reason,
            sentence,
            remedy,
            detail,
        )
        try:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_size > FILE_BYTES_MAX:
                    self._path.replace(self._path.with_name(OLDER))
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, json.dumps(asdict(failure)).encode() + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("failure_not_kept", job_id=order.job_id, reason=reason, why=error.strerror)


def kept(logs: Path, job_id: str = "", since_s: float = 0.0) -> list[Failure]:
    """Failures in the order in which they happened; of one job where one is named."""
    return [
        one for one in _read(logs) if one.at_s >= since_s and (not job_id or one.job_id == job_id)
    ]


def remove_old(logs: Path, now_s: float) -> int:
    """Remove workers' logs that nobody wrote to for `LOG_DAYS_MAX`; how many went."""
    gone = 0
    for path in logs.glob("worker-*.log"):
        with contextlib.suppress(OSError):
            if now_s - path.stat().st_mtime > LOG_DAYS_MAX * DAY_S:
                path.unlink()
                gone += 1
    return gone


async def keep_short(logs: Path, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Do so at the start and once a day; never ends by itself."""
    while True:
        await asyncio.to_thread(remove_old, logs, time.time())
        await pause(DAY_S)


def worker_log(logs: Path, job_id: str, lines_max: int) -> list[str]:
    """The last lines of what a job's workers wrote; empty if there is no such file."""
    path = logs / f"worker-{job_id}.log"
    # A job's id comes from a person here; it names a file of this folder and no other.
    if path.parent != logs or "/" in job_id or not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (lines_max + 1) * 4096))
        return file.read().decode(errors="replace").splitlines()[-lines_max:]


def _read(logs: Path) -> Iterator[Failure]:
    for name in (OLDER, NAME):
        with contextlib.suppress(FileNotFoundError), (logs / name).open(encoding="utf-8") as file:
            for line in file:
                # A line that a full disk has cut is left out.
                with contextlib.suppress(ValueError, TypeError):
                    fields: dict[str, Any] = json.loads(line)
                    yield Failure(**fields)
