"""What lies in a backup of a coordinator, and under which names.

A backup is a tar archive, sealed (`certs/sealing.py`) if a password was given:

    format.json          first: what this is, when and of what it was made
    coordinator.yaml     the configuration
    coordinator.db       every table at one moment, as SQLite, whatever database they came from
    models/DIGEST        every model that the tables name
    updates/ATTEMPT.DIGEST  every update that a job still needs
    pki/NAME             the installation's keys and certificates, if they were asked for
    manifest.json        last: bytes and BLAKE3 of each of them, and what should have been there
"""

from typing import Final

from sqlalchemy import Connection, select

from coordinator.rounds.live import job_from_json, plan_of, replay
from coordinator.rounds.phases import current_round
from coordinator.store import jobs as job_store
from coordinator.store.schema import jobs, models
from coordinator.uploads import staged_name

KIND: Final = "feddp-coordinator-backup"
FORMAT: Final = 1

FORMAT_FILE: Final = "format.json"
CONFIG: Final = "coordinator.yaml"
DATABASE: Final = "coordinator.db"
MANIFEST: Final = "manifest.json"
MODELS: Final = "models/"
UPDATES: Final = "updates/"
PKI: Final = "pki/"

GOES_ON: Final = (job_store.RUNNING, "failed")
"""Jobs that may still need models and updates: a failed one can be resumed."""


def named_blobs(connection: Connection) -> tuple[list[str], list[str]]:
    """Names of the updates, and of the models, that the tables name."""
    digests = set(connection.execute(select(models.c.digest)).scalars())
    updates: set[str] = set()
    wanted = select(jobs.c.job_id, jobs.c.resolved).where(jobs.c.status.in_(GOES_ON))
    for job_id, resolved in connection.execute(wanted).all():
        phase, _ = replay(plan_of(job_from_json(resolved)), job_store.history(connection, job_id))
        digests |= {phase.course.initial, phase.course.model}
        record = current_round(phase)
        for attempt in record.received if record is not None else ():
            updates.add(f"{UPDATES}{staged_name(attempt.attempt_id, attempt.digest)}")
    return sorted(updates), sorted(f"{MODELS}{digest}" for digest in digests if digest)


def digest_in(name: str) -> str:
    """The digest that a model's or an update's name holds; empty for another file."""
    if name.startswith(MODELS):
        return name.removeprefix(MODELS)
    return name.rpartition(".")[2] if name.startswith(UPDATES) else ""
