"""certificates have generations"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = False

COLUMNS = ("chain", "key_digest", "superseded", "generation")


def upgrade() -> None:
    """Apply. Those that are there are of the first generation; their keys are not known."""
    for column in (
        sa.Column("generation", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("superseded", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("key_digest", sa.String(64), nullable=False, server_default=""),
        sa.Column("chain", sa.LargeBinary(), nullable=True),
    ):
        op.add_column("certificates", column)
    op.create_index(op.f("ix_certificates_key_digest"), "certificates", ["key_digest"])


def downgrade() -> None:
    """Take back; an older version would let in again what was superseded, so that is revoked."""
    op.execute("UPDATE certificates SET revoked = superseded OR revoked")
    op.drop_index(op.f("ix_certificates_key_digest"), "certificates")
    for name in COLUMNS:
        op.drop_column("certificates", name)
