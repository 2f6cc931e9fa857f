"""Whether an order may be carried out, by the steward's policy and the node's own ledger. Pure.

`judge` says no or nothing. A refusal travels to the coordinator: its message holds what the order
and the policy say, never anything of the data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from node_agent.datasets import DataSetSpec
from node_agent.orders import Order
from node_agent.policy import AccountPolicy, Policy
from node_agent.tasks.registry import Purpose, TaskInfo
from privacy.calibration import units_for
from privacy.filters import Filter, default_filter, make_filter
from privacy.ledger import Balance, Pending
from privacy.releases import TRAINED, UNNOISED
from protos.errors import FeddpError, Malformed, WrongPhase

STEPS_MAX: Final = 100_000
"""Local steps in one release; a bound on work, not on privacy."""

UNRESOLVED_MAX: Final = 16
"""Attempts that may be reserved or under way at once."""

UNIT: Final = "patient"


@dataclass(frozen=True, slots=True)
class FixedFilter:
    """How an account counts, fixed when its first entry was made.

    Attributes:
        epsilon_limit: in force by the node's own ledger; the policy can only lower it.
    """

    kind: str
    order: int
    delta: float
    epsilon_limit: float = math.inf


@dataclass(frozen=True, slots=True)
class Standing:
    """What the node's own ledger knows when an order is judged.

    Attributes:
        fixed: None for an account without entries.
        posted_units, pending, guarantee: of the account; see `privacy.ledger.Balance`.
        job_units: of this job on this account, posted and pending.
        purpose: of the order's task.
        purpose_units, project_units: of all jobs of this purpose, or of this project, on this
            account, posted and pending.
        job_round: the highest round that this job has worked at here; 0 for none.
        round_unresolved: another attempt of the job at that round is reserved or under way.
        unresolved: attempts of all jobs that are reserved or under way.
    """

    fixed: FixedFilter | None = None
    posted_units: int = 0
    pending: tuple[Pending, ...] = ()
    guarantee: bool = True
    job_units: int = 0
    purpose: Purpose = "training"
    purpose_units: int = 0
    project_units: int = 0
    job_round: int = 0
    round_unresolved: bool = False
    unresolved: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an order is refused; both parts are told to the coordinator."""

    reason: str
    message: str


def filter_of(
    account: AccountPolicy, data_sets: Sequence[DataSetSpec], fixed: FixedFilter | None
) -> Filter:
    """The filter that counts for an account: as fixed by its first entry, with today's limit,
    which is the lower of the policy's and the ledger's.

    Raises:
        WrongPhase: POLICY_FILTER_CHANGED, the policy names another filter or delta than the
            account's entries were counted by.
        Malformed: DELTA_TOO_LARGE, delta is not below one over the largest declared_n; or the
            limit does not go with the filter.
    """
    declared_n = max(
        (one.declared_n for one in data_sets if one.account == account.name), default=1
    )
    if account.delta * declared_n >= 1:
        raise Malformed(
            "DELTA_TOO_LARGE",
            f"Account {account.name} has delta {account.delta:g} and pays for {declared_n} "
            f"declared patients: delta must be below 1/{declared_n}, or the records of one of them "
            "might be given away whole.",
        )
    if fixed is None:
        kind, order = account.filter, account.rdp_order
        if kind == "auto":
            chosen = default_filter(declared_n, account.epsilon_limit, account.delta)
            return make_filter(*chosen, account.epsilon_limit, account.delta)
        return make_filter(kind, order, account.epsilon_limit, account.delta)
    asked = (account.filter, account.rdp_order)
    if account.delta != fixed.delta or asked not in (("auto", 0), (fixed.kind, fixed.order)):
        was = f"{fixed.kind} of order {fixed.order}" if fixed.order else fixed.kind
        raise WrongPhase(
            "POLICY_FILTER_CHANGED",
            f"Account {account.name} counts by {was} at delta {fixed.delta:g} since its first "
            "entry, and the policy now says otherwise: set filter and delta back, or open a "
            "new account for other patients.",
        )
    limit = min(account.epsilon_limit, fixed.epsilon_limit)
    return make_filter(fixed.kind, fixed.order, limit, fixed.delta)


def not_raised(account: AccountPolicy, fixed: FixedFilter | None) -> str:
    """What to tell who only wrote a higher limit into the policy; empty where nobody did."""
    if fixed is None or account.epsilon_limit <= fixed.epsilon_limit:
        return ""
    return (
        f"The policy asks for epsilon {account.epsilon_limit:g} and the limit of account "
        f"{account.name} stays {fixed.epsilon_limit:g} until two of the hospital's stewards raise "
        f"it: `feddp agent limit propose {account.name}`."
    )


def judge(
    policy: Policy,
    data_sets: Sequence[DataSetSpec],
    tasks: Mapping[str, TaskInfo],
    order: Order,
    node: str,
    standing: Standing,
) -> Refusal | None:
    """Whether the policy and the node's own ledger allow an order; None: they do."""
    return judge_terms(policy, data_sets, tasks, order) or judge_spending(
        policy, data_sets, order, node, standing
    )


def judge_terms(
    policy: Policy, data_sets: Sequence[DataSetSpec], tasks: Mapping[str, TaskInfo], order: Order
) -> Refusal | None:
    """What can be judged without the ledger; asked again just before the data is opened."""
    spec = next((one for one in data_sets if one.name == order.data_set), None)
    if spec is None:
        return Refusal("DATA_SET_UNKNOWN", f"This node has no data set {order.data_set!r}.")
    wanted = f"{order.task}@{order.task_hash}"
    if wanted not in policy.tasks_on(spec.name):
        return Refusal(
            "TASK_NOT_ALLOWED",
            f"The node's policy does not allow {wanted} on {spec.name}; its data steward can.",
        )
    info = tasks.get(order.task)
    if info is None or info.content_hash != order.task_hash:
        return Refusal("TASK_NOT_INSTALLED", f"{wanted} is not what this node has installed.")
    account = policy.account(spec.account)
    if order.account != spec.account or account is None:
        return Refusal(
            "ACCOUNT_MISMATCH",
            f"Data set {spec.name} is not paid by an account {order.account!r} of this node.",
        )
    if order.declared_n != spec.declared_n:
        return Refusal(
            "DECLARED_N_MISMATCH",
            f"Data set {spec.name} declares {spec.declared_n} patients and the order says "
            f"{order.declared_n}; the coordinator learns it at the next connection.",
        )
    return _judge_release(account, info, order)


def _judge_release(account: AccountPolicy, info: TaskInfo, order: Order) -> Refusal | None:
    release = order.release
    if order.unit != UNIT:
        return Refusal("UNIT_MISMATCH", "This node protects patients and nothing else.")
    if info.reads_data == (release.mechanism == "no_data") or not (
        # A release that is booked as one mechanism and made by another would be booked wrongly.
        release.mechanism in UNNOISED or release.mechanism in TRAINED
    ):
        return Refusal(
            "MECHANISM_MISMATCH", f"Task {order.task} cannot release by {release.mechanism}."
        )
    if release.steps > STEPS_MAX:
        return Refusal("STEPS_LIMIT", f"A release has at most {STEPS_MAX} steps here.")
    if release.mechanism == "no_data":
        return None
    if order.max_grad_norm == 0:
        return Refusal("CLIPPING_MISSING", "max_grad_norm must be above 0 where data is read.")
    if release.mechanism == "none":
        if account.unaccounted == "refuse":
            return Refusal(
                "UNACCOUNTED_REFUSED", "The node's policy refuses releases without noise."
            )
        return None
    if release.noise_multiplier is None or release.noise_multiplier < account.noise_multiplier_min:
        return Refusal(
            "NOISE_TOO_LOW",
            f"The node's policy asks for a noise multiplier of {account.noise_multiplier_min:g} "
            "or more.",
        )
    if release.sample_rate * order.declared_n < 1:
        return Refusal(
            "SAMPLE_RATE_TOO_LOW", "A step must sample at least one patient of the declared number."
        )
    if order.delta != account.delta:
        return Refusal(
            "DELTA_MISMATCH",
            f"Account {account.name} counts at delta {account.delta:g}, the order at "
            f"{order.delta:g}.",
        )
    return None


def judge_spending(
    policy: Policy, data_sets: Sequence[DataSetSpec], order: Order, node: str, standing: Standing
) -> Refusal | None:
    """What only the node's own ledger can say, its order of rounds included."""
    account = policy.account(order.account)
    if account is None:
        return Refusal("ACCOUNT_MISMATCH", f"This node has no account {order.account!r}.")
    if order.round < standing.job_round or standing.round_unresolved:
        return Refusal(
            "ROUND_NOT_ADVANCING",
            f"Job {order.job_id} has worked at round {standing.job_round} here, and an attempt "
            f"at round {order.round} does not advance.",
        )
    if standing.unresolved >= UNRESOLVED_MAX:
        return Refusal("BUSY", f"This node has {standing.unresolved} attempts under way.")
    try:
        filter_ = filter_of(account, data_sets, standing.fixed)
        cost_units = filter_.cost_units(order.release)
        over = _over_job(account, filter_, order, standing.job_units + cost_units)
        over = over or _over_share(account, filter_, order, standing, cost_units)
        if cost_units > 0 and over is not None:
            return over
        balance = Balance(
            filter_, standing.posted_units, standing.pending, guarantee=standing.guarantee
        )
        balance.reserve(order.statement(node, "reserve"))
    except FeddpError as error:
        hint = not_raised(account, standing.fixed) if error.reason == "BUDGET_REFUSED" else ""
        return Refusal(error.reason, f"{error.message} {hint}".rstrip())
    return None


def _over_share(
    account: AccountPolicy, filter_: Filter, order: Order, standing: Standing, cost_units: int
) -> Refusal | None:
    """The purpose's and the project's own limits within the account's."""
    shares = (
        ("PURPOSE", standing.purpose, account.epsilon_per_purpose, standing.purpose_units),
        ("PROJECT", order.project, account.epsilon_per_project, standing.project_units),
    )
    for kind, name, limits, units in shares:
        limit = limits.get(name)  # type: ignore[call-overload]
        if limit is None:
            continue
        if units + cost_units > units_for(filter_.kind, filter_.order, limit, account.delta):
            return Refusal(
                f"EPSILON_PER_{kind}",
                f"The node's policy allows {kind.lower()} {name} epsilon {limit:g} of account "
                f"{account.name}, and this order would pass it.",
            )
    return None


def _over_job(
    account: AccountPolicy, filter_: Filter, order: Order, job_units: int
) -> Refusal | None:
    """Integer units on both sides, so that a plan that just fits is not refused by rounding."""
    kind, rdp_order, delta = filter_.kind, filter_.order, account.delta
    if job_units > units_for(kind, rdp_order, account.epsilon_per_job_max, delta):
        return Refusal(
            "EPSILON_PER_JOB",
            f"The node's policy allows a job epsilon {account.epsilon_per_job_max:g} at most, and "
            "this order would pass it.",
        )
    if order.target_epsilon > 0 and job_units > units_for(
        kind, rdp_order, order.target_epsilon, delta
    ):
        return Refusal(
            "TARGET_EXCEEDED",
            f"The job promised epsilon {order.target_epsilon:g} and this order would pass it.",
        )
    return None
