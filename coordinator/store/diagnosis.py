"""What keeps a database from serving, in a sentence for `feddp coordinator check`."""

from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from coordinator.store.database import Database, newest_revision
from coordinator.store.engines import is_sqlite
from protos.errors import FeddpError

_KNOWN: Final = (
    ("refused", "no server listens at that host and port"),
    ("resolve host", "its host name is not known here"),
    ("translate host name", "its host name is not known here"),
    ("timeout", "its host does not answer; a firewall may be in between"),
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
    try:
        database = Database(url)
    except FeddpError as error:
        return error.message
    try:
        revision = database.revision()
        if revision is None:
            return "the database is empty; `feddp coordinator init --database-url` fills it"
        if revision > newest_revision():
            return "the database was upgraded by a newer version of feddp; serve it with that one"
        return None
    except FeddpError as error:
        return f"the PostgreSQL server cannot be used: {_meaning(error)}"
    except SQLAlchemyError as error:
        return f"the database cannot be read ({type(error).__name__}); restore it from a backup"
    finally:
        database.close()


def _meaning(error: FeddpError) -> str:
    said = str(error.__context__)
    known = (meaning for part, meaning in _KNOWN if part in said)
    return next(known, "it ended the connection for a reason that this program does not know")
