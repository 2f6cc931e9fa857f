"""What the driver does outside the database when the round machine asks: orders, folds, models.

`run` gives back a `Reply` for the next turn, if the command is one that an event answers.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection

from coordinator.blobs import BlobStore
from coordinator.compared import model_damaged
from coordinator.observing.round_traces import order_place
from coordinator.pausing import Pausing
from coordinator.rounds import averaging
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob, release_of
from coordinator.rounds.phases import (
    Aggregating,
    Attempt,
    AttemptState,
    Closing,
    Publishing,
    Training,
    current_round,
)
from coordinator.rounds.turns import Reply
from coordinator.sessions import Sessions
from coordinator.store import jobs as job_store
from coordinator.store import shared_work
from coordinator.store.jobs import ModelRecord
from privacy.ledger import Statement
from protos.errors import NotFound, invariant
from protos.feddp.v1 import federation_pb2 as federation
from protos.feddp.v1 import mandates_pb2
from protos.tensors import NotTensors

UNIT = "patient"


class Elsewhere(Protocol):
    """Other replicas that may do work on bytes; None means that none did."""

    async def average(self, live: LiveJob, phase: Aggregating) -> e.UpdatesFolded | None:
        """The model that a round's updates make."""

    async def answer(self, live: LiveJob, digests: Sequence[str]) -> str | None:
        """Digest of the job's answer after rounds with these models."""


@contextmanager
def _models_as_kept() -> Iterator[None]:
    """Each was checked, or made here, before it was kept; to try again changes nothing.

    Raises:
        NotFound: MODEL_DAMAGED, the disk gives something else.
    """
    try:
        yield
    except NotTensors as error:
        raise model_damaged() from error


@dataclass(frozen=True, slots=True)
class Effects:
    """Carries out commands; keeps no state of its own."""

    blobs: BlobStore
    sessions: Sessions
    pausing: Pausing | None = None
    elsewhere: Elsewhere | None = None

    async def run(self, live: LiveJob, command: c.Command) -> Reply | None:
        """Carry out one command."""
        match command:
            case c.SendOrder(attempt_id):
                self._send_order(live, attempt_id)
            case c.NotifyClosed(attempt_id, node, outcome):
                await asyncio.to_thread(self.blobs.drop_attempt, attempt_id)
                closed = federation.AttemptClosed(attempt_id=attempt_id, outcome=outcome)
                self.sessions.send(node, federation.CoordinatorMessage(attempt_closed=closed))
            case c.FoldUpdates(number):
                return await self._fold(live, number)
            case c.PublishLast():
                return await self._publish(live, command)
            case c.ForgetUpdates(number):
                await asyncio.to_thread(self._forget, live, number)
            case c.WriteAnswer(through_round):
                return await self._answer(live, through_round)
            case c.EndJob():
                self._end(live)
            case c.Survey() | c.ReserveBudgets() | c.PublishModel():
                invariant(False, "the turn answers these itself")
            case c.KeepSignature() | c.PostCharge() | c.VoidCharge():
                invariant(False, "ledger commands belong into the step's transaction")
        return None

    def _send_order(self, live: LiveJob, attempt_id: str) -> None:
        found, phase = live.attempt(attempt_id), live.phase
        if found is None or not found[1].is_open or not isinstance(phase, Training):
            return
        paused = self.pausing is not None and self.pausing.now is not None
        if paused and found[1].state is AttemptState.ORDERED:
            return  # `Rounds.pause_changed` has it sent when work goes on
        try:
            order = work_order(live, phase, found[1], self.blobs)
        except NotFound as error:
            raise model_damaged(phase.course.model) from error
        self.sessions.send(found[1].node, federation.CoordinatorMessage(work_order=order))

    async def _fold(self, live: LiveJob, number: int) -> Reply | None:
        phase = live.phase
        if not isinstance(phase, Aggregating) or phase.round.number != number:
            return None
        try:
            event = await self._averaged(live, phase)
        except NotFound:
            if live.phase is not phase:
                return None  # the commit of a fold before this one was not heard of at first
            raise

        def reply(connection: Connection, now: LiveJob) -> e.Event | None:
            if not isinstance(now.phase, Aggregating):
                return None
            shared_work.forget(connection, now.job_id)
            return event

        return reply

    async def _averaged(self, live: LiveJob, phase: Aggregating) -> e.UpdatesFolded:
        if self.elsewhere is not None:
            event = await self.elsewhere.average(live, phase)
            if event is not None:
                # Asked once here: the next orders tell the size without asking the store.
                kept = await asyncio.to_thread(self._kept_bytes, event.digest)
                if kept == event.model_bytes:
                    return event
        await asyncio.to_thread(self.blobs.check_models, [phase.course.model])
        with _models_as_kept():
            return await asyncio.to_thread(averaging.fold, live, phase, self.blobs)

    async def _answered(self, live: LiveJob, digests: list[str]) -> tuple[str, int]:
        """(digest of the job's answer, its size)."""
        answer = None
        if self.elsewhere is not None:
            answer = await self.elsewhere.answer(live, digests)
        if answer is None or not await asyncio.to_thread(self._kept_bytes, answer):
            await asyncio.to_thread(self.blobs.check_models, averaging.tail_of(digests))
            with _models_as_kept():
                answer = await asyncio.to_thread(averaging.write_answer, live, digests, self.blobs)
        return answer, await asyncio.to_thread(self.blobs.model_bytes, answer)

    def _kept_bytes(self, digest: str) -> int:
        """Of a model that another replica has made; 0 if it is not in the shared store."""
        try:
            return self.blobs.model_bytes(digest)
        except NotFound:
            return 0

    async def _publish(self, live: LiveJob, command: c.PublishLast) -> Reply:
        digests = [one.model for one in live.phase.course.done] + [command.digest]
        answer, size = await self._answered(live, digests)

        def reply(connection: Connection, now: LiveJob) -> e.Event | None:
            if not isinstance(now.phase, Publishing) or now.phase.round.number != command.round:
                return None
            list_model(connection, now, "round", command.round, command.digest, command.model_bytes)
            list_model(connection, now, "answer", command.round, answer, size)
            return e.ModelPublished(command.round, answer)

        return reply

    def lost_updates(self, live: LiveJob) -> tuple[str, ...]:
        """Attempts of the round that was cut off whose updates were taken and are gone."""
        record, lost = current_round(live.phase), list[str]()
        for attempt in record.received if record is not None else ():
            try:
                self.blobs.update(attempt.attempt_id, attempt.digest)
            except NotFound:
                lost.append(attempt.attempt_id)
        return tuple(lost)

    def _forget(self, live: LiveJob, number: int) -> None:
        for attempt in live.phase.course.done[number - 1].received:
            self.blobs.drop_update(attempt.attempt_id, attempt.digest)

    async def _answer(self, live: LiveJob, through_round: int) -> Reply:
        digests = [one.model for one in live.phase.course.done]
        answer, size = await self._answered(live, digests)

        def reply(connection: Connection, now: LiveJob) -> e.Event | None:
            if not isinstance(now.phase, Closing):
                return None
            list_model(connection, now, "answer", through_round, answer, size)
            return e.AnswerWritten(answer)

        return reply

    def _end(self, live: LiveJob) -> None:
        if not live.has_ended:
            return  # somebody has resumed it since
        self.blobs.free_spent()
        ended = federation.CoordinatorMessage(job_ended=federation.JobEnded(job_id=live.job_id))
        for node in sorted({a.node for one in live.attempted() for a in one.attempts}):
            self.sessions.send(node, ended)
        for one in live.attempted()[-2:]:
            for attempt in one.attempts:
                if not live.needs_update(attempt.attempt_id):
                    self.blobs.drop_attempt(attempt.attempt_id)


def reserve_statement(live: LiveJob, number: int, grant: e.Grant) -> Statement:
    """What the ledger and the node book for a grant."""
    made = live.statements.get(grant.attempt_id)
    if made is None:
        made = live.statements[grant.attempt_id] = _reserve_statement(live, number, grant)
    return made


def _reserve_statement(live: LiveJob, number: int, grant: e.Grant) -> Statement:
    offer, release = grant.offer, release_of(grant.offer, live.job)
    return Statement(
        kind="reserve",
        attempt_id=grant.attempt_id,
        project=live.record.project,
        node=offer.node,
        account=offer.account,
        dataset=live.job.dataset,
        job_id=live.job_id,
        round=number,
        unit=UNIT,
        declared_n=offer.declared_n,
        mechanism=offer.mechanism,
        noise_multiplier=offer.noise_multiplier,
        sample_rate=offer.sample_rate,
        steps=release.steps,
    )


def work_order(
    live: LiveJob, phase: Training, attempt: Attempt, blobs: BlobStore
) -> federation.WorkOrder:
    """The order that an attempt's node gets."""
    job, offer, signed = live.job, attempt.offer, live.record.mandate
    statement = reserve_statement(live, phase.round.number, e.Grant(attempt.attempt_id, offer))
    place = order_place(live, phase.round.number, attempt.attempt_id)
    return federation.WorkOrder(
        attempt_id=attempt.attempt_id,
        job_id=live.job_id,
        project=live.record.project,
        round=phase.round.number,
        data_set=job.dataset,
        account=offer.account.partition("/")[2],
        task=job.task,
        task_hash=live.record.task_hash,
        task_config_json=job.task_config_json,
        release=federation.Release(
            unit=statement.unit,
            declared_n=statement.declared_n,
            mechanism=statement.mechanism,
            noise_multiplier=statement.noise_multiplier,
            sample_rate=statement.sample_rate,
            steps=statement.steps,
        ),
        max_grad_norm=job.max_grad_norm,
        proximal_mu=job.proximal_mu,
        base_model_digest=phase.course.model,
        base_model_bytes=blobs.model_bytes(phase.course.model),
        base_model=blobs.inline_model(phase.course.model),
        deadline_s=max(1, round(phase.deadline_at_s - time.time())),
        target_epsilon=job.target_epsilon or 0.0,
        delta=job.delta,
        priority=job.priority,
        update_dtype=job.update_dtype,
        mandate=mandates_pb2.SignedMandate.FromString(signed) if signed else None,
        traceparent=place.traceparent if place is not None else "",
    )


def list_model(
    connection: Connection, live: LiveJob, kind: str, number: int, digest: str, size: int
) -> None:
    """List a model of the job."""
    job_store.add_model(
        connection,
        ModelRecord(live.job_id, kind, number, digest, size, time.time(), live.record.project),
    )
