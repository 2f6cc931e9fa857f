"""What is left of the limits within an account that a node's policy sets for a purpose or project.

The node's own ledger is the authority, and says at each greeting what it counts. What was booked
since is in the coordinator's chain, so that a plan never waits for another greeting: the account is
kept with the number of entries that its chain had when it was heard.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, select

from coordinator.store.ledger import Account
from coordinator.store.schema import entries, jobs
from privacy.calibration import units_for
from privacy.releases import Release
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as federation


@dataclass(frozen=True, slots=True)
class Share:
    """A limit within an account.

    Attributes:
        kind: "purpose", "project", or "account" for all jobs: of a node that came from another
            coordinator, whose own ledger holds what this chain does not.
        limit_units: 0 with a `fault`.
        used_units: posted and reserved, by the node's ledger and what was booked since.
        fault: why the account's filter cannot count by this limit; the node then refuses orders.
    """

    kind: str
    name: str
    epsilon_limit: float
    limit_units: int
    used_units: int
    fault: str = ""

    @property
    def left_units(self) -> int:
        """Never negative."""
        return max(0, self.limit_units - self.used_units)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def hear(account: Account, told: federation.Account, open_attempts: Sequence[str]) -> None:
    """Note in what a node told of an account with how much of the chain that goes together.

    Args:
        open_attempts: that the node knows and has not seen closed. An open reservation that is not
            among them has not reached it, and is not in its figures.
    """
    told.heard_at_seq = account.entries
    known = set(open_attempts)
    told.unknown_attempts[:] = [
        one.attempt_id for one in account.balance.pending if one.attempt_id not in known
    ]


def shares_of(
    connection: Connection, account: Account, told: federation.Account, hello: federation.Hello
) -> tuple[Share, ...]:
    """Every share of an account, as of now.

    Args:
        told: the account as its node told it last, with what `hear` noted.
        hello: the whole greeting; its tasks say which purpose a job has.
    """
    if not told.shares:
        return ()
    filter_ = account.filter
    since = _since(connection, account, told)
    purposes = _purposes(connection, {row.job_id for row in since}, hello)
    found = []
    for one in told.shares:
        limit_units, fault = 0, ""
        try:
            limit_units = units_for(filter_.kind, filter_.order, one.epsilon_limit, filter_.delta)
        except FeddpError as error:
            fault = error.message
        counts = _counting(one, purposes)
        used_units = one.used_units + sum(
            _sign(row) * filter_.cost_units(_release(row)) for row in since if counts(row)
        )
        found.append(
            Share(one.kind, one.name, one.epsilon_limit, limit_units, max(0, used_units), fault)
        )
    return tuple(found)


def _since(connection: Connection, account: Account, told: federation.Account) -> list[Row[Any]]:
    """Reservations and voids that the node's figures do not hold."""
    wanted = [and_(entries.c.seq > told.heard_at_seq, entries.c.kind.in_(("reserve", "void")))]
    if told.unknown_attempts:
        unknown = entries.c.attempt_id.in_(told.unknown_attempts)
        wanted.append(and_(unknown, entries.c.kind == "reserve"))
    # Two statements: with "or" the database would go through the whole chain.
    return [
        row
        for condition in wanted
        for row in connection.execute(
            select(*_COLUMNS).where(entries.c.account == account.account, condition)
        )
    ]


_COLUMNS = [
    entries.c[name]
    for name in (
        *("kind", "project", "job_id"),
        *("mechanism", "noise_multiplier", "sample_rate", "steps"),
    )
]


def _purposes(connection: Connection, job_ids: set[str], hello: federation.Hello) -> dict[str, str]:
    """Job -> its purpose, of those whose task the node still publishes."""
    published = {f"{task.name}@{task.content_hash}": task.purpose for task in hello.tasks}
    rows = connection.execute(
        select(jobs.c.job_id, jobs.c.resolved, jobs.c.task_hash).where(jobs.c.job_id.in_(job_ids))
    )
    tasks = {row.job_id: f"{json.loads(row.resolved)['task']}@{row.task_hash}" for row in rows}
    return {job_id: published[task] for job_id, task in tasks.items() if task in published}


def _counting(share: federation.Share, purposes: dict[str, str]) -> Callable[[Row[Any]], bool]:
    """Whether an entry counts against a share; where the purpose is not known, it does."""
    if share.kind == "account":
        return lambda _: True
    if share.kind == "project":
        return lambda row: bool(row.project == share.name)
    return lambda row: purposes.get(row.job_id, share.name) == share.name


def _sign(row: Row[Any]) -> int:
    return 1 if row.kind == "reserve" else -1


def _release(row: Row[Any]) -> Release:
    return Release(row.mechanism, row.noise_multiplier, row.sample_rate, row.steps)
