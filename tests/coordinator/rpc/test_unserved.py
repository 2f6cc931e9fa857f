"""A call that the database could not serve now is told as that, and not as a fault of ours."""

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import text

from benchmarks.postgresql import PostgreSql
from coordinator.observing.metrics import Metrics
from coordinator.rpc.gate import Gate
from coordinator.store.database import Database
from protos.errors import FeddpError
from protos.feddp.v1 import models_pb2 as pb
from protos.feddp.v1 import models_pb2_grpc as pb_grpc
from protos.status import from_rpc


class OpenGate(Gate):
    """Lets everybody in."""

    def admit(self, _context: Any, _method: str) -> None:
        """See `Gate`."""


class Models(pb_grpc.ModelsServicer):
    """Whose answer is one statement's."""

    def __init__(self, database: Database, statement: str, *, writes: bool) -> None:
        self._run = database.write if writes else database.read
        self._statement = statement

    async def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """See models.proto."""
        parts = [text(part) for part in self._statement.split(";")]
        await self._run(lambda connection: [connection.execute(one) for one in parts])
        return pb.ListModelsResponse()


async def refusal(database: Database, statement: str, *, writes: bool = False) -> FeddpError:
    """How a call is refused that runs a statement."""
    server = grpc.aio.server(interceptors=[OpenGate(None, Metrics())])
    pb_grpc.add_ModelsServicer_to_server(Models(database, statement, writes=writes), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await pb_grpc.ModelsStub(channel).ListModels(pb.ListModelsRequest())
            return from_rpc(refused.value)
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("statement", "code", "reason"),
    [
        ("SET LOCAL lock_timeout = '50ms'; SELECT * FROM entries", "UNAVAILABLE", "DATABASE_BUSY"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "UNAVAILABLE", "DATABASE_AWAY"),
        ("SELECT * FROM nowhere", "INTERNAL", "INTERNAL"),
    ],
)
def test_who_asks_is_told_to_try_again_where_that_helps(
    postgresql_server: PostgreSql, statement: str, code: str, reason: str
) -> None:
    """Programs do so by themselves; a fault of ours stays an incident, whose log line has it."""
    url = postgresql_server.new_database()
    with closing(Database(url)) as database, closing(Database(url)) as other:
        database.migrate()
        with other._writer.begin() as held:
            held.execute(text("LOCK TABLE entries IN ACCESS EXCLUSIVE MODE"))
            found = asyncio.run(refusal(database, statement))
    assert (found.code, found.reason) == (code, reason)


def test_a_full_disk_is_named_and_work_goes_on_when_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever cancels a job just then is no incident; the log has one line, however often it is
    tried."""

    def pages_at_most(database: Database, pages: int) -> None:
        with database._writer.begin() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    much = "CREATE TABLE much AS SELECT zeroblob(1000000)"
    with closing(Database(f"sqlite:///{tmp_path / 'c.db'}")) as database:
        database.migrate()
        pages_at_most(database, 1)  # it is never below what there is
        for _ in range(2):
            found = asyncio.run(refusal(database, much, writes=True))
            assert (found.code, found.reason) == ("UNAVAILABLE", "DATABASE_FULL")
        assert database.is_full
        monkeypatch.setattr("coordinator.store.database.FULL_S", 0.0)
        pages_at_most(database, 1 << 30)
        database.write_now(lambda connection: connection.exec_driver_sql(much))
        assert not database.is_full
    said = capsys.readouterr().out
    assert said.count("database_full") == 1
    assert "rpc_failed" not in said


def test_a_disk_that_takes_no_writes_is_named_and_work_goes_on_when_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that the system made read-only after an error; what waits tries again."""

    def takes_writes(database: Database, *, so: bool) -> None:
        with closing(database._writer.raw_connection()) as connection:
            connection.cursor().execute(f"PRAGMA query_only={0 if so else 1}")

    much = "CREATE TABLE much AS SELECT 1"
    with closing(Database(f"sqlite:///{tmp_path / 'c.db'}")) as database:
        database.migrate()
        takes_writes(database, so=False)
        for _ in range(2):
            found = asyncio.run(refusal(database, much, writes=True))
            assert (found.code, found.reason) == ("UNAVAILABLE", "DATABASE_FAILING")
        assert not database.is_full
        takes_writes(database, so=True)
        database.write_now(lambda connection: connection.exec_driver_sql(much))
    said = capsys.readouterr().out
    assert said.count("database_failing") == 1
    assert "rpc_failed" not in said
