"""The jobs that are under way, as a replica that does not lead sees them: read from the journal.

The leader commits each step before anything follows from it, so that what is read here at the
beginning of a call is never behind what the caller was told.
"""

import asyncio
from collections.abc import Iterable

from sqlalchemy import Connection

from coordinator.observing.round_traces import RoundTraces
from coordinator.rounds import events, machine
from coordinator.rounds.live import LiveJob, job_from_json, plan_of, replay
from coordinator.rounds.phases import Aggregating, Attempt, RoundRecord, Training
from coordinator.store import jobs as job_store
from coordinator.store import ledger
from coordinator.store.database import Database
from protos.errors import NotFound

_AWAITED = (Training, Aggregating)

Steps = list[tuple[float, events.Event]]


class FollowedRounds:
    """As much of `Rounds` as `Transfer` asks for. Decides nothing and writes nothing.

    Every method that reads raises:
        Unavailable: DATABASE_UNREACHABLE.
    """

    def __init__(self, database: Database) -> None:
        self.traces = RoundTraces()
        self._database = database
        self._live: dict[str, LiveJob] = {}
        self._attempts: dict[str, str] = {}
        self._reading = asyncio.Lock()
        self._begun = self._done = 0

    def running(self) -> list[LiveJob]:
        """Jobs that had not ended when it was read last."""
        return list(self._live.values())

    async def catch_up(self) -> None:
        """Take every step that was committed before this call.

        Many who ask at once share a read, if it began after they asked.
        """
        asked = self._begun
        async with self._reading:
            if self._done > asked:
                return
            self._begun += 1
            known = {job_id: live.steps for job_id, live in self._live.items()}
            running, further, new = await self._database.read(lambda c: _read(c, known))
            for job_id, steps in further.items():
                self._take(self._live[job_id], steps)
            for live in new:
                self._live[live.job_id] = live
                self._index(live, live.attempted())
            if ended := self._live.keys() - running:
                self._forget(ended)
            self._done = self._begun

    async def find(self, attempt_id: str, node: str) -> tuple[LiveJob, RoundRecord, Attempt]:
        """An attempt of this node, as it stands now.

        Raises:
            NotFound: ATTEMPT_UNKNOWN, also for another node's attempt.
        """
        await self.catch_up()
        live = self._live.get(self._attempts.get(attempt_id, ""))
        if live is None:
            live = await self._database.read(lambda inside: _job_of(inside, attempt_id))
        found = live.attempt(attempt_id)
        if found is None or found[1].node != node:
            raise NotFound("ATTEMPT_UNKNOWN", f"node {node} has no attempt {attempt_id}")
        return live, *found

    def awaited_attempts(self) -> frozenset[str]:
        """Whose updates may still come, or are to be averaged."""
        rounds = [live.phase.round for live in self.running() if isinstance(live.phase, _AWAITED)]
        of_all = (one for last in rounds for one in (*last.opened, *last.received))
        return frozenset(one.attempt_id for one in of_all)

    def models(self) -> frozenset[str]:
        """Digests of the models that rounds start from, and of those that jobs began with."""
        courses = (live.phase.course for live in self.running())
        return frozenset(digest for one in courses for digest in (one.initial, one.model))

    def _take(self, live: LiveJob, steps: Steps) -> None:
        for now_s, event in steps:
            live.phase, _ = machine.step(live.phase, event, now_s)
            live.steps += 1
        self._index(live, live.rounds()[-1:])

    def _index(self, live: LiveJob, rounds: Iterable[RoundRecord]) -> None:
        for one in rounds:
            for attempt in one.attempts:
                self._attempts[attempt.attempt_id] = live.job_id

    def _forget(self, ended: set[str]) -> None:
        for job_id in ended:
            del self._live[job_id]
        self._attempts = {one: job for one, job in self._attempts.items() if job not in ended}


def _read(
    connection: Connection, known: dict[str, int]
) -> tuple[frozenset[str], dict[str, Steps], list[LiveJob]]:
    """(jobs that run, the further steps of those that are known, the others)."""
    running = job_store.running(connection)
    further = job_store.further(connection, {one: known[one] for one in running & known.keys()})
    return running, further, [_load(connection, job_id) for job_id in running - known.keys()]


def _load(connection: Connection, job_id: str) -> LiveJob:
    record = job_store.job(connection, job_id)
    job = job_from_json(record.resolved)
    return LiveJob(record, job, *replay(plan_of(job), job_store.history(connection, job_id)))


def _job_of(connection: Connection, attempt_id: str) -> LiveJob:
    """The job of an attempt of old. Raises NotFound: ATTEMPT_UNKNOWN."""
    return _load(connection, ledger.reserved(connection, attempt_id).job_id)
