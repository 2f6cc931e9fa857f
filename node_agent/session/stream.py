"""One stream to the coordinator: what goes in, what comes out, and how it ended."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import federation_pb2_grpc as pb_grpc

Outbox = asyncio.Queue[pb.AgentMessage]


class Stream:
    """An open stream.

    Args:
        take: gets each message that comes, and this stream.

    Attributes:
        channel: what it goes over.
        outbox: what is to be said.
        welcomed: set by who takes the messages.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        take: Callable[["Stream", pb.CoordinatorMessage], None],
    ) -> None:
        self.channel = channel
        self.outbox = Outbox()
        self.welcomed = asyncio.Event()
        self._take = take
        self._call: Any = pb_grpc.FederationStub(channel).Session()
        self._tasks = (
            asyncio.create_task(self._read()),
            asyncio.create_task(_write(self._call, self.outbox)),
        )

    def is_over(self) -> bool:
        """Whether the coordinator or the network has ended it."""
        return any(task.done() for task in self._tasks)

    async def until_over(self) -> None:
        """Wait for its end."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def close(self) -> BaseException | None:
        """End it from here. How it had ended before, if that was an error."""
        for task in self._tasks:
            task.cancel()
        self._call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in self._tasks:
            if not task.cancelled() and (fault := task.exception()) is not None:
                return fault
        return None

    async def _read(self) -> None:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            self._take(self, message)


async def _write(call: Any, outbox: Outbox) -> None:
    try:
        while True:
            await call.write(await outbox.get())
    except asyncio.InvalidStateError:
        # The call is over; its status comes through the reader.
        await asyncio.Event().wait()
