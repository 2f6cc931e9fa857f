"""First jobs of projects that wait for somebody of the hospital. A table of `state.db`."""

import sqlite3
from dataclasses import dataclass
from typing import Final

from protos.errors import NotFound

SCHEMA: Final = """
CREATE TABLE approvals (
    job_id TEXT PRIMARY KEY,
    project TEXT NOT NULL,
    asked_at_s REAL NOT NULL,
    approved_at_s REAL NOT NULL DEFAULT 0
) STRICT;
"""

WAITING_MAX: Final = 1000
"""Jobs that are kept as waiting; a coordinator that invents more of them fills no disk."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A job that came while its project was new here.

    Attributes:
        approved_at_s: 0 while it waits.
    """

    job_id: str
    project: str
    asked_at_s: float
    approved_at_s: float


class Approvals:
    """Used by the ledger's thread, and by `feddp agent approve` in a process of its own."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def all(self) -> list[Asked]:
        """Every job that was asked for, the oldest first."""
        query = "SELECT job_id, project, asked_at_s, approved_at_s FROM approvals"
        return [Asked(*row) for row in self._connection.execute(f"{query} ORDER BY asked_at_s")]

    def count(self) -> int:
        """How many were approved; grows with each."""
        query = "SELECT count(*) FROM approvals WHERE approved_at_s > 0"
        return int(self._connection.execute(query).fetchone()[0])

    def is_known(self, project: str) -> bool:
        """Whether a job of the project was approved, or has worked here before that was wanted."""
        (known,) = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM approvals WHERE project = ? AND approved_at_s > 0)"
            " OR EXISTS (SELECT 1 FROM attempts WHERE project = ? AND outcome = 'post')",
            (project, project),
        ).fetchone()
        return bool(known)

    def ask(self, job_id: str, project: str, now_s: float) -> None:
        """Put a job on the list; once."""
        self._connection.execute(
            "INSERT INTO approvals (job_id, project, asked_at_s) SELECT ?, ?, ?"
            " WHERE (SELECT count(*) FROM approvals) < ? ON CONFLICT (job_id) DO NOTHING",
            (job_id, project, now_s, WAITING_MAX),
        )

    def approve(self, job_id: str, now_s: float) -> Asked:
        """Let a job, and with it its project, in; again changes nothing.

        Raises:
            NotFound: APPROVAL_UNKNOWN.
        """
        self._connection.execute(
            "UPDATE approvals SET approved_at_s = ? WHERE job_id = ? AND approved_at_s = 0",
            (now_s, job_id),
        )
        found = next((one for one in self.all() if one.job_id == job_id), None)
        if found is None:
            raise NotFound(
                "APPROVAL_UNKNOWN",
                f"no job {job_id} waits here; `feddp agent approve --list` shows those that do",
            )
        return found
