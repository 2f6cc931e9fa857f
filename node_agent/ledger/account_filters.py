"""By what filter an account counts: as its first entry fixed it, with the limit of today. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from node_agent.data.datasets import DataSetSpec
from node_agent.policy.policy import AccountPolicy, Policy
from privacy.deltas import bound_said, is_too_large
from privacy.filters import Filter, default_filter, make_filter
from protos.errors import FeddpError, Malformed, WrongPhase


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


def filter_of(
    account: AccountPolicy,
    data_sets: Sequence[DataSetSpec],
    fixed: FixedFilter | None,
    limit_there: float = math.inf,
) -> Filter:
    """The filter that counts for an account: as fixed by its first entry, with today's limit,
    which is the lower of the policy's and the ledger's.

    Args:
        limit_there: for an account without entries, what the coordinator holds it to. Its chain
            may have begun, by what the policy said then: were ours to begin higher, a raise that
            goes on from ours would go on from nothing that it has there, and never be taken.

    Raises:
        WrongPhase: POLICY_FILTER_CHANGED, the policy names another filter or delta than the
            account's entries were counted by.
        Malformed: DELTA_TOO_LARGE, delta is not below one over the largest declared_n; or the
            limit does not go with the filter.
    """
    declared_n = max(
        (one.declared_n for one in data_sets if one.account == account.name), default=1
    )
    if is_too_large(account.delta, declared_n):
        raise Malformed(
            "DELTA_TOO_LARGE",
            f"Account {account.name} has delta {account.delta:g} and pays for {declared_n} "
            f"declared patients: delta must be {bound_said(declared_n)}, or the records of one of "
            "them might be given away whole.",
        )
    if fixed is None:
        kind, order, delta = account.filter, account.rdp_order, account.delta
        limit = min(account.epsilon_limit, limit_there)
        if kind == "auto":
            chosen = default_filter(declared_n, limit, delta, account.epsilon_per_job_max)
            return make_filter(*chosen, limit, delta)
        return make_filter(kind, order, limit, delta)
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


def account_fault(policy: Policy, data_sets: Sequence[DataSetSpec]) -> str:
    """Why an account of a policy could not be used, whatever was spent; empty where all can."""
    return next(iter(account_faults(policy, data_sets)), "")


def account_faults(policy: Policy, data_sets: Sequence[DataSetSpec]) -> list[str]:
    """As `account_fault`, of each account that could not."""
    found = []
    for account in policy.accounts:
        try:
            filter_of(account, data_sets, None)
        except FeddpError as error:
            found.append(error.message)
    return found


def not_raised(account: AccountPolicy, fixed: FixedFilter | None) -> str:
    """What to tell who only wrote a higher limit into the policy; empty where nobody did."""
    if fixed is None or account.epsilon_limit <= fixed.epsilon_limit:
        return ""
    return (
        f"The policy asks for epsilon {account.epsilon_limit:g} and the limit of account "
        f"{account.name} stays {fixed.epsilon_limit:g} until two of the hospital's stewards raise "
        f"it: `feddp agent limit propose {account.name}`."
    )
