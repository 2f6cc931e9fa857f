"""With which noise a node is ordered next, and when too little is left of a job's target for it.
Pure; decides by public facts alone, as the planner does."""

import math
from typing import Final

from coordinator.jobspec import Job
from coordinator.rounds.node_facts import NodeFacts
from coordinator.store.ledger import Account
from privacy.accounting import round_up
from privacy.calibration import REPORT_SLACK_UNITS, noise_multiplier_for
from privacy.filters import Filter, make_filter
from privacy.releases import Mechanism, Release
from protos.errors import BudgetRefused, FeddpError, invariant
from protos.feddp.v1 import federation_pb2 as federation

NOISE_OVER_PLAN_MAX: Final = 3.0
"""Times the plan's noise that a release may have; a node that would need more is left out.

It is averaged in at full weight. One release of three times the noise among three hospitals of one
size makes the noise of their round 1.9 times what was planned, sqrt((1 + 1 + 9) / 3).
"""

LEFT_UNUSED_MAX: Final = 0.02
"""Of what a node has left, so much may stay unused for its noise to stay as it was: one part in a
hundred of the noise. Calibration alone leaves far less."""


def next_release(
    job: Job,
    facts: NodeFacts,
    account: Account,
    steward: federation.Account,
    rounds_left: int,
) -> Release:
    """The next round's release.

    With a target epsilon each round takes what remains of the job's share over the rounds that
    remain, so that an attempt that came to nothing costs noise later and never the promise, and
    that fewer steps than before, or a round without this node, leave less noise.

    Raises:
        BudgetRefused: BUDGET_TOO_SMALL, the target is too little for the plan, or what attempts
            have left of it would need more than `NOISE_OVER_PLAN_MAX` times the plan's noise.
    """
    if job.mechanism == "no_data":
        return Release("no_data", None, 1.0, 0)
    if job.mechanism == "none":
        return Release("none", None, 1.0, facts.local_steps(job))
    declared_n = facts.data_set.declared_n
    local_steps = facts.local_steps(job)
    sample_rate = 1.0
    may_sample = account.filter.kind == "rdp" and not job.full_batch
    if may_sample and declared_n >= job.poisson_from_n:
        sample_rate = min(1.0, job.batch_size / declared_n)
    mechanism: Mechanism = "gaussian" if sample_rate == 1.0 else "poisson_gaussian"
    if job.noise_multiplier is not None:
        return Release(mechanism, job.noise_multiplier, sample_rate, local_steps)
    invariant(job.target_epsilon is not None, "a job fixes its epsilon or its noise")
    target = job.target_epsilon or 0.0
    share = _share_of(account.filter, target)
    # What calibration leaves unused for each release stays unused for those that were made.
    slack_units = REPORT_SLACK_UNITS if share.kind == "gdp" else 0
    left_units = share.limit_units - facts.job_units - facts.job_releases * slack_units
    noise = facts.last_noise_multiplier
    least_noise = steward.noise_multiplier_min
    if noise is not None and noise >= least_noise:
        same = Release(mechanism, noise, sample_rate, local_steps)
        takes_units = (share.cost_units(same) + slack_units) * rounds_left
        takes_it_up = takes_units >= (1.0 - LEFT_UNUSED_MAX) * left_units or noise == least_noise
        if takes_units <= left_units and takes_it_up:
            return same
    try:
        noise = noise_multiplier_for(share, left_units, rounds_left, local_steps, sample_rate)
    except BudgetRefused:
        if not facts.job_units:
            raise
        noise = math.inf
    if facts.job_units:
        planned = noise_multiplier_for(
            share, share.limit_units, job.rounds_planned, local_steps, sample_rate
        )
        planned = max(planned, least_noise)
        if noise > NOISE_OVER_PLAN_MAX * planned:
            text = _used_up(facts, account.account, target, noise, planned)
            raise BudgetRefused("BUDGET_TOO_SMALL", text)
    noise = max(noise, least_noise)
    return Release(mechanism, noise, sample_rate, local_steps)


def _used_up(facts: NodeFacts, account: str, target: float, noise: float, planned: float) -> str:
    """Whose doing it is that too little of the job's target is left, and what to do."""
    causes = []
    if facts.job_no_updates:
        causes.append(f"its data was opened and no update came of it{_times(facts.job_no_updates)}")
    if facts.job_cut_off:
        causes.append(f"a round closed before it had answered{_times(facts.job_cut_off)}")
    cause = " and ".join(causes) or "it has worked for this job before"
    needs = "whatever its noise"
    if noise < math.inf:
        needs = (
            f"which would need a noise multiplier of {noise:g}, more than {NOISE_OVER_PLAN_MAX:g} "
            f"times the {planned:g} of the job's plan"
        )
    return (
        f"{cause}, which stays charged and leaves too little of the job's own target_epsilon "
        f"{target:g} for another release there, {needs}; that is the job's limit and not the one "
        f"of account {account}. The hospital's own log has the reason; a job that is submitted "
        "anew has a target of its own"
    )


def _times(count: int) -> str:
    return "" if count == 1 else f" ({count} times)"


def _share_of(filter_: Filter, target: float) -> Filter:
    """What `target` is worth by an account's filter.

    Raises:
        BudgetRefused: BUDGET_TOO_SMALL, the account starts at more than that.
    """
    try:
        return make_filter(filter_.kind, filter_.order, target, filter_.delta)
    except FeddpError as error:
        if filter_.kind != "rdp":
            text = f"the job's target_epsilon is {target:g}: {error.message}"
            raise BudgetRefused("BUDGET_TOO_SMALL", text) from None
        least = round_up(filter_.epsilon_start, 3)
        raise BudgetRefused(
            "BUDGET_TOO_SMALL",
            f"its account counts by rdp of order {filter_.order}, which starts at epsilon "
            f"{least:g} at delta {filter_.delta:g}, its conversion cost, and the job's "
            f"target_epsilon is {target:g}: raise privacy.target_epsilon in the job above "
            f"{least:g}",
        ) from None
