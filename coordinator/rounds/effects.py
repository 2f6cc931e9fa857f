"""What the driver does when the round machine asks: surveys, reservations, orders, models.

`run` gives back a `Reply`: a function that, inside the next transaction, makes the event that
answers the command, or None if the job has moved on meanwhile.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from coordinator import aggregation
from coordinator.blobs import BlobStore
from coordinator.rounds import bounds, convergence, planner
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import (
    Aggregating,
    Attempt,
    Closing,
    Publishing,
    Reserving,
    Training,
)
from coordinator.sessions import Sessions
from coordinator.store import jobs as job_store
from coordinator.store import ledger, people
from coordinator.store.database import Database
from coordinator.store.jobs import ModelRecord
from privacy.ledger import Statement
from protos.errors import BudgetRefused, FeddpError, NotFound, invariant
from protos.feddp.v1 import federation_pb2 as federation

Reply = Callable[[Connection, LiveJob], e.Event | None]

UNIT = "patient"


@dataclass(frozen=True, slots=True)
class Effects:
    """Carries out commands; keeps no state of its own."""

    database: Database
    blobs: BlobStore
    sessions: Sessions

    async def run(self, live: LiveJob, command: c.Command) -> Reply | None:
        """Carry out one command."""
        match command:
            case c.Survey():
                return await self._survey(live)
            case c.ReserveBudgets():
                return lambda connection, job: reserve(connection, job, command)
            case c.SendOrder(attempt_id):
                self._send_order(live, attempt_id)
            case c.NotifyClosed(attempt_id, node, outcome):
                await asyncio.to_thread(self.blobs.drop_attempt, attempt_id)
                closed = federation.AttemptClosed(attempt_id=attempt_id, outcome=outcome)
                self.sessions.send(node, federation.CoordinatorMessage(attempt_closed=closed))
            case c.FoldUpdates(number):
                return await self._fold(live, number)
            case c.PublishModel():
                return await self._publish(live, command)
            case c.WriteAnswer(through_round):
                return await self._answer(live, through_round)
            case c.EndJob():
                self._end(live)
            case c.KeepSignature() | c.PostCharge() | c.VoidCharge():
                invariant(False, "ledger commands belong into the step's transaction")
        return None

    async def _survey(self, live: LiveJob) -> Reply:
        facts = await self.database.read(lambda connection: node_facts(connection, self, live))
        rounds_left = live.job.rounds_planned - len(live.phase.course.done)
        offers, absences = planner.survey(live.job, live.record.task_hash, facts, rounds_left)

        def reply(_connection: Connection, _live: LiveJob) -> e.Event:
            return e.NodesSurveyed(offers, absences)

        return reply

    def _send_order(self, live: LiveJob, attempt_id: str) -> None:
        found, phase = live.attempt(attempt_id), live.phase
        if found is None or not found[1].is_open or not isinstance(phase, Training):
            return
        order = work_order(live, phase, found[1], self.blobs)
        self.sessions.send(found[1].node, federation.CoordinatorMessage(work_order=order))

    async def _fold(self, live: LiveJob, number: int) -> Reply | None:
        phase = live.phase
        if not isinstance(phase, Aggregating) or phase.round.number != number:
            return None
        event = await asyncio.to_thread(fold, live, phase, self.blobs)

        def reply(_connection: Connection, now: LiveJob) -> e.Event | None:
            return event if isinstance(now.phase, Aggregating) else None

        return reply

    async def _publish(self, live: LiveJob, command: c.PublishModel) -> Reply:
        answer = None
        if command.last:
            digests = [one.model for one in live.phase.course.done] + [command.digest]
            answer = await asyncio.to_thread(write_answer, live, digests, self.blobs)
        size = self.blobs.model(command.digest).stat().st_size

        def reply(connection: Connection, now: LiveJob) -> e.Event | None:
            if not isinstance(now.phase, Publishing) or now.phase.round.number != command.round:
                return None
            _list_model(connection, now, "round", command.round, command.digest, size)
            if answer is not None:
                _list_model(connection, now, "answer", command.round, answer, size)
            return e.ModelPublished(command.round, answer)

        for attempt in live.rounds()[-1].received:
            self.blobs.drop_update(attempt.attempt_id, attempt.digest)
        return reply

    async def _answer(self, live: LiveJob, through_round: int) -> Reply:
        digests = [one.model for one in live.phase.course.done]
        answer = await asyncio.to_thread(write_answer, live, digests, self.blobs)
        size = self.blobs.model(answer).stat().st_size

        def reply(connection: Connection, now: LiveJob) -> e.Event | None:
            if not isinstance(now.phase, Closing):
                return None
            _list_model(connection, now, "answer", through_round, answer, size)
            return e.AnswerWritten(answer)

        return reply

    def _end(self, live: LiveJob) -> None:
        ended = federation.CoordinatorMessage(job_ended=federation.JobEnded(job_id=live.job_id))
        for node in {a.node for one in live.rounds() for a in one.attempts}:
            self.sessions.send(node, ended)
        for one in live.rounds():
            for attempt in one.attempts:
                self.blobs.drop_attempt(attempt.attempt_id)


def node_facts(connection: Connection, effects: Effects, live: LiveJob) -> list[planner.NodeFacts]:
    """Every node that publishes the job's data set, as the store and the sessions know it."""
    facts: list[planner.NodeFacts] = []
    for node in people.all_nodes(connection):
        data_set = next((d for d in node.hello.data_sets if d.name == live.job.dataset), None)
        if data_set is None:
            continue
        name = f"{node.name}/{data_set.account}"
        account, spent = None, (0, 0)
        try:
            account = ledger.read_account(connection, name)
            spent = ledger.job_spending(connection, live.job_id, account)
        except NotFound:
            pass  # its policy was refused; the planner says so
        facts.append(
            planner.NodeFacts(
                node=node.name,
                connected=effects.sessions.connected(node.name),
                disabled=node.status == "disabled",
                data_set=data_set,
                steward=next((a for a in node.hello.accounts if a.name == data_set.account), None),
                account=account,
                job_units=spent[0],
                job_releases=spent[1],
                last_noise_multiplier=live.last_noise(node.name),
            )
        )
    return facts


def reserve(connection: Connection, live: LiveJob, command: c.ReserveBudgets) -> e.Event | None:
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
    savepoint = connection.begin_nested()
    for offer in command.offers:
        grant = e.Grant(secrets.token_hex(12), offer)
        try:
            ledger.book(connection, reserve_statement(live, command.round, grant))
            grants.append(grant)
        except BudgetRefused as error:
            refused.append(e.Absence(offer.node, "BUDGET", error.message))
        except FeddpError as error:
            refused.append(e.Absence(offer.node, error.reason, error.message))
    if len(grants) < command.at_least:
        savepoint.rollback()
        grants = []
    else:
        savepoint.commit()
    return e.BudgetsReserved(tuple(grants), tuple(refused))


def reserve_statement(live: LiveJob, number: int, grant: e.Grant) -> Statement:
    """What the ledger and the node book for a grant."""
    offer, job = grant.offer, live.job
    return Statement(
        kind="reserve",
        attempt_id=grant.attempt_id,
        project=live.record.project,
        node=offer.node,
        account=offer.account,
        dataset=job.dataset,
        job_id=live.job_id,
        round=number,
        unit=UNIT,
        declared_n=offer.declared_n,
        mechanism=offer.mechanism,
        noise_multiplier=offer.noise_multiplier,
        sample_rate=offer.sample_rate,
        steps=0 if offer.mechanism == "no_data" else job.local_steps,
    )


def work_order(
    live: LiveJob, phase: Training, attempt: Attempt, blobs: BlobStore
) -> federation.WorkOrder:
    """The order that an attempt's node gets."""
    job, offer = live.job, attempt.offer
    statement = reserve_statement(live, phase.round.number, e.Grant(attempt.attempt_id, offer))
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
        base_model_bytes=blobs.model(phase.course.model).stat().st_size,
        deadline_s=max(1, round(phase.deadline_at_s - time.time())),
        target_epsilon=job.target_epsilon or 0.0,
        delta=job.delta,
        update_dtype=job.update_dtype,
    )


def round_order(live: LiveJob) -> bounds.RoundOrder:
    """What the public bounds of a round follow from."""
    job = live.job
    return bounds.RoundOrder(
        learning_rate=planner.learning_rate(job.task_config),
        local_steps=job.local_steps,
        max_grad_norm=job.max_grad_norm,
        proximal_mu=job.proximal_mu,
        update_dtype=job.update_dtype,
    )


def fold(live: LiveJob, phase: Aggregating, blobs: BlobStore) -> e.UpdatesFolded:
    """Average the round's updates, weighted by declared sizes, and measure the drift.

    In the order of the nodes' names, so that the order of arrival changes nothing.
    """
    received = sorted(phase.round.received, key=lambda a: a.node)
    weights = [float(max(1, a.offer.declared_n)) for a in received]
    base = blobs.model(phase.course.model)
    scratch = blobs.scratch(f"{live.job_id}.{phase.round.number}")
    updates = [blobs.update(a.attempt_id, a.digest) for a in received]
    folded = aggregation.fold(base, updates, weights, scratch, live.job.update_dtype)
    size = scratch.stat().st_size
    digest = blobs.adopt_model(scratch)
    offers = [a.offer for a in received]
    noise = bounds.global_noise_norm(round_order(live), offers, weights, folded.update_values)
    drift, share, settled = _drift(live, phase, blobs, digest, folded, noise)
    return e.UpdatesFolded(phase.round.number, digest, size, drift, share, settled)


def _drift(
    live: LiveJob,
    phase: Aggregating,
    blobs: BlobStore,
    new: str,
    folded: aggregation.Folded,
    noise: float | None,
) -> tuple[float, float | None, bool]:
    """(drift, what noise alone would make of it, whether the round counts as settled)."""
    threshold, patience = live.job.convergence_threshold, live.job.convergence_patience
    before = [phase.course.initial, *(one.model for one in phase.course.done)]
    window = convergence.choose_window(len(before), patience, threshold, noise, folded.norm)
    moved = folded.moved
    if window.rounds > 1:
        moved, _ = aggregation.distance(blobs.model(before[-window.rounds]), blobs.model(new))
    drift = convergence.drift(moved, window.rounds, folded.norm)
    if noise is None:
        return drift, None, False
    share = convergence.noise_share(noise, window.rounds, folded.norm)
    return drift, share, convergence.settled(window, drift, share, threshold)


def write_answer(live: LiveJob, digests: list[str], blobs: BlobStore) -> str:
    """The job's answer: the mean of the global models of the last half of its rounds."""
    tail = digests[len(digests) // 2 :]
    if len(tail) == 1:
        return tail[0]
    scratch = blobs.scratch(f"{live.job_id}.answer")
    aggregation.mean_of([blobs.model(digest) for digest in tail], scratch)
    return blobs.adopt_model(scratch)


def _list_model(
    connection: Connection, live: LiveJob, kind: str, number: int, digest: str, size: int
) -> None:
    job_store.add_model(
        connection,
        ModelRecord(live.job_id, kind, number, digest, size, time.time(), live.record.project),
    )
