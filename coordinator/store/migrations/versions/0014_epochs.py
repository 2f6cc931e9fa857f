"""epochs: that the database was restored from a backup, and which accounts nodes have handed in"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = False

KEPT = {"epochs": ("number",), "reconciled": ("account", "epoch")}
"""Tables that only grow, with their keys; guarded as 0004, 0010 and 0013 guard entries."""


def _says(table: str) -> str:
    return f"rows of {table} are never changed, replaced or removed"


def _sqlite(table: str, key: tuple[str, ...]) -> list[str]:
    same = " AND ".join(f"{name} = NEW.{name}" for name in key)
    clash = f"EXISTS (SELECT 1 FROM {table} WHERE ({same}) OR rowid = NEW.rowid)"  # noqa: S608
    stop = f"BEGIN SELECT RAISE(ABORT, '{_says(table)}'); END"
    return [
        f"CREATE TRIGGER {table}_are_kept BEFORE UPDATE ON {table} {stop}",
        f"CREATE TRIGGER {table}_stay BEFORE DELETE ON {table} {stop}",
        f"CREATE TRIGGER {table}_are_not_replaced BEFORE INSERT ON {table} WHEN {clash} {stop}",
    ]


def _postgresql(table: str) -> list[str]:
    call = f"EXECUTE FUNCTION feddp_keep_{table}()"
    return [
        f"CREATE FUNCTION feddp_keep_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN RAISE EXCEPTION '{_says(table)}'; END $$",
        f"CREATE TRIGGER {table}_are_kept BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW {call}",
        f"CREATE TRIGGER {table}_are_not_emptied BEFORE TRUNCATE ON {table} "
        f"FOR EACH STATEMENT {call}",
    ]


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "epochs",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("restored_at_s", sa.BigInteger(), nullable=False),
        sa.Column("backup_made_at_s", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_number", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_hash", sa.String(64), nullable=False),
        sa.Column("heads_root", sa.String(64), nullable=False),
        sa.Column("prev_hash", sa.String(64), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("heads", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_epochs")),
    )
    op.create_table(
        "reconciled",
        sa.Column("account", sa.String(127), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account"], ["accounts.account"], name=op.f("fk_reconciled_account_accounts")
        ),
        sa.ForeignKeyConstraint(
            ["epoch"], ["epochs.number"], name=op.f("fk_reconciled_epoch_epochs")
        ),
        sa.PrimaryKeyConstraint("account", "epoch", name=op.f("pk_reconciled")),
    )
    dialect = op.get_bind().dialect.name
    for table, key in KEPT.items():
        for statement in _sqlite(table, key) if dialect == "sqlite" else _postgresql(table):
            op.execute(statement)


def downgrade() -> None:
    """Take back. A coordinator that was restored is as one that hides it, and is disputed."""
    op.drop_table("reconciled")
    op.drop_table("epochs")
    if op.get_bind().dialect.name == "postgresql":
        for table in KEPT:
            op.execute(f"DROP FUNCTION feddp_keep_{table}()")
