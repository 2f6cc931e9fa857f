"""Over which connection bytes go: the one that the coordinator tells of while it serves, and the
session's at every other time."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from node_agent.connection.transfer import Transfers
from node_agent.connection.transfer_ways import REST_S, REST_S_MAX, Ways
from node_agent.state.spool import Spool
from protos.content import digest_of
from protos.errors import FeddpError, Malformed, NotAllowed, TooLate, Unavailable
from protos.feddp.v1 import federation_pb2_grpc, transfer_pb2_grpc
from protos.status import DETAILS_KEY, details
from tests.node_agent.connection.test_transfer import DIGEST, MODEL, FakeTransfer

UPDATE = os.urandom(300_000)
UPDATE_DIGEST = digest_of(UPDATE)


class Replica(FakeTransfer):
    """Counts its calls, and refuses those to come with what it is given.

    Attributes:
        refusals: for each next call of Transfer, until they are used up; then `always`.
    """

    def __init__(self, blob: bytes = MODEL) -> None:
        super().__init__(blob)
        self.calls = 0
        self.refusals: list[FeddpError] = []
        self.always: FeddpError | None = None

    async def _admit(self, context: Any) -> None:
        self.calls += 1
        error = self.refusals.pop(0) if self.refusals else self.always
        if error is not None:
            context.set_trailing_metadata(((DETAILS_KEY, details(error)),))
            await context.abort(grpc.StatusCode[error.code], error.message)

    async def Download(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._admit(context)
        async for one in super().Download(request, context):
            yield one

    async def Upload(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        await self._admit(context)
        return await super().Upload(request_iterator, context)

    async def UploadStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._admit(context)
        return await super().UploadStatus(request, context)


class Site:
    """An agent's transfers between two servers: the leader, and one that is told of."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.leader, self.replica = Replica(), Replica()
        self.now_s = 1000.0
        self.waits: list[float] = []
        self.dialled: list[str] = []

    async def wait(self, delay_s: float) -> None:
        self.waits.append(delay_s)
        self.now_s += delay_s

    async def hand_in(self, attempt_id: str = "a1") -> None:
        self.spool.update(UPDATE_DIGEST).write_bytes(UPDATE)
        await self.transfers.hand_in(attempt_id, UPDATE_DIGEST, b"signed")

    async def fetch(self) -> None:
        await self.transfers.fetch(DIGEST, len(MODEL))
        assert self.spool.has_model(DIGEST)
        self.spool.keep_models(set())

    async def run(self, scene: Callable[["Site"], Awaitable[None]]) -> None:
        servers, ports = [], []
        for fake in (self.leader, self.replica):
            server = grpc.aio.server()
            transfer_pb2_grpc.add_TransferServicer_to_server(fake, server)
            federation_pb2_grpc.add_FederationServicer_to_server(fake, server)
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            servers.append(server)
        self.address = f"127.0.0.1:{ports[1]}"
        self.stop_replica = lambda: servers[1].stop(None)
        opened: list[grpc.aio.Channel] = []

        def open_apart(address: str) -> grpc.aio.Channel:
            self.dialled.append(address)
            opened.append(grpc.aio.insecure_channel(address))
            return opened[-1]

        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
            self.channel = channel
            self.ways = Ways(channel, "127.0.0.1", open_apart, lambda: self.now_s)
            self.transfers = Transfers(channel, self.spool, self.wait, None, self.ways)
            try:
                await asyncio.wait_for(scene(self), 30)
            finally:
                for one in (*opened, *servers):
                    await (one.close() if isinstance(one, grpc.aio.Channel) else one.stop(None))


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[Site], Awaitable[None]]], list[Any]]:
    """Runs a scene, and gives what was logged."""

    def run(scene: Callable[[Site], Awaitable[None]]) -> list[Any]:
        with capture_logs() as logs:
            asyncio.run(Site(Spool(tmp_path / "spool")).run(scene))
        return [one["event"] for one in logs if one["event"].startswith("transfer_address")]

    return run


Play = Callable[[Callable[[Site], Awaitable[None]]], list[Any]]


def test_bytes_go_where_the_coordinator_tells_and_the_word_to_who_decides(play: Play) -> None:
    """Models and updates move at the replica; that an update is in is said at the leader alone."""

    async def scene(site: Site) -> None:
        site.transfers.told(site.address)
        await site.fetch()
        await site.hand_in()
        assert site.leader.calls == 0
        assert site.replica.uploaded == UPDATE
        assert (len(site.leader.submitted), len(site.replica.submitted)) == (1, 0)
        assert site.waits == []

    assert play(scene) == ["transfer_address_used"]


def test_without_an_address_everything_goes_over_the_sessions_connection(play: Play) -> None:
    """As with a coordinator that tells none, also after it had told one before."""

    async def scene(site: Site) -> None:
        await site.fetch()
        site.transfers.told(site.address)
        site.transfers.told("")
        await site.fetch()
        await site.hand_in()
        assert site.replica.calls == 0
        assert site.leader.uploaded == UPDATE

    assert play(scene) == []


def test_an_address_of_another_host_is_not_dialled(play: Play) -> None:
    """A coordinator sends no agent to another machine inside the hospital; said once."""

    async def scene(site: Site) -> None:
        for _ in range(3):
            site.transfers.told("10.0.0.7:22")
            await site.fetch()
        assert site.dialled == []
        assert site.leader.calls > 0

    assert play(scene) == ["transfer_address_refused"]


def test_one_that_is_not_reached_is_left_for_longer_and_longer(play: Play) -> None:
    """Everything moves at the leader meanwhile, nothing waits for it twice, and it is said once;
    when it answers again it is used again."""

    async def scene(site: Site) -> None:
        site.transfers.told(site.address)
        site.replica.always = Unavailable("STORE_UNREACHABLE", "no", retry_after_s=60)
        rest_s = REST_S
        for _ in range(8):
            before = site.replica.calls
            for _ in range(3):
                await site.fetch()
            assert site.replica.calls == before + 1
            site.now_s += rest_s - 0.1
            await site.fetch()
            assert site.replica.calls == before + 1
            site.now_s += 0.2
            rest_s = min(REST_S_MAX, 2 * rest_s)
        assert site.waits == [], "the leader is there: nobody waits"
        site.replica.always = None
        await site.hand_in()
        assert site.replica.uploaded == UPDATE

    assert play(scene) == ["transfer_address_left", "transfer_address_used"]


def test_one_that_does_not_answer_at_all_is_left(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall that is closed, or a process that is gone."""
    monkeypatch.setattr("node_agent.connection.transfer_ways.CONNECT_S", 0.2)

    async def scene(site: Site) -> None:
        await site.stop_replica()
        site.transfers.told(site.address)
        await site.fetch()
        await site.hand_in()
        assert site.leader.uploaded == UPDATE

    assert play(scene) == ["transfer_address_left"]


@pytest.mark.parametrize(
    "error",
    [
        NotAllowed("NOT_ALLOWED", "no"),
        TooLate("ATTEMPT_CLOSED", "no"),
        Malformed("TOO_LARGE", "no"),
    ],
)
def test_what_a_replica_refuses_the_leader_is_asked(play: Play, error: FeddpError) -> None:
    """Its word is the last; the replica is asked again for others, as it serves."""

    async def scene(site: Site) -> None:
        site.transfers.told(site.address)
        site.replica.refusals = [error]
        await site.fetch()
        assert site.leader.calls > 0
        calls, site.replica.refusals = site.leader.calls, []
        await site.fetch()
        assert site.leader.calls == calls
        site.replica.always = site.leader.always = error
        with pytest.raises(type(error)):
            await site.hand_in()

    assert play(scene) == ["transfer_address_used"]


@pytest.mark.parametrize("reason", ["MODEL_COMING", "TRANSFERS_BUSY"])
def test_a_replica_that_asks_for_patience_is_given_it(play: Play, reason: str) -> None:
    """A model on its way to it, or others first: everybody at the leader would be worse."""

    async def scene(site: Site) -> None:
        site.transfers.told(site.address)
        site.replica.refusals = [Unavailable(reason, "later", retry_after_s=1)] * 3
        await site.fetch()
        assert site.leader.calls == 0
        assert len(site.waits) == 3
        assert min(site.waits) >= 1

    assert play(scene) == ["transfer_address_used"]


def test_an_upload_whose_calls_reach_different_replicas_ends_at_the_leader(play: Play) -> None:
    """A balancer that looks at each call would have them begin anew for ever."""

    async def scene(site: Site) -> None:
        site.transfers.told(site.address)
        site.replica.refusals = [Malformed("OFFSET_MISMATCH", "not here")]
        await site.hand_in()
        assert site.leader.uploaded == UPDATE

    assert play(scene) == ["transfer_address_left"]


def test_a_newer_certificate_has_a_newer_connection_there_too(play: Play) -> None:
    """The one before shows a certificate that is superseded."""

    async def scene(site: Site) -> None:
        site.transfers.told(site.address)
        site.transfers.told(site.address)
        assert site.dialled == [site.address]
        site.transfers.use(site.channel)
        assert site.dialled == [site.address] * 2
        await site.fetch()
        assert site.leader.calls == 0

    assert play(scene) == ["transfer_address_used"]
