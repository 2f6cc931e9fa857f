"""A bounded number of calls at work at once, and a bounded time for each."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar

from coordinator.rpc.gate import Context
from protos.errors import Unavailable

WAIT_S_MAX: Final = 5.0
"""For a turn; later there would be too little time left to move anything."""

BUSY_RETRY_S: Final = 1.0

_Message = TypeVar("_Message")


class Turns:
    """At most `most` calls at once; the others wait in order of arrival."""

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)

    @asynccontextmanager
    async def turn(
        self, context: Context, cancel_at_s: float | None = None
    ) -> AsyncIterator[None]:
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
            raise Unavailable(
                "TRANSFERS_BUSY",
                "the coordinator moves as many bytes as it can; the transfer goes on later",
                retry_after_s=BUSY_RETRY_S,
            ) from None
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        place = _Place(self._free)
        context.add_done_callback(place.leave)
        stuck = loop.call_at(cancel_at_s, task.cancel) if cancel_at_s is not None else None
        try:
            yield
        finally:
            if stuck is not None:
                stuck.cancel()
            place.leave()


class _Place:
    """Left once; a generator that gRPC dropped may be closed long after its call has ended."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free: asyncio.Semaphore | None = free

    def leave(self, _context: Any = None) -> None:
        free, self._free = self._free, None
        if free is not None:
            free.release()


class Incoming(Generic[_Message]):
    """The messages of a call until its time is over.

    While `ahead` is set one is read ahead; a call that waits for its turn must not hold any. A read that comes too late is not cancelled (gRPC leaks what a cancelled read held): it ends
    with its call.
    """

    def __init__(self, messages: AsyncIterator[_Message], ends_s: float) -> None:
        self.ends_s = ends_s
        self.ahead = False
        self._messages = messages
        self._reading: asyncio.Task[_Message | None] | None = None

    async def next(self) -> _Message | None:
        """The next message; None after the last one, or when the time is over."""
        left_s = self.ends_s - asyncio.get_running_loop().time()
        reading = self._reading or self._read_on()
        done, _ = await asyncio.wait({reading}, timeout=max(0.0, left_s))
        if not done:
            return None
        self._reading = None
        message = reading.result()
        if message is not None and self.ahead:
            self._read_on()
        return message

    def _read_on(self) -> "asyncio.Task[_Message | None]":
        self._reading = task = asyncio.create_task(self._read())
        task.add_done_callback(_noticed)
        return task

    async def _read(self) -> _Message | None:
        return await anext(self._messages, None)


def _noticed(task: "asyncio.Task[Any]") -> None:
    """The read of a call that has ended fails, and nobody asks why."""
    if not task.cancelled():
        task.exception()
