"""What somebody does who may write to the coordinator's database file and means harm."""

import sqlite3
from typing import Any


def drop_guards(database: "sqlite3.Connection | Any") -> None:
    """Take away the triggers that keep entries: they stop mistakes, not whoever has the file.

    Args:
        database: a connection of sqlite3, or a cursor of one.
    """
    named = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'entries'"
    for (name,) in database.execute(named).fetchall():
        database.execute(f"DROP TRIGGER {name}")
