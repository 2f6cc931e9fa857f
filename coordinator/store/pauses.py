"""Pauses of all work. Every function runs inside the caller's transaction."""

from dataclasses import dataclass

from sqlalchemy import Connection, select, true

from coordinator.store.schema import pauses


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause that is on: since when, by whom and why."""

    since_s: float
    by: str
    reason: str


def current(connection: Connection) -> Pause | None:
    """The pause that is on; None while work goes on."""
    row = connection.execute(select(pauses).order_by(pauses.c.number.desc()).limit(1)).one_or_none()
    return Pause(row.at, row.by, row.reason) if row is not None and row.paused else None


def begin(connection: Connection, now_s: float, by: str, reason: str) -> None:
    """Pause, also where a pause is on: from now on it is this one."""
    _add(connection, at=now_s, by=by, reason=reason, paused=True)


def began_at(connection: Connection, at_s: float) -> bool:
    """Whether a pause began at exactly this moment."""
    wanted = select(pauses.c.number).where(pauses.c.at == at_s, pauses.c.paused == true())
    return connection.execute(wanted).first() is not None


def keep(connection: Connection, now_s: float, by: str, reason: str, *, paused: bool) -> bool:
    """Pause or go on; False if it was so already, and then nothing is written."""
    if (current(connection) is not None) == paused:
        return False
    _add(connection, at=now_s, by=by, reason=reason, paused=paused)
    return True


def _add(connection: Connection, **values: object) -> None:
    newest = connection.scalar(select(pauses.c.number).order_by(pauses.c.number.desc()).limit(1))
    connection.execute(pauses.insert().values(number=(newest or 0) + 1, **values))
