"""What keeps a database from serving, in a sentence for `feddp coordinator check`."""

import os
import re
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from coordinator.store.database import Database, tables_fault
from coordinator.store.engines import is_sqlite
from coordinator.store.schema import metadata
from protos.errors import FeddpError

_KNOWN: Final = (
    (
        "root certificate file",
        "the file of sslrootcert is not there; it holds the server's authority",
    ),
    ("certificate verify failed", "its certificate is not of the authority in sslrootcert"),
    ("does not match host name", "its certificate is for another host name than the URL's"),
    ("invalid connection option", "the URL has a parameter after ? that PostgreSQL does not know"),
    ("invalid sslmode", "sslmode has a value that PostgreSQL does not know; verify-full is one"),
    ("[Cc]onnection refused", "no server listens at that host and port"),
    ("resolve host|translate host name", "its host name is not known here"),
    ("timeout|timed out", "its host does not answer; a firewall may be in between"),
    ("unreachable", "no way leads to its host from here; a firewall may be in between"),
    (
        "too many clients|connection slots are reserved|too many connections",
        "no connection is left for this user, this database or at all; raise its CONNECTION LIMIT "
        "or max_connections, or end other clients",
    ),
    (
        "starting up|shutting down|recovery mode|not yet accepting",
        "it is starting, stopping or recovering; try again in a while",
    ),
    (
        "not currently accepting connections",
        "nobody may connect to this database now (ALLOW_CONNECTIONS)",
    ),
    ("not permitted to log in", "this user may not log in (ALTER ROLE ... LOGIN)"),
    (
        "permission denied for database",
        "this user may not connect to this database (GRANT CONNECT ON DATABASE)",
    ),
    (
        "password authentication failed|no password supplied",
        "the server does not accept this user with this password",
    ),
    (r"pg_hba\.conf", "the server's pg_hba.conf does not let this user in from here"),
    (
        r'database ".*" does not exist',
        "the server has no database of that name; `createdb` makes one",
    ),
    (r'role ".*" does not exist', "the server has no such user"),
    ("SSL", "the server and this program do not agree on TLS; see sslmode"),
)
"""What libpq says, in part -> what it means. Its own words hold names, and go no further. Nothing
that a host, a user or a database could be called stands for anything by itself."""

_WHERE: Final = re.compile(r'connection to server at "[^"]*"(?: \([^)]*\))?, port \d+')
_RIGHTS: Final = "42501"
_DAMAGE: Final = "XX"
"""Class of SQLSTATE: PostgreSQL's own faults, a page that does not read among them."""

_NEEDED: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
_GRANT: Final = (
    "make it the owner of the tables, or GRANT it USAGE on their schema and SELECT, INSERT, UPDATE "
    "and DELETE on them"
)
READ_ONLY: Final = (
    "the server takes no writes now: a copy that is not promoted, or one that was set to read-only "
    "(default_transaction_read_only), as some do when their disk is full"
)


def sqlite_file(url: str) -> Path:
    """The file of a SQLite database."""
    return Path(make_url(url).database or "")


def fault(url: str) -> str | None:
    """Why a database cannot be read by this version; None if it can. Changes nothing."""
    if is_sqlite(url) and not sqlite_file(url).exists():
        return f"{sqlite_file(url)} does not exist; run `feddp coordinator init`"
    if is_sqlite(url) and not os.access(sqlite_file(url), os.R_OK):
        return f"{sqlite_file(url)} cannot be read by this user; run as its owner"
    try:
        database = Database(url)
    except FeddpError as error:
        return error.message
    try:
        revision = database.revision()
        if revision is None:
            if hidden := database.read_now(_hidden):
                return hidden
            return "the database is empty; `feddp coordinator init --database-url` fills it"
        unusable = database.read_now(tables_fault)
        return unusable.message if unusable is not None else None
    except FeddpError as error:
        return f"the PostgreSQL server cannot be used: {_meaning(error)}"
    except SQLAlchemyError as error:
        return unreadable(url, error)
    finally:
        database.close()


def unreadable(url: str, error: SQLAlchemyError) -> str:
    """What an error says of a database that could be opened.

    Damage that PostgreSQL finds has a class of its own.
    """
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    if not is_sqlite(url) and state == _RIGHTS:
        return f"the database's user may not read it: {_GRANT}"
    if not is_sqlite(url) and not state.startswith(_DAMAGE):
        return (
            "the PostgreSQL server ended the connection, or refuses more; its log says why, and "
            "nothing is known to be wrong with the database: try again"
        )
    return f"the database cannot be read ({type(error).__name__}); restore it from a backup"


def hidden(url: str) -> str:
    """Why a database seems to have no tables and has some; empty where it has none."""
    if is_sqlite(url):
        return ""
    database = Database(url)
    try:
        return database.read_now(_hidden)
    finally:
        database.close()


def _hidden(connection: Connection) -> str:
    """Of a database whose tables are not seen."""
    if connection.dialect.name != "postgresql":
        return ""
    schema = connection.scalar(
        text(
            "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relname = 'alembic_version' AND c.relkind = 'r' LIMIT 1"
        )
    )
    if schema is None:
        return ""
    return (
        f"its tables are in the schema {schema}, and this user does not see them there: GRANT it "
        "USAGE on the schema, or have its search_path name it. Nothing is lost"
    )


def is_empty(url: str) -> bool:
    """Whether there is a server and a database of that name, or a place for a file, and nothing in
    it. What cannot be looked at is not: whoever opens it says why."""
    if is_sqlite(url):
        return not sqlite_file(url).exists()
    try:
        database = Database(url)
    except FeddpError:
        return False
    try:
        return database.revision() is None
    except (FeddpError, SQLAlchemyError):
        return False
    finally:
        database.close()


def write_fault(url: str) -> str | None:
    """Why this user cannot write to a database that can be read; None if it can."""
    if is_sqlite(url):
        file = sqlite_file(url)
        # SQLite writes its journal beside the file.
        shut = [path for path in (file, file.parent) if not os.access(path, os.W_OK)]
        return f"{shut[0]} cannot be written by this user; run as its owner" if shut else None
    database = Database(url)
    try:
        shut_tables = database.read_now(_without_rights)
        takes_none = database.write_now(lambda c: c.scalar(text("SHOW transaction_read_only")))
    finally:
        database.close()
    if takes_none == "on":
        return READ_ONLY
    if not shut_tables:
        return None
    return (
        f"the database's user may not read and write all of it ({', '.join(shut_tables)}): {_GRANT}"
    )


def _without_rights(connection: Connection) -> list[str]:
    there = text("SELECT to_regclass(:name) IS NULL")
    rights = text("SELECT has_table_privilege(:name, :right)")
    return [
        name
        for name in sorted(metadata.tables)
        if not connection.scalar(there, {"name": name})
        and not all(connection.scalar(rights, {"name": name, "right": one}) for one in _NEEDED)
    ]


def _meaning(error: FeddpError) -> str:
    said = _WHERE.sub("connection", str(error.__context__))
    known = (meaning for part, meaning in _KNOWN if re.search(part, said, re.DOTALL))
    return next(known, "it ended the connection for a reason that this program does not know")
