"""A node in the simulation: the real agent machine, admission and `state.db` (in memory).

What the async driver, the link and the training do around them is done here in virtual time.
"""

from collections import Counter
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.ledger import rollback
from node_agent.policy.admission import Admission, Refused, Reserved
from node_agent.policy.orders import Order
from node_agent.session import commands as c
from node_agent.session import events as e
from node_agent.session import link, machine
from node_agent.session.attempts import Agent
from node_agent.session.messages import message_of
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb
from tests.simulation.hospital import TASKS, Steward
from tests.simulation.network import LOST, TO_COORDINATOR, TO_NODE, Stream
from tests.simulation.node_disk import NodeDisk
from tests.simulation.node_session import Greeting, look
from tests.simulation.node_work import hand_in, train
from tests.simulation.process import Process, Resume, Task, Work
from tests.simulation.truth import Broken

if TYPE_CHECKING:
    from tests.simulation.world import World

HEARTBEAT_S = 5.0


class Node(Process):
    """`step`, `resumed` and the disk's methods are replaced by planted bugs."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        seed = bytes([ord(name[0])]) * 32
        self.key = Ed25519PrivateKey.from_private_bytes(seed)
        self.steward = Steward(world.random)
        self.disk_ = NodeDisk(world, name, self.key)
        self.admission = Admission(name, self.disk_, self.steward, lambda: TASKS, 1 << 20)  # type: ignore[arg-type]
        self.gone = False
        self.step_s = world.random.choice([0.1, 0.2, 0.2, 0.8, 4.0])
        self.step = machine.step
        self.forget()

    # Life

    def forget(self) -> None:
        """Drop the memory; the stream breaks with the process."""
        stream: Stream | None = getattr(self, "stream", None)
        self.stream: Stream | None = None
        if stream is not None:
            stream.end(TO_NODE)
        self.agent = Agent()
        self.tasks: dict[str, list[Task]] = {}
        self.handing_in: set[str] = set()
        self.closed_wait: Resume | None = None
        self.training = False
        self.worker_lives: Counter[str] = Counter()
        self.offered: set[str] = set()
        self.greeting = Greeting(self)
        self.looking = False

    def start(self) -> None:
        """Read what the disk holds, then connect."""
        super().start()
        self.agent = Agent(idle_since_s=self.clock())
        self.spawn(self._recover())

    def _recover(self) -> Work:
        for attempt_id in self.disk_.opened():
            yield self.disk(lambda attempt_id=attempt_id: self.disk_.lose(attempt_id))
        resumed = yield self.disk(self.disk_.resumed)
        self.world.checker.limits.look(self.disk_)
        self.dispatch(e.Restarted(resumed))
        self.spawn(self._connect())
        self.spawn(self._beat())

    def stop(self) -> None:
        """End as an operator ends it; what is under way goes on after the restart."""
        if self.up:
            self.dispatch(e.StopRequested())
            self.crash("stopped by its operator")

    def _connect(self) -> Work:
        while True:
            stream = yield self.world.network.connect(self)
            if stream is not LOST and stream.open[TO_NODE]:
                self.stream = stream
                self.dispatch(e.Connected())
                yield self._until_closed
                self.dispatch(e.Disconnected())
            yield self.sleep(self.world.random.uniform(0.1, 5.0))

    def _until_closed(self, resume: Resume) -> None:
        self.closed_wait = resume

    def stream_ended(self, stream: Stream) -> None:
        """The stream is gone."""
        if stream is self.stream:
            self.stream = None
            resume, self.closed_wait = self.closed_wait, None
            if resume is not None and self.alive(stream.node_life):
                resume(None)

    def _beat(self) -> Work:
        while True:
            yield self.sleep(HEARTBEAT_S)
            self.dispatch(e.HeartbeatDue())
            if self.agent.welcomed and self.greeting.has_changed():
                self.dispatch(e.PolicyChanged())

    # Events in

    def hear(self, stream: Stream, message: pb.CoordinatorMessage) -> None:
        """Take what the coordinator says."""
        if not self.up or stream is not self.stream:
            return
        match message.WhichOneof("message"):
            case "welcome":
                closed = tuple(map(link._closed, message.welcome.closed))
                limits = tuple(filter(link._is_limit, map(link._limit, message.welcome.limits)))
                self.spawn(self._keep(limits))
                self._look_back(message.welcome)
                self.spawn(look(self))
                self.dispatch(e.WelcomeReceived(closed, limits))
            case "work_order":
                order = message.work_order
                if order.base_model:
                    self.offered.add(order.base_model_digest)
                self.dispatch(link._order(order))
            case "attempt_closed":
                self.dispatch(e.AttemptClosedReceived(*link._closed(message.attempt_closed)))
            case "job_ended":
                self.spawn(look(self))
                self.dispatch(e.JobEndedReceived(message.job_ended.job_id))

    def _look_back(self, welcome: pb.Welcome) -> None:
        """No disk here goes back in time: what was signed is there whatever happened."""
        signed = tuple(map(rollback.from_wire, welcome.signed))
        text = rollback.look(self.disk_.state, self.name, self.world.public_keys[self.name], signed)
        if text:
            raise Broken("no-false-rollback", f"{self.name}: {text}")

    def dispatch(self, event: e.Event) -> None:
        """One step of the agent, and what it asks for."""
        before = self.agent
        self.agent, asked = self.step(self.agent, event, self.clock())
        if asked or self.agent != before:
            self.world.checker.node_changed(self)
        if not isinstance(event, e.HeartbeatDue):
            self.world.note(f"{self.name} {_told(event)}")
        life = self.life
        for command in asked:
            if not self.alive(life):
                return
            if self.strike("crash_between_commands"):
                self.crash(f"before {type(command).__name__}")
                return
            self.carry_out(command)

    # Commands out

    def carry_out(self, command: c.Command) -> None:
        """Begin one command."""
        match command:
            case c.SendHeartbeat() | c.SendAccepted() | c.SendRefused() | c.SendNoUpdate():
                self.say(message_of(command))
            case c.SendHello(open_attempts):
                self.spawn(self._say_hello(open_attempts))
            case c.Reconnect():
                if self.stream is not None:
                    self.stream.end(TO_NODE)
            case c.JudgeOrder(order, opened):
                self._of(order.attempt_id, self._judge(order, opened))
            case c.FetchModel(order):
                self._of(order.attempt_id, self._fetch(order))
            case c.Withdraw(order):
                self._of(order.attempt_id, self._withdraw(command))
            case c.OpenAndTrain(order, due_at_s):
                self.spawn(train(self, order, due_at_s))
            case c.ScheduleOutcome(attempt_id, at_s):
                self.spawn(self._at(at_s, e.TickReached(attempt_id)))
            case c.ScheduleAcceptance(attempt_id, at_s):
                self._of(attempt_id, self._at(at_s, e.AcceptanceDue(attempt_id)))
            case c.UploadAndSubmit(attempt_id):
                if attempt_id not in self.handing_in:
                    self.handing_in.add(attempt_id)
                    self._of(attempt_id, hand_in(self, command))
            case c.Abandon(attempt_id):
                for task in self.tasks.pop(attempt_id, []):
                    task.cancel()
                self.handing_in.discard(attempt_id)
            case c.CloseAttempt(attempt_id, outcome):
                self.spawn(self._close(attempt_id, outcome))
            case c.StopWorker(job_id):
                self.worker_lives[job_id] += 1
            case c.ForgetModels():
                pass  # models are fetched anew each time
            case c.ReportConflict(attempt_id):
                self.world.checker.broken("own-id", f"{attempt_id} is ordered with other terms")

    def _of(self, attempt_id: str, work: Work) -> None:
        self.tasks.setdefault(attempt_id, []).append(self.spawn(work))

    def say(self, message: pb.AgentMessage) -> None:
        """Say it, if somebody listens."""
        if self.stream is not None:
            self.stream.send(TO_COORDINATOR, message)

    def _say_hello(self, open_attempts: tuple[str, ...]) -> Work:
        stream = self.stream
        message, raises = yield self.disk(lambda: self.greeting.say(open_attempts))
        if stream is not None and stream is self.stream:
            stream.raises = raises
            stream.send(TO_COORDINATOR, pb.AgentMessage(hello=message))

    def _keep(self, limits: tuple[tuple[str, float], ...]) -> Work:
        """What the coordinator holds this node's accounts to."""
        yield self.disk(lambda: self.disk_.state.coordinator_limits.keep(dict(limits)))

    def _judge(self, order: Order, opened: frozenset[str]) -> Work:
        decision = yield self.disk(lambda: self.admission.decide(order, opened))
        match decision:
            case Reserved(signature):
                self.dispatch(e.OrderReserved(order.attempt_id, signature))
            case Refused(reason, message, signature):
                self.dispatch(e.OrderRefused(order.attempt_id, reason, message, signature))
            case _:
                self.dispatch(e.OrderSpent(order.attempt_id, decision.signature))

    def _fetch(self, order: Order) -> Work:
        digest, coordinator = order.base_model_digest, self.world.coordinator
        while digest not in self.offered:
            answer = yield self.world.network.call(
                self, lambda reply: coordinator.download(self.name, digest, reply)
            )
            if isinstance(answer, FeddpError):
                reason = "MODEL_UNAVAILABLE"
                self.dispatch(e.WorkImpossible(order.attempt_id, reason, answer.reason))
                return
            if answer is not LOST:
                break
            yield self.sleep(self.world.random.uniform(0.1, 15.0))
        self.dispatch(e.ModelReady(order.attempt_id))

    def _withdraw(self, command: c.Withdraw) -> Work:
        attempt_id, reason, message = command.order.attempt_id, command.reason, command.message
        signature = yield self.disk(lambda: self.disk_.withdraw(attempt_id, reason, message))
        if signature is not None:
            possible = command.steps_possible
            self.dispatch(e.OrderRefused(attempt_id, reason, message, signature, possible))

    def _at(self, at_s: float, event: e.Event) -> Work:
        yield self.sleep((at_s - self.clock()) / self.clock_rate)
        self.dispatch(event)

    def _close(self, attempt_id: str, outcome: e.Outcome) -> Work:
        row = yield self.disk(lambda: self.disk_.close_attempt(attempt_id, outcome))
        if row is not None and row.update_digest:
            self.disk_.drop_update(row.update_digest)


def _told(event: e.Event) -> str:
    name = type(event).__name__
    match event:
        case e.OrderReceived(order):
            return f"{name} {order.attempt_id}"
        case e.Restarted(attempts):
            return f"{name} {' '.join(one.order.attempt_id for one in attempts)}".rstrip()
        case _:
            parts = [getattr(event, part, "") for part in ("attempt_id", "job_id", "reason")]
            return " ".join([name, *(part for part in parts if part)])
