"""Jobs, their journals and their models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, func, or_, select, update

from coordinator.rounds import events
from coordinator.store.engines import insert
from coordinator.store.schema import jobs, journal, models
from protos.errors import NotFound

RUNNING = "running"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as it was submitted.

    Attributes:
        spec: the submitted bytes, kept exactly.
        resolved: the job with the coordinator's settings of that moment filled in, as JSON.
        status: "running" until it has ended.
        mandate: the newest SignedMandate, serialized; empty if nobody signed the job.
    """

    job_id: str
    project: str
    name: str
    submitted_by: str
    request_id: str
    spec: bytes
    resolved: str
    task_hash: str
    status: str
    created_at: float
    mandate: bytes = b""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model that can be listed. `kind` is "initial", "round" or "answer"."""

    job_id: str
    kind: str
    round: int
    digest: str
    bytes: int
    created_at: float
    project: str


def _job(row: Row[Any]) -> JobRecord:
    return JobRecord(**row._mapping)


def add(connection: Connection, record: JobRecord) -> None:
    """Keep a new job."""
    connection.execute(
        jobs.insert().values({c.name: getattr(record, c.name) for c in jobs.columns})
    )


def job(connection: Connection, job_id: str) -> JobRecord:
    """One job.

    Raises:
        NotFound: JOB_UNKNOWN.
    """
    row = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one_or_none()
    if row is None:
        raise NotFound("JOB_UNKNOWN", f"there is no job {job_id}; `feddp job list` shows them")
    return _job(row)


def same_request(connection: Connection, user: str, request_id: str) -> JobRecord | None:
    """The job that an earlier call with the same request id made, if any."""
    row = connection.execute(
        select(jobs).where(jobs.c.submitted_by == user, jobs.c.request_id == request_id)
    ).one_or_none()
    return None if row is None else _job(row)


def listed(connection: Connection, *, status: str | None = None) -> list[JobRecord]:
    """Jobs, newest first."""
    wanted = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.job_id)
    if status is not None:
        wanted = wanted.where(jobs.c.status == status)
    return [_job(row) for row in connection.execute(wanted)]


def counts(connection: Connection) -> dict[str, int]:
    """Number of jobs by status."""
    rows = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
    return {status: number for status, number in rows}  # noqa: C416 - rows are no tuples


def set_status(connection: Connection, job_id: str, status: str) -> None:
    """Remember that a job has ended, and how."""
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(status=status))


def has_id(connection: Connection, job_id: str) -> bool:
    """Whether some job, of whatever project, has this id."""
    found = connection.execute(select(jobs.c.job_id).where(jobs.c.job_id == job_id))
    return found.first() is not None


def set_mandate(connection: Connection, job_id: str, mandate: bytes) -> None:
    """Keep what was signed anew when the job was resumed."""
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(mandate=mandate))


def append(connection: Connection, job_id: str, seq: int, at_s: float, event: events.Event) -> None:
    """Write one step of a job."""
    append_all(connection, job_id, seq, at_s, [event])


def append_all(
    connection: Connection,
    job_id: str,
    first_seq: int,
    at_s: float,
    taken: Sequence[events.Event],
) -> None:
    """Write steps of a job, in their order. A `seq` that exists is refused by the primary key, so
    that two writers can never both go on from the same step."""
    connection.execute(
        _STEP,
        [
            {"job_id": job_id, "seq": seq, "at": at_s, "event": events.to_json(event)}
            for seq, event in enumerate(taken, first_seq)
        ],
    )


_STEP = journal.insert()


def history(connection: Connection, job_id: str) -> list[tuple[float, events.Event]]:
    """A job's steps in order, each with its moment."""
    rows = connection.execute(
        select(journal.c.at, journal.c.event)
        .where(journal.c.job_id == job_id)
        .order_by(journal.c.seq)
    )
    return [(row.at, events.from_json(row.event)) for row in rows]


def running(connection: Connection) -> frozenset[str]:
    """Ids of the jobs that have not ended."""
    return frozenset(connection.scalars(select(jobs.c.job_id).where(jobs.c.status == RUNNING)))


def further(
    connection: Connection, known: Mapping[str, int]
) -> dict[str, list[tuple[float, events.Event]]]:
    """The steps of some jobs from a `seq` on, in order; of those alone that have any.

    Args:
        known: job -> how many of its steps are known.
    """
    if not known:
        return {}
    after = (and_(journal.c.job_id == one, journal.c.seq >= seq) for one, seq in known.items())
    found: dict[str, list[tuple[float, events.Event]]] = {}
    rows = connection.execute(
        select(journal).where(or_(*after)).order_by(journal.c.job_id, journal.c.seq)
    )
    for row in rows:
        found.setdefault(row.job_id, []).append((row.at, events.from_json(row.event)))
    return found


def add_model(connection: Connection, record: ModelRecord) -> None:
    """List a model; listing the same one again changes nothing."""
    connection.execute(
        insert(connection, models)
        .values({c.name: getattr(record, c.name) for c in models.columns})
        .on_conflict_do_nothing()
    )


def models_of(connection: Connection, job_id: str | None = None) -> list[ModelRecord]:
    """Models in the order in which they were made."""
    wanted = select(models).order_by(models.c.created_at, models.c.job_id, models.c.round)
    if job_id is not None:
        wanted = wanted.where(models.c.job_id == job_id)
    return [ModelRecord(**row._mapping) for row in connection.execute(wanted)]
