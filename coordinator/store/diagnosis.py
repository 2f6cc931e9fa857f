"""What keeps a database from serving, in a sentence for `feddp coordinator check`."""

import os
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

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
    ("refused", "no server listens at that host and port"),
    ("resolve host", "its host name is not known here"),
    ("translate host name", "its host name is not known here"),
    ("timeout", "its host does not answer; a firewall may be in between"),
    ("unreachable", "no way leads to its host from here; a firewall may be in between"),
    ("too many clients", "it has no connection left; raise max_connections or end other clients"),
    ("starting up", "it is starting; try again in a while"),
    ("password", "the server does not accept this user with this password"),
    ("pg_hba.conf", "the server's pg_hba.conf does not let this user in from here"),
    ("database", "the server has no database of that name; `createdb` makes one"),
    ("role", "the server has no such user"),
    ("SSL", "the server and this program do not agree on TLS; see sslmode"),
)
"""What libpq says, in part -> what it means. Its own words hold names, and go no further."""


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

    Damage that PostgreSQL finds is none of these two: they are about the connection and its means.
    """
    if not is_sqlite(url) and isinstance(error, OperationalError | InterfaceError):
        return (
            "the PostgreSQL server ended the connection, or refuses more; its log says why, and "
            "nothing is known to be wrong with the database: try again"
        )
    return f"the database cannot be read ({type(error).__name__}); restore it from a backup"


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
    finally:
        database.close()
    if not shut_tables:
        return None
    return (
        f"the database's user may read and not write ({', '.join(shut_tables)}): make it the owner "
        "of the tables, or GRANT it INSERT, UPDATE and DELETE on them"
    )


def _without_rights(connection: Connection) -> list[str]:
    there = text("SELECT to_regclass(:name) IS NULL")
    rights = text("SELECT has_table_privilege(:name, 'INSERT')")
    return [
        name
        for name in sorted(metadata.tables)
        if not connection.scalar(there, {"name": name})
        and not connection.scalar(rights, {"name": name})
    ]


def _meaning(error: FeddpError) -> str:
    said = str(error.__context__)
    known = (meaning for part, meaning in _KNOWN if part in said)
    return next(known, "it ended the connection for a reason that this program does not know")
