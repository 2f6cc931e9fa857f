"""when backups were made; when all work was paused, and by whom"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = False


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "backups",
        sa.Column("made_at", sa.Float(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("keys", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("made_at", name=op.f("pk_backups")),
    )
    op.create_table(
        "pauses",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("by", sa.String(63), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_pauses")),
    )


def downgrade() -> None:
    """Take back. A pause that is on ends with it."""
    op.drop_table("pauses")
    op.drop_table("backups")
