"""certificates for life: approvals, quarantine, authorities that follow each other"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = False

COLUMNS = (
    ("tokens", "approval", sa.String(16), ""),
    ("tokens", "approved_by", sa.String(255), ""),
    ("certificates", "superseded_at", sa.Float(), "0"),
    ("certificates", "issuer", sa.String(64), ""),
    ("certificates", "bundle", sa.String(64), ""),
)


def upgrade() -> None:
    """Apply. What was superseded before was so long ago."""
    for table, name, kind, default in COLUMNS:
        op.add_column(table, sa.Column(name, kind, nullable=False, server_default=default))
    op.create_table(
        "quarantines",
        sa.Column("node", sa.String(63), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["node"], ["nodes.name"], op.f("fk_quarantines_node")),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_quarantines")),
    )


def downgrade() -> None:
    """Take back; an older version would let in who is quarantined or waits, so that is stopped."""
    shut_out = "name IN (SELECT node FROM quarantines)"
    op.execute(f"UPDATE nodes SET status = 'disabled' WHERE {shut_out}")  # noqa: S608
    waiting = "approval NOT IN ('', 'approved', 'confirmed')"
    op.execute(f"UPDATE tokens SET redeemed_by = 'refused', expires_at = 0 WHERE {waiting}")  # noqa: S608
    for table, name, _, _ in COLUMNS:
        op.drop_column(table, name)
    op.drop_table("quarantines")
