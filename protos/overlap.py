"""Work at what has arrived in a thread, while more arrives."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Overlap(Generic[_Item]):
    """Items in order, in batches as large as the time that the batch before took.

    A slow sender's items are worked at one by one, as each comes; those of a fast one share the
    cost of going to a thread.

    Args:
        work: does one batch; is never called twice at once.
        most: items that wait at once; `put` waits while there are as many.
    """

    def __init__(self, work: Callable[[list[_Item]], Awaitable[None]], most: int) -> None:
        self._work = work
        self._most = most
        self._waiting: list[_Item] = []
        self._working: asyncio.Future[None] | None = None

    async def put(self, item: _Item) -> None:
        """Take one more; raises what the work at an earlier one has raised."""
        self._waiting.append(item)
        if len(self._waiting) >= self._most:
            await self._pause()
        if not self._is_working():
            self._next()

    async def drain(self) -> None:
        """Work at everything that was put; raises what the work has raised."""
        while self._waiting or self._working is not None:
            await self._pause()
            if not self._is_working():
                self._next()

    async def stop(self) -> None:
        """Wait for the work that runs, whatever becomes of it; what waits is thrown away."""
        self._waiting.clear()
        if self._working is not None:
            await asyncio.wait({self._working})
            if not self._working.cancelled():
                self._working.exception()

    def _is_working(self) -> bool:
        return self._working is not None and not self._working.done()

    async def _pause(self) -> None:
        """Wait for the batch that is worked at."""
        if self._working is not None:
            await asyncio.wait({self._working})

    def _next(self) -> None:
        """Begin the next batch; after work that failed nothing is begun, and all of it raises."""
        if self._working is not None:
            self._working.result()
        batch, self._waiting = self._waiting, []
        self._working = asyncio.ensure_future(self._work(batch)) if batch else None
        if self._working is not None:
            self._working.add_done_callback(self._go_on)

    def _go_on(self, done: "asyncio.Future[None]") -> None:
        """What was put meanwhile need not wait for a sender that pauses."""
        failed = done.cancelled() or done.exception() is not None
        if done is self._working and self._waiting and not failed:
            self._next()
