"""Restorations of the coordinator that this node has seen, in `state.db`; never forgotten while it
stays with that coordinator.

A coordinator at an earlier epoch than the latest one seen is an older copy, and is refused. At a
later one its chains are read anew, and what the node's own ledger holds beside them is handed in;
`handing_in` says what. SQLite is used by the caller's thread, within its transaction.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from privacy.epochs import FIRST, Epoch, epochs_fault, line_of, made_after, parting
from privacy.heads import Checkpoint, Head
from protos.errors import FeddpError, WrongPhase

SCHEMA: Final = """
CREATE TABLE epochs_seen (
    restored_at_s INTEGER PRIMARY KEY, number INTEGER NOT NULL, backup_made_at_s INTEGER NOT NULL,
    checkpoint_number INTEGER NOT NULL, checkpoint_hash TEXT NOT NULL, heads_root TEXT NOT NULL,
    prev_hash TEXT NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE TABLE heads_before (
    account TEXT NOT NULL, seq INTEGER NOT NULL, hash TEXT NOT NULL,
    since_s INTEGER NOT NULL, until_s INTEGER NOT NULL, PRIMARY KEY (account, until_s)
) STRICT;
CREATE TABLE checkpoints_before (
    number INTEGER NOT NULL, prev_hash TEXT NOT NULL, root TEXT NOT NULL, signature BLOB NOT NULL,
    since_s INTEGER NOT NULL, until_s INTEGER NOT NULL, PRIMARY KEY (number, until_s)
) STRICT;
CREATE TABLE to_hand_in (account TEXT PRIMARY KEY) STRICT;
CREATE TABLE open_there (
    attempt_id TEXT PRIMARY KEY, account TEXT NOT NULL, entry TEXT NOT NULL
) STRICT;
CREATE TABLE voided_unheard (attempt_id TEXT PRIMARY KEY) STRICT;
CREATE TABLE elsewhere (attempt_id TEXT PRIMARY KEY) STRICT;
"""
"""`since_s` and `until_s` of what was seen before a restoration: that of the restoration seen
before (0 for none), and of the one that ended it. `to_hand_in`: accounts that are not handed in
yet. `open_there`: what the coordinator's chain holds reserved on them. `voided_unheard`: attempts
of which this node has signed the outcome without having their orders. `elsewhere`: attempts and
raises of before this coordinator."""

AHEAD_S_MAX: Final = 86_400
"""A restoration that is dated later than this would shut out every right one until then."""

_COLUMNS: Final = tuple(Epoch.__dataclass_fields__)
_NAMES: Final = ", ".join(_COLUMNS)


@dataclass(frozen=True, slots=True)
class Meeting:
    """What the epochs that a coordinator tells are to this node.

    Attributes:
        kind: "same" as known; a "later" one; one that is not its own signed history ("fault");
            one that is refused.
        text: of a fault, what it is; of a later one, where it contradicts what this node has seen.
        refusal: why every order, and the session, is refused.
    """

    kind: Literal["same", "later", "fault", "refused"]
    text: str = ""
    refusal: FeddpError | None = None


def meet(seen: Sequence[Epoch], key: bytes, told: Sequence[Epoch], now_s: float) -> Meeting:
    """Hold what a coordinator tells against what was seen. Pure.

    Args:
        seen: in order of their dates.
        key: the coordinator's raw ledger key, as this node knows it.
    """
    if fault := epochs_fault(told, key):
        return Meeting("fault", fault)
    of_moment = {one.restored_at_s: one.hash for one in seen}
    for one in told:
        if of_moment.get(one.restored_at_s, one.hash) != one.hash:
            text = f"epoch {one.number} is another one than this node has seen of that moment"
            return Meeting("fault", text)
    latest, newest = (one[-1] if one else None for one in (seen, told))
    if newest == latest:
        return Meeting("same")
    if latest is not None and (newest is None or newest.restored_at_s < latest.restored_at_s):
        shown = FIRST if newest is None else newest.number
        return Meeting(
            "refused",
            refusal=WrongPhase(
                "COORDINATOR_EPOCH_OLD",
                f"this node has seen epoch {latest.number} of this coordinator, restored at "
                f"{latest.restored}; an older copy of it runs, at epoch {shown}: its operator "
                "stops it and runs the later one",
            ),
        )
    if newest is None:  # unreachable: then `latest` is a restoration, and this one is older
        return Meeting("same")
    if newest.restored_at_s > now_s + AHEAD_S_MAX:
        return Meeting(
            "refused",
            refusal=WrongPhase(
                "COORDINATOR_EPOCH_AHEAD",
                f"the coordinator says that it was restored at {newest.restored}, which is still "
                "to come: compare this machine's clock with the coordinator's, whose operator "
                "sets it right and restores once more, from a backup of before that restoration",
            ),
        )
    return Meeting("later")


@dataclass(frozen=True, slots=True)
class SeenBefore:
    """A head or a checkpoint of a history that a restoration has ended.

    Attributes:
        since_s: `restored_at_s` of the epoch at which it was seen; 0 for the first.
        until_s: of the epoch that was seen next.
    """

    what: Head | Checkpoint
    since_s: int
    until_s: int


class EpochsSeen:
    """Within the caller's transaction, if there is one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    # Reading

    def all(self) -> list[Epoch]:
        """Every one that was seen, by its date."""
        query = f"SELECT {_NAMES} FROM epochs_seen ORDER BY restored_at_s"  # noqa: S608
        return [Epoch(*row) for row in self._connection.execute(query)]

    def latest(self) -> Epoch | None:
        """The one that counts; None for a coordinator that was never restored."""
        found = self.all()
        return found[-1] if found else None

    def before(self) -> list[SeenBefore]:
        """Heads, then checkpoints, of histories that ended; in order of account and number."""
        heads = self._connection.execute(
            "SELECT account, seq, hash, since_s, until_s FROM heads_before"
            " ORDER BY account, until_s"
        )
        found = [SeenBefore(Head(*row[:3]), *row[3:]) for row in heads]
        checkpoints = self._connection.execute(
            "SELECT number, prev_hash, root, signature, since_s, until_s FROM checkpoints_before"
            " ORDER BY until_s, number"
        )
        return found + [SeenBefore(Checkpoint(*row[:4]), *row[4:]) for row in checkpoints]

    def head_before(self, account: str) -> int:
        """Up to which entry the account was ever seen, when its chain is read anew; 0 where it is
        not."""
        (seq,) = self._connection.execute(
            "SELECT coalesce(max(seq), 0) FROM heads_before JOIN to_hand_in USING (account)"
            " WHERE account = ?",
            (account,),
        ).fetchone()
        return int(seq)

    def to_hand_in(self) -> frozenset[str]:
        """Accounts, "NODE/NAME", that are not handed in yet."""
        rows = self._connection.execute("SELECT account FROM to_hand_in")
        return frozenset(account for (account,) in rows)

    def is_closed(self, attempt_id: str) -> bool:
        """Whether this node has signed what became of it without having its order."""
        query = "SELECT 1 FROM voided_unheard WHERE attempt_id = ?"
        return self._connection.execute(query, (attempt_id,)).fetchone() is not None

    # Writing

    def accept(self, told: Sequence[Epoch]) -> str:
        """A later restoration: what was seen of the history that it ended is put aside, and every
        account is to be read anew and handed in.

        Returns:
            Where the restoration contradicts what this node has seen before it; or empty.
        """
        execute, latest = self._connection.execute, self.latest()
        since_s = latest.restored_at_s if latest is not None else 0
        until_s = told[-1].restored_at_s
        seen = self.all()
        line = line_of(seen, latest)
        text = self._contradiction(seen, line, told)
        number = parting(line, told)
        marks = ", ".join("?" * len(_COLUMNS))
        for one in told:
            execute(
                f"INSERT OR IGNORE INTO epochs_seen ({_NAMES}) VALUES ({marks})",  # noqa: S608
                tuple(getattr(one, name) for name in _COLUMNS),
            )
        execute("INSERT OR IGNORE INTO to_hand_in SELECT account FROM seen_heads")
        execute("INSERT OR IGNORE INTO to_hand_in SELECT account FROM accounts")
        execute(
            "INSERT OR REPLACE INTO heads_before SELECT account, seq, hash, ?, ? FROM seen_heads",
            (since_s, until_s),
        )
        execute("DELETE FROM seen_heads")
        execute(
            "INSERT OR REPLACE INTO checkpoints_before SELECT number, prev_hash, root, signature,"
            " ?, ? FROM seen_checkpoints WHERE number > ?",
            (since_s, until_s, number),
        )
        execute("DELETE FROM seen_checkpoints WHERE number > ?", (number,))
        execute("DELETE FROM seen_attempts WHERE attempt_id NOT IN (SELECT * FROM elsewhere)")
        execute("DELETE FROM open_there")
        return text

    def _contradiction(
        self, seen: Sequence[Epoch], line: Sequence[Epoch], told: Sequence[Epoch]
    ) -> str:
        """Whether this node has seen another checkpoint where a restoration that is new to it found
        one, in that history: since then it may have followed another one.

        Args:
            line: the history that it follows.
        """
        known = {one.hash for one in seen}
        for at, new in enumerate(told):
            origin = made_after(told[:at], new.checkpoint_number)
            if new.hash not in known and any(
                checkpoint.hash != new.checkpoint_hash
                for history, checkpoint in self._held(seen, line, new.checkpoint_number)
                if made_after(history, checkpoint.number) == origin
            ):
                return (
                    f"epoch {new.number} names another checkpoint {new.checkpoint_number} than "
                    "this node has seen"
                )
        return ""

    def _held(
        self, seen: Sequence[Epoch], line: Sequence[Epoch], number: int
    ) -> Iterator[tuple[Sequence[Epoch], Checkpoint]]:
        """Each checkpoint of this number that was ever seen, with the history in which it was."""
        columns = "SELECT number, prev_hash, root, signature"
        query = f"{columns} FROM seen_checkpoints WHERE number = ?"
        for row in self._connection.execute(query, (number,)):
            yield line, Checkpoint(*row)
        of_moment = {one.restored_at_s: one for one in seen}
        query = f"{columns}, since_s FROM checkpoints_before WHERE number = ?"
        for *row, since_s in self._connection.execute(query, (number,)):
            yield line_of(seen, of_moment.get(since_s)), Checkpoint(*row)

    def owe(self, accounts: Sequence[str]) -> list[str]:
        """Also these are to be handed in; those of them that were not."""
        new = sorted({*accounts} - self.to_hand_in())
        query = "INSERT INTO to_hand_in VALUES (?)"
        self._connection.executemany(query, [(one,) for one in new])
        return new

    def handed_in(self, account: str) -> None:
        """The coordinator has all of it."""
        self._connection.execute("DELETE FROM to_hand_in WHERE account = ?", (account,))
        self._connection.execute("DELETE FROM open_there WHERE account = ?", (account,))

    def note_closed(self, attempt_id: str) -> None:
        """See `is_closed`."""
        query = "INSERT OR IGNORE INTO voided_unheard VALUES (?)"
        self._connection.execute(query, (attempt_id,))

    def begin_anew(self) -> None:
        """Another coordinator: its restorations are its own, and what is booked here so far is
        never handed in there."""
        execute = self._connection.execute
        execute("INSERT OR IGNORE INTO elsewhere SELECT attempt_id FROM entries")
        self.forget()

    def forget(self) -> None:
        """The data steward takes the coordinator as it is."""
        for table in ("epochs_seen", "heads_before", "checkpoints_before", "to_hand_in"):
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
        self._connection.execute("DELETE FROM open_there")
