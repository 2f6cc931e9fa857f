"""SQLite keeps entries append-only as PostgreSQL does: triggers refuse to change or remove one"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = True

COLUMNS = (
    *("account", "seq", "kind", "attempt_id", "project", "node", "dataset", "job_id", "round"),
    *("unit", "declared_n", "mechanism", "noise_multiplier", "sample_rate", "steps"),
    *("prev_hash", "hash", "limit_change"),
)
"""All but the signature. Who adds a column to entries makes the trigger anew, and who lets Alembic
write the table anew (`batch_alter_table`) makes both anew: SQLite drops them with the old table."""

SAYS = "ledger entries are never changed or removed; a missing signature may be added"
SAME = " AND ".join(f"OLD.{name} IS NEW.{name}" for name in COLUMNS)
TRIGGERS = (
    f"CREATE TRIGGER entries_are_kept BEFORE UPDATE ON entries "
    f"WHEN NOT (length(OLD.node_signature) = 0 AND {SAME}) "
    f"BEGIN SELECT RAISE(ABORT, '{SAYS}'); END",
    f"CREATE TRIGGER entries_stay BEFORE DELETE ON entries "
    f"BEGIN SELECT RAISE(ABORT, '{SAYS}'); END",
)


def _is_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"


def upgrade() -> None:
    """Apply; PostgreSQL has had its own since 0004."""
    for statement in TRIGGERS if _is_sqlite() else ():
        op.execute(statement)


def downgrade() -> None:
    """Take back."""
    for name in ("entries_are_kept", "entries_stay") if _is_sqlite() else ():
        op.execute(f"DROP TRIGGER {name}")
