"""Who can take part in a round, and with which release. Pure; decides by public facts alone:
what stewards declared and what the ledger holds."""

from collections.abc import Mapping
from typing import Any, Final

from coordinator.jobspec import Job
from coordinator.rounds.allowances import allowances, tightest
from coordinator.rounds.events import Absence, Offer
from coordinator.rounds.node_facts import NodeFacts
from coordinator.rounds.noise_plan import next_release
from coordinator.store import damage, epochs
from coordinator.store.ledger import Account
from privacy.deltas import bound_said, is_too_large
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as federation

_REFUSES: Final = {
    "LEDGER_DISPUTED": "its ledger and the coordinator's disagree about the account; its data "
    "steward sees in `feddp agent status` why, and settles it with `feddp agent ledger settle`",
    "OUTSIDE_HOURS": "begins work only in the hours that its data steward allows",
    "LEDGER_CATCHING_UP": "its ledger was restored from a copy, or it came from another "
    "coordinator, and it is still reading what it has spent here",
    "LEDGER_RECONCILING": "the coordinator was restored from a backup, and the node has not yet "
    "handed in what it released since",
    "LEDGER_ROLLED_BACK": "its ledger went back in time, as when a snapshot is restored; its IT "
    "runs `feddp agent ledger import`",
    "": "refuses every order on the account now; its data steward knows why",
}
"""What a node says of an account, in words; those of "" for what a newer agent may say."""

_UNAVAILABLE: Final = {
    "SOURCE_MISSING": "the file of its data set is not where its steward declares it",
    "SOURCE_UNREADABLE": "its agent may not read the file of its data set",
    "SCHEMA_MISMATCH": "the columns of its data set's file are not those that its steward declares",
    "DATA_SET_WITHDRAWN": "its data steward has withdrawn the data set",
    "DATA_SET_MOVED": "its data set is declared on another account than the one that it has paid "
    "from",
    "ACCOUNT_LEFT_OUT": "its policy leaves out an account that has entries, so that it refuses "
    "every order",
    "DELTA_TOO_LARGE": "the delta of its account is too large for the patients that it declares",
    "POLICY_FILTER_CHANGED": "its policy counts the account by another filter or delta than its "
    "entries",
    "POLICY_INVALID": "its policy cannot be read, so that it refuses every order",
    "DATASETS_INVALID": "its list of data sets cannot be read, so that it refuses every order",
    "DATA_SET_UNSIGNED": "no steward has signed that its data set's patients are in no other "
    "account, so that it refuses every order",
    "": "its data set cannot be used now",
}
"""The same of a data set."""

_OF_THE_FILE: Final = frozenset({"SOURCE_MISSING", "SOURCE_UNREADABLE", "SCHEMA_MISMATCH"})
"""What does not matter to a job that reads nothing; nor does what only a newer agent knows."""


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


def unavailable_said(data_set: federation.DataSet) -> str:
    """Why a node says that its data set cannot be used, in words."""
    said = _UNAVAILABLE.get(data_set.unavailable, _UNAVAILABLE[""])
    if data_set.unavailable == "OPT_OUT_UNREADABLE":
        said = "the list of patients who opted out of its data set cannot be read"
    return f"{said}; its data steward sees more with `feddp agent status`"


def consider(job: Job, task_hash: str, facts: NodeFacts, rounds_left: int) -> Offer | Absence:
    """One node's offer, or why there is none."""
    if facts.disabled:
        return _absent(facts, "DISABLED", "is disabled; `feddp node enable` lets it back in")
    if not facts.connected:
        return _absent(facts, "OFFLINE", "is not connected")
    if facts.barred is not None:
        return facts.barred
    if facts.data_set.unavailable == "DATA_SET_WITHDRAWN":  # it is published without tasks, too
        return _absent(facts, "DATA_SET_WITHDRAWN", unavailable_said(facts.data_set))
    wanted = f"{job.task}@{task_hash}"
    if wanted not in facts.data_set.tasks:
        return _absent(
            facts,
            "TASK_NOT_ALLOWED",
            f"its policy does not allow {job.task}@{task_hash[:12]}… on {job.dataset}; its data "
            "steward can",
        )
    why = facts.data_set.unavailable
    if why and (job.mechanism != "no_data" or why in _UNAVAILABLE.keys() - _OF_THE_FILE):
        return _absent(facts, why, unavailable_said(facts.data_set))
    account, steward = facts.account, facts.steward
    if account is None or steward is None:
        return _absent(facts, "ACCOUNT_UNKNOWN", "its policy has no valid account for the data set")
    if facts.damaged:
        return _absent(facts, damage.REASON, damage.said(account.account))
    if facts.restored_from:
        said = epochs.said(account.account, facts.restored_from)
        return _absent(facts, epochs.REASON, said)
    if steward.refuses:
        return _absent(facts, steward.refuses, _REFUSES.get(steward.refuses, _REFUSES[""]))
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
    declared_n = facts.data_set.declared_n
    if job.mechanism == "dp" and is_too_large(job.delta, declared_n):
        right = not is_too_large(filter_.delta, declared_n)
        advice = (
            f"set privacy.delta to {filter_.delta:g} in the job"
            if right
            else "its data steward sets it"
        )
        bound = bound_said(declared_n, figure=not right)
        return _absent(
            facts,
            "DELTA_TOO_LARGE",
            f"it declares {declared_n} patients, where delta must be {bound}, and "
            f"the job asks for {job.delta:g}; its account has {filter_.delta:g}: {advice}",
        )
    if job.mechanism == "dp" and job.delta != filter_.delta:
        return _absent(
            facts,
            "DELTA_MISMATCH",
            f"its account has delta {filter_.delta:g} and the job asks for {job.delta:g}; set "
            f"privacy.delta to {filter_.delta:g} in the job",
        )
    try:
        release = next_release(job, facts, account, steward, rounds_left)
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
            return _absent(facts, "POLICY_INVALID", error.message)
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


def _over_budget(
    facts: NodeFacts, account: Account, steward: federation.Account, cost_units: int
) -> Absence | None:
    """The node would refuse the order; asking it would cost an attempt and tell nothing new."""
    passed = tuple(
        one for one in allowances(facts, account, steward) if cost_units > one.left_units
    )
    if cost_units == 0 or not passed:
        return None
    return _absent(
        facts,
        "BUDGET",
        f"{tightest(passed).passed}, and another round would pass it",
        # What is open may yet be void; nothing else comes back.
        for_good=any(cost_units > one.sure_units for one in passed),
    )


def _absent(facts: NodeFacts, reason: str, message: str, *, for_good: bool = False) -> Absence:
    return Absence(facts.node, reason, message, for_good)


def learning_rate(task_config: Mapping[str, Any]) -> float | None:
    """The step size, if the task's configuration has one; bounds and noise floors need it."""
    value = task_config.get("learning_rate")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
