"""When and how fast model bytes move, in made-up time."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import structlog
from pydantic import ValidationError

from node_agent.connection.bandwidth import LOOK_AGAIN_S, Throttle, TransferPolicy
from protos.errors import Malformed

NOON = datetime(2026, 3, 1, 12, 0)
MBIT_BYTES = 125_000


class MadeUpTime:
    """A clock that sleeping moves on."""

    def __init__(self, begin: datetime = NOON) -> None:
        self.begin = begin
        self.now_s = 0.0
        self.waits: list[float] = []

    def local(self) -> datetime:
        return self.begin + timedelta(seconds=self.now_s)

    async def sleep(self, delay_s: float) -> None:
        self.waits.append(delay_s)
        self.now_s += delay_s

    def throttle(self, policy: Callable[[], TransferPolicy]) -> Throttle:
        return Throttle(policy, lambda: self.now_s, self.local, self.sleep)


def at(clock: str) -> datetime:
    return datetime.combine(NOON, datetime.strptime(clock, "%H:%M").time())


@pytest.mark.parametrize(
    ("hours", "now", "is_open"),
    [
        ([], "03:00", True),
        (["08:00-18:00"], "08:00", True),
        (["08:00-18:00"], "17:59", True),
        (["08:00-18:00"], "18:00", False),
        (["20:00-06:00"], "23:59", True),
        (["20:00-06:00"], "00:00", True),
        (["20:00-06:00"], "05:59", True),
        (["20:00-06:00"], "06:00", False),
        (["20:00-06:00"], "19:59", False),
        (["20:00-06:00", "12:00-13:00"], "12:30", True),
    ],
)
def test_a_window_holds_its_beginning_and_not_its_end(
    hours: list[str], now: str, is_open: bool
) -> None:
    """Over midnight too; several windows add up; none is always."""
    assert TransferPolicy(hours=hours).is_open(at(now)) is is_open


@pytest.mark.parametrize("hours", ["8:00-18:00", "24:00-06:00", "08:00", "08:00-08:00", "a-b"])
def test_a_window_that_cannot_be_read_is_refused(hours: str) -> None:
    """A typing error must not open the link, nor close it for ever."""
    with pytest.raises(ValidationError):
        TransferPolicy(hours=[hours])


def test_without_a_policy_nothing_waits() -> None:
    """The default moves everything at once."""
    time = MadeUpTime()
    throttle = time.throttle(TransferPolicy)
    assert asyncio.run(throttle.admit(1 << 24, 1 << 16)) == 1 << 24
    assert time.waits == []


def test_bytes_keep_to_the_limit_over_any_number_of_calls() -> None:
    """8 Mbit/s: never more than a second's worth at once, and a million bytes each second."""
    time = MadeUpTime()
    throttle = time.throttle(lambda: TransferPolicy(megabits_per_second_max=8.0))

    async def move() -> int:
        return sum([await throttle.admit(1 << 24, 1 << 16) for _ in range(10)])

    moved = asyncio.run(move())
    assert moved == 10 * 8 * MBIT_BYTES
    assert time.now_s == pytest.approx(9.0)


def test_two_transfers_share_the_limit() -> None:
    """The second pays for the first one's bytes."""
    time = MadeUpTime()
    throttle = time.throttle(lambda: TransferPolicy(megabits_per_second_max=8.0))

    async def move() -> None:
        await asyncio.gather(*(throttle.admit(1 << 24, 1 << 16) for _ in range(3)))

    asyncio.run(move())
    assert time.now_s == pytest.approx(2.0)


def test_bytes_wait_for_the_window() -> None:
    """Nothing moves at noon; the link opens at eight in the evening, within one look."""
    time = MadeUpTime()
    throttle = time.throttle(lambda: TransferPolicy(hours=["20:00-06:00"]))
    asyncio.run(throttle.admit(1, 1))
    assert at("20:00") <= time.local() < at("20:00") + timedelta(seconds=LOOK_AGAIN_S)


def test_a_call_that_waited_for_its_turn_does_not_begin_after_the_window() -> None:
    """At 0.1 Mbit/s a call has to wait 5.2 s for the 65,536 bytes of the one before, and the link
    closes in 3."""
    time = MadeUpTime(at("18:00") - timedelta(seconds=3))
    slow = TransferPolicy(hours=["08:00-18:00"], megabits_per_second_max=0.1)
    throttle = time.throttle(lambda: slow)

    async def two() -> None:
        for _ in range(2):
            await throttle.admit(1 << 20, 1 << 16)

    asyncio.run(two())
    assert slow.is_open(time.local())
    assert time.local() - at("18:00") >= timedelta(hours=13, minutes=59)


def test_the_wait_is_said_once() -> None:
    """One line when bytes begin to wait and one when they go on."""
    time = MadeUpTime(at("19:50"))
    throttle = time.throttle(lambda: TransferPolicy(hours=["20:00-06:00"]))
    with structlog.testing.capture_logs() as logs:
        asyncio.run(throttle.admit(1, 1))
    assert [line["event"] for line in logs] == ["transfers_wait", "transfers_go_on"]


def test_while_the_policy_cannot_be_read_nothing_moves() -> None:
    """A broken file allows nothing; the bytes go on once it is mended."""
    time, broken = MadeUpTime(), [Malformed("POLICY_INVALID", "no such key")] * 3

    def policy() -> TransferPolicy:
        if broken:
            raise broken.pop()
        return TransferPolicy()

    asyncio.run(time.throttle(policy).admit(1, 1))
    assert time.waits == [LOOK_AGAIN_S] * 3
