"""One job in virtual time with faults from a seed: round machine, ledger, nodes, messages."""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine
from coordinator.rounds.live import replay
from coordinator.rounds.phases import (
    Aggregating,
    Ended,
    Phase,
    Plan,
    Publishing,
    Reserving,
    Training,
    current_round,
)
from privacy.filters import make_filter
from privacy.ledger import Balance, Entry, Statement, append, sign
from privacy.releases import Release
from privacy.verification import verify
from protos.errors import BudgetRefused

FAULTS_UNTIL_S = 300.0
ENDS_AT_S = 4000.0
TICK_S = 5.0
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()


class Broken(Exception):
    """An invariant does not hold."""


@dataclass
class Node:
    """A node with its own memory: what it answered to each attempt, and what it trained."""

    name: str
    up: bool = True
    answers: dict[str, e.Event] = field(default_factory=dict)
    opened: set[str] = field(default_factory=set)


class World:
    """Runs one seed. `step` and `resolve` may be replaced by tests that plant a bug."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        draw = self.random
        self.plan = Plan(3, draw.randint(2, 6), 60.0, 3)
        self.nodes = {n: Node(n) for n in "abcdef"[: draw.randint(3, 6)]}
        limit = {n: draw.choice([2.0, 4.0, 10.0, 10.0, 10.0]) for n in self.nodes}
        self.balances = {n: Balance(make_filter("gdp", 0, limit[n], 1e-5)) for n in self.nodes}
        self.entries: dict[str, list[Entry]] = {n: [] for n in self.nodes}
        self.journal: list[tuple[float, bytes]] = []
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.count = self.faults = self.events = 0
        self.now_s = 0.0
        self.transcript: list[str] = []
        self.step = machine.step
        self.phase: Phase
        phase, asked = machine.start(self.plan, e.JobSubmitted("m0"), 0.0)
        self.journal.append((0.0, e.to_json(e.JobSubmitted("m0"))))
        self.phase = phase
        self.carry_out(asked)
        self.later(TICK_S, self.tick)
        if draw.random() < 0.15:
            self.later(draw.uniform(1, 200), lambda: self.apply(e.CancelRequested("somebody")))

    # Time and messages

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now_s + delay_s, self.count, work))

    def faulty(self, chance: float) -> bool:
        hit = self.now_s < FAULTS_UNTIL_S and self.random.random() < chance
        self.faults += hit
        return hit

    def message(self, work: Callable[[], None]) -> None:
        """Deliver once, never, or twice, after a random delay."""
        if self.faulty(0.08):
            return
        for _ in range(2 if self.faulty(0.08) else 1):
            self.later(self.random.uniform(0.01, 3.0), work)

    def run(self) -> str:
        """Play to the end and give the status."""
        while self.queue and self.now_s < ENDS_AT_S and not isinstance(self.phase, Ended):
            self.now_s, _, work = heapq.heappop(self.queue)
            work()
        self.check_end()
        return self.phase.status if isinstance(self.phase, Ended) else "waiting"

    # The driver

    def apply(self, event: e.Event) -> None:
        """One step, journalled together with its ledger entries; then perhaps a crash."""
        phase, asked = self.step(self.phase, event, self.now_s)
        if phase == self.phase and not asked:
            return
        self.journal.append((self.now_s, e.to_json(event)))
        for one in asked:
            if isinstance(one, c.PostCharge):
                self.resolve(one.attempt_id, "post", one.signature)
            elif isinstance(one, c.VoidCharge):
                self.resolve(one.attempt_id, "void", one.signature)
        self.phase = phase
        self.note(event)
        self.check(asked)
        if self.faulty(0.03):
            self.crash()
        else:
            self.carry_out([a for a in asked if not isinstance(a, c.LedgerCommand)])

    def crash(self) -> None:
        """Memory is gone; the journal is read again."""
        self.phase, _ = replay(self.plan, [(at, e.from_json(j)) for at, j in self.journal])
        self.transcript.append(f"{self.now_s:.2f} crash and restart")
        asked = machine.resume(self.phase)
        self.apply(e.CoordinatorRestarted())
        self.carry_out(asked)

    def carry_out(self, asked: list[c.Command]) -> None:
        for one in asked:
            self.later(0.001, lambda one=one: self.command(one))  # type: ignore[misc]

    def command(self, one: c.Command) -> None:
        match one:
            case c.Survey():
                self.survey()
            case c.ReserveBudgets():
                self.reserve(one)
            case c.SendOrder(attempt_id):
                self.message(lambda: self.order(attempt_id))
            case c.FoldUpdates(number):
                if isinstance(self.phase, Aggregating) and self.phase.round.number == number:
                    self.apply(e.UpdatesFolded(number, f"m{number}", 40, 0.1, 0.0, False))
            case c.PublishModel(number) | c.PublishLast(number):
                last = isinstance(one, c.PublishLast)
                if isinstance(self.phase, Publishing) and self.phase.round.number == number:
                    self.apply(e.ModelPublished(number, "answer" if last else None))
            case c.WriteAnswer():
                self.apply(e.AnswerWritten("answer"))

    def survey(self) -> None:
        offers, absences = [], []
        for node in self.nodes.values():
            offer = e.Offer(node.name, node.name, 100, "gaussian", 8.0, 1.0)
            cost = self.balances[node.name].filter.cost_units(self.release(offer))
            if not node.up:
                absences.append(e.Absence(node.name, "OFFLINE", "is not connected"))
            elif cost > self.balances[node.name].remaining_units:
                absences.append(e.Absence(node.name, "BUDGET", "is spent", for_good=True))
            else:
                offers.append(offer)
        self.apply(e.NodesSurveyed(tuple(offers), tuple(absences)))

    def reserve(self, asked: c.ReserveBudgets) -> None:
        match self.phase:
            case Reserving():
                wanted = self.phase.course.next_round == asked.round
            case Training():
                wanted = self.phase.round.number == asked.round and bool(self.phase.topping_up)
            case _:
                wanted = False
        if not wanted:
            return
        kept = dict(self.balances), {n: list(v) for n, v in self.entries.items()}
        grants, refused = [], []
        for offer in asked.offers:
            self.count += 1
            grant = e.Grant(f"{offer.node}.{asked.round}.{self.count}", offer)
            try:
                self.book(self.statement(grant, asked.round), b"")
                grants.append(grant)
            except BudgetRefused as error:
                refused.append(e.Absence(offer.node, "BUDGET", error.message))
        if len(grants) < asked.at_least:
            (self.balances, self.entries), grants = kept, []
        self.apply(e.BudgetsReserved(tuple(grants), tuple(refused)))

    # The ledger

    def release(self, offer: e.Offer) -> Release:
        return Release("gaussian", offer.noise_multiplier, 1.0, 5)

    def statement(self, grant: e.Grant, number: int) -> Statement:
        offer = grant.offer
        return Statement(
            "reserve",
            grant.attempt_id,
            "p",
            offer.node,
            offer.account,
            "d",
            "j",
            number,
            "patient",
            100,
            "gaussian",
            offer.noise_multiplier,
            1.0,
            5,
        )

    def book(self, statement: Statement, signature: bytes) -> None:
        node = statement.node
        after = self.balances[node].apply(statement)
        if after != self.balances[node]:
            chain = self.entries[node]
            chain.append(append(statement, chain[-1] if chain else None, signature))
            self.balances[node] = after

    def resolve(self, attempt_id: str, kind: Any, signature: bytes) -> None:
        node = attempt_id.partition(".")[0]
        made = next(x.statement for x in self.entries[node] if x.statement.attempt_id == attempt_id)
        self.book(made.resolved(kind), signature)

    # Nodes

    def order(self, attempt_id: str) -> None:
        record = current_round(self.phase)
        attempt = record.attempt(attempt_id) if record else None
        if attempt is None:
            return
        node = self.nodes[attempt.node]
        if not node.up:
            return
        if attempt_id not in node.answers:
            made = self.statement(e.Grant(attempt_id, attempt.offer), record.number)  # type: ignore[union-attr]
            draw = self.random.random()
            if self.now_s < FAULTS_UNTIL_S and draw < 0.08:
                signature = sign(KEY, made.resolved("void"))
                node.answers[attempt_id] = e.OrderWasRefused(attempt_id, "BUSY", "busy", signature)
            else:
                if attempt_id in node.opened:
                    raise Broken(f"{attempt_id} is trained twice")
                node.opened.add(attempt_id)
                signature = sign(KEY, made.resolved("post"))
                lost = self.now_s < FAULTS_UNTIL_S and draw < 0.2
                node.answers[attempt_id] = (
                    e.NoUpdateReceived(attempt_id, signature)
                    if lost
                    else e.UpdateReceived(attempt_id, f"d{attempt_id}", 40, signature)
                )
        answer = node.answers[attempt_id]
        self.message(lambda: self.apply(e.OrderWasAccepted(attempt_id, b"s")))
        self.message(lambda: self.apply(answer))

    def tick(self) -> None:
        """Time passes: nodes fail and return, silence and deadlines are noticed."""
        self.later(TICK_S, self.tick)
        for node in self.nodes.values():
            if node.up and self.faulty(0.05):
                node.up = False
                self.apply(e.NodeWasLost(node.name))
            elif not node.up and (self.random.random() < 0.3 or self.now_s > FAULTS_UNTIL_S):
                node.up = True
                self.apply(e.NodeReturned(node.name))
        phase = self.phase
        if isinstance(phase, Training):
            if self.now_s >= phase.deadline_at_s and not phase.deadline_passed:
                self.apply(e.DeadlinePassed(phase.round.number))
            for attempt in phase.round.opened:  # an agent says again what was not acknowledged
                if self.nodes[attempt.node].up:
                    self.message(lambda a=attempt.attempt_id: self.order(a))  # type: ignore[misc]
        self.command(c.Survey())

    # Invariants

    def note(self, event: e.Event) -> None:
        self.events += 1
        self.transcript.append(f"{self.now_s:.2f} {event} -> {type(self.phase).__name__}")

    def check(self, asked: list[c.Command]) -> None:
        for balance in self.balances.values():
            if balance.posted_units + balance.pending_units > balance.filter.limit_units:
                raise Broken("posted and pending pass the limit")
        kinds = Counter(
            (x.statement.attempt_id, x.statement.kind) for v in self.entries.values() for x in v
        )
        if kinds and max(kinds.values()) > 1:
            raise Broken("an attempt is reserved or resolved twice")
        if {a for a, k in kinds if k == "post"} & {a for a, k in kinds if k == "void"}:
            raise Broken("an attempt is posted and void")
        record = current_round(self.phase)
        received_count = len(record.received) if record else 0
        folds = any(isinstance(a, c.FoldUpdates) for a in asked)
        if folds and received_count < self.plan.min_participants:
            raise Broken("a model is folded below quorum")
        for one in (*self.phase.course.done, *([record] if record else [])):
            received = Counter(a.node for a in one.received)
            if received and max(received.values()) > 1:
                raise Broken("a received update was trained again")
            for attempt in one.received:
                if (attempt.attempt_id, "post") not in kinds:
                    raise Broken("an update counts that is not posted")
        again, _ = replay(self.plan, [(at, e.from_json(j)) for at, j in self.journal])
        if again != self.phase:
            raise Broken("the journal does not add up to the phase in memory")

    def check_end(self) -> None:
        for name, chain in self.entries.items():
            filters = {name: self.balances[name].filter}
            result = verify(chain, filters, {name: PUBLIC})
            if not result.ok:
                raise Broken(f"the ledger does not verify: {result.problems[0].text}")
        if isinstance(self.phase, Ended):
            if any(balance.pending for balance in self.balances.values()):
                raise Broken("the job ended with an open reservation")
            for node in self.nodes.values():
                for attempt_id in node.opened:
                    kinds = {
                        x.statement.kind
                        for x in self.entries[node.name]
                        if x.statement.attempt_id == attempt_id
                    }
                    if "void" in kinds:
                        raise Broken("data was opened and the charge given back")
        elif not getattr(self.phase, "waiting", ()):
            raise Broken("the job neither ended nor waits for a named reason")
