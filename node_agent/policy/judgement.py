"""Whether an order may be carried out, by the steward's policy and the node's own ledger. Pure.

`judge` says no or nothing. A refusal travels to the coordinator: its message holds what the order
and the policy say, never anything of the data.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from node_agent.data.datasets import DataSetSpec
from node_agent.ledger.account_filters import FixedFilter, filter_of, not_raised
from node_agent.policy.orders import Order
from node_agent.policy.policy import AccountPolicy, Policy
from node_agent.tasks.registry import Purpose, TaskInfo
from privacy.calibration import units_for
from privacy.deltas import bound_said, is_too_large
from privacy.filters import Filter
from privacy.ledger import Balance, Pending
from privacy.releases import GRAD_NORM_MAX, GRAD_NORM_MIN, TRAINED, UNNOISED
from protos.errors import FeddpError

STEPS_MAX: Final = 100_000
"""Local steps in one release; a bound on work, not on privacy."""

UNRESOLVED_MAX: Final = 16
"""Attempts that may be reserved or under way at once."""

UNIT: Final = "patient"


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
        limit_there: what the coordinator holds the account to; infinite where it has not said.
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
    limit_there: float = math.inf


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an order is refused; both parts are told to the coordinator."""

    reason: str
    message: str


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
    return next((no for _, no in verdicts(policy, data_sets, tasks, order) if no is not None), None)


def verdicts(
    policy: Policy, data_sets: Sequence[DataSetSpec], tasks: Mapping[str, TaskInfo], order: Order
) -> Iterator[tuple[str, Refusal | None]]:
    """Each rule of the terms by its name, with its refusal or None, in the order of judgement. What
    cannot be judged because of an earlier refusal is left out."""
    spec = next((one for one in data_sets if one.name == order.data_set), None)
    if spec is None:
        yield (
            "data set",
            Refusal("DATA_SET_UNKNOWN", f"This node has no data set {order.data_set!r}."),
        )
        return
    info = tasks.get(order.task)
    case = _Case(policy, spec, info, policy.account(spec.account), order)
    yield "data set", _withdrawn(case)
    yield "task", _not_allowed(case)
    yield "task's code", _not_installed(case)
    yield "account", _other_account(case)
    yield "declared patients", _other_declared_n(case)
    if case.account is None or info is None:
        return
    for name, rule in _OF_RELEASES:
        yield name, rule(case, case.account, info)


@dataclass(frozen=True, slots=True)
class _Case:
    policy: Policy
    spec: DataSetSpec
    info: TaskInfo | None
    account: AccountPolicy | None
    order: Order

    @property
    def has_noise(self) -> bool:
        return self.order.release.mechanism not in ("none", "no_data")


def _withdrawn(case: _Case) -> Refusal | None:
    if case.spec.name not in case.policy.withdrawn:
        return None
    return Refusal("DATA_SET_WITHDRAWN", f"The data steward has withdrawn {case.spec.name}.")


def _not_allowed(case: _Case) -> Refusal | None:
    wanted = f"{case.order.task}@{case.order.task_hash}"
    if wanted in case.policy.tasks_on(case.spec.name):
        return None
    return Refusal(
        "TASK_NOT_ALLOWED",
        f"The node's policy does not allow {wanted} on {case.spec.name}; its data steward can.",
    )


def _not_installed(case: _Case) -> Refusal | None:
    if case.info is not None and case.info.content_hash == case.order.task_hash:
        return None
    wanted = f"{case.order.task}@{case.order.task_hash}"
    return Refusal("TASK_NOT_INSTALLED", f"{wanted} is not what this node has installed.")


def _other_account(case: _Case) -> Refusal | None:
    if case.order.account == case.spec.account and case.account is not None:
        return None
    return Refusal(
        "ACCOUNT_MISMATCH",
        f"Data set {case.spec.name} is not paid by an account {case.order.account!r} of this node.",
    )


def _other_declared_n(case: _Case) -> Refusal | None:
    if case.order.declared_n == case.spec.declared_n:
        return None
    return Refusal(
        "DECLARED_N_MISMATCH",
        f"Data set {case.spec.name} declares {case.spec.declared_n} patients and the order says "
        f"{case.order.declared_n}; the coordinator learns it at the next connection.",
    )


def _unit(case: _Case, account: AccountPolicy, info: TaskInfo) -> Refusal | None:
    if case.order.unit == UNIT:
        return None
    return Refusal("UNIT_MISMATCH", "This node protects patients and nothing else.")


def _mechanism(case: _Case, account: AccountPolicy, info: TaskInfo) -> Refusal | None:
    mechanism = case.order.release.mechanism
    # A release that is booked as one mechanism and made by another would be booked wrongly.
    fits = mechanism in UNNOISED or mechanism in TRAINED
    if fits and info.reads_data != (mechanism == "no_data"):
        return None
    return Refusal("MECHANISM_MISMATCH", f"Task {case.order.task} cannot release by {mechanism}.")


def _steps(case: _Case, account: AccountPolicy, info: TaskInfo) -> Refusal | None:
    if case.order.release.steps <= STEPS_MAX:
        return None
    return Refusal("STEPS_LIMIT", f"A release has at most {STEPS_MAX} steps here.")


def _clipping(case: _Case, account: AccountPolicy, info: TaskInfo) -> Refusal | None:
    if case.order.release.mechanism == "no_data":
        return None
    if GRAD_NORM_MIN <= case.order.max_grad_norm <= GRAD_NORM_MAX:
        return None
    return Refusal(
        "CLIPPING_MISSING",
        f"max_grad_norm must be from {GRAD_NORM_MIN:g} to {GRAD_NORM_MAX:g} where data is read.",
    )


def _unaccounted(case: _Case, account: AccountPolicy, info: TaskInfo) -> Refusal | None:
    if case.order.release.mechanism != "none" or account.unaccounted == "allow":
        return None
    return Refusal("UNACCOUNTED_REFUSED", "The node's policy refuses releases without noise.")


def _least_noise(case: _Case, account: AccountPolicy, info: TaskInfo) -> Refusal | None:
    noise = case.order.release.noise_multiplier
    if not case.has_noise or (noise is not None and noise >= account.noise_multiplier_min):
        return None
    return Refusal(
        "NOISE_TOO_LOW",
        f"The node's policy asks for a noise multiplier of {account.noise_multiplier_min:g} "
        "or more.",
    )


def _sampling(case: _Case, account: AccountPolicy, info: TaskInfo) -> Refusal | None:
    order = case.order
    # The quotient is what the coordinator orders for batches of one; times n it may be below 1.
    if not case.has_noise or order.release.sample_rate >= 1 / order.declared_n:
        return None
    return Refusal(
        "SAMPLE_RATE_TOO_LOW", "A step must sample at least one patient of the declared number."
    )


def _delta(case: _Case, account: AccountPolicy, info: TaskInfo) -> Refusal | None:
    order = case.order
    if not case.has_noise:
        return None
    if is_too_large(order.delta, order.declared_n):
        return Refusal(
            "DELTA_TOO_LARGE",
            f"The order counts at delta {order.delta:g}, and of {order.declared_n} declared "
            f"patients delta must be {bound_said(order.declared_n)}.",
        )
    if order.delta == account.delta:
        return None
    return Refusal(
        "DELTA_MISMATCH",
        f"Account {account.name} counts at delta {account.delta:g}, the order at "
        f"{case.order.delta:g}.",
    )


_OF_RELEASES: Final[
    tuple[tuple[str, Callable[[_Case, AccountPolicy, TaskInfo], Refusal | None]], ...]
] = (
    ("unit", _unit),
    ("mechanism", _mechanism),
    ("steps", _steps),
    ("clipping", _clipping),
    ("releases without noise", _unaccounted),
    ("least noise", _least_noise),
    ("sampling", _sampling),
    ("delta", _delta),
)


def judge_spending(
    policy: Policy, data_sets: Sequence[DataSetSpec], order: Order, node: str, standing: Standing
) -> Refusal | None:
    """What only the node's own ledger can say, its order of rounds included."""
    found = spending_verdicts(policy, data_sets, order, node, standing)
    return next((no for _, no in found if no is not None), None)


def spending_verdicts(
    policy: Policy, data_sets: Sequence[DataSetSpec], order: Order, node: str, standing: Standing
) -> Iterator[tuple[str, Refusal | None]]:
    """As `verdicts`, for what only the node's own ledger can say."""
    account = policy.account(order.account)
    if account is None:
        refusal = Refusal("ACCOUNT_MISMATCH", f"This node has no account {order.account!r}.")
        yield "account", refusal
        return
    yield "rounds advance", _not_advancing(order, standing)
    yield "attempts under way", _busy(standing)
    try:
        filter_ = filter_of(account, data_sets, standing.fixed, standing.limit_there)
        cost_units = filter_.cost_units(order.release)
        if cost_units > 0:
            yield from _within_account(account, filter_, order, standing, cost_units)
        yield "epsilon of the account", _over_account(account, filter_, order, node, standing)
    except FeddpError as error:
        yield "epsilon of the account", Refusal(error.reason, error.message)


def _not_advancing(order: Order, standing: Standing) -> Refusal | None:
    if order.round >= standing.job_round and not standing.round_unresolved:
        return None
    return Refusal(
        "ROUND_NOT_ADVANCING",
        f"Job {order.job_id} has worked at round {standing.job_round} here, and an attempt "
        f"at round {order.round} does not advance.",
    )


def _busy(standing: Standing) -> Refusal | None:
    if standing.unresolved < UNRESOLVED_MAX:
        return None
    return Refusal("BUSY", f"This node has {standing.unresolved} attempts under way.")


def _over_account(
    account: AccountPolicy, filter_: Filter, order: Order, node: str, standing: Standing
) -> Refusal | None:
    balance = Balance(
        filter_, standing.posted_units, standing.pending, guarantee=standing.guarantee
    )
    try:
        balance.reserve(order.statement(node, "reserve"))
    except FeddpError as error:
        hint = not_raised(account, standing.fixed) if error.reason == "BUDGET_REFUSED" else ""
        return Refusal(error.reason, f"{error.message} {hint}".rstrip())
    return None


def _within_account(
    account: AccountPolicy, filter_: Filter, order: Order, standing: Standing, cost_units: int
) -> Iterator[tuple[str, Refusal | None]]:
    """Integer units on both sides, so that a plan that just fits is not refused by rounding."""
    kind, rdp_order, delta = filter_.kind, filter_.order, account.delta
    job_units = standing.job_units + cost_units
    over = job_units > units_for(kind, rdp_order, account.epsilon_per_job_max, delta)
    refusal = Refusal(
        "EPSILON_PER_JOB",
        f"The node's policy allows a job epsilon {account.epsilon_per_job_max:g} at most, and "
        "this order would pass it.",
    )
    yield "epsilon of a job", refusal if over else None
    if order.target_epsilon > 0:
        over = job_units > units_for(kind, rdp_order, order.target_epsilon, delta)
        refusal = Refusal(
            "TARGET_EXCEEDED",
            f"The job promised epsilon {order.target_epsilon:g} and this order would pass it.",
        )
        yield "the job's own promise", refusal if over else None
    shares = (
        ("purpose", standing.purpose, account.epsilon_per_purpose, standing.purpose_units),
        ("project", order.project, account.epsilon_per_project, standing.project_units),
    )
    for share, name, limits, units in shares:
        limit = limits.get(name)  # type: ignore[call-overload]
        if limit is None:
            continue
        over = units + cost_units > units_for(kind, rdp_order, limit, delta)
        refusal = Refusal(
            f"EPSILON_PER_{share.upper()}",
            f"The node's policy allows {share} {name} epsilon {limit:g} of account "
            f"{account.name}, and this order would pass it.",
        )
        yield f"epsilon of the {share}", refusal if over else None
