"""Over which connection the bytes of models and updates go: one that the coordinator tells of,
where any of its replicas serves them, or the session's, whose other end decides.

The session's always does. The other is there to spare whoever leads the work, so that nothing may
come to depend on it: it is left for a while when it fails, and no refusal that is heard there is
the last word.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc
import structlog

from protos.errors import FeddpError
from protos.frames import TransferCalls
from protos.status import from_rpc
from protos.transfer_address import follows

log = structlog.get_logger(__name__)

CONNECT_S: Final = 3.0
"""For the connection to be there; meanwhile the session's would have moved some."""

REST_S: Final = 5.0
REST_S_MAX: Final = 300.0
"""Before it is tried again after it failed: the first time, and at most."""

COME_AGAIN: Final = frozenset({"MODEL_COMING", "TRANSFERS_BUSY"})
"""Reasons of a replica that serves: it is asked again, not another."""

_ANSWERS: Final = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
"""About one model or update: the connection is as good as before for others."""


@dataclass(frozen=True, slots=True)
class Way:
    """A connection for the next call."""

    calls: TransferCalls
    is_apart: bool = False


class Ways:
    """Chooses a way for each call.

    Args:
        channel: the session's.
        host: that the hospital has its agent connect to; what is told must be within it.
        open_apart: connects to "HOST:PORT" with the newest certificate, and lets go of the
            connection before after a while; None for an agent that follows no address.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        host: str = "",
        open_apart: Callable[[str], grpc.aio.Channel] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session = Way(TransferCalls(channel))
        self._host = host
        self._open_apart = open_apart
        self._clock = clock
        self._address = ""
        self._refused = ""
        self._channel: grpc.aio.Channel | None = None
        self._apart: Way | None = None
        self._rest_until_s = 0.0
        self._rest_s = REST_S
        self._is_used = self._is_left = False

    @property
    def is_resting(self) -> bool:
        """Whether only the session's connection is chosen for now."""
        return self._clock() < self._rest_until_s

    def use(self, channel: grpc.aio.Channel) -> None:
        """The session has another connection, with a newer certificate: so has the other way."""
        self.session = Way(TransferCalls(channel))
        if self._address:
            self._connect(self._address)

    def told(self, address: str) -> None:
        """What the coordinator says at each welcome; empty for nothing but the session's."""
        if self._open_apart is None or address == self._address:
            return
        if address and not follows(address, self._host):
            if address != self._refused:
                self._refused = address
                log.warning(
                    "transfer_address_refused",
                    host=self._host,
                    do="the coordinator told of another host, which is not dialled; bytes go over "
                    "the session's connection",
                )
            address = ""
        self._address = address
        self._rest_until_s, self._rest_s = 0.0, REST_S
        self._is_used = self._is_left = False
        if address:
            self._connect(address)
        else:
            self._channel = self._apart = None

    async def choose(self) -> Way:
        """The way for the next call."""
        channel, apart = self._channel, self._apart
        if channel is None or apart is None or self.is_resting:
            return self.session
        if not await _is_ready(channel):
            self._leave("UNREACHABLE")
            return self.session
        return apart

    def worked(self, way: Way) -> None:
        """A call came to its end."""
        if not way.is_apart:
            return
        self._rest_s = REST_S
        if self._is_left or not self._is_used:
            log.info("transfer_address_used", address=self._address)
        self._is_used, self._is_left = True, False

    def failed(self, way: Way, error: Exception) -> bool:
        """Whether what went wrong does not count, as another way is there to be tried now."""
        if not way.is_apart or not isinstance(error, grpc.RpcError):
            return False
        found: FeddpError = from_rpc(error)
        if found.reason in COME_AGAIN:
            return False
        if error.code() not in _ANSWERS:
            self._leave(found.reason)
        return True

    def stuck(self, way: Way) -> bool:
        """As `failed`, of a way on which nothing moves though every call is answered."""
        if way.is_apart:
            self._leave("NO_PROGRESS")
        return way.is_apart

    def _connect(self, address: str) -> None:
        self._channel = self._apart = None
        if self._open_apart is None:
            return
        try:
            self._channel = self._open_apart(address)
        except FeddpError as error:  # the proxy's settings, which were right when it started
            self._leave(error.reason)
        else:
            self._apart = Way(TransferCalls(self._channel), is_apart=True)

    def _leave(self, reason: str) -> None:
        if self.is_resting:
            return  # another call has failed at the same time
        self._rest_until_s = self._clock() + self._rest_s
        self._rest_s = min(REST_S_MAX, 2 * self._rest_s)
        if not self._is_left:
            self._is_left = True
            log.warning(
                "transfer_address_left",
                address=self._address,
                reason=reason,
                do="bytes go over the session's connection meanwhile; if it is so for long, let "
                "the firewall and the proxy through to it",
            )


async def _is_ready(channel: grpc.aio.Channel) -> bool:
    """Whether there is a connection, which is given some time."""
    state = channel.get_state(try_to_connect=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_S):
            while state is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.SHUTDOWN:
                    return False
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
            return True
    return False
