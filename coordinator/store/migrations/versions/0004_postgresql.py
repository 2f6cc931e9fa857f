"""PostgreSQL: counts of the wire's width, and entries that the server itself keeps append-only"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = False

COUNTS = (("entries", "round"), ("entries", "steps"), ("models", "round"))

KEEP = """
CREATE FUNCTION feddp_keep_entries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.node_signature = ''::bytea THEN
            OLD.node_signature := NEW.node_signature;
            IF OLD IS NOT DISTINCT FROM NEW THEN
                RETURN NEW;
            END IF;
        END IF;
    END IF;
    RAISE EXCEPTION 'ledger entries are never changed or removed; a missing signature may be added';
END $$
"""
TRIGGERS = (
    "CREATE TRIGGER entries_are_kept BEFORE UPDATE OR DELETE ON entries "
    "FOR EACH ROW EXECUTE FUNCTION feddp_keep_entries()",
    "CREATE TRIGGER entries_are_not_emptied BEFORE TRUNCATE ON entries "
    "FOR EACH STATEMENT EXECUTE FUNCTION feddp_keep_entries()",
)


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def upgrade() -> None:
    """Apply; SQLite's integers are wide anyway, and 0010 gives it its own triggers."""
    if not _is_postgresql():
        return
    for table, column in COUNTS:
        op.alter_column(table, column, type_=sa.BigInteger(), existing_nullable=False)
    for statement in (KEEP, *TRIGGERS):
        op.execute(statement)


def downgrade() -> None:
    """Take back."""
    if not _is_postgresql():
        return
    for name in ("entries_are_kept", "entries_are_not_emptied"):
        op.execute(f"DROP TRIGGER {name} ON entries")
    op.execute("DROP FUNCTION feddp_keep_entries()")
    for table, column in COUNTS:
        op.alter_column(table, column, type_=sa.Integer(), existing_nullable=False)
