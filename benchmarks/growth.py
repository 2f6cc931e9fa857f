"""What a job leaves on disk, in the tables, among the models, at a node; what a backup takes."""

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psycopg
from sqlalchemy import make_url

from benchmarks.federation import COORDINATOR, Federation, federation
from benchmarks.measuring import MIB
from benchmarks.postgresql import postgresql
from benchmarks.results import Result, result

Kind = Literal["sqlite", "postgresql"]
KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Growth:
    """A job of `warm_up` rounds, after which sizes are taken, and one of `rounds`, after which they
    are taken again. Small jobs hide what a page holds: `rounds` must be many."""

    database: Kind
    nodes: int
    parameters: int
    warm_up: int
    rounds: int
    seconds_max: float

    @property
    def model_bytes(self) -> int:
        """Of float32 values."""
        return 4 * self.parameters

    @property
    def disk_bytes(self) -> int:
        """At most: each round's model and updates at both ends, and all of it in a backup."""
        rounds = self.warm_up + self.rounds
        return self.model_bytes * (2 * (rounds + 4) + self.nodes * (2 * rounds + 1))

    def run(self, case: str) -> list[Result]:
        """Rounds, then a backup beside the running coordinator, and its verification."""
        with ExitStack() as stack:
            url = ""
            if self.database == "postgresql":
                url = stack.enter_context(postgresql()).new_database()
            running = stack.enter_context(federation(self.nodes, url))
            self._job(running, self.warm_up)
            before = _sizes(running, url)
            self._job(running, self.rounds)
            after = _sizes(running, url)
            grown = [(b - a) / self.rounds for a, b in zip(before, after, strict=True)]
            backup = _backup(running, is_sealed=bool(url))  # else the URL's password would be open
            sealed = _backup(running, is_sealed=True)
            held_mib = sum(after[:2]) / MIB
        return [
            result(case, "database_per_round", grown[0] / KIB, "KiB"),
            result(case, "models_per_round", grown[1] / KIB, "KiB", self.model_bytes / KIB),
            result(case, "node_state_per_round", grown[2] / KIB, "KiB"),
            result(case, "backup_size", backup.mib, "MiB", held_mib),
            result(case, "backup_time", backup.write_s, "s"),
            result(case, "backup_verify_time", backup.verify_s, "s"),
            result(case, "sealed_backup_time", sealed.write_s, "s"),
            result(case, "sealed_backup_verify_time", sealed.verify_s, "s"),
        ]

    def _job(self, running: Federation, rounds: int) -> None:
        running.until_ended(running.submit(self.parameters, rounds), self.seconds_max)


def _sizes(running: Federation, url: str) -> tuple[int, int, int]:
    """Bytes of the coordinator's tables, of its blobs, and of the largest node's `state.db`."""
    home = running.folder / COORDINATOR
    tables = _postgresql_bytes(url) if url else _sqlite_bytes(home / "coordinator.db")
    blobs = sum(one.stat().st_size for one in (home / "blobs").rglob("*") if one.is_file())
    nodes = (_sqlite_bytes(running.folder / name / "state.db") for name in running.names)
    return tables, blobs, max(nodes)


def _sqlite_bytes(file: Path) -> int:
    """Pages in use, those that lie in the write-ahead log included."""
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        used, free, size = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
    finally:
        connection.close()
    return (used - free) * size


def _postgresql_bytes(url: str) -> int:
    """Files of tables and indexes; not the server's write-ahead log."""
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


@dataclass(frozen=True, slots=True)
class _Backup:
    """A backup that is gone again.

    Attributes:
        write_s, verify_s: of the command, from its start to its exit.
    """

    mib: float
    write_s: float
    verify_s: float


def _backup(running: Federation, *, is_sealed: bool) -> _Backup:
    """Write one beside the running coordinator, and read it back; with the keys if it is sealed."""
    out, password = running.folder / "backup", running.folder / "password"
    password.write_text("a password of this benchmark\n")
    seal = ("--password-file", str(password)) if is_sealed else ()
    where = ("--dir", str(running.installation.folder), "--out", str(out))
    write_s = _seconds(*where, *seal, *(["--keys"] if is_sealed else []))
    verify_s = _seconds("--verify", str(out), *seal)
    made = _Backup(out.stat().st_size / MIB, write_s, verify_s)
    out.unlink()
    return made


def _seconds(*arguments: str) -> float:
    """Seconds of `feddp coordinator backup ...`, from its start to its exit."""
    began_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "feddp", "coordinator", "backup", *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began_s
    if done.returncode or json.loads(done.stdout).get("missing"):
        raise RuntimeError(f"the backup said: {done.stdout}{done.stderr}")
    return seconds
