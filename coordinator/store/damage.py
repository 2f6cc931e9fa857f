"""Accounts whose row and chain do not belong together: somebody, or a broken disk, has changed one
of them. Nothing is booked on such an account; every other one goes on."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, bindparam, func, or_, select

from coordinator.store.schema import accounts, entries
from privacy.entries import GENESIS
from protos.errors import WrongPhase

REASON: Final = "LEDGER_DAMAGED"


def said(account: str) -> str:
    """What is wrong and what to do, for whoever asks why its node is left out."""
    return (
        f"the coordinator's ledger of account {account} is damaged, so that nothing is booked on "
        "it: its newest entry is not the head that was kept. The operator runs `feddp budget "
        "verify` and restores the database from a backup"
    )


def refusal(account: str) -> WrongPhase:
    """For what would have been booked."""
    return WrongPhase(REASON, said(account))


def damaged(connection: Connection, names: Sequence[str] | None = None) -> frozenset[str]:
    """Which of these accounts, or of all, do not stand where their newest entry does."""
    if names is None:
        return frozenset(connection.execute(_DAMAGED).scalars())
    return frozenset(connection.execute(_NAMED, {"names": list(names)}).scalars())


_one = entries.alias()
_LAST_SEQ = (
    select(func.max(_one.c.seq)).where(_one.c.account == accounts.c.account).correlate(accounts)
)
_DAMAGED: Select[Any] = (
    select(accounts.c.account)
    .select_from(accounts)
    .outerjoin(
        entries,
        and_(entries.c.account == accounts.c.account, entries.c.seq == _LAST_SEQ.scalar_subquery()),
    )
    .where(
        or_(
            accounts.c.entries != func.coalesce(entries.c.seq, 0),
            accounts.c.head_hash != func.coalesce(entries.c.hash, GENESIS),
        )
    )
)
_NAMED = _DAMAGED.where(accounts.c.account.in_(bindparam("names", expanding=True)))
