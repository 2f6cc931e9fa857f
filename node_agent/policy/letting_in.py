"""What a data steward is shown of a job before it is let in, and the answers that can be given."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from certs.mandates import Mandate
from node_agent.folder.config import Folder
from node_agent.folder.installation import read_folder
from node_agent.ledger.reading import reading, writing
from node_agent.policy.approvals import Asked, KnownProject
from node_agent.policy.asking import AskingPolicy, mandate_of
from node_agent.policy.steward import Steward
from node_agent.state.state import State
from protos.errors import FeddpError, NotFound


@dataclass(frozen=True, slots=True)
class JobAsked:
    """A job that came while its project was new here, or was refused by hand.

    Attributes:
        approved_at_s, rejected_at_s: 0 while it waits.
        signed_by: the engineer's name in policy.yaml, or what their key begins with; empty where
            nobody signed the job, and all of it is the coordinator's word.
        task: with the hash of its code.
        epsilon: the most that it may spend at this node in all; 0 for none, or where an unsigned
            job does not say.
        mechanism: "none" releases without noise, "no_data" reads nothing.
        rounds: the most; None where nobody signed how many.
        signed_until_s: None where nobody signed it.
    """

    job_id: str
    project: str
    state: Literal["waits", "let in", "refused"]
    asked_at_s: float
    approved_at_s: float
    rejected_at_s: float
    signed_by: str
    task: str
    data_set: str
    mechanism: Literal["", "dp", "none", "no_data"]
    epsilon: float
    rounds: int | None
    signed_until_s: float | None


@dataclass(frozen=True, slots=True)
class Asking:
    """All of it, as `feddp agent approve --list` shows it."""

    jobs: tuple[JobAsked, ...]
    projects: tuple[KnownProject, ...]


def asked_for_approval(path: Path) -> Asking:
    """Jobs that wait for approval, those that were let in or refused, and the projects whose jobs
    need none; the agent may run.

    Raises:
        NotFound: NOT_JOINED, LEDGER_MISSING.
        Malformed: CONFIG_INVALID, IDENTITY_INVALID.
    """
    folder = Folder(path.absolute())
    _, identity = read_folder(folder)
    with reading(folder, identity) as state:
        approvals, who = state.approvals, _who_may_ask(folder)
        asked = [*approvals.waiting(time.time()), *approvals.answered()]
        jobs = tuple(_job(state, who, one) for one in asked)
        return Asking(jobs, tuple(approvals.projects()))


def seen(path: Path, job_id: str) -> JobAsked:
    """What is known of a job that waits, or was answered; nothing changes.

    Raises:
        NotFound: JOB_UNKNOWN, it never came; and as `asked_for_approval`.
    """
    folder = Folder(path.absolute())
    _, identity = read_folder(folder)
    with reading(folder, identity) as state:
        return _job(state, _who_may_ask(folder), _found(state, job_id))


def let_in(path: Path, job_id: str) -> JobAsked:
    """Approve a job that waits, and with it its project; the agent may run.

    Raises:
        NotFound: APPROVAL_UNKNOWN; and as `asked_for_approval`.
        WrongPhase: APPROVAL_OVER; STATE_OLDER.
    """
    with _writing(path) as (state, who):
        return _job(state, who, state.approvals.approve(job_id, time.time()))


def reject(path: Path, job_id: str) -> JobAsked:
    """Refuse a job for good, until it is let in; the agent may run.

    Raises:
        NotFound: JOB_UNKNOWN; and as `asked_for_approval`.
        WrongPhase: STATE_OLDER.
    """
    with _writing(path) as (state, who):
        project = _found(state, job_id).project
        return _job(state, who, state.approvals.reject(job_id, project, time.time()))


def withdraw(path: Path, project: str) -> None:
    """Take back that a project was let in; the agent may run.

    Raises:
        NotFound: PROJECT_UNKNOWN; and as `asked_for_approval`.
        WrongPhase: STATE_OLDER.
    """
    with _writing(path) as (state, _):
        state.approvals.withdraw(project, time.time())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[tuple[State, AskingPolicy]]:
    folder = Folder(path.absolute())
    _, identity = read_folder(folder)
    with writing(folder, identity) as state:
        yield state, _who_may_ask(folder)


def _who_may_ask(folder: Folder) -> AskingPolicy:
    """For names of engineers; without a policy that can be read there are keys alone."""
    try:
        return Steward(folder).rules().policy.who_may_ask
    except FeddpError:
        return AskingPolicy()


def _found(state: State, job_id: str) -> Asked:
    """A job that was asked about, or of which an order came."""
    found = state.approvals.find(job_id)
    if found is not None:
        return found
    orders = state.attempts.orders_of(job_id)
    if not orders:
        raise NotFound(
            "JOB_UNKNOWN",
            f"this agent has seen no order of a job {job_id}; `feddp agent approve --list` shows "
            "those that wait",
        )
    return Asked(job_id, orders[-1].project, 0.0, 0.0, 0.0, 0.0)


def _job(state: State, who: AskingPolicy, asked: Asked) -> JobAsked:
    orders = state.attempts.orders_of(asked.job_id)
    order = orders[-1] if orders else None
    mandate: Mandate | None = None
    if order is not None:
        with contextlib.suppress(FeddpError):  # of a job that was refused for that
            mandate = mandate_of(order)
    bare = order.release.mechanism if order is not None else ""
    return JobAsked(
        job_id=asked.job_id,
        project=asked.project,
        state="let in" if asked.approved_at_s else "refused" if asked.rejected_at_s else "waits",
        asked_at_s=asked.asked_at_s,
        approved_at_s=asked.approved_at_s,
        rejected_at_s=asked.rejected_at_s,
        signed_by=_signer(who, mandate) if mandate is not None else "",
        task=f"{order.task}@{order.task_hash}" if order is not None else "",
        data_set=order.data_set if order is not None else "",
        mechanism=bare if bare in ("", "none", "no_data") else "dp",
        epsilon=mandate.epsilon_max if mandate else order.target_epsilon if order else 0.0,
        rounds=mandate.rounds_max if mandate is not None else None,
        signed_until_s=float(mandate.expires_at_s) if mandate is not None else None,
    )


def _signer(who: AskingPolicy, mandate: Mandate) -> str:
    engineer = who.engineer(mandate.public_key)
    if engineer is not None:
        return engineer.name
    return f"the key {mandate.public_key[:16]}…, which policy.yaml does not pin"
