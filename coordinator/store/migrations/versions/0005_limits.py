"""raised limits are entries"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = False


def upgrade() -> None:
    """Apply: a column for what only a raise has."""
    op.add_column("entries", sa.Column("limit_change", sa.Text(), nullable=True))


def downgrade() -> None:
    """Take back; a ledger that holds a raise cannot be read by an older version.

    Raises:
        RuntimeError: it does.
    """
    held = op.get_bind().execute(sa.text("SELECT 1 FROM entries WHERE kind = 'limit' LIMIT 1"))
    if held.first() is not None:
        raise RuntimeError("the ledger holds raised limits, which older versions do not know")
    op.drop_column("entries", "limit_change")
