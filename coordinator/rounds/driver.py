"""Drives the round machine: journals each step with its ledger entries in one transaction, then
carries out what the step asked for. Everything it keeps in memory can be read again from the
journal."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection

from coordinator.jobspec import Job
from coordinator.metrics import Metrics
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine
from coordinator.rounds.effects import Effects, Reply
from coordinator.rounds.live import LiveJob, job_from_json, plan_of, replay
from coordinator.rounds.phases import Attempt, Ended, Phase, RoundRecord, Selecting, Training
from coordinator.sessions import Sessions
from coordinator.store import jobs as job_store
from coordinator.store import ledger
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord
from protos.errors import FeddpError, NotFound, TooLate, WrongPhase

log = structlog.get_logger(__name__)

TICK_S = 0.5
SURVEY_AGAIN_S = 5.0
RETRY_S = (0.2, 1.0, 5.0, 15.0)


class Rounds:
    """Every job that has not ended, and those of the ended ones that somebody asked about."""

    def __init__(
        self, database: Database, sessions: Sessions, effects: Effects, metrics: Metrics
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._effects = effects
        self._metrics = metrics
        self._live: dict[str, LiveJob] = {}
        self._attempts: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    # Life

    async def start(self) -> None:
        """Take up every job where its journal stands."""
        records = await self._database.read(partial(job_store.listed, status=job_store.RUNNING))
        for record in records:
            live = await self._load(record)
            log.info("job_resumed", job_id=live.job_id, phase=type(live.phase).__name__)
            await self.apply(live, e.CoordinatorRestarted())
            self._spawn(live, machine.resume(live.phase))
        self._keep(self._tick_forever())

    async def stop(self) -> None:
        """Stop carrying out commands; the journal says where to go on."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def submit(self, record: JobRecord, job: Job, initial_model: str) -> LiveJob:
        """Begin a job; its record and first step commit together.

        A caller that is cancelled does not cut it in two.
        """
        work = asyncio.ensure_future(self._submit(record, job, initial_model))
        return await asyncio.shield(work)

    async def _submit(self, record: JobRecord, job: Job, initial_model: str) -> LiveJob:
        event, now_s = e.JobSubmitted(initial_model), time.time()
        phase, asked = machine.start(plan_of(job), event, now_s)

        def work(connection: Connection) -> None:
            job_store.add(connection, record)
            job_store.append(connection, record.job_id, 0, now_s, event)

        await self._database.write(work)
        live = LiveJob(record, job, phase, 1)
        self._live[record.job_id] = live
        log.info("job_submitted", job_id=record.job_id, job=job.name, user=record.submitted_by)
        self._spawn(live, asked)
        return live

    async def job(self, job_id: str) -> LiveJob:
        """A job, read from its journal if need be. Raises NotFound: JOB_UNKNOWN."""
        live = self._live.get(job_id)
        if live is None:
            live = await self._load(
                await self._database.read(lambda connection: job_store.job(connection, job_id))
            )
        return live

    async def cancel(self, job_id: str, by: str) -> LiveJob:
        """End a job on request. Raises WrongPhase: JOB_ENDED."""
        live = await self.job(job_id)
        if isinstance(live.phase, Ended):
            if live.phase.status == "cancelled":
                return live
            raise WrongPhase("JOB_ENDED", f"job {job_id} has ended already: {live.phase.status}")
        await self.apply(live, e.CancelRequested(by))
        return live

    async def _load(self, record: JobRecord) -> LiveJob:
        job = job_from_json(record.resolved)
        steps = await self._database.read(
            lambda connection: job_store.history(connection, record.job_id)
        )
        phase, count = replay(plan_of(job), steps)
        live = LiveJob(record, job, phase, count)
        if live.has_ended:
            return live  # read again when it is asked for again; nothing changes any more
        self._live[record.job_id] = live
        for one in live.rounds():
            self._index(live, one.attempts)
        return live

    def running(self) -> list[LiveJob]:
        """Jobs that have not ended."""
        return [live for live in self._live.values() if not live.has_ended]

    # Steps

    async def apply(self, live: LiveJob, event: e.Event) -> None:
        """Take one step: journal and ledger in one transaction, then the rest.

        A caller that is cancelled does not cut the step in two: memory and journal stay equal.
        """
        await asyncio.shield(asyncio.ensure_future(self._apply(live, event)))

    async def _apply(self, live: LiveJob, event: e.Event) -> None:
        async with live.lock:
            await self._catch_up(live)
            now_s = time.time()
            phase, asked = machine.step(live.phase, event, now_s)
            if phase == live.phase and not asked:
                return
            live.unsure = True
            await self._database.write(
                lambda connection: self._write(connection, live, phase, now_s, event, asked)
            )
            live.unsure = False
            self._commit(live, event, phase, asked)

    async def apply_reply(self, live: LiveJob, reply: Reply) -> None:
        """Take a step whose event is found out inside the transaction; none if it gives None."""
        async with live.lock:
            await self._catch_up(live)
            now_s = time.time()

            def work(connection: Connection) -> tuple[e.Event, Phase, list[c.Command]] | None:
                event = reply(connection, live)
                if event is None:
                    return None
                phase, asked = machine.step(live.phase, event, now_s)
                if phase == live.phase and not asked:
                    return None
                self._write(connection, live, phase, now_s, event, asked)
                return event, phase, asked

            live.unsure = True
            done = await self._database.write(work)
            live.unsure = False
            if done is not None:
                self._commit(live, *done)

    async def _catch_up(self, live: LiveJob) -> None:
        """After a transaction whose end nobody heard of, the journal says what has happened."""
        if not live.unsure:
            return
        steps = await self._database.read(
            lambda connection: job_store.history(connection, live.job_id)
        )
        phase, count = replay(plan_of(live.job), steps)
        live.unsure = False
        if count == live.steps:
            return
        log.warning("job_caught_up", job_id=live.job_id, phase=type(phase).__name__)
        live.phase, live.steps = phase, count
        for one in live.rounds()[-1:]:
            self._index(live, one.attempts)
        live.announce()
        self._spawn(live, machine.resume(phase))

    def _write(
        self,
        connection: Connection,
        live: LiveJob,
        phase: Phase,
        now_s: float,
        event: e.Event,
        asked: Iterable[c.Command],
    ) -> None:
        job_store.append(connection, live.job_id, live.steps, now_s, event)
        for command in asked:
            match command:
                case c.KeepSignature(attempt_id, signature):
                    ledger.keep_signature(connection, attempt_id, signature)
                case c.PostCharge(attempt_id, signature):
                    ledger.resolve(connection, attempt_id, "post", signature)
                case c.VoidCharge(attempt_id, signature):
                    ledger.resolve(connection, attempt_id, "void", signature)
        if isinstance(phase, Ended) and not live.has_ended:
            job_store.set_status(connection, live.job_id, phase.status)

    def _commit(
        self, live: LiveJob, event: e.Event, phase: Phase, asked: Sequence[c.Command]
    ) -> None:
        before, live.phase = live.phase, phase
        live.steps += 1
        if type(before) is not type(phase):
            log.info(
                "job_phase",
                job_id=live.job_id,
                phase=type(phase).__name__.lower(),
                round=len(phase.course.done) + (0 if isinstance(phase, Ended) else 1),
            )
        if isinstance(phase, Ended) and not isinstance(before, Ended):
            log.info("job_ended", job_id=live.job_id, status=phase.status, message=phase.message)
        if len(phase.course.done) > len(before.course.done):
            self._count_round(phase.course.done[-1])
        self._count_entries(event, asked)
        for one in live.rounds()[-1:]:
            self._index(live, one.attempts)
        live.announce()
        self._spawn(live, [one for one in asked if not isinstance(one, c.LedgerCommand)])

    def _count_entries(self, event: e.Event, asked: Sequence[c.Command]) -> None:
        if isinstance(event, e.BudgetsReserved):
            for _ in event.grants:
                self._metrics.ledger_entry("reserve")
        for command in asked:
            if isinstance(command, c.PostCharge):
                self._metrics.ledger_entry("post")
            elif isinstance(command, c.VoidCharge):
                self._metrics.ledger_entry("void")

    def _count_round(self, done: RoundRecord) -> None:
        self._metrics.round_ended("published")
        self._metrics.round_phase("reserving", done.reserved_at_s - done.started_at_s)
        self._metrics.round_phase("training", done.trained_at_s - done.reserved_at_s)
        self._metrics.round_phase("aggregating", done.folded_at_s - done.trained_at_s)
        self._metrics.round_phase("publishing", done.published_at_s - done.folded_at_s)

    def _index(self, live: LiveJob, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            self._attempts[attempt.attempt_id] = live.job_id

    # Commands

    def _spawn(self, live: LiveJob, asked: Sequence[c.Command]) -> None:
        for command in asked:
            self._keep(self._carry_out(live, command))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        if self._stopping:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, live: LiveJob, command: c.Command) -> None:
        """Carry out a command, again and again while the fault may pass.

        An error of ours that cannot pass fails the job; anything else (a full disk, a locked
        database) is waited out, because the job must not be lost to it.
        """
        name, delays_s = type(command).__name__, iter(RETRY_S)
        while True:
            try:
                reply = await self._effects.run(live, command)
                if reply is not None:
                    await self.apply_reply(live, reply)
                return
            except FeddpError as error:
                log.warning("command_refused", job_id=live.job_id, command=name, fault=error.reason)
                if not error.retryable:
                    await self._fail(live, f"{error.message} ({name}: {error.reason})")
                    return
            except Exception:
                log.exception("command_failed", job_id=live.job_id, command=name)
            await asyncio.sleep(next(delays_s, RETRY_S[-1]))

    async def _fail(self, live: LiveJob, message: str) -> None:
        while True:
            try:
                await self.apply(live, e.StepFailed(message))
                return
            except Exception:
                log.exception("job_cannot_fail", job_id=live.job_id)
                await asyncio.sleep(RETRY_S[-1])

    # What nodes say

    async def find(self, attempt_id: str, node: str) -> tuple[LiveJob, RoundRecord, Attempt]:
        """An attempt of this node.

        Raises:
            NotFound: ATTEMPT_UNKNOWN, also for another node's attempt.
        """
        job_id = self._attempts.get(attempt_id)
        if job_id is None:
            statement = await self._database.read(
                lambda connection: ledger.reserved(connection, attempt_id)
            )
            job_id = statement.job_id
        live = await self.job(job_id)
        found = live.attempt(attempt_id)
        if found is None or found[1].node != node:
            raise NotFound("ATTEMPT_UNKNOWN", f"node {node} has no attempt {attempt_id}")
        return live, *found

    async def hand_in(
        self, live: LiveJob, attempt: Attempt, event: e.UpdateReceived | e.NoUpdateReceived
    ) -> None:
        """Book what a node handed in.

        Raises:
            TooLate: ATTEMPT_CLOSED, the round closed in the meantime.
        """
        await self.apply(live, event)
        found = live.attempt(attempt.attempt_id)
        digest = event.digest if isinstance(event, e.UpdateReceived) else ""
        if found is None or found[1].is_open or found[1].digest != digest:
            raise TooLate("ATTEMPT_CLOSED", f"attempt {attempt.attempt_id} is closed; it is booked")

    async def node_arrived(self, node: str) -> None:
        """A node opened its session: it gets its open orders, and may be selected."""
        await self._tell_running(e.NodeReturned(node))

    async def _tell_running(self, event: e.Event) -> None:
        for live in self.running():
            await self.apply(live, event)

    # Time

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for live in self.running():
                try:
                    await self._tick(live)
                except Exception:
                    log.exception("tick_failed", job_id=live.job_id)

    async def _tick(self, live: LiveJob) -> None:
        phase = live.phase
        looking = isinstance(phase, Selecting) or live.is_waiting()
        if looking and time.monotonic() - live.surveyed_at_s >= SURVEY_AGAIN_S:
            live.surveyed_at_s = time.monotonic()
            self._spawn(live, [c.Survey()])
        if not isinstance(phase, Training):
            return
        for attempt in phase.round.opened:
            if not attempt.silent and self._sessions.lost(attempt.node):
                log.info("node_lost", job_id=live.job_id, node=attempt.node)
                await self.apply(live, e.NodeWasLost(attempt.node))
            elif attempt.silent and self._sessions.connected(attempt.node):
                await self.apply(live, e.NodeReturned(attempt.node))
        if time.time() >= phase.deadline_at_s and not phase.deadline_passed:
            await self.apply(live, e.DeadlinePassed(phase.round.number))
