"""What a node keeps of signed jobs, so that nothing signed is used twice. Tables of `state.db`."""

import sqlite3
from typing import Final

from certs.mandates import Mandate
from node_agent.policy.asking import JobSeen

SCHEMA: Final = """
CREATE TABLE job_mandates (
    job_id TEXT PRIMARY KEY,
    public_key TEXT NOT NULL,
    resumption INTEGER NOT NULL,
    digest TEXT NOT NULL,
    ended INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1))
) STRICT;
"""


class JobMandates:
    """The newest mandate of each job; used by the ledger's thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def seen(self, job_id: str, round_: int) -> JobSeen | None:
        """What is known of a job; None if no signed order of it was accepted here."""
        row = self._connection.execute(
            "SELECT public_key, resumption, digest, ended FROM job_mandates WHERE job_id = ?",
            (job_id,),
        ).fetchone()
        if row is None:
            return None
        # What has opened the data will be posted: that it is by now would tell when it was over.
        (releases,) = self._connection.execute(
            "SELECT count(*) FROM attempts WHERE job_id = ? AND round = ?"
            " AND (outcome = 'post' OR state = 'opened')",
            (job_id, round_),
        ).fetchone()
        return JobSeen(row[0], row[1], row[2], bool(row[3]), releases)

    def keep(self, mandate: Mandate, digest: str) -> None:
        """Remember a mandate that an accepted order came with; an older one is void from now on."""
        self._connection.execute(
            "INSERT INTO job_mandates (job_id, public_key, resumption, digest) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (job_id) DO UPDATE SET resumption = excluded.resumption,"
            " digest = excluded.digest, ended = 0 WHERE excluded.resumption > resumption",
            (mandate.job_id, mandate.public_key, mandate.resumption, digest),
        )

    def end(self, job_id: str) -> None:
        """The job is over: what was signed of it is used up."""
        self._connection.execute("UPDATE job_mandates SET ended = 1 WHERE job_id = ?", (job_id,))

    def take_over(self, other: "JobMandates") -> None:
        """Keep what another ledger of this node knows of jobs, where that is later: a resumption
        that came since, or an end."""
        query = "SELECT job_id, public_key, resumption, digest, ended FROM job_mandates"
        for row in other._connection.execute(query):
            self._connection.execute(
                "INSERT INTO job_mandates VALUES (?, ?, ?, ?, ?) ON CONFLICT (job_id) DO UPDATE SET"
                " resumption = excluded.resumption, digest = excluded.digest,"
                " ended = excluded.ended WHERE excluded.resumption > resumption"
                " OR (excluded.resumption = resumption AND excluded.ended > ended)",
                row,
            )
