"""One turn of a job: several events in one transaction, with the commands that SQL alone answers.

A turn is all or nothing: the journal, the ledger's entries and what the commands wrote commit
together. Memory follows after the commit.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Ended, Phase
from coordinator.store import damage, shared_work
from coordinator.store import jobs as job_store
from coordinator.store.booking import Books
from privacy.ledger import EntryKind
from protos.errors import InvariantBroken, NotFound, WrongPhase

ANSWERS_MAX = 8
"""Commands that one turn answers itself; what is asked beyond them is carried out after it, so
that a machine that asked for ever could not hold the database."""

Reply = Callable[[Connection, LiveJob], e.Event | None]
"""Makes, inside the turn, the event that answers a command carried out before; None if the job
has moved on meanwhile."""

Answer = Callable[[Books, LiveJob, c.InsideCommand], e.Event | None]
"""Carries out a command inside the turn and gives the event that answers it."""

Input = e.Event | c.InsideCommand | Reply


@dataclass(frozen=True, slots=True)
class Taken:
    """One step that was journalled; `asked` is what is left to carry out."""

    event: e.Event
    before: Phase
    phase: Phase
    asked: tuple[c.Command, ...]


@dataclass(slots=True)
class Turn:
    """What one transaction did.

    Attributes:
        phase: where the job stands after it.
        steps: steps of the job's journal after it.
        booked: new ledger entries by kind.
        faults: inputs, by their place, that the machine does not know in their phase.
        unbooked: attempts that ended and stay reserved, as the ledger of their accounts is
            damaged. What their nodes did counts as ever, so that the round goes on.
    """

    phase: Phase
    steps: int
    booked: Counter[EntryKind] = field(default_factory=Counter)
    taken: list[Taken] = field(default_factory=list)
    faults: dict[int, InvariantBroken] = field(default_factory=dict)
    unbooked: list[str] = field(default_factory=list)


def take_turn(
    connection: Connection, live: LiveJob, inputs: Sequence[Input], answer: Answer, now_s: float
) -> Turn:
    """Take inputs in their order, each with what follows from it inside the database.

    Raises:
        Exception: whatever the ledger or the database raises; the caller's transaction then rolls
            back, and nothing of the turn has happened.
    """
    draft = replace(live)
    books = Books(connection, live.statements)
    books.expect(attempt_ids=[one.attempt_id for one in inputs if isinstance(one, _OF_ATTEMPT)])
    turn = Turn(live.phase, live.steps)
    for place, one in enumerate(inputs):
        waiting: list[Input] = [one]
        answers_left = ANSWERS_MAX
        while waiting:
            given = waiting.pop(0)
            event = _event(given, connection, books, draft, answer)
            if event is None:
                continue
            try:
                phase, asked = machine.step(draft.phase, event, now_s)
            except InvariantBroken as error:
                turn.faults[place] = error
                continue
            if phase == draft.phase and not asked:
                continue
            inside = [a for a in asked if isinstance(a, c.InsideCommand)][:answers_left]
            answers_left -= len(inside)
            waiting += inside
            turn.unbooked += _book(books, asked)
            left = [a for a in asked if not isinstance(a, c.LedgerCommand) and a not in inside]
            turn.taken.append(Taken(event, draft.phase, phase, tuple(left)))
            draft.phase = phase
    books.flush()
    turn.booked = books.booked
    if turn.taken:
        events = [one.event for one in turn.taken]
        job_store.append_all(connection, live.job_id, live.steps, now_s, events)
    if type(draft.phase) is not type(live.phase):
        _set_status(connection, live, draft.phase)
    turn.phase, turn.steps = draft.phase, live.steps + len(turn.taken)
    return turn


_OF_ATTEMPT = (e.OrderWasAccepted, e.OrderWasRefused, e.UpdateReceived, e.NoUpdateReceived)


def _event(
    given: Input, connection: Connection, books: Books, draft: LiveJob, answer: Answer
) -> e.Event | None:
    if isinstance(given, c.InsideCommand):
        return answer(books, draft, given)
    if isinstance(given, e.Event):
        return given
    return given(connection, draft)


def _book(books: Books, asked: Sequence[c.Command]) -> list[str]:
    """Book what was asked; the attempts for which a damaged account makes that impossible."""
    unbooked = []
    charges = [a.attempt_id for a in asked if isinstance(a, c.PostCharge | c.VoidCharge)]
    books.expect(attempt_ids=charges)
    for command in asked:
        match command:
            case c.KeepSignature(attempt_id, signature):
                books.keep_signature(attempt_id, signature)
            case c.PostCharge(attempt_id, signature) | c.VoidCharge(attempt_id, signature):
                kind = "post" if isinstance(command, c.PostCharge) else "void"
                try:
                    books.resolve(attempt_id, kind, signature)
                except (WrongPhase, NotFound) as error:
                    # The machine knows reserved attempts only: without its entry one is damaged.
                    if error.reason not in (damage.REASON, "ATTEMPT_UNKNOWN"):
                        raise
                    unbooked.append(attempt_id)
    return unbooked


def _set_status(connection: Connection, live: LiveJob, phase: Phase) -> None:
    if isinstance(phase, Ended):
        job_store.set_status(connection, live.job_id, phase.status)
        shared_work.forget(connection, live.job_id)
    elif live.has_ended:
        job_store.set_status(connection, live.job_id, job_store.RUNNING)
