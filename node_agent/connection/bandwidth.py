"""When and how fast model bytes may move over this node's link, as the steward's policy says.

The policy's limit holds for both directions together. Models and updates that are small enough to
travel inside orders and submissions move at any hour, as do reports and heartbeats.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog
from pydantic import BaseModel, ConfigDict, Field, field_validator

from protos.errors import FeddpError

log = structlog.get_logger(__name__)

LOOK_AGAIN_S: Final = 30.0
"""While nothing may move; the policy or the clock may have changed meanwhile."""

SPAN_CHARS_MAX: Final = 32
"""Of one that is shown."""

DAY_MIN: Final = 24 * 60

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class TransferPolicy(BaseModel):
    """`transfer` in `policy.yaml`.

    Attributes:
        megabits_per_second_max: 1,000,000 bits each, averaged over seconds; None for no limit.
        hours: "HH:MM-HH:MM" in the local time of this machine, over midnight if the end is the
            earlier; empty for always. A round that needs more time than they leave goes on
            without this node.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    megabits_per_second_max: float | None = Field(default=None, ge=0.1, le=1e6, allow_inf_nan=False)
    hours: list[str] = Field(default=[], examples=[["20:00-06:00"]])

    @field_validator("hours")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        return readable_hours(value)

    def is_open(self, now: datetime) -> bool:
        """Whether model bytes may move at this local time."""
        minute = now.hour * 60 + now.minute
        spans = [_minutes(one) for one in self.hours]
        return not spans or any(
            (minute - begin) % DAY_MIN < (end - begin) % DAY_MIN for begin, end in spans
        )

    @property
    def bytes_per_second_max(self) -> float | None:
        """The limit in bytes."""
        megabits = self.megabits_per_second_max
        return None if megabits is None else megabits * 125_000


def readable_hours(value: list[str]) -> list[str]:
    """The same.

    Raises:
        ValueError: one of them is no time window.
    """
    for one in value:
        begin, end = _minutes(one)
        if begin == end:
            raise ValueError(f"{one!r} begins where it ends; leave hours out for always")
    return value


def _minutes(span: str) -> tuple[int, int]:
    """(begin, end) of "HH:MM-HH:MM" in minutes of the day."""
    found = _HOURS.fullmatch(span)
    if found is None:
        raise ValueError(
            f'{span[:SPAN_CHARS_MAX]!r} is not a time window; write it as "20:00-06:00"'
        )
    hours = [int(part) for part in found.groups()]
    return hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]


class Throttle:
    """Lets bytes pass: a token bucket that holds one second's worth.

    Args:
        policy: what the steward says now; raises FeddpError when that cannot be read, and then
            nothing moves.
        clock: seconds, steady.
        local_time: of this machine.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        policy: Callable[[], TransferPolicy] = TransferPolicy,
        clock: Callable[[], float] = time.monotonic,
        local_time: Callable[[], datetime] = datetime.now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._local_time = local_time
        self._sleep = sleep
        self._free_at_s = 0.0
        self._said = ""

    async def admit(self, wanted: int, least: int) -> int:
        """Wait until bytes may move; how many may move in the next call, `wanted` at most.

        Args:
            least: never fewer than this, or `wanted` if that is smaller.
        """
        policy = await self._until_open()
        rate = policy.bytes_per_second_max
        if rate is None:
            return wanted
        self._say("limited", megabits_per_second=policy.megabits_per_second_max)
        bytes_ = min(wanted, max(least, int(rate)))
        # The bytes of a call are paid for by the wait before the next one; taken before the wait,
        # so that two transfers at once share the limit.
        now_s = self._clock()
        begin_s = max(now_s, self._free_at_s)
        self._free_at_s = begin_s + bytes_ / rate
        if begin_s > now_s:
            await self._sleep(begin_s - now_s)
            await self._until_open()  # the window may have closed meanwhile
        return bytes_

    async def _until_open(self) -> TransferPolicy:
        while (policy := await self._open()) is None:
            await self._sleep(LOOK_AGAIN_S)
        return policy

    async def _open(self) -> TransferPolicy | None:
        """The policy if bytes may move now."""
        try:
            policy = await asyncio.to_thread(self._policy)
        except FeddpError as error:
            self._say("policy unreadable", reason=error.reason)
            return None
        if not policy.is_open(self._local_time()):
            self._say("outside hours", hours=policy.hours)
            return None
        if self._said in ("policy unreadable", "outside hours"):
            self._said = ""
            log.info("transfers_go_on")
        return policy

    def _say(self, why: str, **fields: object) -> None:
        """Each state once, not at each look."""
        if self._said != why:
            self._said = why
            log.info("transfers_wait", why=why, **fields)
