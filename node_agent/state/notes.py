"""The agent's notes about itself, in `state.db`: a text each, and what the known ones mean."""

import sqlite3
from typing import Final

SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""

CONNECTED_NOTE: Final = "connected_since_s"
"""Since when the agent has a session; empty while it has none."""

RESTORED_NOTE: Final = "restored_from_copy"
"""Set until the coordinator's ledger was followed to its end once after that."""

ROLLED_BACK_NOTE: Final = "rolled_back"
"""What this ledger lacks though the node has signed it; set until a copy is imported."""

REFUSED_NOTE: Final = "session_refused"
"""Why the coordinator gave no session last, and when, as JSON; set until it gives one."""

LEFT_NOTE: Final = "left_coordinator"
"""Set when the node leaves a coordinator, until it knows whether it came to another."""

MOVED_NOTE: Final = "moved"
"""Set for ever once this ledger holds what the present coordinator's never will."""

ROWS_LEFT_OUT_NOTE: Final = "rows_left_out."
"""And a data set's name: what its newest attempt left out, as it does not read as declared."""


class Notes:
    """Within the caller's transaction, if there is one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def read(self, key: str) -> str:
        """A note; empty if there is none."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def keep(self, key: str, value: str) -> None:
        """Keep a note, in the place of an earlier one."""
        self._connection.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

    def forget_all(self, prefix: str) -> None:
        """Every note whose key begins so."""
        self._connection.execute("DELETE FROM meta WHERE key LIKE ?", (f"{prefix}%",))
