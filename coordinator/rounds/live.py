"""A job in memory: what was submitted, and the phase that its journal adds up to."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from coordinator.jobspec import Job
from coordinator.rounds import events, machine
from coordinator.rounds.phases import (
    Attempt,
    AttemptState,
    Ended,
    Phase,
    Plan,
    RoundRecord,
    Selecting,
    Training,
    current_round,
)
from coordinator.store.jobs import JobRecord
from privacy.filters import Filter
from privacy.ledger import Statement
from privacy.releases import Release
from protos.content import digest_of
from protos.errors import invariant

_JOB: TypeAdapter[Job] = TypeAdapter(Job)


def job_to_json(job: Job) -> str:
    """A resolved job as the store keeps it."""
    return _JOB.dump_json(job).decode()


def job_from_json(text: str) -> Job:
    """The job that `job_to_json` wrote."""
    return _JOB.validate_json(text)


def plan_of(job: Job) -> Plan:
    """The part of a job that the round machine decides by."""
    return Plan(
        min_participants=job.min_participants,
        rounds_planned=job.rounds_planned,
        deadline_s=job.deadline_s,
        convergence_patience=job.convergence_patience,
        participants=job.participants,
        over_selection=job.over_selection,
        grace_factor=job.grace_factor,
    )


def replay(plan: Plan, steps: Iterable[tuple[float, events.Event]]) -> tuple[Phase, int]:
    """(the phase that a journal adds up to, number of its steps)."""
    phase: Phase | None = None
    count = 0
    for now_s, event in steps:
        if isinstance(event, events.JobSubmitted):
            invariant(phase is None, "a job is submitted once")
            phase, _ = machine.start(plan, event, now_s)
        else:
            invariant(phase is not None, "a journal begins with its submission")
            phase, _ = machine.step(phase, event, now_s)  # type: ignore[arg-type]
        count += 1
    invariant(phase is not None, "a job has a journal")
    return phase, count  # type: ignore[return-value]


@dataclass(slots=True)
class LiveJob:
    """A job and its phase. Only the driver changes it.

    Attributes:
        inbox: what is to be taken in the next turn.
        has_turn: somebody takes turns until the inbox is empty.
        statements: reserve statements of attempts, so that each is made once.
        unsure: a turn's transaction failed; it may have committed all the same.
    """

    record: JobRecord
    job: Job
    phase: Phase
    steps: int
    surveyed_at_s: float = 0.0
    inbox: list[Any] = field(default_factory=list)
    has_turn: bool = False
    unsure: bool = False
    statements: dict[str, Statement] = field(default_factory=dict)
    _round_costs: dict[str, dict[int, tuple[RoundRecord, int, int]]] = field(default_factory=dict)
    _rounds_said: list["_Said"] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.record.job_id

    @property
    def spec_digest(self) -> str:
        """BLAKE3 of the submitted bytes."""
        return digest_of(self.record.spec)

    @property
    def has_ended(self) -> bool:
        """Whether nothing further happens."""
        return isinstance(self.phase, Ended)

    def rounds(self) -> list[RoundRecord]:
        """Every round so far, the one under way last."""
        under_way = current_round(self.phase)
        return [*self.phase.course.done, *([under_way] if under_way else [])]

    def attempted(self) -> list[RoundRecord]:
        """Every round that ordered anything, those too that were cut off before a resumption."""
        return [*self.phase.course.abandoned, *self.rounds()]

    def attempt(self, attempt_id: str) -> tuple[RoundRecord, Attempt] | None:
        """An attempt of this job and its round."""
        for record in reversed(self.attempted()):
            attempt = record.attempt(attempt_id)
            if attempt is not None:
                return record, attempt
        return None

    def forget_statements(self, over: Iterable[RoundRecord]) -> None:
        """Let go of the statements of rounds that are over."""
        for record in over:
            for attempt in record.attempts:
                self.statements.pop(attempt.attempt_id, None)

    def needs_update(self, attempt_id: str) -> bool:
        """Whether what there is of an attempt's update is still to be used: it may arrive, is to be
        folded, or is what a failed job goes on with."""
        found = self.attempt(attempt_id)
        if found is None:
            return False
        record, attempt = found
        if attempt.is_open:
            return True
        is_over = isinstance(self.phase, Ended) and self.phase.status != "failed"
        to_fold = record is current_round(self.phase) and not is_over
        return to_fold and attempt.state is AttemptState.RECEIVED

    def last_noise(self, node: str) -> float | None:
        """The noise multiplier of the node's newest attempt."""
        for said in reversed(self._said()):
            if node in said.noise:
                return said.noise[node]
        return None

    def ended(self, node: str, states: frozenset[AttemptState]) -> int:
        """How many of the node's attempts ended in one of `states`."""
        return sum(one.ends[node, state] for one in self._said() for state in states)

    def steps_possible(self, node: str) -> int:
        """The fewest steps that the node has said it can do; 0 if it never said so."""
        return min((one.steps[node] for one in self._said() if node in one.steps), default=0)

    def _said(self) -> list["_Said"]:
        """What each round's attempts say of their nodes; each round is read once."""
        attempted = self.attempted()
        for place, record in enumerate(attempted):
            if place == len(self._rounds_said):
                self._rounds_said.append(_Said(record))
            elif self._rounds_said[place].record is not record:
                self._rounds_said[place] = _Said(record)
        del self._rounds_said[len(attempted) :]
        return self._rounds_said

    def spent(self, account: str, filter_: Filter) -> tuple[int, int]:
        """(filter units, number of releases) that this job has posted or holds in an account.

        The journal and the ledger are written together, so that either can be asked, but for a
        coordinator that was restored: nodes hand in what the journal does not know.
        """
        units = releases = 0
        costs = self._round_costs.setdefault(account, {})
        for place, record in enumerate(self.attempted()):
            known = costs.get(place)
            if known is None or known[0] is not record:
                known = costs[place] = (record, *_cost(record, account, filter_, self.job))
            units, releases = units + known[1], releases + known[2]
        return units, releases

    def is_waiting(self) -> bool:
        """Whether the job cannot go on by itself and says for whom it waits."""
        match self.phase:
            case Selecting(surveyed=surveyed):
                return surveyed
            case Training(waiting=waiting):
                return bool(waiting)
            case _:
                return False

    def announce(self) -> None:
        """Wake everybody who watches."""
        self.changed.set()
        self.changed = asyncio.Event()


class _Said:
    """What one round's attempts say of their nodes.

    Attributes:
        noise: node -> the noise multiplier of its newest attempt.
        steps: node -> the fewest steps that it said it can do; without those that never said so.
        ends: (node, state) -> how many of its attempts are in it.
    """

    def __init__(self, record: RoundRecord) -> None:
        self.record = record
        self.noise = {one.node: one.offer.noise_multiplier for one in record.attempts}
        self.ends = Counter((one.node, one.state) for one in record.attempts)
        self.steps: dict[str, int] = {}
        for one in record.attempts:
            if one.steps_possible:
                before = self.steps.get(one.node, one.steps_possible)
                self.steps[one.node] = min(before, one.steps_possible)


def _cost(record: RoundRecord, account: str, filter_: Filter, job: Job) -> tuple[int, int]:
    made = [
        attempt.offer
        for attempt in record.attempts
        if attempt.offer.account == account and attempt.state is not AttemptState.REFUSED
    ]
    return sum(filter_.cost_units(release_of(offer, job)) for offer in made), len(made)


def release_of(offer: events.Offer, job: Job) -> Release:
    """What a node that is ordered by an offer releases."""
    steps = 0 if offer.mechanism == "no_data" else offer.local_steps or job.local_steps
    return Release(offer.mechanism, offer.noise_multiplier, offer.sample_rate, steps)
