"""An installation with a ledger, a job and updates, and backups of it, for tests of restoring."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from coordinator.backups.backup import backup
from coordinator.installation import Installation, init
from coordinator.keyring import ledger_key
from coordinator.restoring.restore import Restored, restore
from coordinator.rounds import events
from coordinator.rounds.live import job_to_json
from coordinator.store import booking, checkpoints, jobs
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord, ModelRecord
from coordinator.store.schema import metadata, nodes
from privacy.ledger import sign
from protos.content import digest_of
from tests.coordinator.planning import HASH, SPEC, job
from tests.coordinator.playbook import offers
from tests.coordinator.store_conformance.samples import KEY, PUBLIC, statement, with_account

MODEL = b"a model of a few bytes"
UPDATE = b"an update that its round still needs"
PASSWORD = b"a password of these tests"
ORDERED = (
    events.NodesSurveyed(offers("a", "b", "d"), ()),
    events.BudgetsReserved(tuple(events.Grant(one.node, one) for one in offers("a", "b", "d")), ()),
    events.UpdateReceived("a", digest_of(UPDATE), len(UPDATE), b""),
)


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """A database, closed at the end."""
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


@dataclass(frozen=True, slots=True)
class Source:
    """What backups are made of."""

    made: Installation
    url: str

    def book(self, attempt_id: str, *kinds: str) -> None:
        """Entries of an attempt that the node has signed."""
        with opened(self.url) as database:
            for kind in kinds or ("reserve", "post"):
                one = statement(attempt_id, kind=kind)  # type: ignore[arg-type]
                database.write_now(lambda c, one=one: booking.book(c, one, sign(KEY, one)))  # type: ignore[misc]

    def backup(self, out: Path, *, keys: bool = True) -> Path:
        """A sealed backup."""
        backup(self.made.config, out, keys=keys, password=PASSWORD)
        return out


def source(folder: Path, database_url: str = "") -> Source:
    """An account that has paid for one release and holds another, a job that runs with an update
    on disk, and a checkpoint."""
    made = init(folder, "test.example", database_url=database_url)
    url = database_url or f"sqlite:///{folder / 'coordinator.db'}"
    digest = digest_of(MODEL)
    blobs = folder / "blobs"
    (blobs / "updates").mkdir(parents=True)
    (blobs / digest).write_bytes(MODEL)
    (blobs / "updates" / f"a.{digest_of(UPDATE)}").write_bytes(UPDATE)
    record = JobRecord(
        *("j", "default", "heart", "operator", "r", SPEC, job_to_json(job()), HASH, "running", 1.0)
    )
    steps = (events.JobSubmitted(digest), *ORDERED)
    model = ModelRecord("j", "round", 1, digest, len(MODEL), 1.0, "default")
    found = Source(made, url)
    with opened(url) as database:
        with_account(database)
        database.write_now(lambda c: c.execute(nodes.update().values(ledger_public_key=PUBLIC)))
        database.write_now(lambda c: jobs.add(c, record))
        database.write_now(lambda c: jobs.append_all(c, "j", 0, 1.0, steps))
        database.write_now(lambda c: jobs.add_model(c, model))
    found.book("x1")
    found.book("open", "reserve")
    with opened(url) as database:
        key = ledger_key(folder / "pki")
        database.write_now(lambda c: checkpoints.renew(c, key, 1.0))
    return found


def restored(file: Path, folder: Path, **options: Any) -> Restored:
    """Restore a sealed backup, without revocations unless they are given."""
    return restore(file, folder, **{"password": PASSWORD, "revoked": None, **options})


def rows(url: str) -> dict[str, list[Any]]:
    """Every row of every table."""

    def work(connection: Connection) -> dict[str, list[Any]]:
        return {
            table.name: sorted(map(tuple, connection.execute(select(table)).all()), key=repr)
            for table in metadata.sorted_tables
        }

    with opened(url) as database:
        return database.read_now(work)
