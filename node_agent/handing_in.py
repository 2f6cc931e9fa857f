"""What this node's own ledger holds of an account and a restored coordinator's chain lacks.

SQLite is used by the caller's thread, within its transaction.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.epochs_seen import EpochsSeen
from node_agent.kept_attempts import KeptAttempts
from node_agent.own_ledger import OwnLedger
from privacy.heads import Terms
from privacy.ledger import Entry, LimitChange, Statement, from_json, sign, to_json


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
    """Compares the node's own ledger with what was read of the coordinator's chain."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        key: Ed25519PrivateKey,
        ledger: OwnLedger,
        attempts: KeptAttempts,
        epochs: EpochsSeen,
    ) -> None:
        self._connection = connection
        self._key = key
        self._ledger = ledger
        self._attempts = attempts
        self._epochs = epochs

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

    def owed(self, account: str) -> Owed | None:
        """What the account's chain, as far as it was read, lacks; None while an attempt on it is
        still under way here.

        An attempt that the chain holds reserved and that never came here is void from now on: its
        order will be refused.
        """
        if self._attempts.pending_on(account):
            return None
        kept = self._ledger.account(account)
        terms = None
        if kept is not None:
            fixed = kept.fixed
            said = Terms(account, fixed.kind, fixed.order, fixed.delta, kept.epsilon_limit_highest)
            terms = (said, self._key.sign(said.canonical()))
        raises = [one for one in self._ledger.unseen_raises() if one[0].account == account]
        found: list[Statement | LimitChange] = [
            *self._voids(account),
            *(change for change, _ in raises),
            *self._releases(account),
        ]
        return Owed(terms, [(one, sign(self._key, one)) for one in found])

    def _voids(self, account: str) -> list[Statement]:
        rows = self._connection.execute(
            "SELECT entry FROM open_there WHERE account = ? ORDER BY rowid", (account,)
        )
        found = []
        for (text,) in rows.fetchall():
            statement = from_json(json.loads(text)).statement
            if not isinstance(statement, Statement):
                continue
            own = {one.kind for one in self._ledger.statements_of(statement.attempt_id)}
            if "post" in own:
                continue
            if not own and self._attempts.find(statement.attempt_id) is None:
                self._epochs.note_voided(statement.attempt_id)
            found.append(statement.resolved("void"))
        return found

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
