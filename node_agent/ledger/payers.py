"""Which account each data set has paid from, in `state.db`, and what is refused because of it.

A population of patients pays from one account for ever: the first that a data set of theirs paid
from. A second account would be a second budget for the same patients. A data set is known by its
name and by its source, so that neither a move to another account nor a new name for the same
file gives one. What is kept of a source is the node's own record and is never sent.
"""

import json
import os
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from node_agent.data.datasets import DataSetSpec
from node_agent.policy.policy import Policy
from privacy.ledger import Entry, Statement, signature_ok
from protos.content import digest_of
from protos.errors import WrongPhase

SCHEMA: Final = """
CREATE TABLE payers (
    number INTEGER PRIMARY KEY,
    data_set TEXT NOT NULL,
    source TEXT NOT NULL,
    account TEXT NOT NULL,
    UNIQUE (data_set, source, account)
) STRICT;
CREATE INDEX payers_by_source ON payers (source);
"""
"""Each combination once, numbered by its first appearance. `source` is empty where it is not known,
as it was booked before sources were kept or nothing was read, and FROM_CHAIN where nothing but the
coordinator's chain tells of it."""

FROM_CHAIN: Final = "chain"
"""In the place of a source, and never one: this node has signed the payment, and its ledger was
restored from a copy without it. Chains of two accounts have no order in time between them."""

TAKEN_OVER: Final = """
INSERT OR IGNORE INTO payers (data_set, source, account)
    SELECT json_extract(entry, '$.dataset'), '', account FROM entries
    WHERE kind = 'reserve' ORDER BY rowid;
"""
"""Fills the table of a database that was written before there was one: names, and no sources."""

REASON: Final = "DATA_SET_MOVED"

_SOURCE_DOMAIN: Final = b"feddp-source-v1\n"


@dataclass(frozen=True, slots=True)
class Payment:
    """That a data set has paid.

    Attributes:
        source: see `source_digest`; empty where it is not known, FROM_CHAIN where only the
            coordinator's chain tells.
        account: "NODE/NAME".
    """

    data_set: str
    source: str
    account: str


def source_digest(spec: DataSetSpec) -> str:
    """What a data set's source is known by: BLAKE3 of where it is, links followed.

    The patient column is left out on purpose: the same rows under another id are the same people.
    A file that is copied or renamed is another source.
    """
    described = {"kind": "file", "path": os.path.realpath(spec.source)}
    text = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return digest_of(_SOURCE_DOMAIN + text.encode("ascii"))


class Payers:
    """Within the caller's transaction, if there is one."""

    def __init__(self, connection: sqlite3.Connection, node: str) -> None:
        self._connection = connection
        self._node = node

    def note(self, paid: Payment) -> None:
        """Keep who paid; what is known already stays as it is."""
        self._connection.execute(
            "INSERT OR IGNORE INTO payers (data_set, source, account) VALUES (?, ?, ?)",
            (paid.data_set, paid.source, paid.account),
        )

    def note_signed(self, entries: Iterable[Entry], public_key: bytes) -> None:
        """Keep who paid by entries of the coordinator's chain that this node has signed, whatever
        else is wrong with that chain: nobody else can have made the signature.

        What was refused is signed as void and counts for nothing, or a refusal for a move would
        itself say that the data set had moved.

        Args:
            public_key: the node's raw ledger key.
        """
        for entry in entries:
            said = entry.statement
            if not isinstance(said, Statement) or said.kind == "void" or said.node != self._node:
                continue
            if not said.account.startswith(f"{self._node}/") or self._is_known(said):
                continue
            if signature_ok(public_key, said, entry.node_signature):
                self.note(Payment(said.dataset, FROM_CHAIN, said.account))

    def accounts(self) -> frozenset[str]:
        """Accounts from which anything has paid, named without the node."""
        rows = self._connection.execute("SELECT DISTINCT account FROM payers")
        return frozenset(account.removeprefix(f"{self._node}/") for (account,) in rows)

    def payments(self) -> list[Payment]:
        """Everything that is known, by first appearance."""
        query = "SELECT data_set, source, account FROM payers ORDER BY number"
        return [Payment(*row) for row in self._connection.execute(query)]

    def payment(self, spec: DataSetSpec) -> Payment:
        """As a data set is declared now."""
        return Payment(spec.name, source_digest(spec), f"{self._node}/{spec.account}")

    def moved(self, spec: DataSetSpec) -> str:
        """Why a data set may not pay from the account that it is declared on: a sentence that holds
        names and no path. Empty where it may."""
        now = self.payment(spec)
        by_name, accounts = self._first_known(now.data_set), self._accounts_of(now.data_set)
        if by_name is None and len(accounts) > 1:
            return (
                f"data set {spec.name} has paid from accounts {' and '.join(accounts)}, by what "
                "this node has signed in the coordinator's ledger; its own ledger was restored from"
                " a copy that does not hold which was first, and two accounts would be two budgets "
                "for its patients: it pays from neither. Import a copy that knows: stop the agent, "
                "`feddp agent ledger import FILE`; records of other patients get a name and a file "
                "of their own"
            )
        by_name = by_name or self._first("data_set", now.data_set)
        by_source = self._first("source", now.source)
        if by_name is not None and by_name.account != now.account:
            was = self._named(by_name)
            return (
                f"data set {spec.name} has paid from account {was} and is declared on account "
                f"{spec.account}: its patients would spend a second budget. Put `account: {was}` "
                f"back in datasets.yaml; records of other patients get a name and a file of their "
                "own, and a steward signs that no patient is in both accounts: `feddp agent vouch`"
            )
        if by_source is not None and by_source.account != now.account:
            was = self._named(by_source)
            return (
                f"data set {spec.name} on account {spec.account} reads the source that data set "
                f"{by_source.data_set} has paid for from account {was}: the same patients would "
                f"spend a second budget. Declare it with `account: {was}` in datasets.yaml; records"
                " of other patients get a file of their own"
            )
        return ""

    def require_unmoved(self, spec: DataSetSpec) -> None:
        """Refuse a data set that `moved` has something to say about.

        Raises:
            WrongPhase: DATA_SET_MOVED.
        """
        text = self.moved(spec)
        if text:
            raise WrongPhase(REASON, text)

    def _is_known(self, said: Statement) -> bool:
        query = "SELECT 1 FROM payers WHERE data_set = ? AND account = ?"
        return self._connection.execute(query, (said.dataset, said.account)).fetchone() is not None

    def _first_known(self, data_set: str) -> Payment | None:
        """The first payment of a data set that this node's own ledger has kept since it was made;
        None for none."""
        row = self._connection.execute(
            "SELECT data_set, source, account FROM payers WHERE data_set = ? AND source != ?"
            " ORDER BY number LIMIT 1",
            (data_set, FROM_CHAIN),
        ).fetchone()
        return Payment(*row) if row else None

    def _accounts_of(self, data_set: str) -> list[str]:
        """Every account that a data set has paid from, named without the node."""
        query = "SELECT DISTINCT account FROM payers WHERE data_set = ? ORDER BY account"
        rows = self._connection.execute(query, (data_set,))
        return [account.removeprefix(f"{self._node}/") for (account,) in rows]

    def _first(self, column: Literal["data_set", "source"], value: str) -> Payment | None:
        row = self._connection.execute(
            f"SELECT data_set, source, account FROM payers WHERE {column} = ?"  # noqa: S608
            " ORDER BY number LIMIT 1",
            (value,),
        ).fetchone()
        return Payment(*row) if row else None

    def _named(self, paid: Payment) -> str:
        return paid.account.removeprefix(f"{self._node}/")


def require_kept(policy: Policy, kept: Collection[str]) -> None:
    """Refuse a policy in which patients could spend anew from another account.

    An account that has entries may only be left out where no other is declared, as then nothing
    can be spent at all.

    Args:
        kept: names of the accounts that have entries in the node's own ledger, or that it has
            signed entries of in the coordinator's.

    Raises:
        WrongPhase: ACCOUNT_LEFT_OUT.
    """
    names = {one.name for one in policy.accounts}
    left_out = sorted(set(kept) - names)
    if left_out and names:
        raise WrongPhase(
            "ACCOUNT_LEFT_OUT",
            f"policy.yaml: account {left_out[0]} has entries in this node's ledger, or that it has"
            f" signed, and stays under accounts, beside {min(names)}: from another account its"
            f" patients would spend anew. Put account {left_out[0]} back in policy.yaml; to retire"
            " it, take its data sets out of allow. A steward signs that no patient is in two"
            " accounts: `feddp agent vouch`",
        )
