"""Fetching models: resumed, checked, bounded."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from node_agent.backoff import FIRST_S, MAX_S, Backoff
from node_agent.spool import Spool
from node_agent.transfer import Transfers
from protos.content import digest_of
from protos.errors import InvariantBroken, Malformed
from protos.feddp.v1 import transfer_pb2, transfer_pb2_grpc

MODEL = bytes(range(256)) * 100
DIGEST = digest_of(MODEL)


class FakeTransfer(transfer_pb2_grpc.TransferServicer):
    """Serves `blob`; `breaks` lists after how many bytes each next call breaks."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self.breaks: list[int] = []
        self.offsets: list[int] = []

    async def Download(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.offsets.append(request.offset)
        data = self.blob[request.offset :][: request.length]
        if self.breaks:
            yield transfer_pb2.DownloadResponse(data=data[: self.breaks.pop(0)])
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        for start in range(0, len(data), 1000):
            yield transfer_pb2.DownloadResponse(data=data[start : start + 1000])


def fetch(spool: Spool, fake: FakeTransfer, size: int = len(MODEL)) -> list[float]:
    """Fetch the model; gives the waits between tries."""
    waits: list[float] = []

    async def wait(delay_s: float) -> None:
        waits.append(delay_s)

    async def work() -> None:
        server = grpc.aio.server()
        transfer_pb2_grpc.add_TransferServicer_to_server(fake, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                await Transfers(channel, spool, wait).fetch(DIGEST, size)
            finally:
                await server.stop(None)

    asyncio.run(work())
    return waits


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Bytes that are here are not asked for again, not even after a restart of the agent."""
    spool, fake = Spool(tmp_path), FakeTransfer(MODEL)
    spool.partial_model(DIGEST).write_bytes(MODEL[:500])
    fake.breaks = [1000, 2000]
    waits = fetch(spool, fake)
    assert fake.offsets == [500, 1500, 3500]
    assert len(waits) == 2
    assert spool.model(DIGEST).read_bytes() == MODEL
    assert not spool.partial_model(DIGEST).exists()


def test_a_model_that_is_here_is_not_fetched(tmp_path: Path) -> None:
    """The next round may start from the same model."""
    spool, fake = Spool(tmp_path), FakeTransfer(MODEL)
    fetch(spool, fake)
    fetch(spool, fake)
    assert fake.offsets == [0]


def test_a_damaged_partial_file_is_thrown_away_and_fetched_whole(tmp_path: Path) -> None:
    """The digest finds it; the second try starts at the first byte."""
    spool, fake = Spool(tmp_path), FakeTransfer(MODEL)
    spool.partial_model(DIGEST).write_bytes(b"x" * 500)
    fetch(spool, fake)
    assert fake.offsets == [500, 0]
    assert spool.model(DIGEST).read_bytes() == MODEL


@pytest.mark.parametrize(
    ("blob", "size", "reason"),
    [
        (MODEL[:-1] + b"x", len(MODEL), "DIGEST_MISMATCH"),
        (MODEL[:-1], len(MODEL), "MODEL_SHORT"),
    ],
)
def test_other_bytes_than_were_named_are_refused(
    tmp_path: Path, blob: bytes, size: int, reason: str
) -> None:
    """Nothing is kept under the model's name."""
    spool = Spool(tmp_path)
    with pytest.raises(Malformed) as caught:
        fetch(spool, FakeTransfer(blob), size)
    assert caught.value.reason == reason
    assert not spool.model(DIGEST).exists()


def test_waits_are_anything_up_to_a_bound_that_doubles() -> None:
    """Full jitter, so that a thousand agents do not come back at once; never over the most."""

    class Highest:
        def uniform(self, low: float, high: float) -> float:
            assert low == 0.0
            return high

    backoff = Backoff(Highest())  # type: ignore[arg-type]
    assert [backoff.next_s() for _ in range(7)] == [FIRST_S, 1.0, 2.0, 4.0, 8.0, MAX_S, MAX_S]
    backoff.reset()
    assert backoff.next_s() == FIRST_S


def test_a_sweep_removes_what_nobody_needs(tmp_path: Path) -> None:
    """After a restart: models and updates of open attempts stay, leftovers go."""
    spool = Spool(tmp_path)
    fetch(spool, FakeTransfer(MODEL))
    other = "b" * 64
    spool.partial_model(other).write_bytes(b"half")
    spool.update(other).write_bytes(b"old")
    spool.out("a1").write_bytes(b"half an update")
    spool.keep_only({DIGEST}, set())
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [DIGEST]


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64])
def test_only_a_digest_names_a_file(tmp_path: Path, name: str) -> None:
    """What came over the wire never becomes a path."""
    with pytest.raises(InvariantBroken):
        Spool(tmp_path).model(name)


def test_an_update_is_taken_over_only_as_the_bytes_that_were_announced(tmp_path: Path) -> None:
    """A worker that died in the middle, or lies, leaves nothing behind."""
    spool = Spool(tmp_path)
    assert not spool.keep_update("a1", DIGEST)
    spool.out("a1").write_bytes(b"other")
    assert not spool.keep_update("a1", DIGEST)
    assert not spool.out("a1").exists()
    spool.out("a1").write_bytes(MODEL)
    assert spool.keep_update("a1", DIGEST)
    assert spool.update(DIGEST).read_bytes() == MODEL
