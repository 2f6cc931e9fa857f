"""The coordinator's driver in virtual time around the product's turns, answers, effects.

What `TurnTaker` and `Rounds` do with tasks is done here with events of the simulation, in the same
order: one turn of a job at a time, memory after the commit, commands after memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

from coordinator.rounds import answers, averaging, effects, machine, turn_order
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds.answers import Answers
from coordinator.rounds.live import LiveJob, plan_of, replay
from coordinator.rounds.phases import Ended, Training
from coordinator.rounds.turn_taker import DOUBT_S
from coordinator.rounds.turns import Input, Taken, Turn, take_turn
from protos.errors import Unavailable
from protos.feddp.v1 import federation_pb2 as pb
from tests.simulation.coordinator_work import (
    Blobs,
    at_once,
    clock_of,
    finished,
    fold,
    write_answer,
)
from tests.simulation.network import TO_NODE
from tests.simulation.process import Process
from tests.simulation.stores import Seam
from tests.simulation.truth import Broken

if TYPE_CHECKING:
    from tests.simulation.network import Stream
    from tests.simulation.sql_store import Store
    from tests.simulation.world import World

NOTE_S = 0.02
SILENT_S = 30.0
RETRY_S = (0.2, 1.0, 5.0, 15.0)

Done = Callable[[Exception | None], None]
"""Told, once the turn is over, whether its input was taken."""


def _heedless(_fault: Exception | None) -> None:
    """Nobody waits."""


@dataclass
class Session:
    """The open stream of a node."""

    stream: "Stream"
    heard_at_s: float


class Driver(Process):
    """Methods are replaced by planted bugs."""

    def __init__(self, world: "World", store: "Store") -> None:
        super().__init__(world, "coordinator")
        self.store, self.blobs = store, Blobs(inline=world.random.random() < 0.5)
        self.answer = Answers(self, lambda live, node: self.taken(live, node))  # type: ignore[arg-type]
        self.effects = effects.Effects(self.blobs, self)  # type: ignore[arg-type]
        self.forget()

    def seams(self) -> list[Seam]:
        """Threads, clocks, dice and tensors of the product, for as long as the seed is played."""
        return [
            (answers, "secrets", SimpleNamespace(token_hex=lambda _bytes: self.new_attempt_id())),
            (effects, "asyncio", SimpleNamespace(to_thread=at_once)),
            (effects, "time", clock_of(self.clock)),
            (averaging, "fold", lambda live, phase, _blobs: fold(self, live, phase)),
            (averaging, "write_answer", write_answer),
        ]

    def forget(self) -> None:
        """Drop the memory and every stream."""
        self.serving = False
        self.live: dict[str, LiveJob] = {}
        for stream in self.world.network.streams:
            stream.cut()
        self.sessions: dict[str, Session] = {}
        self.left_at_s: dict[str, float] = {}

    def new_attempt_id(self) -> str:
        """An id that no attempt ever had."""
        self.world.attempts += 1
        return f"t{self.world.attempts:04d}"

    def running(self) -> list[LiveJob]:
        """Jobs that have not ended."""
        return [live for live in self.live.values() if not live.has_ended]

    def taken(self, live: LiveJob, node: str) -> e.Absence | None:
        """Whether another job has the node now, or goes first for it."""
        others = [one for one in self.live.values() if one.job_id != live.job_id]
        return turn_order.taken(live, others, node)

    # Sessions, as answers and effects see them

    def send(self, node: str, message: pb.CoordinatorMessage) -> bool:
        """Tell a node, if it is connected."""
        session = self.sessions.get(node)
        if message.WhichOneof("message") == "work_order":
            self.world.checker.order_sent(message.work_order.attempt_id)
        if session is not None:
            session.stream.send(TO_NODE, message)
        return session is not None

    def connected(self, node: str) -> bool:
        """Whether the node's stream is open and it spoke recently."""
        session = self.sessions.get(node)
        return session is not None and self.world.now_s - session.heard_at_s < SILENT_S

    # Turns, as `TurnTaker`

    def take(self, live: LiveJob, given: Input, done: Done = _heedless) -> None:
        """Have an input taken in the job's next turn."""
        live.inbox.append((given, done))
        self._begin(live)

    def note(self, live: LiveJob, event: e.Event) -> None:
        """Have an event taken that nobody waits for."""
        live.inbox.append((event, _heedless))
        self.later(NOTE_S, lambda: self._begin(live))

    def _begin(self, live: LiveJob) -> None:
        if live.inbox and not live.has_turn:
            live.has_turn = True
            self.later(0.0, lambda: self._next(live))

    def _next(self, live: LiveJob) -> None:
        batch, live.inbox = live.inbox, []
        live.has_turn = bool(batch)
        if batch:
            self._turns(live, [batch])

    def _turns(self, live: LiveJob, batches: list[Sequence[tuple[Input, Done]]]) -> None:
        """Take batches one after the other, then what has come meanwhile."""
        if not batches:
            self._next(live)
            return
        batch, rest = batches[0], batches[1:]

        def then(turn: Turn | Exception) -> None:
            if isinstance(turn, Exception):
                if not live.unsure:
                    live.unsure = True
                    self.later(DOUBT_S, lambda: self._make_sure(live))
                if len(batch) > 1:  # one of them may be at fault: alone, it harms nobody else
                    self._turns(live, [*([one] for one in batch), *rest])
                    return
                batch[0][1](turn)
            else:
                live.phase, live.steps = turn.phase, turn.steps
                self.committed(live, turn)
                for fault in turn.faults.values():
                    raise fault  # a pair of phase and event that the machine does not know
                for _, done in batch:
                    done(None)
            if self.up:
                self._turns(live, rest)

        self.commit(lambda: self._turn(live, [given for given, _ in batch]), then)

    def _make_sure(self, live: LiveJob) -> None:
        if live.unsure:
            self.take(live, lambda _connection, _live: None)
            self.later(DOUBT_S, lambda: self._make_sure(live))

    def _turn(self, live: LiveJob, inputs: list[Input]) -> Turn | Exception:
        if live.unsure:
            self._catch_up(live)
        fails = self.strike("database_fails")
        try:
            with self.store.transaction() as connection:
                turn = take_turn(connection, live, inputs, self.answer, self.clock())  # type: ignore[arg-type]
                if fails:
                    raise Unavailable("DATABASE", "the disk is full")
        except Unavailable as error:
            return error
        if turn.unbooked:  # no ledger is damaged here
            raise Broken("ledgers-agree", f"nothing is booked of {turn.unbooked}")
        for one in turn.taken:
            self.world.note(f"{live.job_id} {told(one.event)} -> {type(one.phase).__name__}")
        self.world.checker.central_changed()
        if self.strike("commit_unheard"):
            return Unavailable("DATABASE", "nobody heard whether it was committed")
        return turn

    def _catch_up(self, live: LiveJob) -> None:
        phase, count = replay(plan_of(live.job), self.store.history(live.job_id))
        live.unsure = False
        if count != live.steps:
            live.phase, live.steps = phase, count
            self.world.note(f"{live.job_id} caught up")
            self.world.faults.note("caught_up")
            self.later(0.0, lambda: self.carry_out(live, machine.resume(live.phase)))

    def committed(self, live: LiveJob, turn: Turn) -> None:
        """Memory is at the turn's end: carry out what is left."""
        self.world.checker.memory_changed(live)
        for one in turn.taken:
            for kind in _met(one.event):
                self.world.faults.note(kind)
            self.carry_out(live, one.asked)
            if isinstance(one.before, Training) and not isinstance(one.phase, Training):
                self._look_again(live)
            if _fails(one):
                self.world.job_failed(live.job_id)

    def _look_again(self, ended: LiveJob) -> None:
        for live in self.running():
            if live is not ended and live.is_waiting():
                self.carry_out(live, [c.Survey()])

    # Commands, as `Rounds`

    def carry_out(self, live: LiveJob, asked: Sequence[c.Command]) -> None:
        """Begin each command by itself; a crash may come between any two."""
        for command in asked:
            self.later(
                self.world.random.uniform(0.0, 0.01),
                lambda command=command: self.command(live, command),
            )

    def command(self, live: LiveJob, command: c.Command, tries: int = 0) -> None:
        """Carry out one command, again and again while the fault may pass."""

        def again(fault: Exception | None) -> None:
            if fault is not None:
                delay_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
                self.later(delay_s, lambda: self.command(live, command, tries + 1))

        name = type(command).__name__
        if self.strike("crash_between_commands"):
            self.crash(f"before {name}")
        elif isinstance(command, c.InsideCommand):
            self.take(live, command, again)
        elif self.strike("effect_fails"):
            again(Unavailable("DISK", "the disk is full"))
        elif type(command) in _MAY_FAIL and self.strike(_MAY_FAIL[type(command)]):
            self._fail(live, f"a file is missing ({name})")
        else:
            reply = finished(self.effects.run(live, command))
            if reply is not None:
                delay_s = self.world.random.uniform(0.05, 3.0)
                self.later(delay_s, lambda: self.take(live, reply, again))

    def _fail(self, live: LiveJob, message: str) -> None:
        def again(fault: Exception | None) -> None:
            if fault is not None:
                self.later(RETRY_S[-1], lambda: self._fail(live, message))

        self.take(live, e.StepFailed(message), again)


_MAY_FAIL: dict[type[c.Command], str] = {
    c.SendOrder: "order_failed",
    c.FoldUpdates: "step_failed",
    c.PublishLast: "step_failed",
    c.WriteAnswer: "step_failed",
}
"""Commands that read and write files, and the fault that no retry mends."""


def _fails(one: Taken) -> bool:
    failed = isinstance(one.phase, Ended) and one.phase.status == "failed"
    return failed and not isinstance(one.before, Ended)


def _met(event: e.Event) -> list[str]:
    match event:
        case e.GracePassed():
            return ["grace_passed"]
        case e.OrderWasRefused(reason="STEPS_TOO_MANY"):
            return ["steps_too_many"]
        case e.NodesSurveyed(absences=absences) if any(a.reason == "BUSY" for a in absences):
            return ["busy"]
        case _:
            return []


def told(event: e.Event) -> str:
    """An event for the transcript, in one line."""
    match event:
        case e.NodesSurveyed(offers, absences):
            away = " ".join(f"{a.node}:{a.reason}" for a in absences)
            return f"surveyed {','.join(o.node for o in offers)} {away}".rstrip()
        case e.BudgetsReserved(grants, refused):
            orders = " ".join(f"{g.attempt_id}@{g.offer.node}" for g in grants)
            return f"reserved {orders} refused {len(refused)}"
        case _:
            parts = [getattr(event, name, "") for name in ("attempt_id", "node", "round", "reason")]
            return " ".join([type(event).__name__, *(str(one) for one in parts if one != "")])
