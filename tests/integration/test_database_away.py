"""A PostgreSQL server that goes away and comes back: coordinators wait for it, whoever leads."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from benchmarks.postgresql import PostgreSql
from benchmarks.s3_server import S3Server
from coordinator.store.leases import LEASE_S
from tests.integration.federation import NODES, null_job, wait_for
from tests.integration.replicas import REPLICAS, ReplicatedFederation
from tests.integration.test_failures import check_books, per_round, rounds_done

ROUNDS = 60


class Served:
    """One database of a server, as its administrator has it."""

    def __init__(self, server: PostgreSql) -> None:
        self.url = server.new_database()
        self._server = server
        self._name = make_url(self.url).database

    def end_connections(self) -> None:
        """As a restart of the server does."""
        own = f"datname = '{self._name}'"
        self._server.superuser(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {own}"  # noqa: S608
        )

    def let_in(self, *, anybody: bool) -> None:
        """As a server that is stopped, or started."""
        self._server.superuser(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS {anybody}")
        self.end_connections()

    def take_writes(self, *, yes: bool) -> None:
        """As a copy that has taken over and is not promoted yet."""
        setting = "off" if yes else "on"
        self._server.superuser(
            f"ALTER DATABASE {self._name} SET default_transaction_read_only = {setting}"
        )
        self.end_connections()


@pytest.fixture
def served(postgresql_server: PostgreSql) -> Served:
    """An empty database."""
    return Served(postgresql_server)


@pytest.fixture
def federation(served: Served, s3: S3Server, tmp_path: Path) -> Iterator[ReplicatedFederation]:
    """Three replicas and three nodes."""
    federation = ReplicatedFederation(tmp_path, served.url, s3)
    try:
        federation.open()
        for name in NODES[:3]:
            federation.add_node(name)
            federation.start(name)
        federation.wait_for_nodes(*NODES[:3])
        yield federation
    finally:
        federation.close()


def test_every_replica_outlives_its_database(
    federation: ReplicatedFederation, served: Served
) -> None:
    """Gone for longer than a lease; read-only; every connection cut again and again. The same
    processes go on when it is back, and the job ends with one charge for each node and round."""
    pids = {name: federation.pid(name) for name in REPLICAS}
    job_id = federation.submit(null_job(ROUNDS))
    rounds_done(federation, job_id, 2)

    served.let_in(anybody=False)
    wait_for("nobody is ready", lambda: not any(map(federation.ready, REPLICAS)))
    time.sleep(2 * LEASE_S)
    served.let_in(anybody=True)
    wait_for("all are ready", lambda: all(map(federation.ready, REPLICAS)))

    served.take_writes(yes=False)
    time.sleep(LEASE_S)
    served.take_writes(yes=True)
    for _ in range(20):
        served.end_connections()
        time.sleep(0.3)

    wait_for("one leads", lambda: sum(map(federation.leads, REPLICAS)) == 1)
    after = federation.wait_for_end(job_id)
    assert (after.status, after.rounds_done) == ("completed", ROUNDS), after.message
    check_books(federation, after)
    assert set(per_round(federation).values()) == {1}
    assert {name: federation.pid(name) for name in REPLICAS} == pids
    said = "".join(federation.log(name) for name in REPLICAS)
    assert "lease_not_renewed" in said
    assert "waiting_for_database" in said
