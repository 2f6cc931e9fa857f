"""What a job may still spend at a node: by the account's limit, the policy's for one job, what its
engineer signed, and the policy's for its purpose and its project. Pure; planning and quoting ask
here."""

from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.rounds.node_facts import NodeFacts
from coordinator.store.ledger import Account
from coordinator.store.shares import Share
from privacy.accounting import round_up
from privacy.calibration import units_for
from protos.errors import FeddpError, Malformed
from protos.feddp.v1 import federation_pb2 as federation


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit that the job's next release must keep.

    Attributes:
        name: "account", "job", "signature", "purpose NAME" or "project NAME".
        epsilon: the limit, at the account's delta.
        left_units: what the job may still reserve; may be negative.
        sure_units: the same if everything that is open came to nothing.
        passed: who holds the limit and how it stands, for a sentence that goes on "and another
            round would pass it".
    """

    name: str
    epsilon: float
    left_units: int
    sure_units: int
    passed: str


def allowances(
    facts: NodeFacts, account: Account, steward: federation.Account
) -> tuple[Allowance, ...]:
    """Every limit on this job at the node, the account's first.

    Raises:
        Malformed: POLICY_INVALID, the account's filter cannot count by one of the policy's limits.
    """
    return tuple(_allowances(facts, account, steward))


def tightest(found: tuple[Allowance, ...]) -> Allowance:
    """The one that allows the least; of equal ones the account's, then the job's."""
    return min(found, key=lambda one: one.left_units)


def _allowances(
    facts: NodeFacts, account: Account, steward: federation.Account
) -> Iterator[Allowance]:
    filter_, balance = account.filter, account.balance
    booked = filter_.epsilon_of(balance.posted_units)
    free_units = filter_.limit_units - balance.posted_units
    yield Allowance(
        "account",
        filter_.epsilon_limit,
        free_units - balance.pending_units,
        free_units,
        f"account {account.account} has booked epsilon {round_up(booked, 4):g} of "
        f"{filter_.epsilon_limit:g} at delta {filter_.delta:g}",
    )
    per_job = steward.epsilon_per_job_max
    try:
        job_units = units_for(filter_.kind, filter_.order, per_job, filter_.delta)
    except FeddpError as error:
        raise Malformed("POLICY_INVALID", f"its epsilon_per_job_max: {error.message}") from None
    left_units = job_units - facts.job_units
    text = f"its policy allows epsilon {per_job:g} for one job"
    yield Allowance("job", per_job, left_units, left_units, text)
    if facts.signed_epsilon is not None:
        yield _signed(facts.signed_epsilon, facts, account)
    for share in facts.shares:
        if share.fault:
            raise Malformed("POLICY_INVALID", f"its limit for {share}: {share.fault}")
        left_units = share.limit_units - share.used_units
        yield Allowance(
            str(share),
            share.epsilon_limit,
            left_units,
            left_units + balance.pending_units,
            _passed(share, account),
        )


def _signed(most: float, facts: NodeFacts, account: Account) -> Allowance:
    """By what was signed, counted as the node counts it."""
    filter_ = account.filter
    try:
        signed_units = units_for(filter_.kind, filter_.order, most, filter_.delta)
    except FeddpError:
        signed_units = 0  # the account's filter starts above it
    left_units = signed_units - facts.job_units
    text = f"the job was signed for epsilon {most:g} at one hospital in all (`--epsilon-max`)"
    return Allowance("signature", most, left_units, left_units, text)


def _passed(share: Share, account: Account) -> str:
    if share.kind == "account":
        return (
            f"its own ledger allows account {account.account} epsilon {share.epsilon_limit:g}, and "
            "counts what was spent with another coordinator too"
        )
    return f"its policy allows {share} epsilon {share.epsilon_limit:g} of account {account.account}"
