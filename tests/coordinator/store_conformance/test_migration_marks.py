"""Each migration says whether older versions may serve its tables, and does what it says."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, inspect, text

from benchmarks.postgresql import PostgreSql
from coordinator.store.database import VERSIONS, Database
from coordinator.store.upgrade import Migration, alembic_config, migrations_after

FILES = sorted(VERSIONS.glob("[0-9]*_*.py"))
MARKED = [one for one in migrations_after(None) if one.older_may_serve]

TRIGGERS = {
    ("0010", "entries_are_kept"): "no version changes an entry but to add its signature",
    ("0010", "entries_stay"): "no version removes an entry",
    ("0013", "entries_are_not_replaced"): "no version replaces an entry",
    ("0013", "entries_keep_their_row"): "no version numbers rows anew",
}
"""Triggers on tables that older versions write to, and why that does not hinder them. Whoever adds
one has looked at every release that may serve."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What older code meets.

    Attributes:
        columns: (table, column) -> (type, nullable, whether left out of an INSERT it has a value).
        rules: keys, unique, foreign and checked, of each table.
        triggers: (table, name).
    """

    columns: dict[tuple[str, str], tuple[str, bool, bool]]
    rules: dict[str, frozenset[str]]
    triggers: frozenset[tuple[str, str]]


def shape_of(connection: Connection) -> Shape:
    """The tables as they are."""
    found = inspect(connection)
    columns, rules = {}, {}
    for table in found.get_table_names():
        for one in found.get_columns(table):
            given = one["default"] is not None or bool(one.get("autoincrement") is True)
            columns[table, one["name"]] = (str(one["type"]), bool(one["nullable"]), given)
        rules[table] = frozenset(_rules(found, table))
    listed = {
        "sqlite": "SELECT tbl_name, name FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger "
        "WHERE NOT tgisinternal",
    }[connection.dialect.name]
    triggers = frozenset((row[0], row[1]) for row in connection.execute(text(listed)))
    return Shape(columns, rules, triggers)


def _rules(found: Any, table: str) -> Iterator[str]:
    yield f"key {found.get_pk_constraint(table)['constrained_columns']}"
    for one in found.get_unique_constraints(table):
        yield f"unique {sorted(one['column_names'])}"
    for one in found.get_indexes(table):
        if one["unique"]:
            yield f"unique {sorted(one['column_names'])}"
    for one in found.get_foreign_keys(table):
        yield f"refers {one['constrained_columns']} {one['referred_table']}"
    for one in found.get_check_constraints(table):
        yield f"check {one['sqltext']}"


def hindrances(revision: str, before: Shape, after: Shape) -> list[str]:
    """What a migration that older versions may serve beside must not have done."""
    found = [
        f"{table}.{column} is gone or another"
        for (table, column), what in before.columns.items()
        if after.columns.get((table, column)) != what
    ]
    found += [
        f"{table}.{column} must be given, and older versions do not know it"
        for (table, column), (_, nullable, given) in after.columns.items()
        if table in before.rules and (table, column) not in before.columns
        if not (nullable or given)
    ]
    found += [
        f"the rules of {table} are others"
        for table, rules in before.rules.items()
        if after.rules.get(table) != rules
    ]
    found += [
        f"trigger {name} on {table}, which older versions write to"
        for table, name in sorted(after.triggers - before.triggers)
        if table in before.rules and (revision, name) not in TRIGGERS
    ]
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without tables."""
    made = f"sqlite:///{tmp_path / 'c.db'}"
    if request.param == "postgresql":
        server: PostgreSql = request.getfixturevalue("postgresql_server")
        made = server.new_database()
    database = Database(made)
    yield database
    database.close()


def to(database: Database, revision: str) -> Shape:
    """Upgrade as far as a revision."""
    database.write_now(lambda c: command.upgrade(alembic_config(c), revision))
    return database.read_now(shape_of)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_migration_says_whether_older_versions_may_serve_its_tables(file: Path) -> None:
    """In so many words; whoever writes one has thought of it."""
    said = [
        node.value.value
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Assign)
        and [getattr(one, "id", "") for one in node.targets] == ["OLDER_MAY_SERVE"]
        and isinstance(node.value, ast.Constant)
    ]
    assert said in ([True], [False]), f"{file.name} needs OLDER_MAY_SERVE = True or False"


@pytest.mark.parametrize("migration", MARKED, ids=[one.revision for one in MARKED])
def test_a_migration_that_older_versions_may_serve_beside_takes_nothing_from_them(
    empty: Database, migration: Migration
) -> None:
    """Nothing goes or changes, what is added may be left out, and nothing new is demanded."""
    before = to(empty, f"{migration.revision}-1")
    after = to(empty, migration.revision)
    assert hindrances(migration.revision, before, after) == []


CHANGES: dict[str, Callable[[str], str]] = {
    "is gone or another": lambda _: "ALTER TABLE jobs DROP COLUMN mandate",
    "must be given": lambda _: "ALTER TABLE models ADD COLUMN colour VARCHAR(16) NOT NULL",
    "rules of jobs": lambda _: "CREATE UNIQUE INDEX one_each ON jobs (status)",
    "trigger slow": lambda name: (
        "CREATE TRIGGER slow BEFORE INSERT ON jobs BEGIN SELECT 1; END"
        if name == "sqlite"
        else "CREATE TRIGGER slow BEFORE UPDATE ON jobs "
        "FOR EACH ROW EXECUTE FUNCTION feddp_keep_entries()"
    ),
}


@pytest.mark.parametrize("says", CHANGES)
def test_what_hinders_an_older_version_is_found(empty: Database, says: str) -> None:
    """Each of the ways, on both databases."""
    before = to(empty, "head")

    def change(connection: Connection) -> None:
        name = connection.dialect.name
        if says == "must be given" and name == "sqlite":
            # SQLite adds no such column; a migration would write the table anew.
            connection.execute(text("DROP TABLE models"))
            connection.execute(text("CREATE TABLE models (colour VARCHAR(16) NOT NULL)"))
        else:
            connection.execute(text(CHANGES[says](name)))

    empty.write_now(change)
    found = hindrances("9999", before, empty.read_now(shape_of))
    assert [one for one in found if says in one], found


def test_every_excused_trigger_is_one_that_a_marked_migration_makes() -> None:
    """An excuse for nothing would excuse what comes later."""
    marked = {one.revision: one for one in MARKED}
    for revision, name in TRIGGERS:
        (file,) = VERSIONS.glob(f"{revision}_*.py")
        assert revision in marked
        assert name in file.read_text()
