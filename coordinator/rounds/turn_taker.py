"""Takes a job's turns one after the other: what arrives during one is taken in the next."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog
from sqlalchemy import Connection

from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob, plan_of, replay
from coordinator.rounds.turns import Answer, Input, Turn, take_turn
from coordinator.store import jobs as job_store
from coordinator.store.database import Database
from protos.errors import FeddpError

log = structlog.get_logger(__name__)

NOTE_S = 0.02
"""How long an event that nobody waits for may wait for a turn to ride on."""

DOUBT_S = 1.0
"""After a transaction whose end nobody heard of, until the journal is asked."""

Given = tuple[Input, "asyncio.Future[None]"]


class TurnTaker:
    """Brings inputs to the journal; memory follows the commit.

    Args:
        answer: carries out the commands that the database alone answers.
        keep: runs a coroutine in the background, for as long as the driver lives.
        committed: told of each turn, once the job's memory is at its end.
        caught_up: told when the journal turned out to be ahead of the job's memory.
    """

    def __init__(
        self,
        database: Database,
        answer: Answer,
        keep: Callable[[Coroutine[Any, Any, None]], None],
        committed: Callable[[LiveJob, Turn], None],
        caught_up: Callable[[LiveJob], None],
    ) -> None:
        self._database = database
        self._answer = answer
        self._keep = keep
        self._committed = committed
        self._caught_up = caught_up

    async def take(self, live: LiveJob, given: Input) -> None:
        """Have an event, a command or a reply taken in the job's next turn, and wait until it is
        journalled.

        A caller that is cancelled does not cut the turn in two: memory and journal stay equal.

        Raises:
            InvariantBroken: the job's phase does not know such an event.
            Exception: whatever the ledger or the database raises; then nothing was taken.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_is_seen)  # also where the caller was cancelled
        live.inbox.append((given, done))
        self._begin(live)
        await asyncio.shield(done)

    def note(self, live: LiveJob, event: e.Event) -> None:
        """Have an event taken soon: nobody waits for it, so that it rides on the next turn."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        done.add_done_callback(lambda _: _log_fault(live, done))
        live.inbox.append((event, done))
        loop.call_later(NOTE_S, self._begin, live)

    def _begin(self, live: LiveJob) -> None:
        if live.inbox and not live.has_turn:
            live.has_turn = True
            self._keep(self._run(live))

    async def _run(self, live: LiveJob) -> None:
        try:
            while live.inbox:
                batch, live.inbox = live.inbox, []
                await self._turn(live, batch)
        finally:
            live.has_turn = False

    async def _turn(self, live: LiveJob, batch: Sequence[Given]) -> None:
        inputs = [given for given, _ in batch]

        def work(connection: Connection) -> Turn:
            return take_turn(connection, live, inputs, self._answer, time.time())

        try:
            if live.unsure:
                await self._catch_up(live)
            turn = await self._database.write(work)
        except Exception as error:  # noqa: BLE001 - told to whoever gave the input
            # Our own errors are raised before the commit; any other may have come after it.
            if not live.unsure and not isinstance(error, FeddpError):
                live.unsure = True
                self._keep(self._make_sure(live))
            if len(batch) == 1:
                _settle(batch[0][1], error)
                return
            # One of them is at fault: alone, it harms nobody else.
            for one in batch:
                await self._turn(live, [one])
            return
        live.phase, live.steps = turn.phase, turn.steps
        self._committed(live, turn)
        for place, (_, done) in enumerate(batch):
            _settle(done, turn.faults.get(place))

    async def _make_sure(self, live: LiveJob) -> None:
        """Find out what has become of a transaction, also of a job in which nothing happens."""
        while live.unsure:
            await asyncio.sleep(DOUBT_S)
            if live.unsure:
                with contextlib.suppress(Exception):  # the next look, or the next turn, finds out
                    await self.take(live, _nothing)

    async def _catch_up(self, live: LiveJob) -> None:
        """After a transaction whose end nobody heard of, the journal says what has happened."""
        steps = await self._database.read(
            lambda connection: job_store.history(connection, live.job_id)
        )
        phase, count = replay(plan_of(live.job), steps)
        live.unsure = False
        if count != live.steps:
            log.warning("job_caught_up", job_id=live.job_id, phase=type(phase).__name__)
            live.phase, live.steps = phase, count
            self._caught_up(live)


def _nothing(_connection: Connection, _live: LiveJob) -> None:
    """A turn that only finds out where the journal stands."""


def _settle(done: "asyncio.Future[None]", fault: Exception | None) -> None:
    if done.done():
        return
    if fault is None:
        done.set_result(None)
    else:
        done.set_exception(fault)


def _is_seen(done: "asyncio.Future[None]") -> None:
    if not done.cancelled():
        done.exception()


def _log_fault(live: LiveJob, done: "asyncio.Future[None]") -> None:
    if not done.cancelled() and done.exception() is not None:
        log.error("event_lost", job_id=live.job_id, exc_info=done.exception())
