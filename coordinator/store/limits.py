"""Raised limits in SQL: each taken once, as an entry of its account's chain.

Runs inside the caller's transaction.
"""

import json
import math
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, select, update

from coordinator.store.damage import damaged, refusal
from coordinator.store.ledger import Account, entry_of, read_account
from coordinator.store.schema import accounts, entries
from privacy.filters import Filter
from privacy.ledger import Entry, LimitChange, append, signature_ok
from privacy.limits import fault_of
from protos.errors import Conflict, Malformed, NotFound

OUTER: Final = ("kind", "account", "node")
"""Fields of a raise that have columns of their own."""


def record(
    connection: Connection, node: str, public_key: bytes, change: LimitChange, signature: bytes
) -> bool:
    """Append a raise to its account's chain, from where the new limit is in force.

    Args:
        node: who brings it; the account must be this node's.
        public_key: the node's raw ledger key.

    Returns:
        False where the chain holds this very raise already.

    Raises:
        NotFound: ACCOUNT_UNKNOWN, also for another node's account.
        Malformed: SIGNATURE_INVALID, LIMIT_INVALID.
        Conflict: LIMIT_CONFLICT, another raise of this number is recorded.
        WrongPhase: LEDGER_DAMAGED.
    """
    # Locked before anything is decided, as for every booking.
    row = connection.execute(
        select(accounts).where(accounts.c.account == change.account).with_for_update()
    ).one_or_none()
    if row is None or row.node != node or change.node != node:
        raise NotFound("ACCOUNT_UNKNOWN", f"node {node} has no account {change.account}")
    if not signature_ok(public_key, change, signature):
        raise Malformed(
            "SIGNATURE_INVALID", f"a raise of {change.account} is not signed by its node"
        )
    number, known = change.terms.number, raises(connection, change.account)
    if number <= len(known):
        if known[number - 1] == change:
            return False
        raise Conflict(
            "LIMIT_CONFLICT", f"raise {number} of {change.account} is recorded with other terms"
        )
    text = fault_of(change, shown(connection, change.account), len(known))
    if text:
        raise Malformed("LIMIT_INVALID", f"{change.account}: {text}")
    if damaged(connection, [change.account]):
        raise refusal(change.account)
    last = _last(connection, change.account)
    entry = append(change, last, signature)
    connection.execute(entries.insert().values(_row(entry, change)))
    connection.execute(
        update(accounts)
        .where(accounts.c.account == change.account)
        .values(
            entries=entry.seq, head_hash=entry.hash, epsilon_limit=change.terms.epsilon_limit_new
        )
    )
    return True


def raises(connection: Connection, account: str) -> list[LimitChange]:
    """The account's raises, in order."""
    rows = connection.execute(
        select(entries)
        .where(entries.c.account == account, entries.c.kind == LimitChange.kind)
        .order_by(entries.c.seq)
    )
    found = [entry_of(row).statement for row in rows]
    return [one for one in found if isinstance(one, LimitChange)]


def guarantees(connection: Connection, of: Sequence[Account]) -> dict[str, float | None]:
    """Account -> the highest limit that was ever in force, at its delta: its guarantee, whatever
    the policy has lowered it to. None where there is none any more, or a raise cannot be read.

    One look at an index, however long the chains are: of all entries only a raise is of no job.
    """
    highest: dict[str, float | None] = {
        one.account: max(one.epsilon_limit_highest, one.filter.epsilon_limit)
        if one.balance.guarantee
        else None
        for one in of
    }
    query = select(entries.c.account, entries.c.limit_change).where(
        entries.c.job_id == "", entries.c.kind == LimitChange.kind
    )
    for account, text in connection.execute(query):
        known = highest.get(account)
        if known is not None:
            raised = _raised_to(text)
            highest[account] = None if raised is None else max(known, raised)
    return highest


def _raised_to(text: str | None) -> float | None:
    """The limit that a raise's row gives; None where it was damaged."""
    try:
        value = json.loads(text or "")["epsilon_limit_new"]
    except (ValueError, TypeError, KeyError):
        return None
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def shown(connection: Connection, account: str) -> Filter:
    """The account's filter at the limit that its chain shows, whatever it was lowered to since."""
    known = raises(connection, account)
    return known[-1].raised() if known else read_account(connection, account).verifying_filter


def _last(connection: Connection, account: str) -> Entry | None:
    row = connection.execute(
        select(entries).where(entries.c.account == account).order_by(entries.c.seq.desc()).limit(1)
    ).one_or_none()
    return entry_of(row) if row is not None else None


def _row(entry: Entry, change: LimitChange) -> dict[str, object]:
    inner = {name: value for name, value in change.fields().items() if name not in OUTER}
    return {
        "account": change.account,
        "seq": entry.seq,
        "kind": change.kind,
        "attempt_id": change.digest(),
        "project": "",
        "node": change.node,
        "dataset": "",
        "job_id": "",
        "round": 0,
        "unit": "",
        "declared_n": 0,
        "mechanism": "",
        "noise_multiplier": None,
        "sample_rate": 0.0,
        "steps": 0,
        "prev_hash": entry.prev_hash,
        "hash": entry.hash,
        "node_signature": entry.node_signature,
        "limit_change": json.dumps(inner),
    }
