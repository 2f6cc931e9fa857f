"""What each rule of a node says of an order; for people at the hospital, and nobody else."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from node_agent.data.datasets import DataSetSpec
from node_agent.data.header_watch import faults_of
from node_agent.folder.config import Folder
from node_agent.folder.installation import read_folder
from node_agent.ledger.account_filters import filter_of
from node_agent.ledger.payers import require_kept
from node_agent.ledger.reading import reading
from node_agent.policy.admission import (
    CATCHING_UP,
    RECONCILING,
    REJECTED,
    ROLLED_BACK,
    suspensions_of,
)
from node_agent.policy.asking import check_asked, check_caps
from node_agent.policy.judgement import Refusal, spending_verdicts, verdicts
from node_agent.policy.orders import Order
from node_agent.policy.steward import Rules, Steward
from node_agent.state.state import State
from node_agent.tasks.registry import installed, parse_config
from protos.errors import FeddpError, NotFound

Verdict = Literal["allows", "refuses", "asks", "unknown"]

UNSIGNED_FILE: Final = "a job file is not signed yet; the order that comes must be"


@dataclass(frozen=True, slots=True)
class Said:
    """One rule's word on one order.

    Attributes:
        verdict: "asks": it waits for somebody here; "unknown": it cannot be said of a job file.
        reason, message: as the coordinator would get them; empty for "allows".
    """

    rule: str
    verdict: Verdict
    reason: str = ""
    message: str = ""


def order_of_job(path: Path, job_id: str) -> Order:
    """The newest order of a job that this agent has seen, refused ones too.

    Raises:
        NotFound: NOT_JOINED, LEDGER_MISSING, JOB_UNKNOWN.
        Malformed: CONFIG_INVALID, IDENTITY_INVALID.
    """
    with _reading(path) as state:
        found = state.attempts.orders_of(job_id)
        if not found:
            raise NotFound(
                "JOB_UNKNOWN", f"this agent has seen no order of a job {job_id}; give a job file"
            )
        return found[-1]


def explain(path: Path, order: Order, *, from_file: bool = False) -> list[Said]:
    """Every rule with its verdict, as if the order came now.

    Args:
        from_file: the order was made from a job file, which nobody has signed.

    Raises:
        NotFound: NOT_JOINED, LEDGER_MISSING.
        Malformed: POLICY_INVALID, DATASETS_INVALID and as `order_of_job`.
    """
    folder = Folder(path.absolute())
    rules = Steward(folder).rules()
    with _reading(path) as state:
        return list(_said(state, rules, order, from_file))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[State]:
    folder = Folder(path.absolute())
    _, identity = read_folder(folder, to_read=True)
    with reading(folder, identity) as state:
        yield state


def _said(state: State, rules: Rules, order: Order, from_file: bool) -> Iterator[Said]:
    policy, node = rules.policy, state.node
    now_s = time.time()
    yield _suspended(state, order)
    if from_file and policy.who_may_ask.unsigned == "refuse":
        yield Said("who may ask", "unknown", "", UNSIGNED_FILE)
    else:
        seen = state.mandates.seen(order.job_id, order.round)
        yield _checked(
            "who may ask", lambda: check_asked(policy.who_may_ask, order, node, now_s, seen)
        )
    open_now = not policy.work.hours or policy.work.is_open(datetime.fromtimestamp(now_s))
    hours = f"begins work at {', '.join(policy.work.hours)} only"
    yield Said("hours", "allows") if open_now else Said("hours", "refuses", "OUTSIDE_HOURS", hours)
    yield _checked("accounts kept", lambda: require_kept(policy, state.accounts_kept()))
    spec = next((one for one in rules.data_sets if one.name == order.data_set), None)
    if spec is not None:
        yield _checked("data set's account", lambda: state.payers.require_unmoved(spec))
    tasks = installed()
    yield from map(_judged, verdicts(policy, rules.data_sets, tasks, order))
    info = tasks.get(order.task)
    if info is not None and info.reads_data and spec is not None:
        yield _source(spec)
    if info is not None:
        declared = spec if info.reads_data else None

        def configuration() -> None:
            parse_config(order.task, order.task_config(), declared)

        yield _checked("task's configuration", configuration)
    standing = state.standing(order, info.purpose if info else "training")
    yield from map(_judged, spending_verdicts(policy, rules.data_sets, order, node, standing))
    account = policy.account(order.account)
    if account is not None and order.signed() is not None:

        def caps() -> None:
            filter_ = filter_of(account, rules.data_sets, standing.fixed)
            check_caps(order, filter_, standing.job_units + filter_.cost_units(order.release))

        yield _checked("epsilon that was signed", caps)
    if state.approvals.is_rejected(order.job_id):
        yield Said("approval", "refuses", "APPROVAL_REFUSED", REJECTED)
    elif policy.work.approve_first_job:
        waits = not state.approvals.is_known(order.project)
        text = f"the first job of project {order.project} waits for `feddp agent approve`"
        yield (
            Said("approval", "asks", "APPROVAL_NEEDED", text)
            if waits
            else Said("approval", "allows")
        )


def _source(spec: DataSetSpec) -> Said:
    """By the header alone; nothing is read of the records."""
    fault = faults_of((spec,)).get(spec.name)
    if fault is None:
        return Said("data set's source", "allows")
    return Said("data set's source", "refuses", fault.reason, fault.text)


def _suspended(state: State, order: Order) -> Said:
    account = f"{state.node}/{order.account}"
    reason = suspensions_of(state).reason(account)
    if not reason:
        return Said("ledgers agree", "allows")
    dispute = state.disputes.on(account)
    if reason != "LEDGER_DISPUTED" or dispute is None:
        return Said("ledgers agree", "refuses", reason, _SUSPENDED[reason])
    text = f"entry {dispute.seq} of the coordinator's ledger is disputed: {dispute.text}"
    return Said("ledgers agree", "refuses", reason, text)


_SUSPENDED: Final = {
    "LEDGER_ROLLED_BACK": ROLLED_BACK,
    "LEDGER_CATCHING_UP": CATCHING_UP,
    "LEDGER_RECONCILING": RECONCILING,
}


def _judged(found: tuple[str, Refusal | None]) -> Said:
    rule, refusal = found
    if refusal is None:
        return Said(rule, "allows")
    return Said(rule, "refuses", refusal.reason, refusal.message)


def _checked(rule: str, check: Callable[[], None]) -> Said:
    try:
        check()
    except FeddpError as error:
        return Said(rule, "refuses", error.reason, error.message)
    return Said(rule, "allows")
