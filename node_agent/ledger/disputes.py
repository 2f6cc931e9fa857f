"""Where the coordinator's ledger and this node's disagree, in `state.db`, until that is settled."""

import shlex
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protos.errors import NotFound, WrongPhase

SCHEMA: Final = """
CREATE TABLE disputes (
    account TEXT PRIMARY KEY, seq INTEGER NOT NULL, text TEXT NOT NULL, at_s REAL NOT NULL
) STRICT;
"""

EVERY_ACCOUNT: Final = "*"
"""The account of a dispute that concerns the coordinator's ledger as a whole."""


@dataclass(frozen=True, slots=True)
class Dispute:
    """Where the coordinator's ledger is not what this node has seen or knows.

    Attributes:
        account: "NODE/NAME", or EVERY_ACCOUNT.
        seq: of the entry in the coordinator's chain, or the number of the checkpoint.
    """

    account: str
    seq: int
    text: str
    at_s: float

    @property
    def is_left_out(self) -> bool:
        """Whether it ends by itself once the policy has the account again."""
        return self.text == left_out(self.account)

    def advice(self, folder: Path | None = None) -> str:
        """What the data steward does about it, with the command as a shell takes it.

        Args:
            folder: the agent's; None where it is not known.
        """
        if self.is_left_out:
            return (
                f"put account {self.account.partition('/')[2]} back in policy.yaml; the dispute "
                "ends by itself at the agent's next session"
            )
        # EVERY_ACCOUNT is a pattern to a shell: unquoted, it names the files of whoever pastes it.
        words = ["feddp", "agent", "ledger", "settle", self.account]
        command = shlex.join([*words, "--dir", str(folder)] if folder else words)
        return (
            "compare both ledgers with the coordinator's operator, stop the agent, then "
            f"`{command}`"
        )


def left_out(account: str) -> str:
    """What is said of "NODE/NAME" whose entries cannot be booked for want of a policy for it."""
    name = account.partition("/")[2]
    return (
        f"this node has signed entries of account {name} that its ledger does not hold, and "
        "policy.yaml does not have the account, or it cannot be used: what was spent cannot be "
        f"counted. Put account {name} back in policy.yaml"
    )


class Disputes:
    """Within the caller's transaction, if there is one."""

    def __init__(self, connection: sqlite3.Connection, node: str) -> None:
        self._connection = connection
        self._node = node

    def all(self) -> list[Dispute]:
        """What is not settled, by account."""
        query = "SELECT account, seq, text, at_s FROM disputes ORDER BY account"
        return [Dispute(*row) for row in self._connection.execute(query)]

    def on(self, account: str) -> Dispute | None:
        """What is not settled and concerns an account."""
        return next((one for one in self.all() if one.account in (account, EVERY_ACCOUNT)), None)

    def add(self, dispute: Dispute) -> Dispute:
        """Keep a dispute, in the place of an earlier one on its account."""
        self._connection.execute(
            "INSERT OR REPLACE INTO disputes VALUES (?, ?, ?, ?)",
            (dispute.account, dispute.seq, dispute.text, dispute.at_s),
        )
        return dispute

    def end_left_out(self, account: str, seq: int) -> None:
        """The policy has "NODE/NAME" again: the entries up to `seq` were booked."""
        self._connection.execute(
            "DELETE FROM disputes WHERE account = ? AND text = ? AND seq <= ?",
            (account, left_out(account), seq),
        )

    def settle(self, account: str) -> Dispute:
        """End a dispute that the data steward has looked into.

        Args:
            account: with the node's name or without it.

        Raises:
            NotFound: DISPUTE_UNKNOWN.
            WrongPhase: ACCOUNT_LEFT_OUT, the dispute ends when the policy has the account again.
        """
        disputes = self.all()
        named = (account, f"{self._node}/{account}")
        found = next((one for one in disputes if one.account in named), None)
        if found is None:
            there = ", ".join(f"{one.account} (entry {one.seq})" for one in disputes)
            raise NotFound(
                "DISPUTE_UNKNOWN",
                f"nothing is disputed about account {account}; disputed: {there or 'nothing'}",
            )
        if found.is_left_out:
            raise WrongPhase(
                "ACCOUNT_LEFT_OUT",
                f"the dispute about account {found.account} is not settled, since settling it would"
                f" forget what its patients have spent: {found.advice()}",
            )
        self._connection.execute("DELETE FROM disputes WHERE account = ?", (found.account,))
        return found

    def forget(self) -> None:
        """All of them: the coordinator that they were with is left."""
        self._connection.execute("DELETE FROM disputes")

    def require_counted(self) -> None:
        """Refuse to leave a coordinator whose ledger alone holds what this node has signed and
        could not book: another coordinator's will never tell it.

        Raises:
            WrongPhase: ACCOUNT_LEFT_OUT.
        """
        found = next((one for one in self.all() if one.is_left_out), None)
        if found is not None:
            raise WrongPhase(
                "ACCOUNT_LEFT_OUT",
                "the node does not leave yet: what its patients have spent from account "
                f"{found.account} stands in this coordinator's ledger alone; {found.advice()}",
            )
