"""A PostgreSQL server that goes away and comes back: coordinators wait for it, whoever leads."""

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from benchmarks.postgresql import PostgreSql
from benchmarks.s3_server import S3Server
from coordinator.store.leases import LEASE_S
from tests.integration.federation import Federation, null_job, wait_for
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


class Silencer:
    """Between a client and a server; can go silent on the connections that are open, as a machine
    that died or a router that failed over. New ones work."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._age = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def go_silent(self) -> None:
        """Nothing passes any more on what is open, and nothing is closed."""
        self._age += 1

    def close(self) -> None:
        """For good."""
        for one in (self._listener, *self._open):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._to)
            except OSError:
                return
            self._open += [client, server]
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(*ends, self._age), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, age: int) -> None:
        try:
            while (data := source.recv(65536)) and age == self._age:
                target.sendall(data)
            if age == self._age:
                target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def served(postgresql_server: PostgreSql) -> Served:
    """An empty database."""
    return Served(postgresql_server)


@pytest.fixture
def federation(served: Served, s3: S3Server, tmp_path: Path) -> Iterator[ReplicatedFederation]:
    """Three replicas and three nodes."""
    federation = ReplicatedFederation(tmp_path, served.url, s3)
    with federation.with_nodes():
        yield federation


def keep_up(federation: ReplicatedFederation) -> None:
    """As whatever starts replicas again; one ends for no other reason than that another leads."""
    for name in REPLICAS:
        if not federation.is_running(name):
            *_, last = federation.log(name).splitlines()
            assert "another coordinator has taken over" in last
            federation.start(name)


def test_replicas_outlive_their_database(federation: ReplicatedFederation, served: Served) -> None:
    """Gone for longer than a lease; read-only; every connection cut again and again. They go on
    when it is back, and the job ends with one charge for each node and round."""
    job_id = federation.submit(null_job(ROUNDS))
    rounds_done(federation, job_id, 2)

    served.let_in(anybody=False)
    wait_for("nobody is ready", lambda: not any(map(federation.ready, REPLICAS)))
    time.sleep(2 * LEASE_S)
    assert all(map(federation.is_running, REPLICAS))
    served.let_in(anybody=True)
    time.sleep(LEASE_S)
    keep_up(federation)

    served.take_writes(yes=False)
    time.sleep(LEASE_S)
    assert all(map(federation.is_running, REPLICAS))
    served.take_writes(yes=True)
    for _ in range(20):
        served.end_connections()
        time.sleep(0.3)
        keep_up(federation)

    wait_for("one leads", lambda: sum(map(federation.leads, REPLICAS)) == 1)
    after = federation.wait_for_end(job_id)
    assert (after.status, after.rounds_done) == ("completed", ROUNDS), after.message
    check_books(federation, after)
    assert set(per_round(federation).values()) == {1}
    said = "".join(federation.log(name) for name in REPLICAS)
    assert "lease_not_renewed" in said
    assert "waiting_for_database" in said


def test_a_coordinator_alone_outlives_its_database(served: Served, tmp_path: Path) -> None:
    """The same process goes on: nobody else can have taken over."""
    federation = Federation(tmp_path, database_url=served.url)
    try:
        federation.start("coordinator")
        pid = federation.pid("coordinator")
        served.let_in(anybody=False)
        wait_for("it is not ready", lambda: not is_ready(federation))
        time.sleep(2 * LEASE_S)
        served.let_in(anybody=True)
        wait_for("it is ready again", lambda: is_ready(federation))
        federation.add_node("alpha")
        assert federation.is_running("coordinator")
        assert federation.pid("coordinator") == pid
    finally:
        federation.stop()


def is_ready(federation: Federation) -> bool:
    """What its /ready says."""
    try:
        with urllib.request.urlopen(f"{federation.health}/ready", timeout=3) as answer:  # noqa: S310
            return bool(json.load(answer)["ready"])
    except OSError:
        return False


def test_connections_that_go_silent_are_made_anew(
    postgresql_server: PostgreSql, tmp_path: Path
) -> None:
    """What answered them is gone and nobody says so; until they are made anew the coordinator says
    that it is not ready, and afterwards the same process goes on."""
    url = make_url(postgresql_server.new_database())
    silencer = Silencer(url.port or 0)
    through = url.set(port=silencer.port).render_as_string(hide_password=False)
    federation = Federation(tmp_path, database_url=through)
    try:
        federation.start("coordinator")
        federation.add_node("alpha")
        pid = federation.pid("coordinator")
        silencer.go_silent()
        wait_for("it is not ready", lambda: not is_ready(federation))
        wait_for("it is ready again", lambda: is_ready(federation))
        federation.add_node("beta")
        assert federation.pid("coordinator") == pid
        assert federation.is_running("coordinator")
        assert "database_silent" in federation.log("coordinator")
    finally:
        federation.stop()
        silencer.close()
