"""What this node's own ledger holds of an account and a restored coordinator's chain lacks.

SQLite is used by the caller's thread.
"""

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.enrolment import public_bytes_of
from node_agent.ledger.disputes import EVERY_ACCOUNT, Dispute, Disputes
from node_agent.ledger.epochs_seen import EpochsSeen, Meeting, meet
from node_agent.ledger.gaps import Memory
from node_agent.ledger.own_ledger import OwnLedger
from node_agent.ledger.reconciliation import Reconciliation
from node_agent.ledger.witnessed import Witnessed
from node_agent.state.durable import transaction
from node_agent.state.kept_attempts import KeptAttempts
from privacy.canonical import COUNT_MAX
from privacy.epochs import Epoch
from privacy.filters import Filter
from privacy.heads import Terms
from privacy.ledger import (
    Entry,
    LimitChange,
    Statement,
    append,
    from_json,
    sign,
    signature_ok,
    to_json,
)

FilterOf = Callable[[str], Filter | None]


@dataclass(frozen=True, slots=True)
class Owed:
    """What is handed in of one account.

    Attributes:
        terms: of the node's own ledger; None where it has no entry of the account.
        statements: each with this node's signature: voids, then raises, then releases, each of
            these in the order in which this node has booked them.
    """

    terms: tuple[Terms, bytes] | None
    statements: Sequence[tuple[Statement | LimitChange, bytes]]


class HandingIn:
    """Compares the node's own ledger with what was read of the coordinator's chain. Each method is
    a transaction of its own, but for `note_open`, which is within the caller's."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        key: Ed25519PrivateKey,
        node: str,
        ledger: OwnLedger,
        memory: Memory,
        attempts: KeptAttempts,
        witnessed: Witnessed,
        disputes: Disputes,
        epochs: EpochsSeen,
    ) -> None:
        self._connection = connection
        self._key = key
        self._public_key = public_bytes_of(key)
        self._ledger = ledger
        self._own = Reconciliation(node, ledger, attempts, memory, epochs, self._public_key)
        self._memory = memory
        self._attempts = attempts
        self._witnessed = witnessed
        self._disputes = disputes
        self._epochs = epochs

    def meet(self, told: Sequence[Epoch], key: bytes, now_s: float) -> Meeting:
        """Hold the epochs that the coordinator tells against those seen, and accept a later one.

        Args:
            key: the coordinator's raw ledger key, as it says; counts where none is known yet.
        """
        with transaction(self._connection):
            known = self._witnessed.coordinator_key() or key
            met = meet(self._epochs.all(), known, told, now_s)
            if met.kind == "later":
                self._witnessed.keep_coordinator_key(known)
                met = replace(met, text=self._epochs.accept(told))
            if met.text:
                number = min(told[-1].number, COUNT_MAX) if told else 0
                self._disputes.add(Dispute(EVERY_ACCOUNT, number, met.text, now_s))
            return met

    def owe(self, accounts: Sequence[str]) -> list[str]:
        """See `EpochsSeen.owe`."""
        with transaction(self._connection):
            return self._epochs.owe(accounts)

    def waits(self) -> bool:
        """Whether an account is left that needs no person to be handed in."""
        accounts = self._epochs.to_hand_in()
        return any(self._disputes.on(account) is None for account in accounts)

    def handed_in(self, account: str) -> None:
        """See `EpochsSeen.handed_in`."""
        with transaction(self._connection):
            self._epochs.handed_in(account)

    def read_open(self, entries: Sequence[Entry]) -> None:
        """See `note_open`."""
        with transaction(self._connection):
            self.note_open(entries)

    def note_open(self, entries: Sequence[Entry]) -> None:
        """Keep what a chain that is read anew holds reserved."""
        for entry in entries:
            said = entry.statement
            if not isinstance(said, Statement):
                continue
            if said.kind == "reserve":
                self._connection.execute(
                    "INSERT OR REPLACE INTO open_there VALUES (?, ?, ?)",
                    (said.attempt_id, said.account, json.dumps(to_json(entry))),
                )
            else:
                query = "DELETE FROM open_there WHERE attempt_id = ?"
                self._connection.execute(query, (said.attempt_id,))

    def owed(self, filter_of_account: FilterOf) -> list[tuple[str, Owed]]:
        """What each account's chain, as far as it was read, lacks; without those that are disputed,
        or on which an attempt is still under way; nothing while this ledger is an old one.

        An attempt that the chain holds reserved and that never came here is over from now on: its
        order will be refused. It is void, unless this ledger cannot know that it never came: then
        it is spent.

        Args:
            filter_of_account: how "NODE/NAME" counts by the steward's policy; None if it is not in
                it. What the account's own entries have fixed comes first.
        """
        with transaction(self._connection):
            if self._memory.is_rolled_back:
                return []
            return [
                (account, self._owed_of(account, filter_of_account(account)))
                for account in sorted(self._epochs.to_hand_in())
                if self._disputes.on(account) is None and not self._attempts.pending_on(account)
            ]

    def _owed_of(self, account: str, filter_: Filter | None) -> Owed:
        voids = self._voids(account, filter_)
        kept = self._ledger.account(account)
        terms = None
        if kept is not None:
            fixed = kept.fixed
            said = Terms(account, fixed.kind, fixed.order, fixed.delta, kept.epsilon_limit_highest)
            terms = (said, self._key.sign(said.canonical()))
        raises = [one for one in self._ledger.unseen_raises() if one[0].account == account]
        found: list[Statement | LimitChange] = [
            *voids,
            *(change for change, _ in raises),
            *self._releases(account),
        ]
        return Owed(terms, [(one, sign(self._key, one)) for one in found])

    def _voids(self, account: str, filter_: Filter | None) -> list[Statement]:
        rows = self._connection.execute(
            "SELECT entry FROM open_there WHERE account = ? ORDER BY rowid", (account,)
        )
        found = []
        for (text,) in rows.fetchall():
            entry = from_json(json.loads(text))
            statement = entry.statement
            if not isinstance(statement, Statement):
                continue
            own = {one.kind for one in self._ledger.statements_of(statement.attempt_id)}
            if "post" in own:
                continue
            if not own and self._attempts.find(statement.attempt_id) is None:
                self._epochs.note_closed(statement.attempt_id)
                # Whether it may have been worked at here: the node has signed for it, or this
                # ledger is a copy that it may have come before.
                signed = signature_ok(self._public_key, statement, entry.node_signature)
                if signed or self._memory.may_have_come(statement.attempt_id):
                    # Also where it cannot be booked: its order is never answered by a void.
                    self._memory.note_open([statement.attempt_id])
                    self._spend(statement.resolved("post"), signed, filter_)
                    continue
            found.append(statement.resolved("void"))
        return found

    def _spend(self, post: Statement, signed: bool, filter_: Filter | None) -> None:
        """Book it here; `_releases` hands it in. What cannot be booked stays reserved there, which
        counts as well.

        Args:
            signed: the node has accepted its order; else the coordinator alone says that it was.
        """
        signature = sign(self._key, post) if signed else b""
        self._own.adopt(append(post, None, signature), filter_)

    def _releases(self, account: str) -> list[Statement]:
        """Reservation and post of each release that the chain does not hold as posted; one that it
        holds as void is a dispute, and cannot be handed in."""
        rows = self._connection.execute(
            "SELECT entry FROM entries LEFT JOIN seen_attempts USING (attempt_id)"
            " WHERE account = ? AND entries.kind = 'post'"
            " AND coalesce(seen_attempts.kind, 'reserve') = 'reserve'"
            " AND attempt_id NOT IN (SELECT attempt_id FROM elsewhere) ORDER BY seq",
            (account,),
        )
        found = []
        for (text,) in rows:
            statement = from_json(json.loads(text)).statement
            if isinstance(statement, Statement):
                found += [statement.resolved("reserve"), statement]
        return found
