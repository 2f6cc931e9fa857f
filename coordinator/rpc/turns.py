"""A bounded number of calls at work at once, of all and of each caller, and a bounded time for
each."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar
from weakref import WeakValueDictionary

from coordinator.rpc.gate import Context
from protos.errors import Unavailable

WAIT_S_MAX: Final = 5.0
"""For a turn; later there would be too little time left to move anything."""

BUSY_RETRY_S: Final = 1.0

_Message = TypeVar("_Message")


def busy() -> Unavailable:
    """For a call whose time was over before its turn came."""
    return Unavailable(
        "TRANSFERS_BUSY",
        "the coordinator moves as many bytes as it can; the transfer goes on later",
        retry_after_s=BUSY_RETRY_S,
    )


class Turns:
    """At most `most` calls at once; the others wait in order of arrival."""

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)

    @asynccontextmanager
    async def turn(self, context: Context, cancel_at_s: float | None = None) -> AsyncIterator[None]:
        """Hold a place until the block ends, or the call does, whichever comes first.

        Args:
            cancel_at_s: by the loop's clock; for a call that hangs in gRPC when nobody reads.

        Raises:
            Unavailable: TRANSFERS_BUSY.
        """
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                await self._free.acquire()
        except TimeoutError:
            raise busy() from None
        place = _Place(self._free)
        context.add_done_callback(place.leave)  # type: ignore[arg-type]
        task, stuck = asyncio.current_task(), None
        if task is not None and cancel_at_s is not None:
            stuck = asyncio.get_running_loop().call_at(cancel_at_s, task.cancel)
        try:
            yield
        finally:
            if stuck is not None:
                stuck.cancel()
            place.leave()


class TurnsOfEach:
    """`Turns` of each caller: one who opens many calls waits behind its own and in nobody's way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: WeakValueDictionary[str, Turns] = WeakValueDictionary()

    def of(self, caller: str) -> Turns:
        """The caller's."""
        return self._of.setdefault(caller, Turns(self._most))


class _Place:
    """Left once; a generator that gRPC dropped may be closed long after its call has ended."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free: asyncio.Semaphore | None = free

    def leave(self, _context: Any = None) -> None:
        free, self._free = self._free, None
        if free is not None:
            free.release()


class Incoming(Generic[_Message]):
    """The messages of a call until its time is over; none is read ahead.

    A read that comes too late is not cancelled (gRPC leaks what a cancelled read held): it ends
    with its call.

    Attributes:
        ends_s: when its time is over, on the loop's clock.
    """

    def __init__(self, messages: AsyncIterator[_Message], ends_s: float) -> None:
        self._messages = messages
        self.ends_s = ends_s

    async def next(self) -> _Message | None:
        """The next message; None after the last one, or for good when the time is over."""
        left_s = self.ends_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            return None
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(_noticed)
        done, _ = await asyncio.wait({reading}, timeout=left_s)
        return reading.result() if done else None

    async def _read(self) -> _Message | None:
        return await anext(self._messages, None)


def _noticed(task: "asyncio.Task[Any]") -> None:
    """The read of a call that has ended fails, and nobody asks why."""
    if not task.cancelled():
        task.exception()
