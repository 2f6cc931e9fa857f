"""What an upgrade of the tables would do, for whoever plans one."""

from dataclasses import dataclass

from sqlalchemy import Connection

from coordinator.config.config import CoordinatorConfig
from coordinator.store.database import Database, newest_revision
from coordinator.store.diagnosis import fault
from coordinator.store.serving import LEASES_FROM, oldest_that_serves, revision_of
from coordinator.store.upgrade import Migration, migrations_after, need_a_stop, who_serves
from protos.errors import Malformed


@dataclass(frozen=True, slots=True)
class UpgradePlan:
    """From the tables that are there to those of this version.

    Attributes:
        revision: what they are at; newer than `newest` where a newer version lets this one serve.
        migrations: what would run, in order.
        served_by: the host of the coordinator that serves; "" for none, or where an older version
            that tells nothing of itself made the tables.
        oldest_that_serves: the revision of the oldest version that may serve them as they are.
    """

    revision: str
    newest: str
    migrations: tuple[Migration, ...]
    served_by: str
    oldest_that_serves: str

    @property
    def needs_stop(self) -> bool:
        """Whether every coordinator of an older version must be stopped first."""
        return bool(need_a_stop(self.migrations, self.revision)) or (
            bool(self.migrations) and self.revision < LEASES_FROM
        )


def plan_from(revision: str) -> UpgradePlan:
    """The plan for tables of a revision, without a look at any.

    Raises:
        Malformed: REVISION_UNKNOWN.
    """
    newest = newest_revision()
    if not (len(revision) == len(newest) and revision.isdecimal()):
        raise Malformed("REVISION_UNKNOWN", f"a revision has {len(newest)} digits, as {newest} has")
    return UpgradePlan(revision, newest, tuple(migrations_after(revision)), "", revision)


def plan(config: CoordinatorConfig) -> UpgradePlan:
    """The plan for an installation; changes nothing.

    Raises:
        Malformed: DATABASE_UNUSABLE, why it cannot be read or is of a newer version.
    """
    if text := fault(config.storage.database_url):
        raise Malformed("DATABASE_UNUSABLE", text)
    database = Database(config.storage.database_url)
    try:
        # In a write transaction, as it locks the lease for a moment.
        revision, oldest, holder = database.write_now(_look)
    finally:
        database.close()
    found = plan_from(revision)
    return UpgradePlan(revision, found.newest, found.migrations, holder, oldest)


def _look(connection: Connection) -> tuple[str, str, str]:
    held = who_serves(connection)
    host = held.holder.split(" ")[0] if held is not None else ""
    return revision_of(connection) or "", oldest_that_serves(connection) or "", host
