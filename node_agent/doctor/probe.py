"""One stream of echoes, over the agent's own gRPC options and on a connection of its own."""

import asyncio
import time
from typing import Any, Final

import grpc

from node_agent.connection.channels import OPTIONS
from node_agent.connection.proxy import Route
from node_agent.joining.identity import Identity
from protos.errors import FeddpError
from protos.feddp.v1 import diagnosis_pb2 as pb
from protos.feddp.v1 import diagnosis_pb2_grpc as pb_grpc
from protos.status import from_rpc

_STATUS_LOST: Final = "Internal error from Core"
"""gRPC's words where it was writing when the stream ended: what the other side said is lost."""


class Stopped(Exception):
    """The stream ended before it was asked to."""

    def __init__(self, error: FeddpError | None) -> None:
        super().__init__("the stream ended")
        self.error = error

    @property
    def is_status_lost(self) -> bool:
        """Whether why it ended is not known, though the other side may have said it."""
        return self.error is not None and self.error.message == _STATUS_LOST

    def why(self) -> str:
        """In words."""
        return self.error.message if self.error is not None else "it was closed without a word"


class Probe:
    """One open stream."""

    def __init__(self, route: Route, identity: Identity) -> None:
        self._channel = grpc.aio.secure_channel(
            route.address, identity.credentials(), options=(*OPTIONS, *route.options())
        )
        self._call: Any = pb_grpc.DiagnosisStub(self._channel).Probe()
        self._heard_s = time.monotonic()

    async def __aenter__(self) -> "Probe":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        await self._channel.close()

    async def say(self, data_bytes: int = 0, answer_bytes: int = 0) -> None:
        """Send one message.

        Raises:
            Stopped: nobody takes it.
        """
        message = pb.ProbeRequest(data=bytes(data_bytes), answer_bytes=answer_bytes)
        try:
            await self._call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            _raise_if_cancelled()
            # The call is over; its status comes through the reader.
            await self.hear()
            raise Stopped(None) from None

    async def hear(self) -> pb.ProbeResponse:
        """The next answer.

        Raises:
            Stopped: there is none.
        """
        try:
            answer: Any = await self._call.read()
        except grpc.RpcError as error:
            raise Stopped(from_rpc(error)) from None
        except asyncio.CancelledError:
            _raise_if_cancelled()
            raise Stopped(None) from None  # the other side ended it with CANCELLED
        if answer is grpc.aio.EOF:
            raise Stopped(None)
        self._heard_s = time.monotonic()
        return answer  # type: ignore[no-any-return]

    def silent_s(self) -> float:
        """Seconds since the last answer."""
        return time.monotonic() - self._heard_s

    async def echo(self, data_bytes: int = 0, answer_bytes: int = 0) -> pb.ProbeResponse:
        """Say, and hear."""
        await self.say(data_bytes, answer_bytes)
        return await self.hear()


def _raise_if_cancelled() -> None:
    """gRPC raises CancelledError also where the other side has cancelled; a time-out of this side's
    own goes on."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
