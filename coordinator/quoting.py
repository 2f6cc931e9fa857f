"""What a job would cost each hospital, before anything runs. Pure; decides by public facts and the
ledger alone, as the planner does."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from coordinator.jobspec import Job
from coordinator.rounds import planner
from coordinator.rounds.events import Absence, Offer
from coordinator.rounds.live import LiveJob, release_of
from coordinator.rounds.planner import NodeFacts
from coordinator.store.ledger import Account
from coordinator.store.shares import Share
from privacy.accounting import epsilon_spent
from privacy.calibration import units_for
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as federation
from protos.feddp.v1 import jobs_pb2 as pb
from protos.updates import UpdateDtype

NEARLY_SPENT: Final = 0.8
"""Share of an account's budget from which people are warned."""

_WIRE_SHARE: Final[dict[UpdateDtype, float]] = {"float32": 1.0, "bfloat16": 0.5, "int8": 0.251}
"""Bytes of an update over those of its model, headers apart; int8 has a scale of 4 bytes for each
1024 values."""


def quote(
    job: Job, task_hash: str, nodes: Sequence[NodeFacts], model_bytes: int
) -> pb.QuoteJobResponse:
    """The whole job at every node that publishes its data set."""
    return pb.QuoteJobResponse(
        rounds_planned=job.rounds_planned,
        min_participants=job.min_participants,
        nodes=[
            _node(job, task_hash, facts, model_bytes)
            for facts in sorted(nodes, key=lambda one: one.node)
        ],
        seconds_max=float(job.rounds_planned * job.deadline_s),
    )


def expected_s(job: Job, earlier: Sequence[LiveJob]) -> float | None:
    """How long the job takes if its rounds take what those of the newest like it took.

    Args:
        earlier: jobs of the same task on the same data set, the newest first.
    """
    for live in earlier:
        spans = [one.published_at_s - one.started_at_s for one in live.phase.course.done]
        if spans:
            return job.rounds_planned * statistics.median(spans)
    return None


def _node(job: Job, task_hash: str, facts: NodeFacts, model_bytes: int) -> pb.QuotedNode:
    rounds = job.rounds_planned
    # Who works for another job now is free later: what it would cost is asked all the same.
    found = planner.consider(job, task_hash, replace(facts, taken=None), rounds)
    one = pb.QuotedNode(node=facts.node)
    account = facts.account
    if account is not None:
        filter_, balance = account.filter, account.balance
        one.account, one.delta = account.account, filter_.delta
        one.epsilon_limit = filter_.epsilon_limit
        if balance.guarantee:
            one.epsilon_before = filter_.epsilon_of(balance.posted_units + balance.pending_units)
    if isinstance(found, Absence):
        one.reason, one.message = found.reason, found.message
        return one
    if facts.taken is not None:
        one.message = facts.taken.message
    _cost(one, job, facts, found)
    one.download_bytes = rounds * model_bytes
    one.upload_bytes = rounds * round(model_bytes * _WIRE_SHARE[job.update_dtype])
    return one


def _cost(one: pb.QuotedNode, job: Job, facts: NodeFacts, offer: Offer) -> None:
    release = release_of(offer, job)
    one.mechanism, one.sample_rate, one.steps = (
        release.mechanism,
        release.sample_rate,
        release.steps,
    )
    if release.noise_multiplier is not None:
        one.noise_multiplier = release.noise_multiplier
    spent = epsilon_spent([release] * job.rounds_planned, job.delta)
    if spent is not None:
        one.epsilon_job = spent
    account, steward = facts.account, facts.steward
    if account is None or steward is None:
        return
    filter_, balance = account.filter, account.balance
    cost_units = filter_.cost_units(release)
    after_units = balance.posted_units + balance.pending_units + job.rounds_planned * cost_units
    if spent is not None and balance.guarantee:
        one.epsilon_after = filter_.epsilon_of(after_units)
    one.nearly_spent = after_units >= NEARLY_SPENT * filter_.limit_units
    if cost_units > 0:
        left_units, one.tightest, one.tightest_epsilon = _tightest(account, steward, facts.shares)
        one.rounds_fit = left_units // cost_units


def _tightest(
    account: Account, steward: federation.Account, shares: Sequence[Share]
) -> tuple[int, str, float]:
    """(units left, name, epsilon) of the limit that leaves the least to a new job."""
    filter_ = account.filter
    per_job = steward.epsilon_per_job_max
    try:
        per_job_units = units_for(filter_.kind, filter_.order, per_job, filter_.delta)
    except FeddpError:
        per_job_units = 0
    return min(
        (account.balance.remaining_units, "account", filter_.epsilon_limit),
        (per_job_units, "job", per_job),
        *((one.left_units, str(one), one.epsilon_limit) for one in shares),
        key=lambda bound: bound[0],
    )
