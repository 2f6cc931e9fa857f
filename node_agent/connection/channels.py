"""Connections to the coordinator: the newest certificate's, and older ones until they are idle."""

import asyncio
from collections.abc import Callable
from typing import Final

import grpc

from node_agent.connection.proxy import Route
from node_agent.joining.identity import Identity

OPTIONS: Final = (
    # A coordinator that hangs keeps its connections: in 15 s it is left, and another is dialled.
    # gRPC's core ends a connection by the ping's own time limit, 60 s if it is not given, and not
    # by keepalive's while that is the shorter of the two.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 8 << 20),
    # A fixed window, enough for 50 MB/s at 40 ms; gRPC's probe of the bandwidth would let a
    # download fill some 10 MiB.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 << 20),
    ("grpc.initial_reconnect_backoff_ms", 500),
    # The stream's own jitter spreads the agents; this only bounds what is waited on top of it.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)

CLOSE_AFTER_S: Final = 90.0
"""No call takes longer: what an older connection carried is over by then."""


class Channels:
    """One connection for each certificate that may have calls under way.

    Args:
        route: to the coordinator's mTLS port.
        route_to: to another of its addresses.

    Attributes:
        current: for every new call.
    """

    def __init__(
        self, route: Route, identity: Identity, route_to: Callable[[str], Route] = Route
    ) -> None:
        self._route = route
        self._route_to = route_to
        self._identity = identity
        self._closing: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._apart: grpc.aio.Channel | None = None
        self.current = self._opened(route, identity)

    def renewed(self, identity: Identity) -> grpc.aio.Channel:
        """A connection with a newer certificate; calls under way end on the one before."""
        self._identity = identity
        before, self.current = self.current, self._opened(self._route, identity)
        self._retire(before)
        return self.current

    def apart(self, address: str) -> grpc.aio.Channel:
        """A connection to another address of the coordinator, with the newest certificate; one
        that was given before goes once its calls are over.

        Raises:
            Malformed: PROXY_INVALID.
        """
        before = self._apart
        self._apart = self._opened(self._route_to(address), self._identity)
        if before is not None:
            self._retire(before)
        return self._apart

    def _retire(self, before: grpc.aio.Channel) -> None:
        closing = asyncio.create_task(self._close_later(before))
        self._closing[closing] = before
        closing.add_done_callback(lambda task: self._closing.pop(task, None))

    async def close(self) -> None:
        """Close all of them now."""
        open_ = [*self._closing.values(), self.current]
        if self._apart is not None:
            open_.append(self._apart)
        for task in list(self._closing):
            task.cancel()
        for channel in open_:
            await channel.close()

    @staticmethod
    def _opened(route: Route, identity: Identity) -> grpc.aio.Channel:
        options = (*OPTIONS, *route.options())
        return grpc.aio.secure_channel(route.address, identity.credentials(), options=options)

    async def _close_later(self, channel: grpc.aio.Channel) -> None:
        # gRPC's own grace period does not see every call, and a call that a closing channel
        # cancels looks like one that we cancelled: its work would silently stop.
        await asyncio.sleep(CLOSE_AFTER_S)
        await channel.close()
