"""What a job would cost each hospital, before anything runs. Pure; decides by public facts and the
ledger alone, as the planner does."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from coordinator.jobspec import Job
from coordinator.rounds import planner
from coordinator.rounds.allowances import allowances, tightest
from coordinator.rounds.events import Absence, Offer
from coordinator.rounds.forecast import forecast
from coordinator.rounds.live import LiveJob, release_of
from coordinator.rounds.node_facts import NodeFacts
from coordinator.store.people import NodeRecord
from coordinator.store.shares import Share
from privacy.accounting import epsilon_spent, round_up
from privacy.filters import Filter, make_filter
from privacy.releases import Release
from privacy.stages import stage_of_share
from protos.feddp.v1 import jobs_pb2 as pb
from protos.updates import UpdateDtype

NEARLY_SPENT: Final = 0.8
"""Share of an account's budget, in units or in epsilon, from which people are warned."""

_WIRE_SHARE: Final[dict[UpdateDtype, float]] = {"float32": 1.0, "bfloat16": 0.5, "int8": 0.251}
"""Bytes of an update over those of its model, headers apart; int8 has a scale of 4 bytes for each
1024 values."""


def quote(
    job: Job, task_hash: str, nodes: Sequence[NodeFacts], model_bytes: int
) -> pb.QuoteJobResponse:
    """The job at every node that publishes its data set, as far as it gets."""
    ahead = forecast(job, task_hash, nodes)
    return pb.QuoteJobResponse(
        rounds_planned=job.rounds_planned,
        rounds_possible=ahead.rounds,
        min_participants=job.min_participants,
        nodes=[
            _node(job, task_hash, facts, ahead.releases(facts.node), model_bytes)
            for facts in sorted(nodes, key=lambda one: one.node)
        ],
        seconds_max=float(job.rounds_planned * job.deadline_s),
    )


def jobs_under_way(nodes: Sequence[NodeRecord], running: Sequence[LiveJob]) -> Counter[str]:
    """Account -> how many jobs under way there are whose data set it pays for, with noise."""
    wanted = Counter(live.job.dataset for live in running if live.job.mechanism == "dp")
    found: Counter[str] = Counter()
    for node in nodes:
        for data_set in node.hello.data_sets:
            found[f"{node.name}/{data_set.account}"] += wanted[data_set.name]
    return found


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


def _node(
    job: Job,
    task_hash: str,
    facts: NodeFacts,
    releases: Mapping[Release, int],
    model_bytes: int,
) -> pb.QuotedNode:
    # Who works for another job now is free later: what it would cost is asked all the same.
    facts_then = replace(facts, taken=None)
    found = planner.consider(job, task_hash, facts_then, job.rounds_planned)
    one = pb.QuotedNode(node=facts.node)
    account = facts.account
    if account is not None:
        filter_, balance = account.filter, account.balance
        one.account, one.delta = account.account, filter_.delta
        one.epsilon_limit, one.epsilon_start = filter_.epsilon_limit, filter_.epsilon_start
        if balance.guarantee:
            one.epsilon_before = filter_.epsilon_of(balance.posted_units + balance.pending_units)
    if isinstance(found, Absence):
        one.reason, one.message = found.reason, found.message
        if found.reason == "OFFLINE":
            _once_back(one, job, task_hash, replace(facts_then, connected=True))
        return one
    if facts.taken is not None:
        one.message = facts.taken.message
    one.rounds = sum(releases.values())
    _cost(one, job, facts, found, releases)
    one.download_bytes = one.rounds * model_bytes
    one.upload_bytes = one.rounds * round(model_bytes * _WIRE_SHARE[job.update_dtype])
    return one


def _once_back(one: pb.QuotedNode, job: Job, task_hash: str, facts: NodeFacts) -> None:
    """What a hospital that is away would spend: a round orders whoever is there then."""
    releases = forecast(job, task_hash, [facts]).releases(facts.node)
    spent = epsilon_spent(releases, job.delta) if releases else None
    if spent is None or facts.account is None:
        return
    one.message += (
        f"; once it is back it takes part, and spends epsilon {round_up(spent, 5):g} at most"
    )
    filter_ = facts.account.filter
    one.epsilon_job_booked = filter_.epsilon_of(_units(filter_, releases))


def _units(filter_: Filter, releases: Mapping[Release, int]) -> int:
    """What an account holds against its limit for these releases."""
    return sum(count * filter_.cost_units(release) for release, count in releases.items())


def _cost(
    one: pb.QuotedNode,
    job: Job,
    facts: NodeFacts,
    offer: Offer,
    releases: Mapping[Release, int],
) -> None:
    first = next(iter(releases), release_of(offer, job))
    one.mechanism, one.sample_rate, one.steps = first.mechanism, first.sample_rate, first.steps
    if first.noise_multiplier is not None:
        one.noise_multiplier = first.noise_multiplier
    spent = epsilon_spent(releases, job.delta)
    if spent is not None:
        one.epsilon_job = spent
    account, steward = facts.account, facts.steward
    if account is None or steward is None:
        return
    filter_, balance = account.filter, account.balance
    job_units = _units(filter_, releases)
    after_units = balance.posted_units + balance.pending_units + job_units
    if spent is not None:
        one.epsilon_job_booked = filter_.epsilon_of(job_units)
    if spent is not None and balance.guarantee:
        one.epsilon_after = filter_.epsilon_of(after_units)
    # Units and epsilon do not grow alike; whichever comes first is a reason to warn.
    one.nearly_spent = (
        after_units >= NEARLY_SPENT * filter_.limit_units
        or one.epsilon_after >= NEARLY_SPENT * filter_.epsilon_limit
    )
    one.shares_nearly_spent.extend(
        str(share)
        for share in facts.shares
        if not share.fault and _share_nearly_spent(filter_, share, job_units)
    )
    cost_units = filter_.cost_units(first)
    if cost_units > 0:
        limit = tightest(allowances(facts, account, steward))
        one.rounds_fit = limit.left_units // cost_units
        one.tightest, one.tightest_epsilon = limit.name, limit.epsilon


def _share_nearly_spent(filter_: Filter, share: Share, job_units: int) -> bool:
    """Whether so much of a limit within the account would be spent that people are warned."""
    at_limit = make_filter(filter_.kind, filter_.order, share.epsilon_limit, filter_.delta)
    return stage_of_share(at_limit, share.used_units + job_units) != ""
