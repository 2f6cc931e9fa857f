"""What the coordinator does when the round machine asks: the real planner and ledger."""

from typing import Any

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import planner
from coordinator.rounds.effects import reserve_statement
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Attempt, Closing, Publishing, Reserving, Training
from coordinator.store.jobs import ModelRecord
from protos.errors import FeddpError, NotFound
from tests.simulation.coordinator_work import write_answer
from tests.simulation.coordinator_writer import MakeEvent, Writer
from tests.simulation.network import TO_NODE
from tests.simulation.orders import order_of

SILENT_S = 30.0


class Effects(Writer):
    """Carries out commands; the methods are replaced by planted bugs."""

    # Commands

    def carry_out(self, live: LiveJob, asked: list[c.Command]) -> None:
        """Begin each command by itself; a crash may come between any two."""
        for command in asked:
            self.later(
                self.world.random.uniform(0.0, 0.01),
                lambda command=command: self.command(live, command),
            )

    def command(self, live: LiveJob, command: c.Command) -> None:
        """Carry out one command."""
        if self.strike("crash_between_commands"):
            self.crash(f"before {type(command).__name__}")
            return
        match command:
            case c.Survey() | c.ReserveBudgets() | c.PublishModel():
                self.apply_reply(live, self.reply_to(live, command))
            case c.SendOrder(attempt_id):
                self.send_order(live, attempt_id)
            case c.NotifyClosed(attempt_id, node, outcome):
                self.blobs.drop_attempt(attempt_id)
                self.say(node, ("closed", attempt_id, outcome))
            case c.FoldUpdates():
                delay_s = self.world.random.uniform(0.05, 3.0)
                self.later(delay_s, lambda: self.apply_reply(live, self.fold))
            case c.WriteAnswer(through_round):
                self.apply_reply(live, lambda j: self.answered(j, through_round))
            case c.EndJob():
                attempts = [a for one in live.rounds() for a in one.attempts]
                for node in dict.fromkeys(a.node for a in attempts):
                    self.say(node, ("job_ended", live.job_id))
                for attempt in attempts:
                    self.blobs.drop_attempt(attempt.attempt_id)

    def reply_to(self, live: LiveJob, command: c.Command) -> MakeEvent:
        """What answers a command that needs nothing but the database."""
        match command:
            case c.ReserveBudgets():
                return lambda job: self.reserve(job, command)
            case c.PublishModel():
                return lambda job: self.publish(job, command)
            case _:
                return self.survey

    def survey(self, live: LiveJob) -> e.Event | None:
        """Who could take part now, by the real planner."""
        live.surveyed_at_s = self.world.now_s
        facts = []
        for node, hello in sorted(self.store.hellos.items()):
            data_set = next((d for d in hello.data_sets if d.name == live.job.dataset), None)
            if data_set is None:
                continue
            account, spent = None, (0, 0)
            try:
                account = self.store.read_account(f"{node}/{data_set.account}")
                spent = self.store.job_spending(live.job_id, account)
            except NotFound:
                pass  # the planner says so
            facts.append(
                planner.NodeFacts(
                    node=node,
                    connected=self.connected(node),
                    disabled=False,
                    data_set=data_set,
                    steward=next((a for a in hello.accounts if a.name == data_set.account), None),
                    account=account,
                    job_units=spent[0],
                    job_releases=spent[1],
                    last_noise_multiplier=live.last_noise(node),
                )
            )
        rounds_left = live.job.rounds_planned - len(live.phase.course.done)
        offers, absences = planner.survey(
            live.job, live.record.task_hash, facts, max(1, rounds_left)
        )
        return e.NodesSurveyed(offers, absences)

    def reserve(self, live: LiveJob, command: c.ReserveBudgets) -> e.Event | None:
        """Reserve for each offer that the ledger admits, or for none if too few are admitted."""
        match live.phase:
            case Reserving():
                wanted = live.phase.course.next_round == command.round
            case Training():
                wanted = live.phase.round.number == command.round and bool(live.phase.topping_up)
            case _:
                wanted = False
        if not wanted:
            return None
        grants: list[e.Grant] = []
        refused: list[e.Absence] = []
        with self.store.savepoint() as undo:
            for offer in command.offers:
                grant = e.Grant(self.new_attempt_id(live, offer), offer)
                try:
                    self.store.book(reserve_statement(live, command.round, grant))
                    grants.append(grant)
                except FeddpError as error:
                    refused.append(e.Absence(offer.node, "BUDGET", error.reason))
            if len(grants) < command.at_least:
                undo()
                grants = []
        return e.BudgetsReserved(tuple(grants), tuple(refused))

    def new_attempt_id(self, live: LiveJob, offer: e.Offer) -> str:
        """An id that no attempt ever had."""
        self.world.attempts += 1
        return f"t{self.world.attempts:04d}.{live.job_id}.{offer.node}"

    def publish(self, live: LiveJob, command: c.PublishModel) -> e.Event | None:
        """List the round's model, and the answer after the last round."""
        phase = live.phase
        if not isinstance(phase, Publishing) or phase.round.number != command.round:
            return None
        self.list_model(live, "round", command.round, command.digest)
        for attempt in phase.round.received:
            self.blobs.drop_attempt(attempt.attempt_id)
        if not command.last:
            return e.ModelPublished(command.round, None)
        digests = [one.model for one in phase.course.done] + [command.digest]
        answer = write_answer(self.blobs, digests)
        self.list_model(live, "answer", command.round, answer)
        return e.ModelPublished(command.round, answer)

    def answered(self, live: LiveJob, through_round: int) -> e.Event | None:
        """Make the answer of a job that ended early."""
        if not isinstance(live.phase, Closing):
            return None
        answer = write_answer(self.blobs, [one.model for one in live.phase.course.done])
        self.list_model(live, "answer", through_round, answer)
        return e.AnswerWritten(answer)

    def list_model(self, live: LiveJob, kind: str, number: int, digest: str) -> None:
        """Make a model known to people."""
        record = ModelRecord(live.job_id, kind, number, digest, 40, self.clock(), "p")
        self.store.add_model(record)

    def send_order(self, live: LiveJob, attempt_id: str) -> None:
        """Give the node its order, if it is still open."""
        found, phase = live.attempt(attempt_id), live.phase
        if found is None or not found[1].is_open or not isinstance(phase, Training):
            return
        self.order(live, phase, found[1])

    def order(self, live: LiveJob, phase: Training, attempt: Attempt) -> None:
        """The order leaves the coordinator."""
        self.world.checker.order_sent(attempt.attempt_id)
        self.say(attempt.node, ("order", order_of(live, phase, attempt)))

    def say(self, node: str, message: tuple[Any, ...]) -> None:
        """Tell a node, if it is connected."""
        session = self.sessions.get(node)
        if session is not None:
            session.stream.send(TO_NODE, message)

    def connected(self, node: str) -> bool:
        """Whether the node's stream is open and it spoke recently."""
        session = self.sessions.get(node)
        return session is not None and self.world.now_s - session.heard_at_s < SILENT_S
