"""what replicas that do not lead have checked and averaged"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = True


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "checked_updates",
        sa.Column("attempt_id", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("fault", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("attempt_id", name=op.f("pk_checked_updates")),
    )
    op.create_index(op.f("ix_checked_updates_job_id"), "checked_updates", ["job_id"])
    op.create_table(
        "averages",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("work", sa.String(64), nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_averages")),
    )


def downgrade() -> None:
    """Take back. What was averaged and not taken is averaged again."""
    op.drop_table("averages")
    op.drop_index(op.f("ix_checked_updates_job_id"), table_name="checked_updates")
    op.drop_table("checked_updates")
