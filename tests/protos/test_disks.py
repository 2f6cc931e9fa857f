"""What an error says of the disk, by errors that real libraries raise."""

import errno
import sqlite3
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from protos.disks import disk_trouble

FILL = "INSERT INTO t VALUES (zeroblob(1000000))"


def test_a_database_that_may_not_grow_is_on_a_full_disk(tmp_path: Path) -> None:
    """SQLite's own error, and the same inside SQLAlchemy's."""
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA max_page_count = 4")
    with pytest.raises(sqlite3.OperationalError) as plain:
        connection.execute(FILL)
    connection.close()
    assert disk_trouble(plain.value) == "full"
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/b.db")
    with engine.begin() as wrapped:
        wrapped.execute(sqlalchemy.text("CREATE TABLE t (x)"))
        wrapped.execute(sqlalchemy.text("PRAGMA max_page_count = 4"))
        with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            wrapped.execute(sqlalchemy.text(FILL))
    engine.dispose()
    assert disk_trouble(caught.value) == "full"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_is_a_full_disk_too(number: int) -> None:
    """The system's error, with and without a file's name."""
    assert disk_trouble(OSError(number, "no room")) == "full"
    assert disk_trouble(OSError(number, "no room", "/f")) == "full"


def test_postgresqls_disk_is_known_by_its_code() -> None:
    """SQLSTATE 53100, and no other."""
    assert disk_trouble(psycopg.errors.DiskFull("-")) == "full"
    assert disk_trouble(psycopg.errors.OutOfMemory("-")) is None


def test_an_unclear_fault_of_the_disk_is_not_called_full() -> None:
    """SQLite does not say why it could not sync."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
    assert disk_trouble(error) == "failing"


def test_what_is_damaged_or_not_there_is_no_matter_of_room(tmp_path: Path) -> None:
    """Else nobody would look for the copy."""
    (tmp_path / "bad.db").write_bytes(b"no database" * 1000)
    connection = sqlite3.connect(tmp_path / "bad.db")
    with pytest.raises(sqlite3.DatabaseError) as damaged:
        connection.execute("SELECT * FROM t")
    connection.close()
    assert disk_trouble(damaged.value) is None
    with pytest.raises(sqlite3.OperationalError) as absent:
        sqlite3.connect(tmp_path / "nowhere" / "a.db")
    assert disk_trouble(absent.value) is None
    assert disk_trouble(PermissionError(errno.EACCES, "denied")) is None
