"""SQLite refuses an entry in the place of another: REPLACE removes the old one past the triggers"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None
OLDER_MAY_SERVE = True

SAYS = (
    "ledger entries are never changed or replaced: account and seq, and attempt and kind, are "
    "unique"
)
# REPLACE removes every row that a new one would clash with, and SQLite fires DELETE triggers for
# that only where a connection has asked for recursive_triggers, as ours do and others' do not. A
# row's own number is such a place as well: a BEFORE INSERT trigger sees -1 where none is given.
CLASHES = (
    "account = NEW.account AND seq = NEW.seq",
    "attempt_id = NEW.attempt_id AND kind = NEW.kind",
    "rowid = NEW.rowid",
)
EXISTS = " OR ".join(
    f"EXISTS (SELECT 1 FROM entries WHERE {clash})"  # noqa: S608 - of our own
    for clash in CLASHES
)
TRIGGERS = {
    "entries_are_not_replaced": f"BEFORE INSERT ON entries WHEN {EXISTS}",
    "entries_keep_their_row": "BEFORE UPDATE ON entries WHEN NEW.rowid IS NOT OLD.rowid",
}
"""Who lets Alembic write the table anew (`batch_alter_table`) makes them anew, as those of 0010."""


def _is_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"


def upgrade() -> None:
    """Apply; PostgreSQL replaces nothing but by an update, which 0004 refuses."""
    for name, when in TRIGGERS.items() if _is_sqlite() else ():
        op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{SAYS}'); END")


def downgrade() -> None:
    """Take back."""
    for name in TRIGGERS if _is_sqlite() else ():
        op.execute(f"DROP TRIGGER {name}")
