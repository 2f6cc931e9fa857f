"""Transactions on `state.db`."""

import contextlib
import sqlite3
from collections.abc import Iterator


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, *, durable: bool = True) -> Iterator[None]:
    """All or nothing. Not durable: a machine that loses its power may lose it, too, with all
    that such transactions wrote since the last durable one; a killed process loses nothing."""
    if not durable:
        connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    else:
        connection.execute("COMMIT")
    finally:
        if not durable:
            connection.execute("PRAGMA synchronous = FULL")
