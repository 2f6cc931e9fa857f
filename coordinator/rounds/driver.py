"""Drives the round machine: takes turns, each one transaction, then carries out what is left to do.
Everything it keeps in memory can be read again from the journal."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection

from coordinator.jobspec import Job
from coordinator.observing.metrics import EntryKind, Metrics
from coordinator.observing.round_traces import RoundTraces
from coordinator.pausing import Pausing
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine, turn_order
from coordinator.rounds.answers import Answers
from coordinator.rounds.effects import Effects
from coordinator.rounds.live import LiveJob, job_from_json, plan_of, replay
from coordinator.rounds.node_facts import NodeFacts
from coordinator.rounds.passing_time import PassingTime
from coordinator.rounds.phases import (
    Attempt,
    AttemptState,
    Course,
    Ended,
    RoundRecord,
    Selecting,
    Training,
)
from coordinator.rounds.telling import Telling
from coordinator.rounds.turn_taker import TurnTaker
from coordinator.rounds.turns import Input, Taken, Turn
from coordinator.sessions import Sessions
from coordinator.store import jobs as job_store
from coordinator.store import ledger
from coordinator.store.booking import Books
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord
from protos import tracing
from protos.disks import disk_trouble
from protos.errors import FeddpError, InvariantBroken, NotFound, TooLate, Unavailable, WrongPhase

log = structlog.get_logger(__name__)

TICK_S = 0.5
RETRY_S = (0.2, 1.0, 5.0, 15.0)
FREE_ROOM = "free room on the disk of models and updates, and of the database; the job goes on then"


class Rounds:
    """Every job that has not ended, and those of the ended ones that somebody asked about."""

    def __init__(
        self,
        database: Database,
        sessions: Sessions,
        effects: Effects,
        metrics: Metrics,
        pausing: Pausing,
    ) -> None:
        self._database = database
        self._effects = effects
        self._metrics = metrics
        self.traces = RoundTraces()
        self._answers = Answers(sessions, self.taken, pausing, effects.blobs.is_gone)
        self._turns = TurnTaker(database, self._answers, self._keep, self._commit, self._caught_up)
        self._passing = PassingTime(sessions)
        self._telling = Telling(metrics, self.traces)
        self._live: dict[str, LiveJob] = {}
        self._attempts: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    # Life

    async def start(self) -> None:
        """Take up every job where its journal stands."""
        await asyncio.to_thread(self._effects.blobs.drop_scratch)
        records = await self._database.read(partial(job_store.listed, status=job_store.RUNNING))
        for record in records:
            live = await self._load(record)
            log.info("job_resumed", job_id=live.job_id, phase=type(live.phase).__name__)
            await self.apply(live, e.CoordinatorRestarted())
            self._spawn(live, machine.resume(live.phase))
        self._keep(self._tick_forever())
        self._keep(self._forget_leftovers())

    async def _forget_leftovers(self) -> None:
        """Drop updates that a process before this one was killed before it dropped them: it does so
        after the commit, and nothing asks for it again."""
        blobs, dropped = self._effects.blobs, 0
        for attempt_id in await asyncio.to_thread(blobs.attempts_kept):
            try:
                live = await self.job(await self._job_of(attempt_id))
                if not live.needs_update(attempt_id):
                    await asyncio.to_thread(blobs.drop_attempt, attempt_id)
                    dropped += 1
            except FeddpError:  # no attempt of this database: it may be another one's
                continue
            except Exception:
                log.exception("leftover_not_forgotten", attempt_id=attempt_id)
        if dropped:
            log.info("leftovers_forgotten", attempts=dropped)

    async def _job_of(self, attempt_id: str) -> str:
        """The job of an attempt. Raises NotFound: ATTEMPT_UNKNOWN."""
        job_id = self._attempts.get(attempt_id)
        if job_id is None:
            statement = await self._database.read(
                lambda connection: ledger.reserved(connection, attempt_id)
            )
            job_id = statement.job_id
        return job_id

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
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})  # whoever asks again finds the job
            raise

    async def _submit(self, record: JobRecord, job: Job, initial_model: str) -> LiveJob:
        event, now_s = e.JobSubmitted(initial_model), time.time()
        phase, asked = machine.start(plan_of(job), event, now_s)

        def work(connection: Connection) -> None:
            job_store.add(connection, record)
            job_store.append(connection, record.job_id, 0, now_s, event)

        await self._database.write(work)
        # Whoever lists jobs may have read it since the commit: a job has one memory.
        live = self._live.setdefault(record.job_id, LiveJob(record, job, phase, 1))
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

    async def prospect(self, record: JobRecord, job: Job) -> list[NodeFacts]:
        """What the planner would know of each node if this job were submitted now."""
        phase = Selecting(Course(plan_of(job), "", ""), time.time())
        live = LiveJob(record, job, phase, 0)
        return await self._database.read(
            lambda connection: self._answers.facts(Books(connection), live)
        )

    async def cancel(self, job_id: str, by: str) -> LiveJob:
        """End a job on request. Raises WrongPhase: JOB_ENDED."""
        live = await self.job(job_id)
        if isinstance(live.phase, Ended):
            if live.phase.status == "cancelled":
                return live
            raise WrongPhase("JOB_ENDED", f"job {job_id} has ended already: {live.phase.status}")
        await self.apply(live, e.CancelRequested(by))
        return live

    async def resume(self, job_id: str, by: str, request_id: str, mandate: bytes = b"") -> LiveJob:
        """Take a failed job up again; the same request again changes nothing.

        Args:
            mandate: what was signed to go on; empty for a job that nobody signed.

        Raises:
            WrongPhase: JOB_NOT_FAILED.
            NotFound: MODEL_DAMAGED, the one that it goes on from; nothing was changed.
        """
        live = await self.job(job_id)
        if request_id in await self.resumptions(job_id):
            return live
        if isinstance(live.phase, Ended):
            if live.phase.status != "failed":
                raise WrongPhase(
                    "JOB_NOT_FAILED",
                    f"job {job_id} is {live.phase.status}; only a failed job can be resumed: "
                    "submit its job file again for another one",
                )
            await self._at_hand(live)
            model = live.phase.course.model
            if model:
                await asyncio.to_thread(self._effects.blobs.check_models, [model])
            live = self._live.setdefault(job_id, live)
            lost = await asyncio.to_thread(self._effects.lost_updates, live)
            if mandate:
                # Before any order goes out. Should nothing follow, the next try signs anew.
                await self._database.write(
                    lambda inside: job_store.set_mandate(inside, job_id, mandate)
                )
                live.record = replace(live.record, mandate=mandate)
            await self.apply(live, e.ResumeRequested(by, request_id, lost))
            log.info("job_resumed_by", job_id=job_id, user=by, updates_lost=len(lost))
        return live

    async def resumptions(self, job_id: str) -> frozenset[str]:
        """The ids of the requests with which a job has gone on."""
        steps = await self._database.read(lambda inside: job_store.history(inside, job_id))
        asked = (event for _, event in steps if isinstance(event, e.ResumeRequested))
        return frozenset(event.request_id for event in asked)

    async def _load(self, record: JobRecord) -> LiveJob:
        job = job_from_json(record.resolved)
        steps = await self._database.read(
            lambda connection: job_store.history(connection, record.job_id)
        )
        phase, count = replay(plan_of(job), steps)
        live = LiveJob(record, job, phase, count)
        if live.has_ended:
            return live  # read again when it is asked for again; nothing changes any more
        await self._at_hand(live)
        live = self._live.setdefault(record.job_id, live)  # somebody else may have been faster
        for one in live.attempted():
            self._index(live, one.attempts)
        return live

    async def _at_hand(self, live: LiveJob) -> None:
        """Have the models that orders and views need, also if another replica has made them."""
        course = live.phase.course
        models = {course.initial, course.model}
        await asyncio.to_thread(self._effects.blobs.at_hand, models)

    def running(self) -> list[LiveJob]:
        """Jobs that have not ended."""
        return [live for live in self._live.values() if not live.has_ended]

    async def catch_up(self) -> None:
        """Nothing: whoever leads is never behind. See `FollowedRounds`."""

    def recent(self, since_s: float) -> list[LiveJob]:
        """Jobs that have not ended, and those at hand that ended after `since_s`, epoch."""
        return [
            live
            for live in self._live.values()
            if not isinstance(live.phase, Ended) or live.phase.ended_at_s > since_s
        ]

    # Turns

    async def apply(self, live: LiveJob, given: Input) -> None:
        """Have an input taken and wait until it is journalled. Raises as `TurnTaker.take`."""
        if self._stopping:
            raise Unavailable(
                "DRAINING", "this coordinator is stopping; try again", retry_after_s=1
            )
        await self._turns.take(live, given)

    def note(self, live: LiveJob, event: e.Event) -> None:
        """Have an event taken that nobody waits for."""
        self._turns.note(live, event)

    def _caught_up(self, live: LiveJob) -> None:
        for one in live.rounds()[-1:]:
            self._index(live, one.attempts)
        live.announce()
        self._spawn(live, machine.resume(live.phase))

    def _commit(self, live: LiveJob, turn: Turn) -> None:
        self._telling.tell(live, turn)
        for record in live.rounds()[-1:]:
            self._index(live, record.attempts)
        if turn.taken:
            rounds_before = len(turn.taken[0].before.course.done)
            live.forget_statements(turn.phase.course.done[rounds_before:])
            live.announce()
        for one in turn.taken:
            self._spawn(live, one.asked)
            if _frees_nodes(one):
                self._look_again(live)

    def _look_again(self, ended: LiveJob) -> None:
        """Nodes are free: jobs that wait for some find out now, not at their next look."""
        for live in self.running():
            if live is not ended and live.is_waiting():
                self._spawn(live, [c.Survey()])

    def pause_changed(self) -> None:
        """All work was paused or goes on: who waits finds out now, and what was held back goes
        out."""
        for live in self.running():
            if isinstance(live.phase, Selecting) or live.is_waiting():
                self._spawn(live, [c.Survey()])
            if isinstance(live.phase, Training):
                held = (a for a in live.phase.round.opened if a.state is AttemptState.ORDERED)
                self._spawn(live, [c.SendOrder(a.attempt_id) for a in held])
            live.announce()

    def taken(self, live: LiveJob, node: str) -> e.Absence | None:
        """Whether another job has the node now, or goes first for it."""
        others = [one for one in list(self._live.values()) if one.job_id != live.job_id]
        return turn_order.taken(live, others, node)

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
        with tracing.within(None):  # it goes on for longer than whatever asked for it
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
                if isinstance(command, c.InsideCommand):
                    await self.apply(live, command)
                    return
                with self.traces.doing(live, command):
                    reply = await self._effects.run(live, command)
                if reply is not None:
                    await self.apply(live, reply)
                return
            except FeddpError as error:
                log.warning("command_refused", job_id=live.job_id, command=name, fault=error.reason)
                if not error.retryable:
                    await self._fail(live, f"{error.message} ({name}: {error.reason})")
                    return
            except Exception as error:
                if disk_trouble(error) == "full":
                    log.error("disk_full", job_id=live.job_id, command=name, do=FREE_ROOM)
                else:
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
        live = await self.job(await self._job_of(attempt_id))
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

    def count_entries(self, kind: EntryKind, number: int) -> None:
        """Entries that were written beside the turns."""
        self._metrics.ledger_entries(kind, number)

    async def node_arrived(self, node: str) -> None:
        """A node opened its session: it gets its open orders, and may be selected."""
        await self._tell_running(e.NodeReturned(node))

    async def _tell_running(self, event: e.Event) -> None:
        for live in self.running():
            try:
                await self.apply(live, event)
            except InvariantBroken:  # this job's matter alone, and no fault of the node
                log.exception("event_not_taken", job_id=live.job_id)

    # Time

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._look_at_the_clock()
            for live in self.running():
                try:
                    await self._tick(live)
                except Exception:
                    log.exception("tick_failed", job_id=live.job_id)

    async def _look_at_the_clock(self) -> None:
        """Where it was set, nodes get the whole deadline again, as after a restart."""
        for live in self.running() if self._passing.clock_was_set() else ():
            try:
                await self.apply(live, e.CoordinatorRestarted())
            except Exception:
                log.exception("clock_step_not_taken", job_id=live.job_id)

    async def _tick(self, live: LiveJob) -> None:
        if self._passing.survey_due(live):
            self._spawn(live, [c.Survey()])
        due = self._passing.due(live, time.time())
        await asyncio.gather(*(self.apply(live, event) for event in due))


def _frees_nodes(one: Taken) -> bool:
    """Whether nodes that worked for the job may work for another now."""
    return isinstance(one.before, Training) and not isinstance(one.phase, Training)
