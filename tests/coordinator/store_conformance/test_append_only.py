"""The ledger only grows: nothing of ours changes an entry, but for a signature that was missing."""

import contextlib
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import BigInteger, Float, Integer, String, Text, text
from sqlalchemy.exc import DBAPIError

from coordinator.store import booking, ledger
from coordinator.store.booking import Books
from coordinator.store.database import Database
from coordinator.store.engines import is_sqlite
from coordinator.store.schema import entries
from privacy.ledger import sign
from protos.errors import Conflict
from tests.coordinator.store_conformance.samples import (
    ACCOUNT,
    KEY,
    PUBLIC,
    kinds,
    statement,
    with_account,
)

COLUMNS = tuple(column.name for column in entries.columns if column.name != "node_signature")


def test_reserve_sign_post_and_void_change_no_entry(database: Database) -> None:
    """Every way in which we book passes where the database itself refuses a change."""
    for attempt, end in (("x", "post"), ("y", "void")):
        one = statement(attempt)
        database.write_now(lambda c, one=one: booking.book(c, one))

        def later(connection, one=one, end=end):  # type: ignore[no-untyped-def]
            books = Books(connection)
            books.keep_signature(one.attempt_id, sign(KEY, one))
            books.keep_signature(one.attempt_id, sign(KEY, one))  # a retry
            books.resolve(one.attempt_id, end, sign(KEY, one.resolved(end)))
            books.flush()

        database.write_now(later)
        database.write_now(later)
    with pytest.raises(Conflict):
        database.write_now(lambda c: booking.book(c, statement("x", kind="void")))
    assert kinds(database) == ["reserve", "post", "reserve", "void"]
    chain = database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    for entry in chain:
        ledger.check_signature(PUBLIC, entry.statement, entry.node_signature)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET noise_multiplier = 1000",
        "UPDATE entries SET node_signature = '' WHERE kind = 'post'",
        "UPDATE entries SET node_signature = 'x' WHERE kind = 'post'",
        "UPDATE entries SET node_signature = 'x', seq = 9 WHERE kind = 'reserve'",
        "DELETE FROM entries WHERE seq = 2",
        "DELETE FROM entries",
    ],
)
def test_a_change_of_an_entry_is_refused(database: Database, change: str) -> None:
    """Also by a statement that only a mistake of ours, or somebody with SQL, would send."""
    database.write_now(lambda c: booking.book(c, statement("x")))
    one = statement("x", kind="post")
    database.write_now(lambda c: booking.book(c, one, sign(KEY, one)))
    before = database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    with pytest.raises(DBAPIError, match="never changed"):
        database.write_now(lambda c: c.execute(text(change)))
    assert database.read_now(lambda c: list(ledger.chain(c, ACCOUNT))) == before


OTHER = {String: "'z'", Text: "'z'", Float: "0.125", BigInteger: "77", Integer: "77"}
"""A value that none of the samples has, by the column's type."""


@pytest.mark.parametrize("column", COLUMNS)
def test_no_column_of_an_entry_can_be_changed_beside_its_signature(
    database: Database, column: str
) -> None:
    """Whichever it is, also where the signature is missing and may be added."""
    database.write_now(lambda c: booking.book(c, statement("x")))
    other = OTHER[type(entries.columns[column].type)]
    for signature in ("", ", node_signature = 'x'"):
        change = f"UPDATE entries SET {column} = {other}{signature}"  # noqa: S608
        with pytest.raises(DBAPIError, match="never changed"):
            database.write_now(lambda c, change=change: c.execute(text(change)))
    signed = "UPDATE entries SET node_signature = 'x'"
    database.write_now(lambda c: c.execute(text(signed)))


def test_an_entry_is_not_replaced(database: Database, url: str) -> None:
    """Which SQLite does by removing it, and PostgreSQL by changing it."""
    database.write_now(lambda c: booking.book(c, statement("x")))
    names = f"{', '.join(COLUMNS)}, node_signature"
    row = names.replace("noise_multiplier", "1000.0 AS noise_multiplier")
    if is_sqlite(url):
        replacing = f"INSERT OR REPLACE INTO entries ({names}) SELECT {row} FROM entries"  # noqa: S608
    else:
        replacing = (
            f"INSERT INTO entries ({names}) SELECT {names} FROM entries"  # noqa: S608
            " ON CONFLICT (account, seq) DO UPDATE SET noise_multiplier = 1000.0"
        )
    with pytest.raises(DBAPIError, match="never changed"):
        database.write_now(lambda c: c.execute(text(replacing)))


@pytest.mark.parametrize(
    "replacing",
    [
        "INSERT OR REPLACE INTO entries ({names}) SELECT {row} FROM entries WHERE seq = 1",
        "INSERT OR REPLACE INTO entries (rowid, {names}) SELECT rowid, {row} FROM entries"
        " WHERE seq = 1",
        "INSERT OR REPLACE INTO entries (rowid, {names}) SELECT rowid, {new} FROM entries"
        " WHERE seq = 1",
        "INSERT OR REPLACE INTO entries ({names}) SELECT {elsewhere} FROM entries WHERE seq = 1",
        "REPLACE INTO entries ({names}) SELECT {row} FROM entries",
        "UPDATE OR REPLACE entries SET rowid = 1 WHERE seq = 2",
    ],
)
def test_no_connection_of_sqlites_own_replaces_an_entry(tmp_path: Path, replacing: str) -> None:
    """Python's, and the command's `sqlite3`, have recursive_triggers off: REPLACE then removes a
    row, by its place, its attempt or its number, and no DELETE trigger sees it."""
    path = tmp_path / "c.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with_account(database)
    for attempt in "xy":
        database.write_now(lambda c, a=attempt: booking.book(c, statement(a)))
    before = database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    database.close()
    names = f"{', '.join(COLUMNS)}, node_signature"
    row = names.replace("noise_multiplier", "1000.0")
    elsewhere = row.replace("seq", "seq + 7")
    new = elsewhere.replace("attempt_id", "'z'")
    statement_ = replacing.format(names=names, row=row, elsewhere=elsewhere, new=new)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            connection.execute(statement_)
        connection.commit()
    database = Database(f"sqlite:///{path}")
    assert database.read_now(lambda c: list(ledger.chain(c, ACCOUNT))) == before
    database.close()


def test_a_sequence_number_is_given_once(database: Database) -> None:
    """Two entries of one account never stand at one place of its chain."""
    database.write_now(lambda c: booking.book(c, statement("x")))
    names = ", ".join(COLUMNS)
    again = f"INSERT INTO entries ({names}, node_signature) SELECT {names}, '' FROM entries"  # noqa: S608
    with pytest.raises(DBAPIError, match=r"(?i)unique"):
        database.write_now(lambda c: c.execute(text(again)))
