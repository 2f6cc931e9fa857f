"""What becomes of a backup's tables before anybody serves from them; within one transaction."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, update

from coordinator.rounds import machine
from coordinator.rounds.events import CoordinatorRestored
from coordinator.rounds.live import job_from_json, plan_of, replay
from coordinator.rounds.phases import Ended
from coordinator.store import jobs as job_store
from coordinator.store import joins, pauses, shared_work
from coordinator.store.schema import invitations, leases, tokens
from protos.errors import invariant

BY: Final = "coordinator restore"


@dataclass(frozen=True, slots=True)
class Changes:
    """What was changed, for people.

    Attributes:
        tokens: of nodes, that nobody had redeemed.
        joins: of machines that waited to be let in.
        jobs: that ran or waited, and have failed.
    """

    tokens: int
    invitations: int
    joins: int
    jobs: tuple[str, ...]


def settle(connection: Connection, made_at_s: float, now_s: float) -> Changes:
    """Void what may have been used since, end what ran, and pause.

    Args:
        made_at_s: when the backup was made.
    """
    void, waited = _void_tokens(connection, now_s)
    withdrawn = _void_invitations(connection, now_s)
    _free_leases(connection, now_s)
    failed = tuple(_end_jobs(connection, made_at_s, now_s))
    shared_work.forget_all(connection)
    made = datetime.fromtimestamp(made_at_s, UTC)
    pauses.begin(connection, now_s, BY, f"restored from a backup of {made:%Y-%m-%d %H:%M} UTC")
    return Changes(void, withdrawn, waited, failed)


def _void_tokens(connection: Connection, now_s: float) -> tuple[int, int]:
    """Those that nobody had redeemed may have been since: they are expired. Who waited asks again
    with a new one."""
    void = connection.execute(
        update(tokens)
        .where(tokens.c.redeemed_by == "", tokens.c.expires_at > now_s)
        .values(expires_at=now_s)
    ).rowcount
    waited = connection.execute(
        update(tokens)
        .where(tokens.c.redeemed_by != "", tokens.c.chain == b"", tokens.c.approval != "rejected")
        .values(approval="rejected", approved_by=BY)
    ).rowcount
    invariant(not joins.waiting(connection), "no join waits after a restore")
    return void, waited


def _void_invitations(connection: Connection, now_s: float) -> int:
    return connection.execute(
        update(invitations)
        .where(invitations.c.redeemed_by == "", invitations.c.expires_at > now_s)
        .values(expires_at=now_s)
    ).rowcount


def _free_leases(connection: Connection, now_s: float) -> None:
    """Nobody holds them; and a process of the lost installation, wherever it was stopped, holds an
    epoch that never comes again: seconds grow faster than hands change."""
    connection.execute(
        update(leases).values(holder="", expires_at=0.0, address="", epoch=int(now_s))
    )


def _end_jobs(connection: Connection, made_at_s: float, now_s: float) -> list[str]:
    failed = []
    for record in job_store.listed(connection, status=job_store.RUNNING):
        steps = job_store.history(connection, record.job_id)
        phase, count = replay(plan_of(job_from_json(record.resolved)), steps)
        event = CoordinatorRestored(made_at_s)
        if not isinstance(phase, Ended):
            phase, _ = machine.step(phase, event, now_s)
            job_store.append(connection, record.job_id, count, now_s, event)
        invariant(isinstance(phase, Ended), "a restored job has ended")
        job_store.set_status(connection, record.job_id, phase.status)  # type: ignore[union-attr]
        failed.append(record.job_id)
    return failed
