"""What replicas that do not lead have done of the leader's work: updates checked, averages made.

Whoever averages for a job holds its lease, and is fenced by it.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from coordinator.rounds import events
from coordinator.store import leases
from coordinator.store.engines import insert, now_s
from coordinator.store.leases import Lease
from coordinator.store.schema import averages, checked_updates
from coordinator.store.schema import leases as leases_table
from coordinator.store.signals import WORK, announce
from protos.errors import invariant

Made = events.UpdatesFolded | events.AnswerWritten


@dataclass(frozen=True, slots=True)
class Checked:
    """What a replica found that took an update whole.

    Attributes:
        fault: why it does not count; empty if it does.
    """

    attempt_id: str
    digest: str
    job_id: str
    bytes: int
    fault: str = ""


def note_checked(connection: Connection, found: Checked) -> None:
    """Keep it; an attempt's newest counts."""
    values = {column.name: getattr(found, column.name) for column in checked_updates.columns}
    connection.execute(
        insert(connection, checked_updates)
        .values(values)
        .on_conflict_do_update(index_elements=["attempt_id"], set_=values)
    )


def checked(connection: Connection, attempt_id: str, digest: str) -> Checked | None:
    """What was found of an attempt's update with this digest; None where nobody has looked."""
    row = connection.execute(
        select(checked_updates).where(
            checked_updates.c.attempt_id == attempt_id, checked_updates.c.digest == digest
        )
    ).one_or_none()
    return None if row is None else Checked(**row._mapping)


def offer(connection: Connection, job_id: str, work: str) -> None:
    """Let replicas average for a job; what was made of these very inputs is kept."""
    values = {"work": work, "event": b""}
    connection.execute(
        insert(connection, averages)
        .values(job_id=job_id, **values)
        .on_conflict_do_update(
            index_elements=["job_id"], set_=values, where=averages.c.work != work
        )
    )
    announce(connection, WORK)


def offers(connection: Connection) -> dict[str, str]:
    """Job -> digest of the work that is offered, and that nobody has handed over."""
    rows = connection.execute(select(averages).where(averages.c.event == b""))
    return {row.job_id: row.work for row in rows}


def take(connection: Connection, job_id: str, holder: str) -> Lease | None:
    """The job's lease; None while another one holds it."""
    return leases.take(connection, _name(job_id), holder, now_s(connection))


def is_held(connection: Connection, job_id: str) -> bool:
    """Whether somebody holds the job's lease, and renews it."""
    held = leases.look(connection, _name(job_id))
    return held is not None and held.expires_at > now_s(connection)


def is_anybody_at_work(connection: Connection) -> bool:
    """Whether some replica holds a job's lease."""
    held = select(leases_table.c.name).where(
        leases_table.c.name.startswith(_name("")),
        leases_table.c.holder != "",
        leases_table.c.expires_at > now_s(connection),
    )
    return connection.execute(held).first() is not None


def hand_over(connection: Connection, lease: Lease, job_id: str, work: str, made: Made) -> None:
    """Answer an offer, unless it was withdrawn meanwhile.

    Raises:
        Unavailable: LEASE_LOST.
    """
    leases.check(connection, lease)
    connection.execute(
        update(averages)
        .where(averages.c.job_id == job_id, averages.c.work == work)
        .values(event=events.to_json(made))
    )


def made(connection: Connection, job_id: str, work: str) -> Made | None:
    """What came of an offer, if it is there."""
    found = connection.execute(
        select(averages.c.event).where(averages.c.job_id == job_id, averages.c.work == work)
    ).scalar_one_or_none()
    if not found:
        return None
    event = events.from_json(found)
    invariant(isinstance(event, Made), "an average makes a model")
    return event  # type: ignore[return-value]


def withdraw(connection: Connection, job_id: str) -> None:
    """Have nobody begin; who has begun is not heard any more."""
    connection.execute(delete(averages).where(averages.c.job_id == job_id))


def forget(connection: Connection, job_id: str) -> None:
    """Drop everything of a job whose round is averaged, or that has ended."""
    withdraw(connection, job_id)
    connection.execute(delete(checked_updates).where(checked_updates.c.job_id == job_id))


def forget_all(connection: Connection) -> None:
    """Drop everything of every job."""
    for table in (averages, checked_updates):
        connection.execute(delete(table))


def _name(job_id: str) -> str:
    return f"job {job_id}"
