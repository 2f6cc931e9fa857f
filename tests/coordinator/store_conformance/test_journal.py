"""Jobs and their journals."""

import pytest
from sqlalchemy.exc import IntegrityError

from coordinator.rounds import events
from coordinator.store import jobs
from coordinator.store.database import Database


def test_two_writers_cannot_both_go_on_from_the_same_step(database: Database) -> None:
    """The journal's key is job and step: the second writer is refused."""
    record = jobs.JobRecord("j", "default", "n", "u", "r", b"", "{}", "h", "running", 0.0)
    database.write_now(lambda c: jobs.add(c, record))
    event = events.JobSubmitted("m0")
    database.write_now(lambda c: jobs.append(c, "j", 0, 1.0, event))
    with pytest.raises(IntegrityError):
        database.write_now(lambda c: jobs.append(c, "j", 0, 2.0, event))
    assert database.read_now(lambda c: jobs.history(c, "j")) == [(1.0, event)]
