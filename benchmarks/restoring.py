"""A whole coordinator from its backup: `feddp coordinator restore`, everything in it checked."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from benchmarks.ledger_verify import signed_ledger
from benchmarks.measuring import TreeTrace
from benchmarks.results import Result, result
from coordinator.backups.backup import backup
from coordinator.installation import Installation, init
from coordinator.store import jobs, ledger, people
from coordinator.store.booking import Books
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord, ModelRecord
from privacy.filters import Filter
from privacy.ledger import Entry, Statement
from protos.content import CHUNK_BYTES, digest_of_file

PASSWORD: Final = "a password of this benchmark"  # noqa: S105 - of nothing else
MODEL_BYTES: Final = 100_000_000
ENTRY_BYTES: Final = 1_000
AT_ONCE: Final = 5_000
JOB: Final = "job"


@dataclass(frozen=True, slots=True)
class Restore:
    """An installation on SQLite: the entries of four nodes, each signed, and models of 100 MB.

    The backup is sealed and holds the keys. What is timed is the command from its start to its
    exit: all bytes opened and hashed, every chain and signature checked, files and rows written and
    synced. Floor: the backup's bytes copied to another file and synced.
    """

    entries: int
    models: int

    @property
    def disk_bytes(self) -> int:
        """The installation, its backup, what is restored, and two copies of the tables."""
        return 3 * self.models * MODEL_BYTES + 5 * self.entries * ENTRY_BYTES

    def run(self, case: str) -> list[Result]:
        """One backup, and one restore of it."""
        with tempfile.TemporaryDirectory(prefix="feddp-bench-") as folder:
            place = Path(folder)
            made = init(place / "made", "bench.example")
            self._fill(made)
            (place / "password").write_text(PASSWORD)
            began_s = time.perf_counter()
            backup(made.config, place / "backup", keys=True, password=PASSWORD.encode())
            backup_s = time.perf_counter() - began_s
            floor_s = _copy_s(place / "backup", place / "copy")
            seconds, peak_mib = self._restore(place)
            size = (place / "backup").stat().st_size
        return [
            result(case, "restore_time", seconds, "s", floor_s),
            result(case, "restore_peak_memory", peak_mib, "MiB"),
            result(case, "backup_time", backup_s, "s", floor_s),
            result(case, "backup_size", size / (1 << 20), "MiB"),
        ]

    def _restore(self, place: Path) -> tuple[float, float]:
        words = ["restore", place / "backup", "--dir", place / "back", "--without-revocations"]
        words += ["--password-file", place / "password", "--json"]
        began_s = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "feddp", "coordinator", *map(str, words)],
            stdout=subprocess.PIPE,
            text=True,
        )
        with TreeTrace(process.pid) as trace:
            said, _ = process.communicate()
            seconds = time.perf_counter() - began_s
        told = json.loads(said) if process.returncode == 0 else {}
        if (told.get("entries"), told.get("blobs")) != (self.entries, self.models):
            raise RuntimeError(f"the command found: {said}")
        return seconds, trace.peak_mib

    def _fill(self, made: Installation) -> None:
        entries, filters, keys = signed_ledger(self.entries)
        database = Database(f"sqlite:///{made.folder / 'coordinator.db'}")
        database.write_now(lambda c: _accounts(c, filters, keys))
        for start in range(0, len(entries), AT_ONCE):
            some = entries[start : start + AT_ONCE]
            database.write_now(lambda c, some=some: _book(c, some))  # type: ignore[misc]
        blobs = made.folder / "blobs"
        blobs.mkdir(exist_ok=True)
        for number in range(self.models):
            digest = _model(blobs)
            model = ModelRecord(JOB, "round", number, digest, MODEL_BYTES, 1.0, "default")
            database.write_now(lambda c, model=model: jobs.add_model(c, model))  # type: ignore[misc]
        database.close()


def _accounts(connection: Connection, filters: dict[str, Filter], keys: dict[str, bytes]) -> None:
    record = JobRecord(JOB, "default", "j", "operator", "r", b"", "{}", "0" * 64, "completed", 1.0)
    jobs.add(connection, record)
    for account, one in filters.items():
        node = account.partition("/")[0]
        people.invite(connection, node, "hpc", node, spiffe_id=node, now_s=0.0, expires_at_s=1.0)
        people.enrol(connection, node, node, keys[node], b"chain")
        ledger.open_account(connection, account, node, one.kind, 0, one.epsilon_limit, one.delta)


def _book(connection: Connection, some: Sequence[Entry]) -> None:
    """As the coordinator books, so that balances and heads are what they would be."""
    books = Books(connection)
    signed = [
        (one.statement, one.node_signature) for one in some if isinstance(one.statement, Statement)
    ]
    books.expect(attempt_ids=sorted({said.attempt_id for said, _ in signed}))
    for said, signature in signed:
        books.book(said, signature)
    books.flush()


def _model(blobs: Path) -> str:
    """Bytes that no compression helps; the digest that names them."""
    path = blobs / "new"
    with path.open("wb") as file:
        for start in range(0, MODEL_BYTES, CHUNK_BYTES):
            file.write(os.urandom(min(CHUNK_BYTES, MODEL_BYTES - start)))
    digest = digest_of_file(path)
    path.rename(blobs / digest)
    return digest


def _copy_s(source: Path, target: Path) -> float:
    """Seconds to copy and sync a file."""
    began_s = time.perf_counter()
    with source.open("rb") as file, target.open("wb") as copy:
        while data := file.read(CHUNK_BYTES):
            copy.write(data)
        copy.flush()
        os.fsync(copy.fileno())
    return time.perf_counter() - began_s
