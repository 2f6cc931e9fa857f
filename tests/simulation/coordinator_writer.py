"""The coordinator's one writer: steps of the real round machine, each journalled with its charges.

What the async driver does around the machine is done here in virtual time: some events in one
commit, commands after it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Ended
from tests.simulation.coordinator_work import Blobs, fold
from tests.simulation.process import Process
from tests.simulation.stores import Store

if TYPE_CHECKING:
    from tests.simulation.network import Stream
    from tests.simulation.world import World

SQL_ONLY = (c.Survey, c.ReserveBudgets, c.PublishModel)
"""In every second seed carried out inside the transaction that asked for them."""

MakeEvent = Callable[[LiveJob], e.Event | None]


@dataclass
class Session:
    """The open stream of a node."""

    stream: "Stream"
    heard_at_s: float


class Writer(Process):
    """`step`, `resume` and the methods are replaced by planted bugs."""

    def __init__(self, world: "World", store: Store) -> None:
        super().__init__(world, "coordinator")
        self.store, self.blobs = store, Blobs()
        self.group = world.random.choice([1, 1, 4, 8])
        self.inline = world.random.random() < 0.5
        self.step, self.resume = machine.step, machine.resume
        self.fold: MakeEvent = lambda live: fold(self, live)
        self.forget()

    def forget(self) -> None:
        """Drop the memory and every stream."""
        self.serving = False
        self.live: dict[str, LiveJob] = {}
        for stream in self.world.network.streams:
            stream.cut()
        self.sessions: dict[str, Session] = {}
        self.left_at_s: dict[str, float] = {}
        self.queue: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []
        self.committing = False

    def carry_out(self, live: LiveJob, asked: list[c.Command]) -> None:
        """Begin each command."""
        raise NotImplementedError

    def reply_to(self, live: LiveJob, command: c.Command) -> MakeEvent:
        """What answers a command that needs nothing but the database."""
        raise NotImplementedError

    # The one writer

    def write(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Run `work` in a transaction, some of them in one commit; then `then` with its result."""
        self.queue.append((work, then))
        if not self.committing:
            self.committing = True
            self.later(self.disk_delay_s(), self._commit)

    def _commit(self) -> None:
        batch, self.queue = self.queue[: self.group], self.queue[self.group :]
        if self.strike("crash_before_commit"):
            self.crash("before a commit")
            return
        with self.store.transaction():
            results = [work() for work, _ in batch]
        self.world.checker.central_changed()
        if self.strike("crash_after_commit"):
            self.crash("after a commit")
            return
        self.committing = bool(self.queue)
        if self.committing:
            self.later(self.disk_delay_s(), self._commit)
        life = self.life
        for (_, then), result in zip(batch, results, strict=True):
            if self.alive(life):
                then(result)

    def apply(self, live: LiveJob, event: e.Event, done: Callable[[], None] = lambda: None) -> None:
        """One step of a job."""
        self.apply_reply(live, lambda _: event, done)

    def apply_reply(
        self, live: LiveJob, make: MakeEvent, done: Callable[[], None] = lambda: None
    ) -> None:
        """One step whose event is found out inside the transaction."""

        def then(asked: list[c.Command]) -> None:
            done()
            if self.up:
                self.carry_out(live, asked)

        self.write(lambda: self.take_step(live, make), then)

    def take_step(self, live: LiveJob, make: MakeEvent) -> list[c.Command]:
        """Step, journal and book; gives the commands that are left for after the commit."""
        event = make(live)
        if event is None:
            return []
        now_s, before = self.clock(), live.phase
        phase, asked = self.step(before, event, now_s)
        if phase == before and not asked:
            return []
        self.journal(live, now_s, event)
        for command in asked:
            self.book(command)
        if isinstance(phase, Ended) and not isinstance(before, Ended):
            self.store.set_status(live.job_id, phase.status)
        live.phase = phase
        self.world.note(f"{live.job_id} {told(event)} -> {type(phase).__name__}")
        left: list[c.Command] = []
        for command in asked:
            if self.inline and isinstance(command, SQL_ONLY):
                left += self.take_step(live, self.reply_to(live, command))
            elif not isinstance(command, c.LedgerCommand):
                left.append(command)
        return left

    def journal(self, live: LiveJob, now_s: float, event: e.Event) -> None:
        """Write the event."""
        self.store.journal(live.job_id, live.steps, now_s, event)
        live.steps += 1

    def book(self, command: c.Command) -> None:
        """Carry out a ledger command inside the step's transaction."""
        match command:
            case c.KeepSignature(attempt_id, signature):
                self.store.keep_signature(attempt_id, signature)
            case c.PostCharge(attempt_id, signature):
                self.store.resolve(attempt_id, "post", signature)
            case c.VoidCharge(attempt_id, signature):
                self.store.resolve(attempt_id, "void", signature)


def told(event: e.Event) -> str:
    """An event for the transcript, in one line."""
    match event:
        case e.NodesSurveyed(offers, absences):
            away = " ".join(f"{a.node}:{a.reason}" for a in absences)
            return f"surveyed {','.join(o.node for o in offers)} {away}".rstrip()
        case e.BudgetsReserved(grants, refused):
            return f"reserved {' '.join(g.attempt_id for g in grants)} refused {len(refused)}"
        case _:
            parts = [getattr(event, name, "") for name in ("attempt_id", "node", "round", "reason")]
            return " ".join([type(event).__name__, *(str(one) for one in parts if one != "")])
