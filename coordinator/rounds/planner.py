"""Who can take part in a round, and with which release. Pure; decides by public facts alone:
what stewards declared and what the ledger holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.jobspec import Job
from coordinator.rounds.events import Absence, Offer
from coordinator.store.ledger import Account
from coordinator.store.shares import Share
from privacy.calibration import REPORT_SLACK_UNITS, noise_multiplier_for
from privacy.filters import make_filter
from privacy.releases import Mechanism, Release
from protos.errors import FeddpError, invariant
from protos.feddp.v1 import federation_pb2 as federation


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known of one node that holds the job's data set.

    Attributes:
        disabled: an operator has disabled it.
        data_set: as the node published it last.
        steward: the account's bounds as the node published them last; None if it did not.
        account: the account in the central ledger; None before the node's first session.
        job_units: filter units that this job has posted or holds there.
        job_releases: how many releases these are.
        last_noise_multiplier: of this job's newest attempt there; None for none.
        taken: another job has the node, or goes first for it.
        steps_possible: local steps that fit into its deadline, as it said; 0 for no bound.
        shares: limits of its policy, within the account's, that this job counts against.
    """

    node: str
    connected: bool
    disabled: bool
    data_set: federation.DataSet
    steward: federation.Account | None
    account: Account | None
    job_units: int
    job_releases: int
    last_noise_multiplier: float | None
    taken: Absence | None = None
    steps_possible: int = 0
    shares: tuple[Share, ...] = ()

    def local_steps(self, job: Job) -> int:
        """Steps of a round there."""
        return min(job.local_steps, self.steps_possible or job.local_steps)


def survey(
    job: Job, task_hash: str, nodes: list[NodeFacts], rounds_left: int
) -> tuple[tuple[Offer, ...], tuple[Absence, ...]]:
    """Sort nodes into offers and absences.

    Args:
        nodes: every node that publishes the job's data set, connected or not.
        rounds_left: rounds that a node's budget must last for, this one included.
    """
    offers: list[Offer] = []
    absences: list[Absence] = []
    for facts in nodes:
        answer = consider(job, task_hash, facts, rounds_left)
        if isinstance(answer, Offer):
            offers.append(answer)
        else:
            absences.append(answer)
    return tuple(offers), tuple(absences)


def consider(job: Job, task_hash: str, facts: NodeFacts, rounds_left: int) -> Offer | Absence:
    """One node's offer, or why there is none."""
    if facts.disabled:
        return _absent(facts, "DISABLED", "is disabled; `feddp node enable` lets it back in")
    if not facts.connected:
        return _absent(facts, "OFFLINE", "is not connected")
    wanted = f"{job.task}@{task_hash}"
    if wanted not in facts.data_set.tasks:
        return _absent(
            facts,
            "TASK_NOT_ALLOWED",
            f"its policy does not allow {job.task}@{task_hash[:12]}… on {job.dataset}; its data "
            "steward can",
        )
    account, steward = facts.account, facts.steward
    if account is None or steward is None:
        return _absent(facts, "ACCOUNT_UNKNOWN", "its policy has no valid account for the data set")
    if job.mechanism == "none" and not steward.unaccounted_allowed:
        return _absent(facts, "UNACCOUNTED_REFUSED", "its policy refuses releases without noise")
    filter_ = account.filter
    announced = (steward.filter, steward.rdp_order, steward.delta)
    if announced != (filter_.kind, filter_.order, filter_.delta):
        return _absent(
            facts,
            "ACCOUNT_CHANGED",
            f"its policy counts account {account.account} by another filter or delta than the "
            "account was created with; its data steward sets them back",
        )
    if job.mechanism == "dp" and job.delta != filter_.delta:
        return _absent(
            facts,
            "DELTA_MISMATCH",
            f"its account has delta {filter_.delta:g} and the job asks for {job.delta:g}; set "
            "privacy.delta in the job",
        )
    declared_n = facts.data_set.declared_n
    if job.mechanism == "dp" and job.delta * declared_n >= 1:
        return _absent(
            facts,
            "DELTA_TOO_LARGE",
            f"it declares {declared_n} patients, and the job's delta {job.delta:g} is not below "
            f"1/{declared_n}",
        )
    try:
        release = _release(job, facts, account, steward, rounds_left)
        cost_units = filter_.cost_units(release)
    except FeddpError as error:
        return _absent(facts, "BUDGET", error.message, for_good=True)
    if release.noise_multiplier is not None:
        if release.noise_multiplier < steward.noise_multiplier_min:
            return _absent(
                facts,
                "NOISE_TOO_LOW",
                f"its policy asks for a noise multiplier of {steward.noise_multiplier_min:g} or "
                "more",
            )
        try:
            refusal = _over_budget(facts, account, steward, cost_units)
        except FeddpError as error:
            return _absent(facts, "POLICY_INVALID", f"its epsilon_per_job_max: {error.message}")
        if refusal is not None:
            return refusal
    if facts.taken is not None:  # last, so that nobody waits for a node that could not help
        return facts.taken
    return Offer(
        facts.node,
        account.account,
        facts.data_set.declared_n,
        release.mechanism,
        release.noise_multiplier,
        release.sample_rate,
        facts.local_steps(job),
    )


def _release(
    job: Job,
    facts: NodeFacts,
    account: Account,
    steward: federation.Account,
    rounds_left: int,
) -> Release:
    """The next round's release.

    With a target epsilon each round takes what remains of the job's share over the rounds that
    remain, so that an attempt that came to nothing costs noise later and never the promise.
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
    share = make_filter(account.filter.kind, account.filter.order, target, job.delta)
    # What calibration leaves unused for each release stays unused for those that were made.
    slack_units = REPORT_SLACK_UNITS if share.kind == "gdp" else 0
    left_units = share.limit_units - facts.job_units - facts.job_releases * slack_units
    noise = facts.last_noise_multiplier
    if noise is not None and noise >= steward.noise_multiplier_min:
        same = Release(mechanism, noise, sample_rate, local_steps)
        if (share.cost_units(same) + slack_units) * rounds_left <= left_units:
            return same
    noise = noise_multiplier_for(share, left_units, rounds_left, local_steps, sample_rate)
    noise = max(noise, steward.noise_multiplier_min)
    return Release(mechanism, noise, sample_rate, local_steps)


def _over_budget(
    facts: NodeFacts, account: Account, steward: federation.Account, cost_units: int
) -> Absence | None:
    filter_, balance = account.filter, account.balance
    per_job = make_filter(
        filter_.kind, filter_.order, steward.epsilon_per_job_max, filter_.delta
    ).limit_units
    if facts.job_units + cost_units > per_job:
        return _absent(
            facts,
            "BUDGET",
            f"its policy allows epsilon {steward.epsilon_per_job_max:g} for one job, and another "
            "round would pass it",
            for_good=True,
        )
    if cost_units > balance.remaining_units:
        spent = filter_.epsilon_of(balance.posted_units)
        return _absent(
            facts,
            "BUDGET",
            f"account {account.account} has spent epsilon {spent:.4g} of {filter_.epsilon_limit:g}"
            f" at delta {filter_.delta:g}, and another round would pass the limit",
            for_good=balance.posted_units + cost_units > filter_.limit_units,
        )
    return _over_share(facts, account, cost_units)


def _over_share(facts: NodeFacts, account: Account, cost_units: int) -> Absence | None:
    """The node would refuse the order; asking it would cost an attempt and tell nothing new."""
    for share in facts.shares:
        if share.fault:
            return _absent(facts, "POLICY_INVALID", f"its limit for {share}: {share.fault}")
        if cost_units > share.left_units:
            # What is open may yet be void; nothing else comes back.
            sure_units = share.used_units - account.balance.pending_units
            return _absent(
                facts,
                "BUDGET",
                f"its policy allows {share} epsilon {share.epsilon_limit:g} of account "
                f"{account.account}, and another round would pass it",
                for_good=sure_units + cost_units > share.limit_units,
            )
    return None


def _absent(facts: NodeFacts, reason: str, message: str, *, for_good: bool = False) -> Absence:
    return Absence(facts.node, reason, message, for_good)


def learning_rate(task_config: Mapping[str, Any]) -> float | None:
    """The step size, if the task's configuration has one; bounds and noise floors need it."""
    value = task_config.get("learning_rate")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
