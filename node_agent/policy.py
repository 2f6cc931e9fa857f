"""The data steward's policy, and the judgement of an order by it. Pure, but for reading the file.

`judge` says no or nothing. A refusal travels to the coordinator: its message holds what the order
and the policy say, never anything of the data.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from node_agent.asking import AskingPolicy
from node_agent.bandwidth import TransferPolicy
from node_agent.config import parse, read_yaml
from node_agent.datasets import DataSetSpec
from node_agent.orders import Order
from node_agent.tasks.registry import Purpose, TaskInfo
from node_agent.vouching import is_vouched
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

RDP_ORDER_MIN: Final = 2

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
STEWARD_NAME: Final = _NAME
_TASK = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}@[0-9a-f]{64}$"


ShareKind = Literal["purpose", "project"]
"""What all jobs have in common that a limit within an account is for."""

Limit = Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AccountPolicy(_Model):
    """Limits of one privacy account.

    Attributes:
        epsilon_limit: the most that may ever be spent at `delta`.
        filter: auto: `privacy.filters.default_filter` of the account's largest declared_n.
        rdp_order: with "rdp" only.
        unaccounted: whether releases without noise are allowed; they void the guarantee for ever.
        epsilon_per_purpose, epsilon_per_project: the most for all such jobs together, within
            `epsilon_limit`; what is not named has no limit of its own.
    """

    name: Annotated[str, Field(pattern=_NAME)]
    epsilon_limit: float = Field(gt=0, le=1e4, allow_inf_nan=False)
    delta: float = Field(gt=0, le=0.5, allow_inf_nan=False)
    filter: Literal["auto", "gdp", "rdp"] = "auto"
    rdp_order: int = Field(default=0, ge=0, le=256)
    epsilon_per_job_max: float = Field(gt=0, le=1e4, allow_inf_nan=False)
    noise_multiplier_min: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    unaccounted: Literal["refuse", "allow"] = "refuse"
    epsilon_per_purpose: dict[Purpose, Limit] = {}
    epsilon_per_project: dict[Annotated[str, Field(pattern=_NAME)], Limit] = {}

    @model_validator(mode="after")
    def _order_with_rdp_only(self) -> "AccountPolicy":
        if self.filter == "rdp" and self.rdp_order < RDP_ORDER_MIN:
            raise ValueError(
                f"filter: rdp needs an order: give rdp_order from {RDP_ORDER_MIN}, a whole number"
            )
        if self.filter != "rdp" and self.rdp_order > 0:
            raise ValueError("rdp_order goes with filter: rdp, and only with it")
        return self

    def shares(self) -> list[tuple[ShareKind, str, float]]:
        """(kind, name, epsilon) of each limit within the account's."""
        return [
            *(("purpose", name, limit) for name, limit in self.epsilon_per_purpose.items()),
            *(("project", name, limit) for name, limit in self.epsilon_per_project.items()),
        ]


class Allowance(_Model):
    """Tasks, as NAME@HASH, that may run on one data set."""

    data_set: Annotated[str, Field(pattern=_NAME)]
    tasks: list[Annotated[str, Field(pattern=_TASK)]]


class StewardPolicy(_Model):
    """A person who may ask for, or agree to, a higher limit; the key is `feddp agent limit key`'s.

    Attributes:
        public_key: raw Ed25519, 64 lower-case hexadecimal digits.
    """

    name: Annotated[str, Field(pattern=_NAME)]
    public_key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Policy(_Model):
    """`policy.yaml`; what it does not allow is refused.

    Attributes:
        stewards: who may raise an account's limit, two of them together.
        outcome_tick_s: outcomes leave at one multiple of this from the opening of the data, fixed
            beforehand; training that is not done by then is charged and lost, so leave it room.
        transfer: when and how fast models and updates move.
        who_may_ask: engineers whose signed orders are taken.
        disjoint_patients: why no patient is in two accounts, in words; needed for more than one
            account, as is the signature of a steward over it and the accounts' names.
        disjoint_signed_by, disjoint_signature: whose, and the signature in hexadecimal, as
            `feddp agent vouch` prints them.
    """

    accounts: list[AccountPolicy] = []
    stewards: list[StewardPolicy] = []
    allow: list[Allowance] = []
    outcome_tick_s: float = Field(default=1.0, gt=0, le=3600, allow_inf_nan=False)
    transfer: TransferPolicy = TransferPolicy()
    who_may_ask: AskingPolicy = AskingPolicy()
    disjoint_patients: Annotated[str, Field(max_length=500)] = ""
    disjoint_signed_by: str = ""
    disjoint_signature: Annotated[str, Field(pattern="^([0-9a-f]{128})?$")] = ""

    @model_validator(mode="after")
    def _each_once(self) -> "Policy":
        names = [account.name for account in self.accounts]
        if len(set(names)) != len(names):
            raise ValueError("accounts: a name is given twice")
        people = [one.name.casefold() for one in self.stewards]
        if len(set(people)) != len(people):
            raise ValueError("stewards: a name is given twice")
        if len({one.public_key for one in self.stewards}) != len(people):
            raise ValueError("stewards: a key is given twice; each person has their own")
        return self

    @model_validator(mode="after")
    def _no_patient_in_two(self) -> "Policy":
        names = [account.name for account in self.accounts]
        if len(names) < 2:
            return self
        if not self.disjoint_patients.strip():
            raise ValueError(
                "accounts: there are several, and a patient of two of them would spend both; use"
                " one account, or say in disjoint_patients why no patient is in two, and sign it"
                " with `feddp agent vouch`"
            )
        signer = self.steward(self.disjoint_signed_by)
        if signer is None or not self.disjoint_signature:
            raise ValueError(
                "disjoint_patients: no steward has signed it; one of those that stewards names"
                " does, with `feddp agent vouch`"
            )
        if not is_vouched(
            signer.public_key,
            self.disjoint_signature,
            names,
            self.disjoint_patients,
            signer.name,
        ):
            raise ValueError(
                f"disjoint_signature: {signer.name} has signed other words or other accounts;"
                " `feddp agent vouch` signs them anew"
            )
        return self

    def steward(self, name: str) -> StewardPolicy | None:
        """The steward of that name."""
        return next((one for one in self.stewards if one.name == name), None)

    def account(self, name: str) -> AccountPolicy | None:
        """The account of that name."""
        return next((account for account in self.accounts if account.name == name), None)

    def tasks_on(self, data_set: str) -> frozenset[str]:
        """NAME@HASH of every task that is allowed on a data set."""
        return frozenset(
            task for rule in self.allow if rule.data_set == data_set for task in rule.tasks
        )


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


def load_policy(path: Path) -> Policy:
    """Read `policy.yaml`.

    Raises:
        Malformed: POLICY_INVALID; the message names the key.
    """
    return parse(Policy, read_yaml(path, "POLICY_INVALID"), path, "POLICY_INVALID")


def require_kept(policy: Policy, kept: Collection[str]) -> None:
    """Refuse a policy in which patients could spend anew under another account's name.

    Args:
        kept: names of the accounts that have entries in the node's own ledger.

    Raises:
        WrongPhase: ACCOUNT_LEFT_OUT.
    """
    names = {one.name for one in policy.accounts}
    left_out = sorted(set(kept) - names)
    if left_out and names - set(kept):
        raise WrongPhase(
            "ACCOUNT_LEFT_OUT",
            f"policy.yaml: account {left_out[0]} has entries in this node's ledger and stays under"
            f" accounts, beside {min(names - set(kept))}, which has none: under a new name its"
            " patients would spend anew. A steward signs that no patient is in both:"
            " `feddp agent vouch`",
        )


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


def above_limit(account: AccountPolicy, epsilon_limit: float) -> str:
    """What to tell of limits within an account that are above its own; empty where none is.

    Args:
        epsilon_limit: of the account, in force. A policy that lowers it may leave the others, so
            that this is no fault.
    """
    names = [f"{kind} {name}" for kind, name, limit in account.shares() if limit > epsilon_limit]
    if not names:
        return ""
    return (
        f"The limit for {', '.join(names)} is above the account's own, {epsilon_limit:g}, which is "
        "reached first."
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
