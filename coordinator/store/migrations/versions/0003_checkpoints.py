"""checkpoints and countersignatures"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = False


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "checkpoints",
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("prev_hash", sa.String(length=64), nullable=False),
        sa.Column("root", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("leaves", sa.LargeBinary(), nullable=False),
        sa.Column("made_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_checkpoints")),
    )
    op.create_table(
        "countersignatures",
        sa.Column("account", sa.String(length=127), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("node_signature", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account"],
            ["accounts.account"],
            name=op.f("fk_countersignatures_account_accounts"),
        ),
        sa.PrimaryKeyConstraint("account", "seq", name=op.f("pk_countersignatures")),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("countersignatures")
    op.drop_table("checkpoints")
