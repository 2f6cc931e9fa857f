"""Projects that the steward has let in, and jobs that wait for it. Tables of `state.db`.

A project is known to the coordinator that it is of: another one's of the same name is new here.
"""

import sqlite3
from dataclasses import dataclass
from typing import Final

from node_agent.state.durable import transaction
from node_agent.state.notes import Notes
from protos.errors import NotFound, WrongPhase

_KNOWN: Final = """
CREATE TABLE known_projects (
    coordinator TEXT NOT NULL DEFAULT '',
    project TEXT NOT NULL,
    let_in INTEGER NOT NULL CHECK (let_in IN (0, 1)),
    at_s REAL NOT NULL,
    PRIMARY KEY (coordinator, project)
) STRICT;
"""
"""`coordinator` is the raw key in hexadecimal that signs checkpoints there; '' for the present one.
`let_in` is 0 once that was taken back; `at_s` is 0 where the project had worked here before."""

SCHEMA: Final = f"""
CREATE TABLE approvals (
    job_id TEXT PRIMARY KEY,
    project TEXT NOT NULL,
    asked_at_s REAL NOT NULL,
    approved_at_s REAL NOT NULL DEFAULT 0,
    rejected_at_s REAL NOT NULL DEFAULT 0,
    expires_at_s REAL NOT NULL DEFAULT 0,
    signed INTEGER NOT NULL DEFAULT 0 CHECK (signed IN (0, 1))
) STRICT;
{_KNOWN}"""

UNSIGNED_S: Final = 31 * 86_400.0
"""How long a job waits that nobody has signed, from when it was ordered last."""

BOUND: Final = f"""
ALTER TABLE approvals ADD COLUMN rejected_at_s REAL NOT NULL DEFAULT 0;
ALTER TABLE approvals ADD COLUMN expires_at_s REAL NOT NULL DEFAULT 0;
ALTER TABLE approvals ADD COLUMN signed INTEGER NOT NULL DEFAULT 0 CHECK (signed IN (0, 1));
UPDATE approvals SET expires_at_s = asked_at_s + {UNSIGNED_S};
{_KNOWN}INSERT INTO known_projects
    SELECT '', project, 1, min(approved_at_s) FROM approvals
    WHERE approved_at_s > 0 AND NOT EXISTS (SELECT 1 FROM meta WHERE key = 'moved')
    GROUP BY project;
DELETE FROM approvals WHERE EXISTS (SELECT 1 FROM meta WHERE key = 'moved');
"""  # noqa: S608 - a number of our own
"""For a table of before projects were bound to a coordinator. In a ledger that had come from
another one nobody can tell any more whose they were: they are asked about again."""

OTHERS_SET_APART: Final = """
INSERT INTO meta
    SELECT 'attempts_elsewhere', newest
    FROM (SELECT coalesce(max(rowid), 0) AS newest FROM attempts)
    WHERE EXISTS (SELECT 1 FROM meta WHERE key = 'moved');
"""
"""The same for what has worked here."""

_ELSEWHERE_NOTE: Final = "attempts_elsewhere"
"""The last row of `attempts` that is not of the present coordinator; empty for none."""

_REVISION_NOTE: Final = "approvals_revision"

WAITING_MAX: Final = 1000
WAITING_PER_PROJECT_MAX: Final = 20
"""Jobs that are kept as waiting. One more pushes out the oldest that nobody has signed, so that a
coordinator that invents them neither fills the disk nor keeps out what an engineer has signed."""

_WAITS: Final = "approved_at_s = 0 AND rejected_at_s = 0"


@dataclass(frozen=True, slots=True)
class Asked:
    """A job that came while its project was new here, or that the steward has refused.

    Attributes:
        approved_at_s, rejected_at_s: 0 while it waits.
        expires_at_s: when what was signed of it ends; of an unsigned one, when it is forgotten; 0
            once the coordinator has said that the job is over.
    """

    job_id: str
    project: str
    asked_at_s: float
    approved_at_s: float
    rejected_at_s: float
    expires_at_s: float

    @property
    def waits(self) -> bool:
        """Nobody has answered."""
        return not self.approved_at_s and not self.rejected_at_s


@dataclass(frozen=True, slots=True)
class KnownProject:
    """A project whose jobs need no approval.

    Attributes:
        since_s: when it was let in; 0 where it had worked here before that was asked for.
    """

    project: str
    since_s: float


class Approvals:
    """Used by the ledger's thread, and by `feddp agent approve` in a process of its own."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._notes = Notes(connection)

    # Reading

    def find(self, job_id: str) -> Asked | None:
        """One job; None if it was never asked about, or has been forgotten."""
        return next(iter(self._rows("job_id = ?", job_id)), None)

    def waiting(self, now_s: float) -> list[Asked]:
        """Jobs that can still run and wait for an answer, the oldest first."""
        found = self._rows(f"{_WAITS} AND expires_at_s > ?", now_s)
        return [one for one in found if not self.is_known(one.project)]

    def answered(self) -> list[Asked]:
        """Jobs that were let in or refused, the oldest first."""
        return self._rows(f"NOT ({_WAITS})")

    def projects(self) -> list[KnownProject]:
        """What is let in, by name."""
        query = (
            "SELECT project, at_s FROM known_projects WHERE coordinator = '' AND let_in = 1"
            " UNION SELECT DISTINCT project, 0.0 FROM attempts WHERE outcome = 'post' AND rowid > ?"
            " AND project NOT IN (SELECT project FROM known_projects WHERE coordinator = '')"
        )
        found = self._connection.execute(f"{query} ORDER BY project", (self._elsewhere(),))
        return [KnownProject(*row) for row in found]

    def revision(self) -> int:
        """Another number after each answer."""
        return int(self._notes.read(_REVISION_NOTE) or 0)

    def is_known(self, project: str) -> bool:
        """Whether a job of the project was approved, or has worked here before that was wanted, at
        the present coordinator, and nobody took it back since."""
        row = self._connection.execute(
            "SELECT let_in FROM known_projects WHERE coordinator = '' AND project = ?", (project,)
        ).fetchone()
        if row is not None:
            return bool(row[0])
        (worked,) = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM attempts"
            " WHERE project = ? AND outcome = 'post' AND rowid > ?)",
            (project, self._elsewhere()),
        ).fetchone()
        return bool(worked)

    def is_rejected(self, job_id: str) -> bool:
        """Whether the steward has refused the job, whichever coordinator sends it."""
        found = self.find(job_id)
        return found is not None and found.rejected_at_s > 0

    # What comes

    def ask(
        self, job_id: str, project: str, now_s: float, signed_until_s: float | None = None
    ) -> None:
        """Put a job on the list; once. One that an engineer has signed stays as it is when its like
        comes without a signature.

        Args:
            signed_until_s: end of what an engineer has signed; None for a job that nobody did.
        """
        expires_at_s = now_s + UNSIGNED_S if signed_until_s is None else signed_until_s
        with transaction(self._connection):
            self._forget("expires_at_s <= ?", now_s)
            self._execute(
                "INSERT INTO approvals (job_id, project, asked_at_s, expires_at_s, signed)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT (job_id) DO UPDATE SET"
                " project = excluded.project, expires_at_s = excluded.expires_at_s,"
                " signed = excluded.signed, approved_at_s = 0 WHERE excluded.signed >= signed",
                *(job_id, project, now_s, expires_at_s, signed_until_s is not None),
            )
            self._make_room("project = ?", WAITING_PER_PROJECT_MAX, job_id, project)
            self._make_room("1", WAITING_MAX, job_id)

    def settle(self, job_id: str) -> None:
        """The job needs no answer any more: it does not wait."""
        found = self.find(job_id)
        if found is not None and found.waits:
            self._forget("job_id = ?", job_id)

    def end(self, job_id: str) -> None:
        """The coordinator has said that the job is over."""
        self.settle(job_id)
        found = self.find(job_id)
        if found is not None and found.expires_at_s:
            self._execute("UPDATE approvals SET expires_at_s = 0 WHERE job_id = ?", job_id)

    # Answers

    def approve(self, job_id: str, now_s: float) -> Asked:
        """Let a job, and with it its project, in; again changes nothing.

        Raises:
            NotFound: APPROVAL_UNKNOWN.
            WrongPhase: APPROVAL_OVER, the job was refused and has ended since.
        """
        with transaction(self._connection):
            found = self.find(job_id)
            if found is None or (found.waits and found.expires_at_s <= now_s):
                raise NotFound(
                    "APPROVAL_UNKNOWN",
                    f"no job {job_id} waits here: none came, it is over, or its signature has "
                    "ended; `feddp agent approve --list` shows those that wait",
                )
            if found.rejected_at_s and found.expires_at_s <= now_s:
                raise WrongPhase(
                    "APPROVAL_OVER",
                    f"job {job_id} is over, so nothing of it can run, and its project "
                    f"{found.project} is not let in by it; approve the next job of the project",
                )
            if found.approved_at_s and self.is_known(found.project):
                return found
            self._execute(
                "UPDATE approvals SET approved_at_s = ?, rejected_at_s = 0 WHERE job_id = ?",
                *(now_s, job_id),
            )
            self._forget("project = ?", found.project)  # its other jobs need no answer
            self._know(found.project, now_s, let_in=True)
            return self._rows("job_id = ?", job_id)[0]

    def reject(self, job_id: str, project: str, now_s: float) -> Asked:
        """Refuse a job for good, until it is approved; again changes nothing.

        Args:
            project: of a job that was not asked about.
        """
        with transaction(self._connection):
            self._execute(
                "INSERT INTO approvals (job_id, project, asked_at_s, expires_at_s)"
                " VALUES (?, ?, ?, ?) ON CONFLICT (job_id) DO NOTHING",
                *(job_id, project, now_s, now_s + UNSIGNED_S),
            )
            changed = self._execute(
                "UPDATE approvals SET rejected_at_s = ?, approved_at_s = 0"
                " WHERE job_id = ? AND rejected_at_s = 0",
                *(now_s, job_id),
            )
            if changed:
                self._note_answer()
            return self._rows("job_id = ?", job_id)[0]

    def withdraw(self, project: str, now_s: float) -> None:
        """Take back that a project was let in: its next order waits again.

        Raises:
            NotFound: PROJECT_UNKNOWN, it is not let in.
        """
        with transaction(self._connection):
            if not self.is_known(project):
                raise NotFound(
                    "PROJECT_UNKNOWN",
                    f"no project {project} is let in here; `feddp agent approve --list` shows "
                    "those that are",
                )
            self._execute("DELETE FROM approvals WHERE approved_at_s > 0 AND project = ?", project)
            self._know(project, now_s, let_in=False)

    def take_refusals(self, other: "Approvals") -> None:
        """Keep what the steward has refused or taken back by another ledger of this node, where
        that is later than what is known here. What was let in there is not."""
        with transaction(self._connection):
            taken_back = "SELECT coordinator, project, at_s FROM known_projects WHERE let_in = 0"
            for coordinator, project, at_s in other._connection.execute(taken_back):
                self._execute(
                    "INSERT INTO known_projects VALUES (?, ?, 0, ?) ON CONFLICT DO UPDATE"
                    " SET let_in = 0, at_s = excluded.at_s WHERE excluded.at_s > at_s",
                    *(coordinator, project, at_s),
                )
                if not coordinator:
                    self._execute(
                        "DELETE FROM approvals WHERE project = ? AND approved_at_s > 0"
                        " AND approved_at_s <= ?",
                        *(project, at_s),
                    )
            for one in other.answered():
                if one.rejected_at_s:
                    self._execute(
                        "INSERT INTO approvals (job_id, project, asked_at_s, rejected_at_s,"
                        " expires_at_s) VALUES (?, ?, ?, ?, ?) ON CONFLICT (job_id) DO UPDATE SET"
                        " rejected_at_s = excluded.rejected_at_s, approved_at_s = 0"
                        " WHERE rejected_at_s = 0 AND excluded.rejected_at_s > approved_at_s",
                        *(one.job_id, one.project, one.asked_at_s),
                        *(one.rejected_at_s, one.expires_at_s),
                    )
            self._note_answer()

    # Another coordinator

    def leave(self) -> None:
        """The node leaves its coordinator: what waits from there can never come."""
        self._forget("1")

    def arrive(self, left: bytes, here: bytes) -> None:
        """Another coordinator: what was let in at the one before is put aside, and what was let in
        at this one, if the node comes back to it, counts again. What was refused stays so. Within
        the caller's transaction.

        Args:
            left, here: raw keys that sign checkpoints; `left` empty for one that was never learned,
                to which the node cannot be known to come back.
        """
        for one in self.projects() if left else ():
            self._execute(
                "INSERT INTO known_projects (project, let_in, at_s) VALUES (?, 1, ?)"
                " ON CONFLICT DO NOTHING",
                *(one.project, one.since_s),
            )
        if not left:
            self._execute("DELETE FROM known_projects WHERE coordinator = ''")
        rename = "UPDATE known_projects SET coordinator = ? WHERE coordinator = ?"
        self._execute(rename, left.hex(), "")
        self._execute(rename, "", here.hex())
        self._execute("DELETE FROM approvals WHERE rejected_at_s = 0")
        (newest,) = self._connection.execute("SELECT max(rowid) FROM attempts").fetchone()
        self._notes.keep(_ELSEWHERE_NOTE, str(newest or 0))
        self._note_answer()

    # Inside

    def _rows(self, where: str, *values: str | float) -> list[Asked]:
        query = (
            "SELECT job_id, project, asked_at_s, approved_at_s, rejected_at_s, expires_at_s"  # noqa: S608
            f" FROM approvals WHERE {where} ORDER BY asked_at_s, rowid"
        )
        return [Asked(*row) for row in self._connection.execute(query, values)]

    def _execute(self, query: str, *values: str | float) -> int:
        return self._connection.execute(query, values).rowcount

    def _forget(self, which: str, *values: str | float) -> None:
        """Those of the jobs that wait."""
        self._execute(f"DELETE FROM approvals WHERE {_WAITS} AND {which}", *values)  # noqa: S608

    def _elsewhere(self) -> int:
        return int(self._notes.read(_ELSEWHERE_NOTE) or 0)

    def _note_answer(self) -> None:
        self._notes.keep(_REVISION_NOTE, str(self.revision() + 1))

    def _know(self, project: str, now_s: float, *, let_in: bool) -> None:
        self._execute(
            "INSERT INTO known_projects (project, let_in, at_s) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET let_in = excluded.let_in, at_s = excluded.at_s",
            *(project, let_in, now_s),
        )
        self._note_answer()

    def _make_room(self, which: str, most: int, newest: str, *values: str) -> None:
        """Forget the oldest of those that wait, unsigned ones first, but for the newest."""
        waiting = f"FROM approvals WHERE {_WAITS} AND {which}"
        (count,) = self._connection.execute(f"SELECT count(*) {waiting}", values).fetchone()
        if count > most:
            self._execute(
                f"DELETE FROM approvals WHERE job_id IN (SELECT job_id {waiting}"  # noqa: S608
                " AND job_id != ? ORDER BY signed, asked_at_s, rowid LIMIT ?)",
                *(*values, newest, count - most),
            )
