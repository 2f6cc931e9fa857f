"""When backups were made. Every function runs inside the caller's transaction."""

from sqlalchemy import Connection, func, select

from coordinator.store.schema import backups


def add(connection: Connection, made_at_s: float, bytes_: int, *, keys: bool) -> None:
    """Remember one that is whole and durable."""
    connection.execute(backups.insert().values(made_at=made_at_s, bytes=bytes_, keys=keys))


def last_success_at(connection: Connection) -> float:
    """Seconds since 1970 of the newest; 0 for none."""
    return float(connection.scalar(select(func.max(backups.c.made_at))) or 0.0)
