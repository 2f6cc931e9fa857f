"""A query in a .sql file, answered by a database in a transaction that can only read.

What a database says of an error may quote a cell (`invalid input syntax for type integer: "..."`),
so that of all it says only the SQLSTATE is kept.
"""

import decimal
import os
import re
import sys
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node_agent.sources.database import CREDENTIAL_BYTES_MAX, DRIVERS, Database
from node_agent.sources.problems import DataProblem, WrongHeader
from node_agent.sources.source import Column, Kind, Table, column_fault

if TYPE_CHECKING:
    import sqlalchemy as sa

QUERY_BYTES_MAX: Final = 1 << 20
CONNECT_TIMEOUT_S: Final = 5
HEADER_TIMEOUT_S: Final = 10
ROWS_AT_ONCE: Final = 5_000

SQLSTATES: Final = {
    "28000": "the database refuses this account",
    "28P01": "the database refuses this password",
    "3D000": "there is no such database",
    "42501": "this account may not read a table of the query",
    "42601": "the query has a syntax error; it must be one SELECT",
    "42703": "a column of the query does not exist",
    "42P01": "a table of the query does not exist",
    "25006": "the query writes, and only reading is allowed",
    "0A000": "the query does what may only stand outside a subquery, as writing does",
    "57014": "the query took too long",
}
_END: Final = re.compile(r"(?:;(?:\s|--[^\n'\"$]*(?:\n|\Z))*)+\Z")
"""Semicolons at the end, with comments of a line after them; one with a quote may be no comment."""

SAID_CHARACTERS_MAX: Final = 400

UNREACHED: Final = ("08", "28", "3D", "53", "57")
"""Classes of SQLSTATE by which the database, not the query, is at fault."""


class SqlQuery:
    """See `node_agent.sources.source.Source`.

    Args:
        name: of the data set, for sentences.
        path: the .sql file: one SELECT, which becomes a subquery. Its ORDER BY, if any, is the
            order of rows.
        database: where it is asked.
    """

    def __init__(self, name: str, path: Path, database: Database) -> None:
        self._name = name
        self._path = path
        self._database = database

    def header(self) -> list[Column]:
        """Columns of the answer when no row is asked for."""
        query = self._query()
        try:
            with self._reading(HEADER_TIMEOUT_S) as connection:
                return _columns(connection, query)
        except _Failed as failed:
            unreached = not failed.state or failed.state.startswith(UNREACHED)
            reason = "SOURCE_UNREADABLE" if unreached else "SCHEMA_MISMATCH"
            raise WrongHeader(reason, self._said(failed)) from None

    def read(self, wanted: Sequence[str], declared: Collection[str]) -> Table:
        """Typed values, None where null; names and rows are of one snapshot of the database."""
        query = self._query_or_problem()
        cells: dict[str, list[Any]] = {name: [] for name in wanted}
        try:
            with self._reading(0) as connection:
                names = [one.name for one in _columns(connection, query)]
                fault = column_fault(self._path, names, declared)
                if fault:
                    raise DataProblem(fault)
                for rows in self._rows(connection, query, wanted):
                    for column, values in zip(wanted, zip(*rows, strict=True), strict=True):
                        cells[column].extend(_plain(value) for value in values)
        except _Failed as failed:
            raise DataProblem(self._said(failed)) from None
        return Table(cells, range(1, len(cells[wanted[0]]) + 1))

    def pieces(self, column: str) -> Iterator[list[Any]]:
        """One column."""
        query = self._query_or_problem()
        try:
            with self._reading(0) as connection:
                for rows in self._rows(connection, query, [column]):
                    yield [_plain(row[0]) for row in rows]
        except _Failed as failed:
            raise DataProblem(self._said(failed)) from None

    @staticmethod
    def _rows(
        connection: "sa.Connection", query: str, wanted: Sequence[str]
    ) -> "Iterator[Sequence[sa.Row[Any]]]":
        streamed = connection.execution_options(yield_per=ROWS_AT_ONCE)
        yield from streamed.execute(_select(query, wanted)).partitions()

    def _query(self) -> str:
        """The text of the .sql file, without the semicolon that may end it, and what is after it.

        Raises:
            WrongHeader: it is not there, or no text.
        """
        try:
            data = self._path.read_bytes()
            text = data.decode("utf-8-sig") if len(data) <= QUERY_BYTES_MAX else ""
        except FileNotFoundError:
            raise WrongHeader("SOURCE_MISSING", f"{self._path} does not exist") from None
        except (OSError, UnicodeDecodeError):
            text = ""
        query = _END.sub("", text).strip()
        if not query:
            raise WrongHeader("SOURCE_UNREADABLE", f"{self._path} holds no query that can be read")
        return query

    def _query_or_problem(self) -> str:
        try:
            return self._query()
        except WrongHeader as error:
            raise DataProblem(str(error)) from None

    @contextmanager
    def _reading(self, timeout_s: int) -> "Iterator[sa.Connection]":
        """A connection in a read-only transaction, which is rolled back.

        Raises:
            _Failed: whatever the driver raised, down to its SQLSTATE.
        """
        try:
            import sqlalchemy as sa
            from sqlalchemy.pool import NullPool
        except ImportError:
            raise _Failed("", "SQLAlchemy is not installed: pip install 'feddp[sql]'") from None
        try:
            engine = sa.create_engine(
                self._url(),
                poolclass=NullPool,
                connect_args=self._arguments(timeout_s),
                hide_parameters=True,
                execution_options=_READ_ONLY[self._database.dialect],
            )
            with self._connected(engine) as connection:
                _read_any_cell(connection.connection.driver_connection)
                yield connection
        except sa.exc.DBAPIError as error:
            raise _Failed(str(getattr(error.orig, "sqlstate", None) or "")) from None
        except ImportError:
            raise _Failed("", "the driver that url names is not installed") from None
        except sa.exc.SQLAlchemyError as error:
            raise _Failed("", f"the database cannot be asked ({type(error).__name__})") from None

    def _connected(self, engine: "sa.Engine") -> "sa.Connection":
        """No row was asked for yet, so that what the driver says may be told; the driver does not
        repeat a password."""
        import sqlalchemy as sa

        try:
            return engine.connect()
        except sa.exc.DBAPIError as error:
            said = " ".join(str(error.orig).split())[:SAID_CHARACTERS_MAX]
            raise _Failed("", f"the database was not reached: {said}") from None

    def _url(self) -> "sa.URL":
        import sqlalchemy as sa

        dialect = self._database.dialect
        driver = f"{dialect}+{DRIVERS[dialect]}"
        url = sa.make_url(self._database.url).set(drivername=driver)
        if dialect == "sqlite":
            # Of the file itself nothing can be written, whatever the query says.
            return url.set(database=f"file:{url.database}", query={"mode": "ro", "uri": "true"})
        password = self._password()
        return url.set(password=password) if password else url

    def _password(self) -> str:
        where = self._database
        try:
            if where.password_file is not None:
                with where.password_file.open("rb") as file:
                    return file.readline(CREDENTIAL_BYTES_MAX).decode("utf-8-sig").rstrip("\r\n")
            if where.password_env is not None:
                return os.environ[where.password_env]
        except (OSError, UnicodeDecodeError):
            raise _Failed("", f"{where.password_file} cannot be read") from None
        except KeyError:
            raise _Failed("", f"the variable {where.password_env} is not set") from None
        return ""

    def _arguments(self, timeout_s: int) -> dict[str, Any]:
        if self._database.dialect == "sqlite":
            return {"timeout": CONNECT_TIMEOUT_S}
        options = f"-c statement_timeout={timeout_s}s -c default_transaction_read_only=on"
        return {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": options,
            "application_name": "feddp",
        }

    def _said(self, failed: "_Failed") -> str:
        known = SQLSTATES.get(failed.state)
        if failed.detail:
            what = failed.detail
        elif failed.state:
            what = f"{known or 'the database answered an error'} (SQLSTATE {failed.state})"
        else:
            what = "the database gave up in the middle, or refuses the query"
        return f"data set {self._name!r}, query {self._path}: {what}"


def _read_any_cell(driver: Any) -> None:
    """No cell ends the reading: a text of SQLite that is not UTF-8 stays bytes, and a date or time
    of PostgreSQL, which may be one that Python has not, a text."""
    if hasattr(driver, "text_factory"):
        driver.text_factory = _text
        return
    from psycopg.types.string import TextLoader

    for kind in ("date", "time", "timetz", "timestamp", "timestamptz", "interval"):
        driver.adapters.register_loader(kind, TextLoader)


def _text(cell: bytes) -> str | bytes:
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return cell


_KINDS: Final[dict[str, dict[Any, Kind]]] = {
    # By the numbers that PostgreSQL gives its own types, in every installation the same.
    "postgresql": {
        16: "truth",
        **dict.fromkeys((20, 21, 23), "whole"),
        **dict.fromkeys((700, 701), "number"),
        **dict.fromkeys((18, 19, 25, 1042, 1043, 2950), "text"),
        # Dates, times and spans; json; bytes.
        **dict.fromkeys((1082, 1083, 1114, 1184, 1186, 1266, 114, 3802, 17), "other"),
    },
    "sqlite": {},
}


_READ_ONLY: Final[dict[str, dict[str, Any]]] = {
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
    "sqlite": {},
}


class _Failed(Exception):
    """A database's error without its text.

    Attributes:
        state: its SQLSTATE; empty where there is none.
        detail: what was found here, in our own words.
    """

    def __init__(self, state: str, detail: str = "") -> None:
        super().__init__(state)
        self.state = state
        self.detail = detail


def _columns(connection: "sa.Connection", query: str) -> list[Column]:
    """What a query gives, without a row of it."""
    import sqlalchemy as sa

    if connection.dialect.name == "sqlite":
        # Asked for no row it makes what the query joins first, of all rows; a view is not run.
        view = f"CREATE TEMP VIEW feddp_columns AS SELECT * FROM {_subquery(query)}"  # noqa: S608
        connection.execute(sa.text(view))
        told = connection.execute(sa.text("PRAGMA temp.table_info(feddp_columns)")).all()
        connection.execute(sa.text("DROP VIEW temp.feddp_columns"))
        return [Column(str(one[1])) for one in told]
    answer = connection.execute(_select(query, None).limit(0))
    described = answer.cursor.description if answer.cursor is not None else None
    kinds = _KINDS[connection.dialect.name]
    return [Column(str(one[0]), kinds.get(one[1], "any")) for one in described or ()]


def _select(query: str, wanted: Sequence[str] | None) -> "sa.Select[*tuple[Any, ...]]":
    """Columns of the query; None for all."""
    import sqlalchemy as sa

    inner = sa.text(_subquery(query))
    if wanted is None:
        return sa.select(sa.literal_column("*")).select_from(inner)
    return sa.select(*(sa.column(name) for name in wanted)).select_from(inner)


def _subquery(query: str) -> str:
    """The query as a subquery, which can be neither several statements nor, at its top, a change.

    The line break ends a comment on its last line.
    """
    # SQLAlchemy takes :name for a parameter, so that every colon is escaped.
    return "(" + query.replace(":", "\\:") + "\n) AS feddp_source"


def _plain(value: Any) -> Any:
    """A cell as records are read: identifiers and exact numbers of a database as text or number."""
    if isinstance(value, decimal.Decimal):
        # Beyond float64 it is neither number nor id, and to make an int of it takes long.
        if not value.is_finite() or value.adjusted() > sys.float_info.max_10_exp:
            return float(value)
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    return value
