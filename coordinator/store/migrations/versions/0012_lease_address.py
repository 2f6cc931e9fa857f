"""where the holder of a lease is reached by the other replicas"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = False


def upgrade() -> None:
    """Apply."""
    op.add_column(
        "leases", sa.Column("address", sa.String(length=511), nullable=False, server_default="")
    )


def downgrade() -> None:
    """Take back."""
    op.drop_column("leases", "address")
