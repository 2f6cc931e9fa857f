"""Every attempt that ever came to this node, in `state.db`, and how far it is.

It goes `reserved -> opened -> spooled | no_update -> closed`, or to `refused`, which is final: the
node has signed that it never opened the data. `state.py` takes the steps, each with its ledger
entry; here are the rows.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, Literal

from node_agent.policy.asking import resumption_of
from node_agent.policy.orders import Order
from node_agent.policy.policy import ShareKind
from protos.errors import invariant
from protos.feddp.v1 import federation_pb2 as pb

SCHEMA: Final = """
CREATE TABLE attempts (
    attempt_id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL,
    account TEXT NOT NULL,
    round INTEGER NOT NULL,
    state TEXT NOT NULL
        CHECK (state IN ('reserved', 'opened', 'spooled', 'no_update', 'closed', 'refused')),
    wire BLOB NOT NULL,
    units INTEGER NOT NULL,
    project TEXT NOT NULL DEFAULT '',
    purpose TEXT NOT NULL DEFAULT 'training',
    opened_at_s REAL NOT NULL DEFAULT 0,
    tick_s REAL NOT NULL DEFAULT 0,
    update_digest TEXT NOT NULL DEFAULT '',
    outcome TEXT NOT NULL DEFAULT '' CHECK (outcome IN ('', 'post', 'void')),
    reason TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX attempts_by_job ON attempts (job_id);
CREATE INDEX attempts_by_state ON attempts (state);
"""

SHARES_ADDED: Final = """
ALTER TABLE attempts ADD COLUMN project TEXT NOT NULL DEFAULT '';
ALTER TABLE attempts ADD COLUMN purpose TEXT NOT NULL DEFAULT 'training';
"""
"""For a table that was made before limits of a purpose and a project."""

_UNITS: Final = (
    "SELECT coalesce(sum(units), 0) FROM attempts WHERE outcome != 'void' AND account = ?"
)

AttemptState = Literal["reserved", "opened", "spooled", "no_update", "closed", "refused"]

ORDERS_REMEMBERED: Final = 64

LIVE: Final = ("reserved", "opened", "spooled", "no_update")

Fate = Literal["UPDATE_ACKNOWLEDGED", "UPDATE_REJECTED", "UPDATE_WITHDRAWN", "UPDATE_VANISHED"]
"""What became of a booked update: the coordinator said that it has it, or took none; or it was
removed here, or its file was gone, before that."""


IN_A_COPY: Final = "IN_A_COPY"
"""`reason` of an attempt that was reserved in a copy of this ledger that was put back: it may have
been opened after the copy was made."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt, as it stands.

    Attributes:
        opened_at_s: by the agent's clock; 0 before the data was opened.
        tick_s: outcomes leave at multiples of it from the opening; 0 for at once.
        update_digest: of the spooled update; empty for none.
        outcome: how the node's ledger has booked it; empty while it is reserved or opened.
        reason: why it was refused; of an attempt with an update what became of that, a `Fate`, or
            empty where it is not known; or IN_A_COPY.
    """

    order: Order
    state: AttemptState
    units: int
    opened_at_s: float
    tick_s: float
    update_digest: str
    outcome: Literal["", "post", "void"]
    reason: str
    message: str


class KeptAttempts:
    """Within the caller's transaction, if there is one."""

    def __init__(self, connection: sqlite3.Connection, node: str) -> None:
        self._connection = connection
        self._node = node
        self._orders: OrderedDict[bytes, Order] = OrderedDict()

    # Reading

    def find(self, attempt_id: str) -> AttemptRow | None:
        """One attempt; None if this node never heard of it."""
        rows = self._rows("WHERE attempt_id = ?", attempt_id)
        return rows[0] if rows else None

    def orders_of(self, job_id: str) -> list[Order]:
        """Every order of a job that came here, in the order of arrival."""
        return [row.order for row in self._rows("WHERE job_id = ?", job_id)]

    def all(self) -> list[AttemptRow]:
        """Every attempt, in the order of arrival."""
        return self._rows("")

    def live(self) -> list[AttemptRow]:
        """Attempts that the coordinator has not closed yet, in the order of arrival."""
        return self._rows("WHERE state IN (?, ?, ?, ?)", *LIVE)

    def opened(self) -> list[AttemptRow]:
        """Attempts that have opened the data and have no outcome yet."""
        return self._rows("WHERE state = 'opened'")

    def pending_on(self, account: str) -> list[AttemptRow]:
        """Attempts on "NODE/NAME" that are reserved or under way."""
        return self._rows("WHERE state IN ('reserved', 'opened') AND account = ?", account)

    def counts(self) -> dict[str, int]:
        """Attempts by state."""
        query = "SELECT state, count(*) FROM attempts GROUP BY state ORDER BY state"
        return dict(self._connection.execute(query).fetchall())

    def unresolved(self, opened: Collection[str] = ()) -> int:
        """How many attempts of all jobs are reserved or under way.

        Args:
            opened: see `State.standing`.
        """
        return self._number(
            f"SELECT count(*) FROM attempts WHERE {_under_way(opened)}",  # noqa: S608
            *opened,
        )

    def others_unresolved(self, order: Order, opened: Collection[str] = ()) -> int:
        """How many other attempts of the order's job at its round are reserved or under way.

        Args:
            opened: see `State.standing`.
        """
        return self._number(
            f"SELECT count(*) FROM attempts WHERE {_under_way(opened)}"  # noqa: S608
            " AND job_id = ? AND round = ? AND attempt_id != ?",
            *opened,
            order.job_id,
            order.round,
            order.attempt_id,
        )

    def others_have(self, digest: str, attempt_id: str) -> bool:
        """Whether another attempt that is not closed has an update of these bytes, which are in
        the spool once. It may without noise, or where an update is a few numbers."""
        found = self._number(
            "SELECT count(*) FROM attempts WHERE update_digest = ? AND attempt_id != ?"
            " AND state IN (?, ?, ?, ?)",
            digest,
            attempt_id,
            *LIVE,
        )
        return found > 0

    def round_of(self, order: Order) -> int:
        """The highest round that the order's job has worked at here; 0 for none.

        Rounds from before its engineer resumed it do not count: a coordinator that was restored
        from a backup goes on from an earlier one, and may do so once somebody has signed it.
        """
        signed = resumption_of(order)
        highest = self._number(
            "SELECT coalesce(max(round), 0) FROM attempts WHERE job_id = ? AND outcome != 'void'",
            order.job_id,
        )
        if highest <= order.round or not signed:
            return highest
        rows = self._rows("WHERE job_id = ? AND outcome != 'void'", order.job_id)
        orders = (one.order for one in rows)
        return max((one.round for one in orders if resumption_of(one) >= signed), default=0)

    def job_units(self, job_id: str, account: str) -> int:
        """Filter units, posted and reserved, of a job's orders on "NODE/NAME"."""
        return self._number(f"{_UNITS} AND job_id = ?", account, job_id)

    def share_units(self, account: str, kind: ShareKind, name: str) -> int:
        """Filter units, posted and reserved, of all orders of a purpose or of a project.

        Args:
            account: without the node's name.
        """
        return self._number(f"{_UNITS} AND {kind} = ?", f"{self._node}/{account}", name)

    # Writing

    def add(self, order: Order, state: AttemptState, units: int, **more: str) -> None:
        """A new attempt.

        Args:
            more: further columns.
        """
        values = {
            "attempt_id": order.attempt_id,
            "job_id": order.job_id,
            "project": order.project,
            "account": f"{self._node}/{order.account}",
            "round": order.round,
            "state": state,
            "wire": order.wire,
            "units": units,
            **more,
        }
        self._remember(replace(order, deadline_s=0))
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        query = f"INSERT INTO attempts ({columns}) VALUES ({marks})"  # noqa: S608
        self._connection.execute(query, tuple(values.values()))

    def change(self, attempt_id: str, **values: str | float) -> None:
        """Set columns of an attempt that is there."""
        columns = ", ".join(f"{name} = ?" for name in values)
        query = f"UPDATE attempts SET {columns} WHERE attempt_id = ?"  # noqa: S608
        changed = self._connection.execute(query, (*values.values(), attempt_id)).rowcount
        invariant(changed == 1, f"attempt {attempt_id} is not in the state database")

    def note_opening(self, attempt_id: str, opened_at_s: float, tick_s: float) -> bool:
        """From reserved to opened; False if it is not reserved."""
        query = (
            "UPDATE attempts SET state = 'opened', opened_at_s = ?, tick_s = ?"
            " WHERE attempt_id = ? AND state = 'reserved'"
        )
        return self._connection.execute(query, (opened_at_s, tick_s, attempt_id)).rowcount == 1

    def doubt_reserved(self) -> None:
        """From reserved to opened, IN_A_COPY."""
        query = "UPDATE attempts SET state = 'opened', reason = ? WHERE state = 'reserved'"
        self._connection.execute(query, (IN_A_COPY,))

    # Inside

    def _number(self, query: str, *values: str | int) -> int:
        return int(self._connection.execute(query, values).fetchone()[0])

    def _rows(self, where: str, *values: str) -> list[AttemptRow]:
        query = (
            "SELECT wire, state, units, opened_at_s, tick_s, update_digest, outcome, reason,"  # noqa: S608
            f" message FROM attempts {where} ORDER BY rowid"
        )
        return [
            AttemptRow(self._order(wire), *rest)
            for wire, *rest in self._connection.execute(query, values)
        ]

    def _order(self, wire: bytes) -> Order:
        """A kept order; an attempt is read some times while it lasts."""
        known = self._orders.get(wire)
        if known is None:
            known = self._remember(Order.from_wire(pb.WorkOrder.FromString(wire)))
        return known

    def _remember(self, order: Order) -> Order:
        self._orders[order.wire] = order
        if len(self._orders) > ORDERS_REMEMBERED:
            self._orders.popitem(last=False)
        return order


def _under_way(opened: Collection[str]) -> str:
    """A condition with a mark for each of `opened`."""
    marks = ", ".join("?" * len(opened))
    return f"(state IN ('reserved', 'opened') OR attempt_id IN ({marks}))"
