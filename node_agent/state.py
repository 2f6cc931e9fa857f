"""What an agent must never forget: `state.db`, with its attempts and the node's own ledger.

An attempt goes `reserved -> opened -> spooled | no_update -> closed`, or to `refused`, which is
final: the node has signed that it never opened the data. Each step and its ledger entry are one
transaction, durable before a record is read, and before anything else that follows from it cannot
be undone. SQLite is used by one thread.
"""

import contextlib
import math
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.approvals import SCHEMA as APPROVALS_SCHEMA
from node_agent.approvals import Approvals
from node_agent.config import Folder
from node_agent.job_mandates import SCHEMA as MANDATES_SCHEMA
from node_agent.job_mandates import JobMandates
from node_agent.judgement import FixedFilter, Standing
from node_agent.orders import Order
from node_agent.own_ledger import RAISES_SCHEMA, KeptAccount, OwnLedger
from node_agent.own_ledger import SCHEMA as LEDGER_SCHEMA
from node_agent.payers import SCHEMA as PAYERS_SCHEMA
from node_agent.payers import TAKEN_OVER, Payers
from node_agent.policy import ShareKind
from node_agent.tasks.registry import Purpose
from node_agent.witnessed import SCHEMA as WITNESS_SCHEMA
from node_agent.witnessed import Dispute, Witnessed
from privacy.filters import Filter
from privacy.heads import Checkpoint, Head
from privacy.ledger import Entry, Kind, Pending
from protos.errors import Malformed, NotFound, invariant
from protos.feddp.v1 import federation_pb2 as pb

SCHEMA_VERSION: Final = 5
"""2 since the coordinator's ledger is followed, 3 since a limit is raised by an entry, 4 since it
is kept which account each data set has paid from, 5 since orders are signed."""

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
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

_COORDINATOR_LIMIT: Final = "coordinator_limit:"

_HIGHEST_THERE: Final = "highest_there:"
"""Kept for ever, of a coordinator that the node has left as well: what was promised stays so."""

RESTORED_NOTE: Final = "restored_from_copy"
"""Set until the coordinator's ledger was followed to its end once after that."""

ROLLED_BACK_NOTE: Final = "rolled_back"
"""What this ledger lacks though the node has signed it; set until a copy is imported."""

REFUSED_NOTE: Final = "session_refused"
"""Why the coordinator gave no session last, and when, as JSON; set until it gives one."""

LEFT_NOTE: Final = "left_coordinator"
"""Set when the node leaves a coordinator, until it knows whether it came to another."""

MOVED_NOTE: Final = "moved"
"""Set for ever once this ledger holds what the present coordinator's never will."""

_SINCE_1: Final = """
ALTER TABLE attempts ADD COLUMN project TEXT NOT NULL DEFAULT '';
ALTER TABLE attempts ADD COLUMN purpose TEXT NOT NULL DEFAULT 'training';
"""

_UNITS: Final = (
    "SELECT coalesce(sum(units), 0) FROM attempts WHERE outcome != 'void' AND account = ?"
)

_ASKED_SCHEMA: Final = f"{MANDATES_SCHEMA}{APPROVALS_SCHEMA}"

_STEPS: Final = {
    0: f"{_SCHEMA}{LEDGER_SCHEMA}{WITNESS_SCHEMA}{RAISES_SCHEMA}{PAYERS_SCHEMA}{_ASKED_SCHEMA}",
    1: f"{_SINCE_1}{WITNESS_SCHEMA}{RAISES_SCHEMA}{PAYERS_SCHEMA}{TAKEN_OVER}{_ASKED_SCHEMA}",
    2: f"{RAISES_SCHEMA}{PAYERS_SCHEMA}{TAKEN_OVER}{_ASKED_SCHEMA}",
    3: f"{PAYERS_SCHEMA}{TAKEN_OVER}{_ASKED_SCHEMA}",
    4: _ASKED_SCHEMA,
}
"""What brings a database of each older version to this one."""

AttemptState = Literal["reserved", "opened", "spooled", "no_update", "closed", "refused"]

LIVE: Final = ("reserved", "opened", "spooled", "no_update")


Fate = Literal["UPDATE_ACKNOWLEDGED", "UPDATE_REJECTED", "UPDATE_WITHDRAWN", "UPDATE_VANISHED"]
"""What became of a booked update: the coordinator said that it has it, or took none; or it was
removed here, or its file was gone, before that."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt, as it stands.

    Attributes:
        opened_at_s: by the agent's clock; 0 before the data was opened.
        tick_s: outcomes leave at multiples of it from the opening; 0 for at once.
        update_digest: of the spooled update; empty for none.
        outcome: how the node's ledger has booked it; empty while it is reserved or opened.
        reason: why it was refused; of an attempt with an update what became of that, a `Fate`, or
            empty where it is not known.
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


def ledger_missing(folder: Folder) -> NotFound:
    """Why an agent without its ledger does not run."""
    return NotFound(
        "LEDGER_MISSING",
        f"{folder.state_db} is missing: it holds what this node's patients have spent, and an "
        "empty one would forget it. Put a copy in its place, with the agent stopped: `feddp agent "
        "ledger import FILE`, or all of a backup into a new folder: `feddp agent restore`",
    )


class State:
    """Open `state.db`; safe to close at any moment, as a crash is.

    Attributes:
        node: whose it is.
    """

    def __init__(self, path: Path, node: str, key: Ed25519PrivateKey) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.node = node
        # `feddp agent status` may read at the same time.
        self._connection.execute("PRAGMA busy_timeout = 5000")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._prepare(path)
        self.payers = Payers(self._connection, node)
        self.ledger = OwnLedger(self._connection, key, self.payers)
        self.witnessed = Witnessed(self._connection, node, self.ledger, key)
        self.mandates = JobMandates(self._connection)
        self.approvals = Approvals(self._connection)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    # Reading

    def attempt(self, attempt_id: str) -> AttemptRow | None:
        """One attempt; None if this node never heard of it."""
        rows = self._rows("WHERE attempt_id = ?", attempt_id)
        return rows[0] if rows else None

    def orders_of(self, job_id: str) -> list[Order]:
        """Every order of a job that came here, in the order of arrival."""
        return [row.order for row in self._rows("WHERE job_id = ?", job_id)]

    def live(self) -> list[AttemptRow]:
        """Attempts that the coordinator has not closed yet, in the order of arrival."""
        return self._rows("WHERE state IN (?, ?, ?, ?)", *LIVE)

    def attempts(self) -> list[AttemptRow]:
        """Every attempt, in the order of arrival."""
        return self._rows("")

    def pending_on(self, account: str) -> bool:
        """Whether attempts on "NODE/NAME" are reserved or under way."""
        return bool(self._rows("WHERE state IN ('reserved', 'opened') AND account = ?", account))

    def counts(self) -> dict[str, int]:
        """Attempts by state."""
        query = "SELECT state, count(*) FROM attempts GROUP BY state ORDER BY state"
        return dict(self._connection.execute(query).fetchall())

    def standing(self, order: Order, purpose: Purpose = "training") -> Standing:
        """What the ledger knows that matters for an order, whose task has this purpose."""
        account = f"{self.node}/{order.account}"
        one = self._connection.execute
        kept = self.ledger.account(account)
        open_rows = self._rows("WHERE state IN ('reserved', 'opened') AND account = ?", account)
        (job_units,) = one(
            "SELECT coalesce(sum(units), 0) FROM attempts"
            " WHERE job_id = ? AND account = ? AND outcome != 'void'",
            (order.job_id, account),
        ).fetchone()
        (job_round,) = one(
            "SELECT coalesce(max(round), 0) FROM attempts WHERE job_id = ? AND outcome != 'void'",
            (order.job_id,),
        ).fetchone()
        (unresolved,) = one(
            "SELECT count(*) FROM attempts WHERE state IN ('reserved', 'opened')"
        ).fetchone()
        (same_round,) = one(
            "SELECT count(*) FROM attempts WHERE state IN ('reserved', 'opened')"
            " AND job_id = ? AND round = ? AND attempt_id != ?",
            (order.job_id, order.round, order.attempt_id),
        ).fetchone()
        return Standing(
            fixed=kept.fixed if kept else None,
            limit_there=self.limit_there(account),
            posted_units=kept.posted_units if kept else 0,
            pending=tuple(self._pending(row) for row in open_rows),
            guarantee=kept.guarantee if kept else True,
            job_units=job_units,
            purpose=purpose,
            purpose_units=self.share_units(order.account, "purpose", purpose),
            project_units=self.share_units(order.account, "project", order.project),
            job_round=job_round,
            round_unresolved=same_round > 0,
            unresolved=unresolved,
        )

    def share_units(self, account: str, kind: ShareKind, name: str) -> int:
        """Filter units, posted and reserved, of all jobs of a purpose or of a project.

        Args:
            account: without the node's name.
        """
        query = f"{_UNITS} AND {kind} = ?"
        row = self._connection.execute(query, (f"{self.node}/{account}", name)).fetchone()
        return int(row[0])

    def account_units(self, account: str) -> int:
        """Filter units, posted and reserved, of an account named without the node, whoever the
        coordinator was."""
        name = f"{self.node}/{account}"
        kept = self.ledger.account(name)
        open_rows = self._rows("WHERE state IN ('reserved', 'opened') AND account = ?", name)
        return (kept.posted_units if kept else 0) + sum(row.units for row in open_rows)

    def accounts_kept(self) -> frozenset[str]:
        """Accounts that have entries here, or signed ones in the coordinator's ledger that this one
        could not take over; named without the node."""
        names = (one.account for one in self.ledger.accounts())
        kept = frozenset(name.removeprefix(f"{self.node}/") for name in names)
        return kept | self.payers.accounts()

    def fixed_filter(self, account: str) -> FixedFilter | None:
        """How an account, named without the node, counts; None before its first entry."""
        kept = self.ledger.account(f"{self.node}/{account}")
        return kept.fixed if kept else None

    def note(self, key: str) -> str:
        """A note of the agent about itself; empty if there is none."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def coordinator_limit(self, account: str) -> float | None:
        """The limit of "NODE/NAME" that the coordinator said last; None if it never did."""
        said = self.note(f"{_COORDINATOR_LIMIT}{account}")
        return float(said) if said else None

    def limit_there(self, account: str) -> float:
        """The same for what takes the lower of two limits: infinite if it never did."""
        said = self.coordinator_limit(account)
        return math.inf if said is None else said

    def highest_there(self, account: str) -> float:
        """The highest limit of "NODE/NAME" that a coordinator's chain ever showed; 0 if none."""
        return float(self.note(f"{_HIGHEST_THERE}{account}") or 0.0)

    def epsilon_guarantee(self, kept: KeptAccount) -> float:
        """The highest limit that was ever in force, by this ledger or by the coordinator's: one
        that was restored from an older copy, or from that chain, knows its first limit no more."""
        return max(self.ledger.epsilon_guarantee(kept), self.highest_there(kept.account))

    # Steps

    def keep_coordinator_limits(
        self, limits: Mapping[str, float], highest: Mapping[str, float] | None = None
    ) -> None:
        """Note what the coordinator holds accounts to, which are named without the node.

        Args:
            highest: the highest limit that its chain shows, for accounts with entries there.
        """
        for account, limit in limits.items():
            self.set_note(f"{_COORDINATOR_LIMIT}{self.node}/{account}", repr(limit))
        for account, limit in (highest or {}).items():
            if limit > self.highest_there(f"{self.node}/{account}"):
                self.set_note(f"{_HIGHEST_THERE}{self.node}/{account}", repr(limit))

    def lower(self, account: str, epsilon_limit: float, raises: Mapping[str, int]) -> None:
        """See `OwnLedger.lower`; the account is named without the node. The coordinator is about to
        hear the same, and may hold to it although its answer is lost."""
        name = f"{self.node}/{account}"
        self.ledger.lower(name, epsilon_limit, raises.get(name, 0))
        there = self.coordinator_limit(name)
        if there is not None and epsilon_limit < there:
            self.keep_coordinator_limits({account: epsilon_limit})

    def forget_coordinator_limit(self, account: str) -> None:
        """What the coordinator said before a raise of "NODE/NAME" says nothing about after it."""
        self.set_note(f"{_COORDINATOR_LIMIT}{account}", "")

    @contextlib.contextmanager
    def raising(self) -> Iterator[OwnLedger]:
        """The ledger, within one transaction; nobody else writes to it meanwhile."""
        with self._transaction():
            yield self.ledger

    def set_note(self, key: str, value: str) -> None:
        """Keep a note for `feddp agent status`."""
        self._connection.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

    def reserve(
        self, order: Order, filter_: Filter, purpose: Purpose = "training", source: str = ""
    ) -> bytes:
        """Set an order's cost aside; returns the signature over its reserve statement.

        The caller has judged the order by `standing` in the same turn. On the disk it is with
        `open`, before any record is read; a machine that loses it before is ordered again.

        Args:
            source: as `OwnLedger.append` has it.
        """
        statement = order.statement(self.node, "reserve")
        with self._transaction(durable=False):
            units = filter_.cost_units(order.release)
            self._insert(order, "reserved", units, purpose=purpose)
            self.ledger.fix(statement.account, filter_)
            return self.ledger.append(statement, source=source)

    def refuse(self, order: Order, reason: str, message: str) -> bytes:
        """Refuse an order for ever; returns the signature over its void statement.

        Nothing was reserved, so the node's own chain holds nothing of it.
        """
        with self._transaction():
            self._insert(order, "refused", 0, outcome="void", reason=reason, message=message)
        return self.signature(order, "void")

    def withdraw(self, attempt_id: str, reason: str, message: str) -> bytes | None:
        """Refuse a reserved attempt whose data was never opened; None if it is past that."""
        with self._transaction():
            row = self.attempt(attempt_id)
            if row is None or row.state != "reserved":
                return None
            self._update(
                attempt_id, state="refused", outcome="void", reason=reason, message=message
            )
            return self._resolve(row, "void")

    def open(self, attempt_id: str, opened_at_s: float, tick_s: float) -> bool:
        """Note that the data is about to be opened; False if the attempt is not reserved."""
        with self._transaction():
            query = (
                "UPDATE attempts SET state = 'opened', opened_at_s = ?, tick_s = ?"
                " WHERE attempt_id = ? AND state = 'reserved'"
            )
            return self._connection.execute(query, (opened_at_s, tick_s, attempt_id)).rowcount == 1

    def spool(self, attempt_id: str, digest: str) -> bytes | None:
        """Book an update whose bytes are durable in the spool, before the first of them leaves.

        Returns:
            The signature over the post statement; None if the attempt was closed meanwhile.
        """
        return self._end(attempt_id, "spooled", digest)

    def lose(self, attempt_id: str) -> bytes | None:
        """Book an opened attempt that gave no update: posted whole. Returns as `spool`."""
        return self._end(attempt_id, "no_update", "")

    def note_withdrawn(self, attempt_id: str) -> None:
        """Note that a spooled update is removed before it was acknowledged."""
        with self._transaction():
            self._update(attempt_id, reason="UPDATE_WITHDRAWN")

    def close_attempt(
        self, attempt_id: str, outcome: Literal["post", "void"], fate: Fate | None = None
    ) -> AttemptRow | None:
        """Book what the coordinator booked; what was opened is posted whatever it says.

        Should the machine lose it, the coordinator says it again: it is not waited for until it is
        on the disk.

        Args:
            fate: what became of its update, where that is known.

        Returns:
            The attempt as it was before; None if it is unknown here.
        """
        with self._transaction(durable=False):
            row = self.attempt(attempt_id)
            if row is None or row.state in ("closed", "refused"):
                return row
            if row.outcome == "":
                mine = outcome if row.state == "reserved" else "post"
                self._update(attempt_id, outcome=mine)
                self._resolve(row, mine)
            self._update(attempt_id, state="closed")
            if fate is not None:
                self._update(attempt_id, reason=fate)
            return row

    def follow(
        self, account: str, entries: Sequence[Entry], filter_: Filter | None, now_s: float
    ) -> Dispute | None:
        """See `Witnessed.follow`; who paid is kept of all of them, also after a dispute."""
        with self._transaction():
            self.payers.note_signed(entries, self.witnessed.public_key)
            return self.witnessed.follow(account, entries, filter_, now_s)

    def note_signed(self, entries: Sequence[Entry]) -> None:
        """See `Payers.note_signed`."""
        with self._transaction():
            self.payers.note_signed(entries, self.witnessed.public_key)

    def compare(
        self, heads: Sequence[Head], expected: Collection[str], now_s: float
    ) -> list[Dispute]:
        """See `Witnessed.compare`; an account that is disputed already is not compared."""
        with self._transaction():
            disputed = {one.account for one in self.witnessed.disputes()}
            new = (one for one in heads if one.account not in disputed)
            found = [self.witnessed.compare(one, expected, now_s) for one in new]
            return [one for one in found if one is not None]

    def deny(self, head: Head, text: str, now_s: float) -> Dispute:
        """See `Witnessed.deny`."""
        with self._transaction():
            return self.witnessed.deny(head, text, now_s)

    def follow_checkpoints(
        self,
        key: bytes,
        new: Sequence[Checkpoint],
        leaves: Sequence[str],
        heads: Sequence[Head],
        now_s: float,
    ) -> list[Dispute]:
        """Follow the coordinator's checkpoints; what is disputed. See `Witnessed`."""
        with self._transaction():
            found = [self.witnessed.follow_checkpoints(key, new, leaves, now_s)]
            found += [self.witnessed.check_leaf(head, leaves, now_s) for head in heads]
            return [one for one in found if one is not None]

    def leave(self) -> None:
        """Let go of the coordinator: what was opened is posted, what was not is void, and nothing
        of it is handed in any more."""
        self.recover()
        for row in self.live():
            attempt_id = row.order.attempt_id
            if row.state == "reserved":
                self.withdraw(attempt_id, "NODE_LEFT", "The node has left this coordinator.")
            else:
                self.close_attempt(attempt_id, "post")
        with self._transaction():
            self._connection.execute(
                "DELETE FROM meta WHERE key LIKE ?", (f"{_COORDINATOR_LIMIT}%",)
            )
            self.set_note(LEFT_NOTE, "yes")

    def arrive(self, coordinator_key: bytes) -> bool:
        """After `leave`: begin to follow another coordinator's ledger, if it is another one.

        Args:
            coordinator_key: raw, that signs the checkpoints there.
        """
        with self._transaction():
            known = self.witnessed.coordinator_key()
            is_other = known != coordinator_key and bool(known or self.ledger.accounts())
            if is_other:
                self.witnessed.begin_anew()
                self.set_note(MOVED_NOTE, "yes")
            self.set_note(LEFT_NOTE, "")
        return is_other

    def settle(self, account: str) -> Dispute:
        """See `Witnessed.settle`."""
        with self._transaction():
            return self.witnessed.settle(account)

    def recover(self) -> list[str]:
        """After a restart: what was opened and not spooled is lost, and posted whole."""
        lost = [row.order.attempt_id for row in self._rows("WHERE state = 'opened'")]
        for attempt_id in lost:
            self.lose(attempt_id)
        return lost

    def signature(self, order: Order, kind: Kind) -> bytes:
        """The node's signature over an order's statement; the same each time."""
        return self.ledger.sign(order.statement(self.node, kind))

    # Inside

    def _end(self, attempt_id: str, state: AttemptState, digest: str) -> bytes | None:
        with self._transaction():
            row = self.attempt(attempt_id)
            if row is None or row.state != "opened":
                return None
            self._update(attempt_id, state=state, outcome="post", update_digest=digest)
            return self._resolve(row, "post")

    def _resolve(self, row: AttemptRow, kind: Literal["post", "void"]) -> bytes:
        statement = row.order.statement(self.node, kind)
        return self.ledger.append(statement, posted_units=row.units if kind == "post" else 0)

    def _pending(self, row: AttemptRow) -> Pending:
        statement = row.order.statement(self.node, "reserve")
        accounted = row.order.release.mechanism != "none"
        return Pending(row.order.attempt_id, row.units, statement.digest(), accounted)

    def _insert(self, order: Order, state: AttemptState, units: int, **more: str) -> None:
        values = {
            "attempt_id": order.attempt_id,
            "job_id": order.job_id,
            "project": order.project,
            "account": f"{self.node}/{order.account}",
            "round": order.round,
            "state": state,
            "wire": order.wire,
            "units": units,
            **more,
        }
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        query = f"INSERT INTO attempts ({columns}) VALUES ({marks})"  # noqa: S608
        self._connection.execute(query, tuple(values.values()))

    def _update(self, attempt_id: str, **values: str | float) -> None:
        columns = ", ".join(f"{name} = ?" for name in values)
        query = f"UPDATE attempts SET {columns} WHERE attempt_id = ?"  # noqa: S608
        changed = self._connection.execute(query, (*values.values(), attempt_id)).rowcount
        invariant(changed == 1, f"attempt {attempt_id} is not in the state database")

    def _rows(self, where: str, *values: str) -> list[AttemptRow]:
        query = (
            "SELECT wire, state, units, opened_at_s, tick_s, update_digest, outcome, reason,"  # noqa: S608
            f" message FROM attempts {where} ORDER BY rowid"
        )
        return [
            AttemptRow(_order(wire), *rest)
            for wire, *rest in self._connection.execute(query, values)
        ]

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[None]:
        """All or nothing. Not durable: a machine that loses its power may lose it, too, with all
        that such transactions wrote since the last durable one; a killed process loses nothing."""
        if not durable:
            self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        else:
            self._connection.execute("COMMIT")
        finally:
            if not durable:
                self._connection.execute("PRAGMA synchronous = FULL")

    def _prepare(self, path: Path) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise Malformed(
                "STATE_NEWER",
                f"{path} was written by a newer agent (schema {version}); upgrade this one",
            )
        if version < SCHEMA_VERSION:
            script = f"{_STEPS[version]}PRAGMA user_version = {SCHEMA_VERSION};"
            self._connection.executescript(f"BEGIN IMMEDIATE;{script}COMMIT;")
        if version == 1:
            for row in self._rows(""):
                self._update(row.order.attempt_id, project=row.order.project)
        if version == 0:
            self.set_note("node", self.node)
        if self.note("node") != self.node:
            raise Malformed(
                "STATE_OF_ANOTHER_NODE",
                f"{path} is the ledger of node {self.note('node')}, not of {self.node}; "
                "restore the folder from its own backup",
            )


@lru_cache(maxsize=64)
def _order(wire: bytes) -> Order:
    """A kept order; an attempt is read some times while it lasts."""
    return Order.from_wire(pb.WorkOrder.FromString(wire))
