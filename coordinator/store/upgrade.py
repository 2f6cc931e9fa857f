"""Runs the migrations, and says which may run while older versions serve; imported only where
there is one to run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select, update

from coordinator.store.engines import now_s
from coordinator.store.leases import HeldLease
from coordinator.store.schema import leases
from coordinator.store.serving import (
    LEASES_FROM,
    TABLES,
    note_oldest,
    oldest_that_serves,
    revision_of,
)
from protos.errors import Conflict

MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of an upgrade.

    Attributes:
        older_may_serve: whether versions from before it may serve the tables that it leaves, while
            they are replaced or after a way back; a file that does not say so means no.
    """

    revision: str
    title: str
    older_may_serve: bool


def alembic_config(connection: Connection | None = None) -> Config:
    """Where the migrations are, and the connection that they run on."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def migrations_after(revision: str | None) -> list[Migration]:
    """What an upgrade from `revision` runs, first one first; all of them from None."""
    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    found = [
        Migration(one.revision, one.doc, getattr(one.module, "OLDER_MAY_SERVE", False) is True)
        for one in scripts
        if one.revision > (revision or "")
    ]
    return found[::-1]


def need_a_stop(migrations: Sequence[Migration], revision: str | None) -> list[Migration]:
    """Those that may not run while an older version serves; none where there are no tables."""
    if revision is None:
        return []
    return [one for one in migrations if not one.older_may_serve]


def who_serves(connection: Connection) -> HeldLease | None:
    """The holder of a lease that has not expired; nobody can tell where there are no leases yet.

    The row is locked to the end of the transaction, so that nobody takes it meanwhile.
    """
    if (revision_of(connection) or "") < LEASES_FROM:
        return None
    # Not the address, which came later than the table.
    columns = leases.c.holder, leases.c.epoch, leases.c.expires_at
    held = select(*columns).where(leases.c.name != TABLES).with_for_update()
    at_s = now_s(connection)
    for row in connection.execute(held):
        if row.holder and row.expires_at > at_s:
            return HeldLease(row.holder, row.epoch, row.expires_at)
    return None


def upgrade(connection: Connection) -> HeldLease | None:
    """Create the tables, or bring them to the newest revision.

    Returns:
        Who serves, where that is an older version and a migration may not run beneath it: then
        nothing was changed. The lease of a process that has ended looks so until it expires.
    """
    revision = revision_of(connection)
    migrations = migrations_after(revision)
    closing = need_a_stop(migrations, revision)
    if closing and (held := who_serves(connection)) is not None:
        return held
    oldest = oldest_that_serves(connection)
    command.upgrade(alembic_config(connection), "head")
    if closing:
        # One that was paused in the middle, whose lease has expired, wakes up and writes no more.
        connection.execute(
            update(leases)
            .where(leases.c.name != TABLES)
            .values(epoch=leases.c.epoch + 1, holder="", expires_at=0.0)
        )
        oldest = closing[-1].revision
    if migrations and oldest is not None:
        note_oldest(connection, oldest)
    return None


def refusal(revision: str | None, holder: str) -> Conflict:
    """Why an older coordinator that serves is not upgraded beneath."""
    stop = ", ".join(one.revision for one in need_a_stop(migrations_after(revision), revision))
    where = f" ({holder.split(' ')[0]})" if holder else ""
    return Conflict(
        "OLDER_VERSION_SERVES",
        f"a coordinator of an older version{where} serves this database, and this version's "
        f"migrations ({stop}) must not run beneath it; nothing was changed. Stop every coordinator "
        "of the older version, make a backup, and start this one again: docs/upgrading.md",
    )
