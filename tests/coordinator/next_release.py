"""A next release: this one's migrations and one more, in a folder of its own."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from coordinator.store import database, upgrade
from coordinator.store.database import newest_revision

MIGRATION = '''"""of the next release"""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"
branch_labels = None
depends_on = None
{mark}


def upgrade() -> None:
    """Apply."""
    {statement}


def downgrade() -> None:
    """Take back."""
'''

ADDS = (
    'op.add_column("jobs", sa.Column("colour", sa.String(16), server_default="", nullable=False))'
)
TAKES = 'op.drop_column("jobs", "mandate")'


def write_migration(
    versions: Path, *, older_may_serve: bool | None, statement: str = ADDS, after: str = ""
) -> str:
    """Write one that follows `after` (the newest of now) to a folder; its revision."""
    before = after or newest_revision()
    revision = f"{int(before) + 1:04d}"
    mark = "" if older_may_serve is None else f"OLDER_MAY_SERVE = {older_may_serve}"
    text = MIGRATION.format(revision=revision, before=before, mark=mark, statement=statement)
    (versions / f"{revision}_next.py").write_text(text)
    return revision


class NextRelease:
    """Within `with`, this process is of the next release; outside, of now.

    Args:
        older_may_serve: the mark of its migration; None for none.
        then: the marks of further migrations, which do nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        older_may_serve: bool | None,
        statement: str = ADDS,
        then: Iterable[bool] = (),
    ) -> None:
        self._migrations = folder / "migrations"
        shutil.copytree(upgrade.MIGRATIONS, self._migrations)
        versions = self._migrations / "versions"
        self.revision = write_migration(
            versions, older_may_serve=older_may_serve, statement=statement
        )
        for mark in then:
            self.revision = write_migration(
                versions, older_may_serve=mark, statement="pass", after=self.revision
            )

    def __enter__(self) -> "NextRelease":
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(database, "VERSIONS", self._migrations / "versions")
        self._patch.setattr(upgrade, "MIGRATIONS", self._migrations)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
