"""What this node has seen of the coordinator's ledger, in `state.db`, and where the two disagree.

The node's own ledger is what counts for its patients. The coordinator's is followed entry by entry
from the head that was seen last: what does not continue it, or says of an attempt of ours what our
own ledger does not say, is a *dispute*. While there is one, orders on its account are refused; the
data steward settles it. SQLite is used by the caller's thread, within its transaction.
"""

import sqlite3
from collections.abc import Collection, Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.ledger.disputes import EVERY_ACCOUNT, Dispute, Disputes
from node_agent.ledger.epochs_seen import EpochsSeen
from node_agent.ledger.former_heads import ANY_ENTRY
from node_agent.ledger.gaps import Memory
from node_agent.ledger.own_ledger import OwnLedger
from node_agent.ledger.reconciliation import Reconciliation
from node_agent.state.kept_attempts import KeptAttempts
from privacy.filters import Filter
from privacy.heads import (
    Checkpoint,
    Head,
    Signed,
    checkpoint_fault,
    fault_after,
    head_of,
    root_of,
)
from privacy.ledger import Entry, LimitChange

SCHEMA: Final = """
CREATE TABLE seen_heads (
    account TEXT PRIMARY KEY, seq INTEGER NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TABLE seen_attempts (attempt_id TEXT PRIMARY KEY, kind TEXT NOT NULL) STRICT;
CREATE TABLE seen_checkpoints (
    number INTEGER PRIMARY KEY, prev_hash TEXT NOT NULL, root TEXT NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE TABLE settled (account TEXT PRIMARY KEY) STRICT;
"""

_COORDINATOR_KEY: Final = "coordinator_ledger_key"


class Witnessed:
    """Follows the coordinator's chains of this node's accounts."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        node: str,
        ledger: OwnLedger,
        attempts: KeptAttempts,
        memory: Memory,
        key: Ed25519PrivateKey,
        disputes: Disputes,
        epochs: EpochsSeen,
    ) -> None:
        self._connection = connection
        self._disputes = disputes
        self._epochs = epochs
        self._key = key
        self._public_key = key.public_key().public_bytes_raw()
        self._own = Reconciliation(node, ledger, attempts, memory, epochs, self._public_key)

    # Reading

    @property
    def public_key(self) -> bytes:
        """The node's raw ledger key."""
        return self._public_key

    def head(self, account: str) -> Head:
        """The head that was seen last; seq 0 for none."""
        row = self._connection.execute(
            "SELECT seq, hash FROM seen_heads WHERE account = ?", (account,)
        ).fetchone()
        return Head(account, *row) if row else Head(account)

    def heads(self) -> list[Head]:
        """Every head that was seen last, by account."""
        query = "SELECT account, seq, hash FROM seen_heads ORDER BY account"
        return [Head(*row) for row in self._connection.execute(query)]

    def known_up_to(self) -> dict[str, int]:
        """account -> the last entry that this node may have signed a head over: that which it has
        seen, or any at all where the steward has settled a dispute and the chain is to be read."""
        settled = self._connection.execute("SELECT account FROM settled")
        seen = {one.account: one.seq for one in self.heads()}
        return seen | {account: ANY_ENTRY for (account,) in settled}

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint that was seen, in order."""
        query = "SELECT number, prev_hash, root, signature FROM seen_checkpoints ORDER BY number"
        return [Checkpoint(*row) for row in self._connection.execute(query)]

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that was seen."""
        query = (
            "SELECT number, prev_hash, root, signature FROM seen_checkpoints"
            " ORDER BY number DESC LIMIT 1"
        )
        row = self._connection.execute(query).fetchone()
        return Checkpoint(*row) if row else None

    def coordinator_key(self) -> bytes:
        """The raw key that signs checkpoints; empty before the first."""
        row = self._connection.execute(
            "SELECT value FROM meta WHERE key = ?", (_COORDINATOR_KEY,)
        ).fetchone()
        return bytes.fromhex(row[0]) if row else b""

    def sign(self, what: Signed) -> bytes:
        """The node's signature, the same each time."""
        return self._key.sign(what.canonical())

    # Following

    def keep_coordinator_key(self, key: bytes) -> None:
        """The key that signs checkpoints and epochs, where none is known yet."""
        if not self.coordinator_key():
            self._connection.execute(
                "INSERT INTO meta VALUES (?, ?)", (_COORDINATOR_KEY, key.hex())
            )

    def follow(
        self, account: str, entries: Sequence[Entry], filter_: Filter | None, now_s: float
    ) -> Dispute | None:
        """Check entries that follow the head that was seen last, and move the head on; up to the
        first that is disputed.

        A post or a raise that we have signed and do not know of is booked: our ledger was restored
        from an older copy, and what was spent since must count. So must a post that we have not
        signed, of an attempt that may have come here before.

        Args:
            filter_: how the account counts by today's policy; None if it is not in it. What the
                account's own entries have fixed comes first.
        """
        head, settled = self.head(account), self.is_settled(account)
        for entry in entries:
            text = fault_after(head, entry)
            if settled:
                text = text or self._own.adopt_signed(entry, filter_)
            else:
                text = text or self._own.differs(entry) or self._own.adopt(entry, filter_)
            if text:
                self._move(head)
                return self._disputes.add(Dispute(account, entry.seq, text, now_s))
            head = head_of(entry)
            said = entry.statement
            name = said.digest() if isinstance(said, LimitChange) else said.attempt_id
            self._connection.execute(
                "INSERT INTO seen_attempts VALUES (?, ?) ON CONFLICT (attempt_id) DO UPDATE SET"
                " kind = excluded.kind",
                (name, said.kind),
            )
            # It is this coordinator's after all: the node had left it, and came back.
            self._connection.execute("DELETE FROM elsewhere WHERE attempt_id = ?", (name,))
        self._move(head)
        self._disputes.end_left_out(account, head.seq)
        return None

    def unseen(self, apart: Collection[str] = ()) -> frozenset[str]:
        """Attempts that the coordinator has told us to be over and booked, and whose booking we
        have not seen yet; of other accounts than `apart`. One that we find void there is a dispute,
        or was ours to give back."""
        query = (
            "SELECT attempts.attempt_id, account FROM attempts"
            " LEFT JOIN seen_attempts USING (attempt_id)"
            " WHERE state = 'closed' AND outcome = 'post'"
            " AND coalesce(kind, '') NOT IN ('post', 'void')"
        )
        rows = self._connection.execute(query)
        return frozenset(attempt_id for attempt_id, account in rows if account not in apart)

    def compare(self, announced: Head, expected: Collection[str], now_s: float) -> Dispute | None:
        """Whether the coordinator stands where we have followed it to, with all that we booked.

        Args:
            expected: `unseen` as it was before the heads were asked for: they must be in by now.
        """
        seen = self.head(announced.account)
        if announced.seq < seen.seq:
            text = (
                f"the coordinator's chain has {announced.seq} entries, and this node has seen "
                f"{seen.seq} of them"
            )
            return self._disputes.add(Dispute(announced.account, announced.seq + 1, text, now_s))
        if announced.seq > seen.seq:
            text = f"the coordinator announces {announced.seq} entries and gives {seen.seq}"
            return self._disputes.add(Dispute(announced.account, seen.seq + 1, text, now_s))
        if self.is_settled(announced.account):
            self._take_as_it_is(announced.account)
        if announced.hash != seen.hash:
            text = f"entry {seen.seq} is another one than this node has seen there"
            return self._disputes.add(Dispute(announced.account, seen.seq, text, now_s))
        lost = self._lost(announced.account, expected)
        if lost:
            text = f"attempt {lost} is over and posted here, and not in the coordinator's chain"
            return self._disputes.add(Dispute(announced.account, seen.seq, text, now_s))
        return None

    def deny(self, head: Head, text: str, now_s: float) -> Dispute:
        """The coordinator's chain no longer holds a head that this node has seen there."""
        return self._disputes.add(Dispute(head.account, head.seq, text, now_s))

    def follow_checkpoints(
        self, key: bytes, new: Sequence[Checkpoint], leaves: Sequence[str], now_s: float
    ) -> Dispute | None:
        """Check the checkpoints that follow the one that was seen last, and keep them.

        Args:
            leaves: of the last of `new`; empty where it is not the newest.
        """
        known = self.coordinator_key()
        if known and known != key:
            text = "the coordinator signs its checkpoints with another key than before"
            return self._disputes.add(Dispute(EVERY_ACCOUNT, 0, text, now_s))
        before = self.newest_checkpoint()
        for one in new:
            text = checkpoint_fault(before, one, key)
            if text:
                return self._disputes.add(Dispute(EVERY_ACCOUNT, one.number, text, now_s))
            self._keep_checkpoint(one)
            before = one
        if new:
            self.keep_coordinator_key(key)
        if new and leaves and root_of(leaves) != new[-1].root:
            text = f"checkpoint {new[-1].number} is not over the heads that came with it"
            return self._disputes.add(Dispute(EVERY_ACCOUNT, new[-1].number, text, now_s))
        return None

    def take_checkpoints(self, other: "Witnessed") -> None:
        """Keep the checkpoints that another ledger of this node has seen, where they go on from
        those that are known here, in one history of one coordinator."""
        key, newest = other.coordinator_key(), self.newest_checkpoint()
        seen = other.checkpoints()
        if self._epochs.all() != other._epochs.all() or self.coordinator_key() not in (b"", key):
            return
        if newest is not None and newest not in seen:
            return
        for one in seen:
            if newest is None or one.number > newest.number:
                self._keep_checkpoint(one)
        if seen:
            self.keep_coordinator_key(key)

    def check_leaf(self, announced: Head, leaves: Sequence[str], now_s: float) -> Dispute | None:
        """Whether the newest checkpoint holds the head that we were told."""
        if leaves and announced.leaf() not in leaves:
            text = "the newest checkpoint was made over another head of this account"
            return self._disputes.add(Dispute(announced.account, announced.seq, text, now_s))
        return None

    def settle(self, account: str) -> Dispute:
        """The steward has looked into a dispute: the coordinator's chain is taken as it is at the
        next look, and followed from there. Our own ledger does not change, but that posts are
        booked which we have signed and lost: they were spent, whoever is right about the rest.

        Args:
            account: with the node's name or without it.

        Raises:
            NotFound: DISPUTE_UNKNOWN.
            WrongPhase: ACCOUNT_LEFT_OUT, the dispute ends when the policy has the account again.
        """
        found = self._disputes.settle(account)
        account = found.account
        execute = self._connection.execute
        execute("DELETE FROM seen_heads WHERE account = ?", (account,))
        execute("INSERT OR REPLACE INTO settled VALUES (?)", (account,))
        if account == EVERY_ACCOUNT:
            execute("DELETE FROM seen_checkpoints")
            execute("DELETE FROM meta WHERE key = ?", (_COORDINATOR_KEY,))
            self._epochs.forget()
        return found

    def begin_anew(self) -> None:
        """Another coordinator: its chains begin empty, and nothing of before is looked for in
        them. Our own ledger does not change."""
        execute = self._connection.execute
        for table in ("seen_heads", "seen_checkpoints", "settled"):
            execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
        self._disputes.forget()
        self._epochs.begin_anew()
        execute("DELETE FROM meta WHERE key = ?", (_COORDINATOR_KEY,))
        execute(
            "INSERT OR REPLACE INTO seen_attempts SELECT attempt_id, 'post' FROM attempts"
            " WHERE state = 'closed' AND outcome = 'post'"
        )
        execute("INSERT OR REPLACE INTO seen_attempts SELECT digest, 'limit' FROM raises")

    def is_settled(self, account: str) -> bool:
        """Whether a settled chain is still to be read."""
        query = "SELECT 1 FROM settled WHERE account = ?"
        return self._connection.execute(query, (account,)).fetchone() is not None

    # Inside

    def _keep_checkpoint(self, one: Checkpoint) -> None:
        self._connection.execute(
            "INSERT INTO seen_checkpoints VALUES (?, ?, ?, ?)",
            (one.number, one.prev_hash, one.root, one.signature),
        )

    def _move(self, head: Head) -> None:
        if head.seq:
            self._connection.execute(
                "INSERT INTO seen_heads VALUES (?, ?, ?) ON CONFLICT (account) DO UPDATE SET"
                " seq = excluded.seq, hash = excluded.hash",
                (head.account, head.seq, head.hash),
            )

    def _take_as_it_is(self, account: str) -> None:
        """What our ledger holds and the settled chain does not is asked for no more."""
        self._connection.execute(
            "INSERT OR REPLACE INTO seen_attempts SELECT attempt_id, 'post' FROM attempts"
            " WHERE account = ? AND state = 'closed' AND outcome = 'post'",
            (account,),
        )
        self._connection.execute(
            "INSERT OR REPLACE INTO seen_attempts SELECT attempt_id, 'post' FROM entries"
            " WHERE account = ? AND kind = 'post'",
            (account,),
        )
        self._connection.execute("DELETE FROM settled WHERE account = ?", (account,))

    def _lost(self, account: str, expected: Collection[str]) -> str:
        """The first of `expected` that the account's chain, as far as it was seen, does not hold;
        empty for none."""
        query = "SELECT 1 FROM attempts WHERE attempt_id = ? AND account = ?"
        for attempt_id in sorted(self.unseen() & set(expected)):
            if self._connection.execute(query, (attempt_id, account)).fetchone():
                return attempt_id
        return ""
