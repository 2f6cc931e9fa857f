"""The shell around the agent machine: carries out its commands, brings it events and the time."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import structlog

from node_agent.connection import bandwidth
from node_agent.connection.proxy import split_address
from node_agent.connection.transfer import Transfers
from node_agent.connection.transfer_ways import Ways
from node_agent.failures import Failures
from node_agent.policy.admission import Decision, Refused, Reserved
from node_agent.policy.orders import Order
from node_agent.session import commands as c
from node_agent.session import events as e
from node_agent.session.attempts import Agent, Phase
from node_agent.session.delivery import Delivery
from node_agent.session.link import Link
from node_agent.session.machine import step
from node_agent.session.messages import message_of
from node_agent.session.models import Models
from node_agent.session.parts import Parts
from node_agent.session.publication import Publication
from node_agent.session.recovery import recover
from node_agent.session.restorations import Restorations
from node_agent.session.training import Training
from node_agent.session.witness import Witness
from node_agent.state.notes import CONNECTED_NOTE, REFUSED_NOTE
from protos import tracing
from protos.errors import FeddpError
from protos.failures import told
from protos.feddp.v1 import federation_pb2 as pb

log = structlog.get_logger(__name__)


def steady_clock() -> Callable[[], float]:
    """Seconds since the epoch that never jump while this process lives."""
    offset_s = time.time() - time.monotonic()
    return lambda: offset_s + time.monotonic()


class Driver:
    """One agent at work."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._clock = steady_clock()
        self._agent = Agent(idle_since_s=self._clock())
        self._transfers = Transfers(
            parts.channel,
            parts.spool,
            asyncio.sleep,
            bandwidth.Throttle(lambda: parts.steward.rules().policy.transfer),
            Ways(parts.channel, split_address(parts.address)[0], parts.open_apart),
        )
        self._link = Link(
            parts.channel,
            parts.address,
            self._dispatch,
            self._clock,
            offer_model=self._transfers.offer,
            refused=self.note_refused,
            traced=parts.traces.ordered,
            admits=lambda told: self._restorations.admits(told),
            told_transfer=self._transfers.told,
        )
        self._restorations = Restorations(
            parts.state,
            parts.ledger,
            parts.admission.node,
            self._clock,
            lambda: self._agent.attempts,
            self._dispatch,
            self._link.turn_away,
            lambda: self._spawn(self._greet_if_changed()),
        )
        self._failures = Failures(parts.logs)
        self._training = Training(
            failures=self._failures,
            state=parts.state,
            ledger=parts.ledger,
            admission=parts.admission,
            spool=parts.spool,
            start_worker=parts.start_worker,
            logs=parts.logs,
            limits=parts.limits,
            dispatch=self._dispatch,
            wanted=lambda attempt_id: self._agent.find(attempt_id) is not None,
            clock=self._clock,
            traces=parts.traces,
        )
        self._witness = Witness(
            parts.channel,
            parts.state,
            parts.ledger,
            parts.admission.filter_of_account,
            self._clock,
            self._looked,
            self._restorations.met,
            self._restorations.arrive,
        )
        self._publication = Publication(
            parts.state, parts.steward, parts.admission, parts.tasks, parts.unavailable
        )
        self._delivery = Delivery(
            self._transfers,
            parts.state,
            parts.ledger,
            parts.admission,
            parts.spool,
            dispatch=self._dispatch,
            find=lambda attempt_id: self._agent.find(attempt_id),
        )
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_attempt: dict[str, set[asyncio.Task[None]]] = {}
        self._models = Models(self._transfers, parts.spool, parts.ledger)
        self._applied: tuple[object, ...] = parts.steward.stamp()

    def renewed(self, channel: grpc.aio.Channel) -> None:
        """A newer certificate: every call from now on, and the session, go over this connection."""
        self._transfers.use(channel)
        self._witness.use(channel)
        self._link.renewed(channel)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. Whatever cannot be written ends the agent: it fails closed."""
        state, spool = self._parts.state, self._parts.spool
        resumed = await self._parts.ledger.run(recover, state, spool, self._failures)
        await self._restorations.recall()
        try:
            async with self._group:
                self._dispatch(e.Restarted(resumed))
                self._spawn(self._link.run())
                self._spawn(self._beat())
                self._spawn(self._watch())
                self._spawn(self._witness.run())
                await stop.wait()
                self._dispatch(e.StopRequested())
                for task in list(self._tasks):
                    task.cancel()
        finally:
            self._training.stop_all()
            await self._training.ended()
            await self._parts.ledger.run(self._parts.state.notes.keep, CONNECTED_NOTE, "")

    # Events in

    def _dispatch(self, event: e.Event) -> None:
        self._agent, asked = step(self._agent, event, self._clock())
        match event:
            case e.WelcomeReceived(limits=limits, highest=highest):
                # Before anything that follows: the ledger's thread takes things in turn.
                self._spawn(self._restorations.welcomed(event.epochs, event.signed))
                keep = self._parts.state.coordinator_limits.keep
                self._spawn(self._parts.ledger.run(keep, dict(limits), dict(highest)))
                log.info("connected", coordinator=self._parts.address)
                self._note(CONNECTED_NOTE, f"{self._clock():.3f}")
                self._note(REFUSED_NOTE, "")
                self._witness.soon()
            case e.JobEndedReceived(job_id):
                self._spawn(self._parts.ledger.run(self._parts.state.end_job, job_id))
                self._witness.soon()
            case e.Disconnected():
                self._note(CONNECTED_NOTE, "")
            case e.DataOpened(attempt_id, at_s, outcome_s):
                self._parts.traces.opened(attempt_id, at_s, outcome_s)
        for command in asked:
            self._carry_out(command)

    def note_refused(self, error: FeddpError) -> None:
        """For `feddp agent status`, which works beside the agent and asks nobody."""
        said = {"at": self._clock(), "reason": error.reason, "message": error.message}
        self._note(REFUSED_NOTE, json.dumps(said))

    def _note(self, key: str, value: str) -> None:
        self._spawn(self._parts.ledger.run(self._parts.state.notes.keep, key, value))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._link.heartbeat_s)
            self._dispatch(e.HeartbeatDue())

    async def _watch(self) -> None:
        """Look at each heartbeat whether to greet again. Apart from the heartbeats, which no disk
        may delay."""
        while True:
            await asyncio.sleep(self._link.heartbeat_s)
            await self._greet_if_changed()

    async def _looked(self) -> None:
        """The coordinator's ledger was read: what it tells of who paid before may keep a data set
        from being published, and then no round may be planned on it."""
        await self._restorations.recall()
        await self._greet_if_changed(await self._parts.ledger.run(self._publication.barred_now))

    async def _greet_if_changed(self, barred: frozenset[str] | None = None) -> None:
        """Say Hello again when the steward's files have changed, a data set can be used or cannot
        any more, a limit was raised, or a dispute began or ended.

        Args:
            barred: see `Publication.is_outdated`.
        """
        stamp = await asyncio.to_thread(self._parts.steward.stamp)
        if stamp != self._applied:
            await self._apply_rules(stamp)
        now = await self._parts.ledger.run(self._publication.circumstances)
        if self._agent.welcomed and self._publication.is_outdated(stamp, now, barred):
            self._dispatch(e.PolicyChanged())

    async def _apply_rules(self, stamp: tuple[object, ...]) -> None:
        """The steward's files have changed: what they no longer allow ends, whatever it is at. It
        stays charged where the data was opened."""
        self._applied = stamp
        orders = [one.order for one in self._agent.attempts]
        stopped = await self._parts.ledger.run(self._parts.admission.withdrawn, orders)
        if fault := self._parts.steward.fault:
            log.error("rules_broken", detail=fault, do="the rules of before stay in force")
        elif slip := self._parts.steward.slip:
            log.error("rules_broken", detail=slip, do="mend the name; the rest is in force")
        for order, refusal in stopped:
            attempt = self._agent.find(order.attempt_id)
            if attempt is None:
                continue
            log.warning("attempt_stopped", reason=refusal.reason, **_fields(order))
            if attempt.phase in (Phase.PREPARING, Phase.TRAINING):
                self._training.stop(order.job_id)
            if attempt.digest:
                await self._delivery.withdraw(order.attempt_id, attempt.digest)

    # Commands out

    def _carry_out(self, command: c.Command) -> None:
        match command:
            case c.SendHeartbeat() | c.SendAccepted() | c.SendRefused():
                self._link.send(message_of(command, self._parts.traces.traceparent))
            case c.SendNoUpdate(attempt_id):
                self._parts.traces.released(attempt_id)
                self._link.send(message_of(command, self._parts.traces.traceparent))
            case c.SendHello(open_attempts):
                self._spawn(self._say_hello(open_attempts))
            case c.Reconnect():
                self._link.reconnect()
            case c.JudgeOrder(order, opened):
                self._spawn(self._judge(order, opened), order.attempt_id)
            case c.FetchModel(order):
                self._spawn(self._fetch(order), order.attempt_id)
            case c.Withdraw(order):
                self._spawn(self._withdraw(command), order.attempt_id)
            case c.OpenAndTrain(order, due_at_s):
                # Not bound to the attempt: a closed attempt's worker is stopped instead.
                self._spawn(self._training.run(order, due_at_s))
            case c.ScheduleAcceptance(attempt_id, at_s):
                self._at(at_s, e.AcceptanceDue(attempt_id))
            case c.ScheduleOutcome(attempt_id, at_s):
                self._at(at_s, e.TickReached(attempt_id))
            case c.UploadAndSubmit(attempt_id):
                self._parts.traces.released(attempt_id)
                if self._delivery.begins(attempt_id):
                    self._spawn(self._hand_in(command), attempt_id)
            case c.Abandon(attempt_id):
                for task in self._of_attempt.pop(attempt_id, set()):
                    if task is not asyncio.current_task():
                        task.cancel()
            case c.CloseAttempt(attempt_id, outcome):
                self._parts.traces.closed(attempt_id, outcome)
                self._spawn(self._delivery.close(attempt_id, outcome))
            case c.StopWorker(job_id):
                self._training.stop(job_id)
            case c.ForgetModels():
                self._forget_models()
            case c.ReportConflict(attempt_id):
                log.error("order_conflicts", attempt_id=attempt_id)

    def _spawn(self, work: Coroutine[Any, Any, None], attempt_id: str = "") -> None:
        try:
            with tracing.within(None):  # it goes on for longer than whatever asked for it
                task = self._group.create_task(work)
        except RuntimeError:
            # The agent is ending on an error; what is left is in the state database.
            work.close()
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if attempt_id:
            mine = self._of_attempt.setdefault(attempt_id, set())
            mine.add(task)
            task.add_done_callback(mine.discard)

    async def _say_hello(self, open_attempts: tuple[str, ...]) -> None:
        outbox = self._link.newest
        message = await self._parts.ledger.run(self._publication.hello, open_attempts)
        if outbox is not None:
            outbox.put_nowait(pb.AgentMessage(hello=message))

    async def _hand_in(self, command: c.UploadAndSubmit) -> None:
        with self._parts.traces.span("upload", command.attempt_id):
            await self._delivery.hand_in(command)

    async def _judge(self, order: Order, opened: frozenset[str]) -> None:
        with self._parts.traces.span("admission", order.attempt_id):
            await self._judge_now(order, opened)

    async def _judge_now(self, order: Order, opened: frozenset[str]) -> None:
        decide = self._parts.admission.decide
        decision: Decision = await self._parts.ledger.run(decide, order, opened)
        attempt_id, fields = order.attempt_id, _fields(order)
        match decision:
            case Reserved(signature, terms):
                log.info("order_accepted", **fields)
                self._training.admitted(attempt_id, terms)
                self._dispatch(e.OrderReserved(attempt_id, signature))
            case Refused(reason, message, signature):
                log.warning("order_refused", reason=reason, detail=message, **fields)
                self._failures.refused(order, reason, message)
                self._dispatch(e.OrderRefused(attempt_id, reason, message, signature))
            case _:
                log.warning("order_spent", **fields)
                self._dispatch(e.OrderSpent(attempt_id, decision.signature))

    async def _fetch(self, order: Order) -> None:
        try:
            with self._parts.traces.span("download", order.attempt_id):
                some_are_over = await self._models.fetch(order)
        except FeddpError as error:
            log.error("model_unavailable", reason=error.reason, **_fields(order))
            message = f"The round's model could not be fetched: {error.reason}."
            said = told("MODEL_UNAVAILABLE", message)
            self._dispatch(e.WorkImpossible(order.attempt_id, "MODEL_UNAVAILABLE", said))
            return
        if some_are_over:
            self._spawn(self._sweep_models())
        self._dispatch(e.ModelReady(order.attempt_id))

    async def _withdraw(self, command: c.Withdraw) -> None:
        attempt_id, reason, message = command.order.attempt_id, command.reason, command.message
        signature = await self._parts.ledger.run(
            self._parts.state.withdraw, attempt_id, reason, message
        )
        if signature is not None:
            log.warning("order_withdrawn", reason=reason, detail=message, **_fields(command.order))
            self._failures.refused(command.order, reason, message)
            possible = command.steps_possible
            self._dispatch(e.OrderRefused(attempt_id, reason, message, signature, possible))

    def _at(self, at_s: float, event: e.AcceptanceDue | e.TickReached) -> None:
        """Bring an event at a moment; one that comes after its attempt is over is ignored."""
        delay_s = max(0.0, at_s - self._clock())
        asyncio.get_running_loop().call_later(delay_s, lambda: self._spawn(self._bring(event)))

    async def _bring(self, event: e.Event) -> None:
        self._dispatch(event)

    def _forget_models(self) -> None:
        jobs = {one.order.job_id for one in self._agent.attempts} | {*self._agent.workers}
        self._models.keep_jobs(jobs)
        self._spawn(self._sweep_models())

    async def _sweep_models(self) -> None:
        await self._models.sweep({one.order.base_model_digest for one in self._agent.attempts})


def _fields(order: Order) -> dict[str, Any]:
    return {"job_id": order.job_id, "round": order.round, "attempt_id": order.attempt_id}
