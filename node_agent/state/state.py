"""What an agent must never forget: `state.db`, with its attempts and the node's own ledger.

An attempt goes `reserved -> opened -> spooled | no_update -> closed`, or to `refused`, which is
final: the node has signed that it never opened the data. Each step and its ledger entry are one
transaction, durable before a record is read, and before anything else that follows from it cannot
be undone. SQLite is used by one thread.
"""

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.ledger.account_filters import FixedFilter
from node_agent.ledger.coordinator_limits import CoordinatorLimits
from node_agent.ledger.disputes import Dispute, Disputes
from node_agent.ledger.epochs_seen import EpochsSeen
from node_agent.ledger.former_heads import FormerHeads
from node_agent.ledger.gaps import Memory
from node_agent.ledger.handing_in import HandingIn
from node_agent.ledger.lost_ledger import (
    is_damage,
    ledger_damaged,
    ledger_missing,
    ledger_moved,
)
from node_agent.ledger.own_ledger import KeptAccount, OwnLedger
from node_agent.ledger.payers import Payers
from node_agent.ledger.witnessed import Witnessed
from node_agent.policy.approvals import Approvals
from node_agent.policy.job_mandates import JobMandates
from node_agent.policy.judgement import Standing
from node_agent.policy.orders import Order
from node_agent.policy.policy import ShareKind
from node_agent.state.durable import transaction
from node_agent.state.kept_attempts import AttemptRow, AttemptState, Fate, KeptAttempts
from node_agent.state.notes import LEFT_NOTE, MOVED_NOTE, Notes
from node_agent.state.schema import prepare
from node_agent.tasks.registry import Purpose
from privacy.filters import Filter
from privacy.heads import Checkpoint, Head
from privacy.ledger import Entry, Kind, Pending


def _writable(path: Path, node: str, *, bring: bool) -> sqlite3.Connection:
    is_new = not path.exists()
    if not is_new and path.stat().st_size == 0:  # see `Folder.has_ledger`
        raise ledger_missing(path)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        # `feddp agent approve` may write at the same time.
        connection.execute("PRAGMA busy_timeout = 5000")
        if bring:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        prepare(connection, path, node, bring=bring, begin=is_new)
    except sqlite3.DatabaseError as error:
        connection.close()
        if is_damage(error):
            raise ledger_damaged(path) from None
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file has this name; None for none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class State:
    """Open `state.db`; safe to close at any moment, as a crash is.

    Attributes:
        node: whose it is.
        folder: the agent's, in which it lies.
        older: that the file is of an older release, where this is what was read of one; else empty.
    """

    def __init__(
        self,
        path: Path,
        node: str,
        key: Ed25519PrivateKey,
        read: sqlite3.Connection | None = None,
        *,
        bring: bool = True,
        older: str = "",
    ) -> None:
        """Open it to write, which brings one of an older release along, and makes one where there
        is no file. A file that holds no ledger is refused.

        Args:
            read: the database as `node_agent.ledger.reading` has it for one that only reads.
            bring: False where an agent of an older release may have it open: it is refused then.

        Raises:
            NotFound, Malformed, WrongPhase: as `prepare`.
            Malformed: LEDGER_INVALID, it cannot be read.
        """
        self.node = node
        self.folder = path.parent
        self.older = older
        self._path = path
        self._connection = _writable(path, node, bring=bring) if read is None else read
        self._file = _file_at(path) if read is None else None
        self.notes = Notes(self._connection)
        self.memory = Memory(self.notes)
        self.former_heads = FormerHeads(self.notes)
        self.attempts = KeptAttempts(self._connection, node)
        self.coordinator_limits = CoordinatorLimits(self.notes, node)
        self.payers = Payers(self._connection, node)
        self.ledger = OwnLedger(self._connection, key, self.payers)
        self.disputes = Disputes(self._connection, node)
        self.epochs = EpochsSeen(self._connection)
        self.witnessed = Witnessed(
            self._connection,
            node,
            self.ledger,
            self.attempts,
            self.memory,
            key,
            self.disputes,
            self.epochs,
        )
        self.handing_in = HandingIn(
            self._connection,
            key,
            node,
            self.ledger,
            self.memory,
            self.attempts,
            self.witnessed,
            self.disputes,
            self.epochs,
        )
        self.mandates = JobMandates(self._connection)
        self.approvals = Approvals(self._connection)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    # Reading

    def standing(
        self, order: Order, purpose: Purpose = "training", opened: Collection[str] = ()
    ) -> Standing:
        """What the ledger knows that matters for an order, whose task has this purpose.

        Args:
            opened: attempts whose outcome is not due yet. They count as under way, booked or not:
                a refusal, which costs nothing, would else tell when the data was done with.
        """
        account = f"{self.node}/{order.account}"
        kept = self.ledger.account(account)
        pending = self.attempts.pending_on(account)
        return Standing(
            fixed=kept.fixed if kept else None,
            limit_there=self.coordinator_limits.bound_of(account),
            posted_units=kept.posted_units if kept else 0,
            pending=tuple(self._pending(row) for row in pending),
            guarantee=kept.guarantee if kept else True,
            job_units=self.job_units(order.job_id, account),
            purpose=purpose,
            purpose_units=self.share_units(order.account, "purpose", purpose),
            project_units=self.share_units(order.account, "project", order.project),
            job_round=self.attempts.round_of(order),
            round_unresolved=self.attempts.others_unresolved(order, opened) > 0,
            unresolved=self.attempts.unresolved(opened),
        )

    def job_units(self, job_id: str, account: str) -> int:
        """Filter units, posted and reserved, of a job on "NODE/NAME"."""
        taken_over = self.ledger.taken_over(account)
        return self.attempts.job_units(job_id, account) + sum(
            one.units for one in taken_over if one.job_id == job_id
        )

    def share_units(self, account: str, kind: ShareKind, name: str) -> int:
        """Filter units, posted and reserved, of all jobs of a purpose or of a project. No entry
        says its purpose: what was taken over from the coordinator's chain counts for each.

        Args:
            account: without the node's name.
        """
        taken_over = self.ledger.taken_over(f"{self.node}/{account}")
        return self.attempts.share_units(account, kind, name) + sum(
            one.units for one in taken_over if kind == "purpose" or one.project == name
        )

    def account_units(self, account: str) -> int:
        """Filter units, posted and reserved, of an account named without the node, whoever the
        coordinator was."""
        name = f"{self.node}/{account}"
        kept = self.ledger.account(name)
        pending = self.attempts.pending_on(name)
        return (kept.posted_units if kept else 0) + sum(row.units for row in pending)

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

    def epsilon_guarantee(self, kept: KeptAccount) -> float:
        """The highest limit that was ever in force, by this ledger or by the coordinator's: one
        that was restored from an older copy, or from that chain, knows its first limit no more."""
        return max(
            self.ledger.epsilon_guarantee(kept), self.coordinator_limits.highest_of(kept.account)
        )

    # Steps

    def lower(self, account: str, epsilon_limit: float, raises: Mapping[str, int]) -> None:
        """See `OwnLedger.lower`; the account is named without the node. The coordinator is about to
        hear the same, and may hold to it although its answer is lost."""
        name = f"{self.node}/{account}"
        self.ledger.lower(name, epsilon_limit, raises.get(name, 0))
        there = self.coordinator_limits.of(name)
        if there is not None and epsilon_limit < there:
            self.coordinator_limits.keep({account: epsilon_limit})

    @contextlib.contextmanager
    def raising(self) -> Iterator[OwnLedger]:
        """The ledger, within one transaction; nobody else writes to it meanwhile."""
        with self._transaction():
            yield self.ledger

    def reserve(
        self, order: Order, filter_: Filter, purpose: Purpose = "training", source: str = ""
    ) -> bytes:
        """Set an order's cost aside; returns the signature over its reserve statement.

        The caller has judged the order by `standing` in the same turn. On the disk it is with
        `open`, before any record is read; a machine that loses it before is ordered again.

        Args:
            source: as `OwnLedger.append` has it.

        Raises:
            NotFound: LEDGER_MISSING, the file was moved away or removed meanwhile.
        """
        self._require_in_place()
        statement = order.statement(self.node, "reserve")
        with self._transaction(durable=False):
            units = filter_.cost_units(order.release)
            self.attempts.add(order, "reserved", units, purpose=purpose)
            self.ledger.fix(statement.account, filter_)
            return self.ledger.append(statement, source=source)

    def refuse(self, order: Order, reason: str, message: str) -> bytes:
        """Refuse an order for ever; returns the signature over its void statement.

        Nothing was reserved, so the node's own chain holds nothing of it.
        """
        with self._transaction():
            self.attempts.add(order, "refused", 0, outcome="void", reason=reason, message=message)
        return self.signature(order, "void")

    def withdraw(self, attempt_id: str, reason: str, message: str) -> bytes | None:
        """Refuse a reserved attempt whose data was never opened; None if it is past that, or if
        this ledger is an old one and cannot say so."""
        with self._transaction():
            row = self.attempts.find(attempt_id)
            if row is None or row.state != "reserved" or self.memory.is_rolled_back:
                return None
            self.attempts.change(
                attempt_id, state="refused", outcome="void", reason=reason, message=message
            )
            return self._resolve(row, "void")

    def open(self, attempt_id: str, opened_at_s: float, tick_s: float) -> bool:
        """Note that the data is about to be opened; False if the attempt is not reserved.

        Raises:
            NotFound: LEDGER_MISSING, the file was moved away or removed meanwhile.
        """
        self._require_in_place()
        with self._transaction():
            return self.attempts.note_opening(attempt_id, opened_at_s, tick_s)

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
            self.attempts.change(attempt_id, reason="UPDATE_WITHDRAWN")

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
            row = self.attempts.find(attempt_id)
            if row is None or row.state in ("closed", "refused"):
                return row
            if row.outcome == "" and self.memory.is_rolled_back:
                return row
            if row.outcome == "":
                mine = outcome if row.state == "reserved" else "post"
                self.attempts.change(attempt_id, outcome=mine)
                self._resolve(row, mine)
            if fate is None:
                self.attempts.change(attempt_id, state="closed")
            else:
                self.attempts.change(attempt_id, state="closed", reason=fate)
            return row

    def follow(
        self, account: str, entries: Sequence[Entry], filter_: Filter | None, now_s: float
    ) -> Dispute | None:
        """See `Witnessed.follow`; who paid is kept of all of them, also after a dispute."""
        with self._transaction():
            self.payers.note_signed(entries, self.witnessed.public_key)
            if account in self.epochs.to_hand_in():
                self.handing_in.note_open(entries)
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
            disputed = {one.account for one in self.disputes.all()}
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

    def end_job(self, job_id: str) -> None:
        """The coordinator has said that a job is over: nothing that was signed of it is good any
        more, and nobody need answer whether it may run."""
        with self._transaction():
            self.mandates.end(job_id)
            self.approvals.end(job_id)

    def leave(self) -> None:
        """Let go of the coordinator: what was opened is posted, what was not is void, and nothing
        of it is handed in any more."""
        self.recover()
        for row in self.attempts.live():
            attempt_id = row.order.attempt_id
            if row.state == "reserved":
                self.withdraw(attempt_id, "NODE_LEFT", "The node has left this coordinator.")
            else:
                self.close_attempt(attempt_id, "post")
        with self._transaction():
            self.coordinator_limits.forget_all()
            self.approvals.leave()
            self.notes.keep(LEFT_NOTE, "yes")

    def arrive(self, coordinator_key: bytes) -> bool:
        """After `leave`: begin to follow another coordinator's ledger, if it is another one.

        Args:
            coordinator_key: raw, that signs the checkpoints there.
        """
        with self._transaction():
            known = self.witnessed.coordinator_key()
            if known != coordinator_key:
                self.approvals.arrive(known, coordinator_key)
            is_other = known != coordinator_key and bool(known or self.ledger.accounts())
            if is_other:
                self.former_heads.keep(known, self.witnessed.known_up_to())
                self.former_heads.arrive(coordinator_key)
                self.witnessed.begin_anew()
                self.notes.keep(MOVED_NOTE, "yes")
            self.notes.keep(LEFT_NOTE, "")
        return is_other

    def settle(self, account: str) -> Dispute:
        """See `Witnessed.settle`."""
        with self._transaction():
            return self.witnessed.settle(account)

    def become_copy(self) -> None:
        """This ledger was put back from a copy. What was reserved when that was made may have been
        opened and sent since: it is lost at the next start, and so posted whole."""
        with self._transaction():
            self.memory.become_copy()
            self.attempts.doubt_reserved()

    def recover(self) -> list[str]:
        """After a restart: what was opened and not spooled is lost, and posted whole."""
        lost = [row.order.attempt_id for row in self.attempts.opened()]
        for attempt_id in lost:
            self.lose(attempt_id)
        return lost

    def signature(self, order: Order, kind: Kind) -> bytes:
        """The node's signature over an order's statement; the same each time."""
        return self.ledger.sign(order.statement(self.node, kind))

    # Inside

    def _require_in_place(self) -> None:
        """What is written goes into the file that was opened. One that has lost its name would be
        forgotten with this process: no record is read for what it would hold."""
        if _file_at(self._path) != self._file:
            raise ledger_moved(self._path)

    def _end(self, attempt_id: str, state: AttemptState, digest: str) -> bytes | None:
        with self._transaction():
            row = self.attempts.find(attempt_id)
            if row is None or row.state != "opened":
                return None
            self.attempts.change(attempt_id, state=state, outcome="post", update_digest=digest)
            return self._resolve(row, "post")

    def _resolve(self, row: AttemptRow, kind: Literal["post", "void"]) -> bytes:
        statement = row.order.statement(self.node, kind)
        return self.ledger.append(statement, posted_units=row.units if kind == "post" else 0)

    def _pending(self, row: AttemptRow) -> Pending:
        statement = row.order.statement(self.node, "reserve")
        accounted = row.order.release.mechanism != "none"
        return Pending(row.order.attempt_id, row.units, statement.digest(), accounted)

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[None]:
        """See `transaction`."""
        with transaction(self._connection, durable=durable):
            yield
