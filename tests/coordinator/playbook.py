"""Transcripts of the round machine: `>>` an event, `<<` the commands that must follow."""

from typing import Any

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine
from coordinator.rounds.phases import Phase, Plan, Training

PLAN = Plan(min_participants=3, rounds_planned=2, deadline_s=60.0, convergence_patience=2)


class Playbook:
    """A job played forward; time passes by one second with each event."""

    def __init__(self, phase: Phase, commands: list[c.Command], now_s: float = 100.0) -> None:
        self.phase: Any = phase
        self.commands = commands
        self.now_s = now_s

    def __rshift__(self, event: e.Event) -> "Playbook":
        phase, commands = machine.step(self.phase, event, self.now_s + 1)
        return Playbook(phase, commands, self.now_s + 1)

    def __lshift__(self, expected: "c.Command | type[c.Command] | None") -> "Playbook":
        """The next command is `expected` (a value, a type, or None for no more)."""
        if expected is None:
            assert self.commands == []
            return self
        assert self.commands, f"no command left where {expected} was expected"
        first, *rest = self.commands
        if isinstance(expected, type):
            assert isinstance(first, expected), f"{first} instead of {expected.__name__}"
        else:
            assert first == expected
        return Playbook(self.phase, rest, self.now_s)


def offer(node: str, noise: float = 2.0) -> e.Offer:
    """A full-batch offer of a node."""
    return e.Offer(node, f"{node}/patients", 100, "gaussian", noise, 1.0)


def offers(*nodes: str) -> tuple[e.Offer, ...]:
    """One offer each."""
    return tuple(offer(node) for node in nodes)


def surveyed(*nodes: str, absent: tuple[e.Absence, ...] = ()) -> e.NodesSurveyed:
    """A survey that found these nodes."""
    return e.NodesSurveyed(offers(*nodes), absent)


def grants(number: int, *nodes: str) -> e.BudgetsReserved:
    """Reservations for these nodes; attempt ids read NODE+NUMBER."""
    return e.BudgetsReserved(tuple(e.Grant(f"{n}{number}", offer(n)) for n in nodes), ())


def begun(plan: Plan = PLAN) -> Playbook:
    """A job that was just submitted."""
    return Playbook(*machine.start(plan, e.JobSubmitted("m0"), 100.0)) << c.Survey() << None


def training(*nodes: str, plan: Plan = PLAN) -> Playbook:
    """A job in its first round, orders sent."""
    book = begun(plan) >> surveyed(*nodes)
    book = book << c.ReserveBudgets(1, offers(*nodes), plan.min_participants) << None
    book = book >> grants(1, *nodes)
    for node in nodes:
        book = book << c.SendOrder(f"{node}1")
    assert isinstance(book.phase, Training)
    return book << None


def update(attempt_id: str, digest: str = "d") -> e.UpdateReceived:
    """An update of an attempt."""
    return e.UpdateReceived(attempt_id, f"{digest}-{attempt_id}", 40, b"sig")


def posted(attempt_id: str) -> c.PostCharge:
    """The charge of an attempt, with the node's signature."""
    return c.PostCharge(attempt_id, b"sig")
