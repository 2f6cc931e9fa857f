"""The session stream: opens it, reads and writes it, and opens it again, for ever."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import structlog

from node_agent.backoff import SLOW_S, Backoff, is_shut_out
from node_agent.orders import Order
from node_agent.session import events as e
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import federation_pb2_grpc as pb_grpc
from protos.status import from_rpc

log = structlog.get_logger(__name__)

Outbox = asyncio.Queue[pb.AgentMessage]

READY_WAIT_S: Final = 5.0
REPEAT_LOG_S: Final = 60.0
HEARTBEAT_S: Final = 5.0
LIMITS_MAX: Final = 256
NAME_MAX: Final = 63
HEARTBEAT_UNKNOWN_S: Final = 0.5
"""Until the first Welcome, so that the beat that follows it comes in time; sends nothing."""

CHANNEL_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
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


class Link:
    """The agent's one stream.

    Args:
        address: "host:port", for people.
        dispatch: takes events.
        clock: seconds.
        sleep: waits so many seconds.
        offer_model: takes the digest and the bytes of a small model that came with an order.

    Attributes:
        outbox: of the open stream; None while there is none.
        heartbeat_s: how often to be heard.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        dispatch: Callable[[e.Event], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        offer_model: Callable[[str, bytes], None] = lambda _digest, _data: None,
    ) -> None:
        self.outbox: Outbox | None = None
        self.heartbeat_s = HEARTBEAT_UNKNOWN_S
        self._channel = channel
        self._stub = pb_grpc.FederationStub(channel)
        self._address = address
        self._dispatch = dispatch
        self._clock = clock
        self._sleep = sleep
        self._offer_model = offer_model
        self._backoff = Backoff()
        self._enough = asyncio.Event()
        self._complained: tuple[str, float] = ("", 0.0)

    def send(self, message: pb.AgentMessage) -> None:
        """Say it, if somebody listens."""
        if self.outbox is not None:
            self.outbox.put_nowait(message)

    def reconnect(self) -> None:
        """End the stream; another follows."""
        self._enough.set()

    async def run(self) -> None:
        """Keep a session open until cancelled."""
        while True:
            ready = await self._until_ready()
            try:
                await self._session()
                delay_s = self._backoff.next_s()
            except grpc.RpcError as error:
                delay_s = self._after(error, ready)
            await self._sleep(delay_s)

    async def _until_ready(self) -> bool:
        """Give the channel time to connect; it goes on trying by itself."""
        state = self._channel.get_state(try_to_connect=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_WAIT_S):
                while state is not grpc.ChannelConnectivity.READY:
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
                return True
        return False

    async def _session(self) -> None:
        """One stream, from Hello to its end.

        Raises:
            grpc.RpcError: how the coordinator or the network ended it.
        """
        call = self._stub.Session()
        outbox = self.outbox = Outbox()
        self._enough.clear()
        self._dispatch(e.Connected())
        tasks = [
            asyncio.create_task(self._read(call)),
            asyncio.create_task(_write(call, outbox)),
            asyncio.create_task(self._enough.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.outbox = None
            for task in tasks:
                task.cancel()
            call.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._dispatch(e.Disconnected())
        for task in tasks:
            if not task.cancelled() and (fault := task.exception()) is not None:
                raise fault

    async def _read(self, call: Any) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            self._take(message)

    def _take(self, message: pb.CoordinatorMessage) -> None:
        match message.WhichOneof("message"):
            case "welcome":
                self._backoff.reset()
                self._complained = ("", 0.0)
                interval_s = message.welcome.heartbeat_interval_s
                self.heartbeat_s = min(HEARTBEAT_S, max(0.2, interval_s / 2))
                closed = tuple(map(_closed, message.welcome.closed))
                limits = tuple(map(_limit, message.welcome.limits[:LIMITS_MAX]))
                self._dispatch(e.WelcomeReceived(closed, tuple(filter(_is_limit, limits))))
            case "work_order":
                order = message.work_order
                self._offer_model(order.base_model_digest, order.base_model)
                self._dispatch(_order(message.work_order))
            case "attempt_closed":
                attempt_id, outcome = _closed(message.attempt_closed)
                self._dispatch(e.AttemptClosedReceived(attempt_id, outcome))
            case "job_ended":
                self._dispatch(e.JobEndedReceived(message.job_ended.job_id))
            case "drain":
                self._dispatch(e.DrainReceived())
            case _:
                log.warning("message_unknown")

    def _after(self, error: grpc.RpcError, ready: bool) -> float:
        """How long to wait, after saying what went wrong."""
        found = from_rpc(error)
        if not ready and found.code == "UNAVAILABLE":
            self._complain("coordinator_unreachable", found)
            return min(1.0, self._backoff.next_s())
        if is_shut_out(found):
            self._complain("node_shut_out", found)
            return SLOW_S
        delay_s = self._backoff.after(error)
        if delay_s is None:
            self._complain("session_refused", found)
            return SLOW_S
        log.info("session_ended", reason=found.reason, delay_s=round(delay_s, 2))
        return delay_s

    def _complain(self, event: str, error: FeddpError) -> None:
        """Say it once, and again after a minute of the same."""
        last, at_s = self._complained
        now_s = self._clock()
        if last == error.reason and now_s - at_s < REPEAT_LOG_S:
            return
        self._complained = (error.reason, now_s)
        log.error(
            event,
            coordinator=self._address,
            reason=error.reason,
            detail=error.message,
            do=_ADVICE[event],
        )


_ADVICE: Final = {
    "coordinator_unreachable": "the agent goes on trying; check the address in agent.yaml, the "
    "firewall, the proxy and that the coordinator runs",
    "node_shut_out": "the agent goes on trying; ask the coordinator's operator, or join again "
    "with a new token",
    "session_refused": "the agent goes on trying; compare the versions of agent and coordinator",
}


async def _write(call: Any, outbox: Outbox) -> None:
    try:
        while True:
            await call.write(await outbox.get())
    except asyncio.InvalidStateError:
        # The call is over; its status comes through the reader.
        await asyncio.Event().wait()


def _order(message: pb.WorkOrder) -> e.Event:
    try:
        return e.OrderReceived(Order.from_wire(message))
    except FeddpError as error:
        log.error("order_unreadable", reason=error.reason, detail=error.message)
        return e.OrderUnreadable(message.attempt_id, error.reason, error.message)


def _limit(message: pb.AccountLimit) -> tuple[str, float]:
    return message.account, message.epsilon_limit


def _is_limit(said: tuple[str, float]) -> bool:
    """Whether it can be a limit at all: what the coordinator says is kept."""
    return 0 < said[1] < math.inf and 0 < len(said[0]) <= NAME_MAX


def _closed(message: pb.AttemptClosed) -> tuple[str, e.Outcome]:
    match message.outcome:
        case "void":
            return message.attempt_id, "void"
        case _:
            # An outcome that we do not know is booked as released.
            return message.attempt_id, "post"
