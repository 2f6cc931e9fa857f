"""The session: a stream that is opened again for ever, and moved to a newer certificate."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
import structlog

from node_agent.connection.backoff import SLOW_S, Backoff, is_shut_out
from node_agent.connection.clock import SET_CLOCK
from node_agent.ledger.rollback import from_wire as signed_from_wire
from node_agent.policy.orders import Order
from node_agent.session import events as e
from node_agent.session.stream import Outbox, Stream
from privacy.epochs import Epoch
from privacy.wire import epoch_from_wire
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb
from protos.status import from_rpc

log = structlog.get_logger(__name__)

READY_WAIT_S: Final = 5.0
REPEAT_LOG_S: Final = 60.0
HEARTBEAT_S: Final = 5.0
LIMITS_MAX: Final = 256
NAME_MAX: Final = 63
HEARTBEAT_UNKNOWN_S: Final = 0.5
"""Until the first Welcome, so that the beat that follows it comes in time; sends nothing."""

WELCOME_WAIT_S: Final = 20.0
"""For a second stream to be welcomed, before it is given up and tried again."""

RETIRE_S: Final = 10.0
"""For the coordinator to end a stream that another has replaced; it does so at once."""


class Link:
    """The agent's one session. While it moves to a newer certificate it has two streams: the old
    one is read to its end, and spoken on until the new one is welcomed.

    Args:
        channel: to the coordinator.
        address: "host:port", for people.
        dispatch: takes events.
        clock: seconds.
        sleep: waits so many seconds.
        offer_model: takes the digest and the bytes of a small model that came with an order.
        refused: takes why the coordinator gives no session.
        traced: takes an attempt's id and where its order stands in a trace.
        told_transfer: takes where the coordinator serves Transfer, too; empty for nowhere.
        admits: why a coordinator with these restorations is refused; None where it is not.

    Attributes:
        outbox: of the stream that is spoken on; None while there is none.
        newest: of the stream that was opened last, for its Hello.
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
        refused: Callable[[FeddpError], None] = lambda _error: None,
        traced: Callable[[str, str], None] = lambda _attempt_id, _traceparent: None,
        admits: Callable[[Sequence[Epoch]], FeddpError | None] = lambda _epochs: None,
        told_transfer: Callable[[str], None] = lambda _address: None,
    ) -> None:
        self.outbox: Outbox | None = None
        self.newest: Outbox | None = None
        self.heartbeat_s = HEARTBEAT_UNKNOWN_S
        self._channel = channel
        self._address = address
        self._dispatch = dispatch
        self._clock = clock
        self._sleep = sleep
        self._offer_model = offer_model
        self._refused = refused
        self._traced = traced
        self._admits = admits
        self._told_transfer = told_transfer
        self._refusal: FeddpError | None = None
        self._backoff = Backoff()
        self._enough = asyncio.Event()
        self._renewed = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self._complained: tuple[str, float] = ("", 0.0)

    def send(self, message: pb.AgentMessage) -> None:
        """Say it, if somebody listens."""
        if self.outbox is not None:
            self.outbox.put_nowait(message)

    def reconnect(self) -> None:
        """End the stream; another follows."""
        self._enough.set()

    def turn_away(self, why: FeddpError) -> None:
        """End the stream: nothing more is heard of this coordinator until the next one."""
        self._refusal = why
        self._enough.set()

    def renewed(self, channel: grpc.aio.Channel) -> None:
        """Move to a connection with a newer certificate, make before break."""
        self._channel = channel
        self._renewed.set()

    async def run(self) -> None:
        """Keep a session open until cancelled."""
        try:
            while True:
                ready = await self._until_ready()
                try:
                    await self._session()
                    delay_s = self._after_end()
                except grpc.RpcError as error:
                    delay_s = self._after(error, ready)
                await self._sleep(delay_s)
        finally:
            for task in list(self._retiring):
                task.cancel()
            await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _until_ready(self) -> bool:
        """Give the channel time to connect; it goes on trying by itself."""
        channel = self._channel
        state = channel.get_state(try_to_connect=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_WAIT_S):
                while state is not grpc.ChannelConnectivity.READY:
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
                return True
        return False

    async def _session(self) -> None:
        """One session, from Hello to its end.

        Raises:
            grpc.RpcError: how the coordinator or the network ended it.
        """
        self._refusal = None
        self._enough.clear()
        self._renewed.clear()
        stream = self._open()
        self.outbox = stream.outbox
        self._dispatch(e.Connected())
        try:
            while not (stream.is_over() or self._enough.is_set()):
                if self._renewed.is_set():
                    stream = await self._moved(stream)
                else:
                    await _first(stream.until_over(), self._enough.wait(), self._renewed.wait())
        finally:
            self.outbox = self.newest = None
            fault = await stream.close()
            self._dispatch(e.Disconnected())
        # How a replaced certificate's stream ended says nothing about the newer one.
        if fault is not None and stream.channel is self._channel and self._refusal is None:
            raise fault

    def _open(self) -> Stream:
        stream = Stream(self._channel, self._take)
        self.newest = stream.outbox
        return stream

    async def _moved(self, old: Stream) -> Stream:
        """A welcomed stream with the newer certificate; `old` if that one, or the session, ended
        before there was any."""
        backoff = Backoff()
        while True:
            self._renewed.clear()
            new = self._open()
            try:
                self._dispatch(e.SecondOpened())
                wait = self._sleep(WELCOME_WAIT_S)
                await _first(new.welcomed.wait(), new.until_over(), self._enough.wait(), wait)
            except BaseException:
                await new.close()
                raise
            if new.welcomed.is_set():
                # The coordinator ends the old one now, after what it had said on it before.
                retiring = asyncio.create_task(self._retire(old))
                self._retiring.add(retiring)
                retiring.add_done_callback(self._retiring.discard)
                log.info("session_moved", coordinator=self._address)
                return new
            fault = await new.close()
            if old.is_over() or self._enough.is_set():
                return old
            delay_s = backoff.next_s()
            reason = from_rpc(fault).reason if isinstance(fault, grpc.RpcError) else "NO_ANSWER"
            log.warning("session_not_moved", reason=reason, delay_s=round(delay_s, 2))
            await _first(self._sleep(delay_s), old.until_over(), self._enough.wait())
            if old.is_over() or self._enough.is_set():
                return old

    async def _retire(self, old: Stream) -> None:
        """Read a replaced stream to its end; how that came does not matter any more."""
        try:
            await _first(old.until_over(), self._sleep(RETIRE_S))
        finally:
            await old.close()

    def _take(self, stream: Stream, message: pb.CoordinatorMessage) -> None:
        if self._refusal is not None:
            return
        match message.WhichOneof("message"):
            case "welcome":
                epochs = tuple(map(epoch_from_wire, message.welcome.epochs))
                if (refusal := self._admits(epochs)) is not None:
                    self.turn_away(refusal)
                    return
                self.outbox = stream.outbox
                stream.welcomed.set()
                self._told_transfer(message.welcome.transfer_address)
                self._backoff.reset()
                self._complained = ("", 0.0)
                interval_s = message.welcome.heartbeat_interval_s
                self.heartbeat_s = min(HEARTBEAT_S, max(0.2, interval_s / 2))
                closed = tuple(map(_closed, message.welcome.closed))
                limits = tuple(map(_limit, message.welcome.limits[:LIMITS_MAX]))
                signed = tuple(map(signed_from_wire, message.welcome.signed[:LIMITS_MAX]))
                highest = tuple(map(_highest, message.welcome.limits[:LIMITS_MAX]))
                self._dispatch(
                    e.WelcomeReceived(
                        closed,
                        tuple(filter(_is_limit, limits)),
                        tuple(filter(_is_limit, highest)),
                        signed,
                        epochs,
                    )
                )
            case "work_order":
                order = message.work_order
                self._offer_model(order.base_model_digest, order.base_model)
                self._traced(order.attempt_id, order.traceparent)
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

    def _after_end(self) -> float:
        """How long to wait after a session that ended well, or that was ended here."""
        if self._refusal is None:
            return self._backoff.next_s()
        self._refused(self._refusal)
        self._complain("coordinator_refused", self._refusal)
        return SLOW_S

    def _after(self, error: grpc.RpcError, ready: bool) -> float:
        """How long to wait, after saying what went wrong."""
        found = from_rpc(error)
        if not ready and found.code == "UNAVAILABLE":
            self._complain("coordinator_unreachable", found)
            return min(1.0, self._backoff.next_s())
        if is_shut_out(found):
            self._refused(found)
            self._complain("node_shut_out", found)
            return SLOW_S
        delay_s = self._backoff.after(error)
        if found.reason == "SESSION_TAKEN" and delay_s is not None:
            self._refused(found)
            self._complain("identity_in_use", found)
            return delay_s
        if delay_s is None:
            self._refused(found)
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
            do=_advice(event, error),
        )


_ADVICE: Final = {
    "coordinator_unreachable": "the agent goes on trying; `feddp agent doctor` says whether it "
    "is the name, the firewall, the proxy, this machine's clock, a TLS inspection or the "
    "coordinator",
    "node_shut_out": "the agent goes on trying; ask the coordinator's operator, who may send a new "
    "token: then stop the agent, `feddp agent join TOKEN --again`, and start it",
    "identity_in_use": "the agent goes on trying; if another machine has a copy of this folder, "
    "stop one of the two",
    "coordinator_refused": "the agent goes on trying; tell the coordinator's operator",
    "session_refused": "the agent goes on trying; compare the versions of agent and coordinator",
}


_SHUT_OUT: Final = {
    "NODE_DISABLED": "the agent goes on trying, and comes back by itself; ask the coordinator's "
    "operator why, and for `feddp node enable NAME`",
    "GATEWAY_REVOKED": "the agent goes on trying, and comes back by itself; this node's own "
    "certificate is as good as before: ask the coordinator's operator about the gateway",
    "NODE_QUARANTINED": "the agent goes on trying, and comes back by itself; tell the "
    "coordinator's operator whether there is a second copy of this folder; `feddp node release "
    "NAME` ends it",
}

_PLAIN: Final = {
    "proxy returned response code 407": "the proxy wants credentials, or does not take those that "
    "it is shown: USER:PASSWORD in the file of `proxy.credentials_file` in agent.yaml, then "
    "restart the agent; `feddp agent doctor` says which of the two",
    "proxy returned response code": "the proxy does not let it through: ask those who run it to "
    "allow CONNECT to the coordinator; `feddp agent doctor` says what it answers",
    "certificate is not yet valid": f"by this machine's clock the coordinator's certificate has "
    f"not begun: {SET_CLOCK}; `feddp agent doctor` compares",
    "certificate has expired": f"by this machine's clock the coordinator's certificate has ended: "
    f"{SET_CLOCK}; if it is right, tell the coordinator's operator",
}
"""gRPC's own words that leave one cause, the narrower ones first -> what to do."""


def _advice(event: str, error: FeddpError) -> str:
    """What gRPC says outright comes before the list of all that it could be."""
    plain = (do for words, do in _PLAIN.items() if words in error.message)
    if event == "coordinator_unreachable" and (do := next(plain, "")):
        return f"the agent goes on trying; {do}"
    return _SHUT_OUT.get(error.reason, _ADVICE[event])


async def _first(*waits: Awaitable[Any]) -> None:
    """Wait until one of them is over, and give up the others."""
    tasks = [asyncio.ensure_future(one) for one in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _order(message: pb.WorkOrder) -> e.Event:
    try:
        return e.OrderReceived(Order.from_wire(message))
    except FeddpError as error:
        log.error("order_unreadable", reason=error.reason, detail=error.message)
        return e.OrderUnreadable(message.attempt_id, error.reason, error.message)


def _limit(message: pb.AccountLimit) -> tuple[str, float]:
    return message.account, message.epsilon_limit


def _highest(message: pb.AccountLimit) -> tuple[str, float]:
    return message.account, message.epsilon_limit_highest


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
