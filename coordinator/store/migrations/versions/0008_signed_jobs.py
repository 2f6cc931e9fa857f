"""jobs are signed"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = False


def upgrade() -> None:
    """Apply. Nobody signed the jobs that are there."""
    op.add_column("jobs", sa.Column("mandate", sa.LargeBinary(), nullable=False, server_default=""))


def downgrade() -> None:
    """Take back; nodes refuse what follows of signed jobs, as they would be sent unsigned."""
    op.drop_column("jobs", "mandate")
