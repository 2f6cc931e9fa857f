"""people are invited"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = False


def upgrade() -> None:
    """Apply. Whoever is there came with the installation, and nobody knows when they called."""
    op.add_column(
        "users", sa.Column("last_used_at", sa.Float(), nullable=False, server_default="0")
    )
    op.create_table(
        "invitations",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("roles", sa.String(255), nullable=False),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("invited_by", sa.String(63), nullable=False),
        sa.Column("invited_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("withdrawn", sa.Boolean(), nullable=False),
        sa.Column("redeemed_by", sa.String(64), nullable=False),
        sa.Column("redeemed_at", sa.Float(), nullable=False),
        sa.Column("chain", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_invitations")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_invitations_secret_hash")),
    )


def downgrade() -> None:
    """Take back. Who has joined stays, with their roles; who was revoked stays out, as their
    certificates are; an invitation that is open is void."""
    op.drop_table("invitations")
    op.drop_column("users", "last_used_at")
