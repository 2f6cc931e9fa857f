"""Reservations in bare SQL: the rows, the lock and the commit, and nothing that decides."""

import secrets
from collections.abc import Sequence
from typing import Any

from coordinator.store.engines import is_sqlite, writer_engine
from privacy.ledger import Statement

_ENTRY = (
    "INSERT INTO entries (account, seq, kind, attempt_id, project, node, dataset, job_id, round,"
    " unit, declared_n, mechanism, noise_multiplier, sample_rate, steps, prev_hash, hash,"
    " node_signature) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_HELD = (
    "INSERT INTO reservations (attempt_id, account, job_id, units, digest, accounted)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)
_LOOK = "SELECT entries, head_hash FROM accounts WHERE account = ?"
_HEAD = "UPDATE accounts SET entries = ?, head_hash = ? WHERE account = ?"


def write_bare(url: str, wanted: Sequence[Statement]) -> None:
    """One transaction for each statement, on one connection of the driver."""
    sqlite = is_sqlite(url)
    mark, lock = ("?", "") if sqlite else ("%s", " FOR UPDATE")
    look, entry, head, held = (
        text.replace("?", mark) for text in (f"{_LOOK}{lock}", _ENTRY, _HEAD, _HELD)
    )
    engine = writer_engine(url)
    connection = engine.raw_connection()
    cursor: Any = connection.cursor()
    for one in wanted:
        if sqlite:
            cursor.execute("BEGIN IMMEDIATE")
        cursor.execute(look, (one.account,))
        count, before = cursor.fetchone()
        after, digest = secrets.token_hex(32), secrets.token_hex(32)
        cursor.execute(
            entry,
            (
                *(one.account, count + 1, one.kind, one.attempt_id, one.project, one.node),
                *(one.dataset, one.job_id, one.round, one.unit, one.declared_n, one.mechanism),
                *(one.noise_multiplier, one.sample_rate, one.steps, before, after, b""),
            ),
        )
        cursor.execute(head, (count + 1, after, one.account))
        cursor.execute(held, (one.attempt_id, one.account, one.job_id, 1, digest, True))
        connection.commit()
    connection.close()
    engine.dispose()
