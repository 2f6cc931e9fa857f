"""How noisy an order of a job with a target may be, by a count of its own."""

from dataclasses import replace

from coordinator.jobspec import Job
from privacy.filters import Filter, make_filter
from privacy.ledger import Statement

OVER_PLAN_MAX = 3.0


def far_above_plan(job: Job, filter_: Filter, statement: Statement) -> bool:
    """Whether every planned round could have been ordered with a third of the noise, and more."""
    release = statement.release
    if job.target_epsilon is None or release.noise_multiplier is None:
        return False
    whole = make_filter(filter_.kind, filter_.order, job.target_epsilon, job.delta)
    third = replace(release, noise_multiplier=release.noise_multiplier / OVER_PLAN_MAX)
    return job.rounds_planned * filter_.cost_units(third) < 0.999 * whole.limit_units
