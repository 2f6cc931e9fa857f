"""The node's own ledger: one chain per account, in the format of the coordinator's."""

import json
import sqlite3
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.policy import FixedFilter
from privacy.filters import Filter, make_filter
from privacy.ledger import Entry, Statement, append, from_json, sign, to_json

SCHEMA: Final = """
CREATE TABLE accounts (
    account TEXT PRIMARY KEY,
    filter TEXT NOT NULL,
    rdp_order INTEGER NOT NULL,
    delta REAL NOT NULL,
    epsilon_limit REAL NOT NULL,
    epsilon_limit_highest REAL NOT NULL,
    posted_units INTEGER NOT NULL DEFAULT 0,
    guarantee INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE TABLE entries (
    account TEXT NOT NULL,
    seq INTEGER NOT NULL,
    attempt_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (account, seq),
    UNIQUE (attempt_id, kind)
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class KeptAccount:
    """One account that has entries.

    Attributes:
        account: "NODE/NAME".
        epsilon_limit: in force when the newest reservation was admitted.
        epsilon_limit_highest: the highest limit by which one was ever admitted; no entry can be
            above it.
        guarantee: False for ever once something was released without accounting.
    """

    account: str
    fixed: FixedFilter
    epsilon_limit: float
    epsilon_limit_highest: float
    posted_units: int
    guarantee: bool

    def filter(self, epsilon_limit: float) -> Filter:
        """The account's filter with this limit."""
        return make_filter(self.fixed.kind, self.fixed.order, epsilon_limit, self.fixed.delta)


class OwnLedger:
    """Appends within the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, key: Ed25519PrivateKey) -> None:
        self._connection = connection
        self._key = key

    def sign(self, statement: Statement) -> bytes:
        """The node's signature, the same each time."""
        return sign(self._key, statement)

    def fix(self, account: str, filter_: Filter) -> None:
        """Fix an account's filter at its first entry; later only its limit follows the policy."""
        limit = filter_.epsilon_limit
        self._connection.execute(
            "INSERT INTO accounts (account, filter, rdp_order, delta, epsilon_limit,"
            " epsilon_limit_highest) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (account) DO UPDATE SET"
            " epsilon_limit = excluded.epsilon_limit, epsilon_limit_highest ="
            " max(epsilon_limit_highest, excluded.epsilon_limit)",
            (account, filter_.kind, filter_.order, filter_.delta, limit, limit),
        )

    def append(self, statement: Statement, posted_units: int = 0) -> bytes:
        """Sign a statement and add it to its account's chain; returns the signature.

        Args:
            posted_units: what a post adds to the account.
        """
        signature = self.sign(statement)
        entry = append(statement, self._head(statement.account), signature)
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
            (
                statement.account,
                entry.seq,
                statement.attempt_id,
                statement.kind,
                json.dumps(to_json(entry)),
            ),
        )
        if statement.kind == "post":
            self._connection.execute(
                "UPDATE accounts SET posted_units = posted_units + ?, guarantee = guarantee AND ?"
                " WHERE account = ?",
                (posted_units, statement.mechanism != "none", statement.account),
            )
        return signature

    def statements_of(self, attempt_id: str) -> list[Statement]:
        """What is booked of one attempt, in the order in which it was."""
        query = "SELECT entry FROM entries WHERE attempt_id = ? ORDER BY seq"
        rows = self._connection.execute(query, (attempt_id,))
        return [from_json(json.loads(text)).statement for (text,) in rows]

    def account(self, account: str) -> KeptAccount | None:
        """One account by its full name."""
        return next((one for one in self.accounts() if one.account == account), None)

    def accounts(self) -> list[KeptAccount]:
        """Accounts that have entries, by name."""
        query = (
            "SELECT account, filter, rdp_order, delta, epsilon_limit, epsilon_limit_highest,"
            " posted_units, guarantee FROM accounts ORDER BY account"
        )
        return [
            KeptAccount(
                account, FixedFilter(kind, order, delta), limit, highest, posted, bool(guarantee)
            )
            for account, kind, order, delta, limit, highest, posted, guarantee in (
                self._connection.execute(query)
            )
        ]

    def entries(self) -> list[Entry]:
        """Every entry, each account's in chain order."""
        query = "SELECT entry FROM entries ORDER BY account, seq"
        return [from_json(json.loads(text)) for (text,) in self._connection.execute(query)]

    def _head(self, account: str) -> Entry | None:
        row = self._connection.execute(
            "SELECT entry FROM entries WHERE account = ? ORDER BY seq DESC LIMIT 1", (account,)
        ).fetchone()
        return from_json(json.loads(row[0])) if row else None
