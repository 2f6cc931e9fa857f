"""Fetching models: resumed, checked, bounded."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from node_agent.connection.backoff import FIRST_S, MAX_S, Backoff
from node_agent.connection.transfer import Transfers
from node_agent.state.spool import Growing, Spool
from protos import chunks
from protos.content import INLINE_BYTES, digest_of
from protos.errors import (
    FeddpError,
    InvariantBroken,
    Malformed,
    NotFound,
    TooLate,
    Unavailable,
)
from protos.feddp.v1 import (
    federation_pb2,
    federation_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from protos.status import DETAILS_KEY, details

MODEL = bytes(range(256)) * 100
DIGEST = digest_of(MODEL)


class FakeTransfer(transfer_pb2_grpc.TransferServicer, federation_pb2_grpc.FederationServicer):
    """Serves `blob`, takes uploads and submissions.

    Attributes:
        breaks: after how many bytes each next download breaks.
        damages: in so many next downloads the second chunk does not match its checksum.
        submissions: what each next SubmitUpdate answers; None for OK.
        moved: bytes of each upload call, as they were sent.
    """

    def __init__(self, blob: bytes = b"") -> None:
        self.blob = blob
        self.breaks: list[int] = []
        self.damages = 0
        self.offsets: list[int] = []
        self.compressions: list[int] = []
        self.submissions: list[FeddpError | None] = []
        self.submitted: list[federation_pb2.SubmitUpdateRequest] = []
        self.accepted: tuple[Any, ...] = chunks.ACCEPTED
        self.uploaded = b""
        self.moved: list[int] = []
        self.wanted = ""

    async def Download(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.offsets.append(request.offset)
        data = self.blob[request.offset :][: request.length]
        if self.breaks:
            yield transfer_pb2.DownloadResponse(data=data[: self.breaks.pop(0)])
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        for start in range(0, len(data), 1000):
            chunk = chunks.pack(data[start : start + 1000], zstd=bool(request.accepted))
            self.compressions.append(chunk.compression)
            damaged = start == 1000 and self.damages > 0
            self.damages -= damaged
            yield transfer_pb2.DownloadResponse(
                data=chunk.data, crc32c=chunk.crc32c ^ damaged, compression=chunk.compression
            )

    async def Upload(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        before = len(self.uploaded)
        self.moved.append(0)
        async for message in request_iterator:
            if message.HasField("header"):
                self.wanted = message.header.digest
                if message.header.offset == 0:
                    self.uploaded, before = b"", 0
                assert message.header.offset == before
            self.moved[-1] += len(message.data)
            self.uploaded += chunks.unpack(message)
        return self._progress()

    async def UploadStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.wanted = request.digest
        return self._progress()

    def _progress(self) -> Any:
        return transfer_pb2.UploadResponse(
            durable_bytes=len(self.uploaded),
            complete=digest_of(self.uploaded) == self.wanted,
            accepted=self.accepted,
        )

    async def SubmitUpdate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.submitted.append(request)
        error = self.submissions.pop(0) if self.submissions else None
        if error is not None:
            context.set_trailing_metadata(((DETAILS_KEY, details(error)),))
            await context.abort(grpc.StatusCode[error.code], error.message)
        return federation_pb2.SubmitUpdateResponse()


def use(
    spool: Spool, fake: FakeTransfer, work: Callable[[Transfers], Awaitable[None]]
) -> list[float]:
    """Do `work` with transfers to the fake; gives the waits between tries."""
    waits: list[float] = []

    async def wait(delay_s: float) -> None:
        waits.append(delay_s)

    async def main() -> None:
        server = grpc.aio.server()
        transfer_pb2_grpc.add_TransferServicer_to_server(fake, server)
        federation_pb2_grpc.add_FederationServicer_to_server(fake, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                await work(Transfers(channel, spool, wait))
            finally:
                await server.stop(None)

    asyncio.run(main())
    return waits


def fetch(spool: Spool, fake: FakeTransfer, size: int = len(MODEL)) -> list[float]:
    """Fetch the model; gives the waits between tries."""
    return use(spool, fake, lambda transfers: transfers.fetch(DIGEST, size))


def hand_in(spool: Spool, fake: FakeTransfer, data: bytes) -> list[float]:
    """Hand in an update; gives the waits between tries."""
    digest = digest_of(data)
    spool.update(digest).write_bytes(data)
    return use(spool, fake, lambda transfers: transfers.hand_in("a1", digest, b"signature"))


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


def test_a_damaged_chunk_is_not_written_and_is_asked_for_again(tmp_path: Path) -> None:
    """The checksum finds it; the next call begins at the first byte that is not here."""
    spool, fake = Spool(tmp_path), FakeTransfer(MODEL)
    fake.damages = 2
    waits = fetch(spool, fake)
    assert fake.offsets == [0, 1000, 2000]
    assert len(waits) == 2
    assert spool.model(DIGEST).read_bytes() == MODEL


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before counts; the fetch goes on there when there is room."""
    spool, fake = Spool(tmp_path), FakeTransfer(MODEL)
    write, written = Growing.write, list[int]()

    def full_once(growing: Growing, data: bytes) -> None:
        written.append(len(data))
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "no room")
        write(growing, data)

    monkeypatch.setattr(Growing, "write", full_once)
    assert len(fetch(spool, fake)) == 1
    assert fake.offsets == [0, 2000]
    assert spool.model(DIGEST).read_bytes() == MODEL


def test_chunks_are_compressed_where_it_pays(tmp_path: Path) -> None:
    """Down and up; offsets and digests count the bytes as they were."""
    spool, fake = Spool(tmp_path), FakeTransfer(MODEL)
    fetch(spool, fake)
    assert set(fake.compressions) == {transfer_pb2.COMPRESSION_ZSTD}
    zeros, noise = bytes(2 * INLINE_BYTES), os.urandom(2 * INLINE_BYTES)
    hand_in(spool, fake, zeros)
    assert fake.uploaded == zeros
    assert sum(fake.moved) < len(zeros) // 100
    fake = FakeTransfer()
    hand_in(spool, fake, noise)
    assert fake.moved == [len(noise)]


def test_a_receiver_that_cannot_unpack_gets_plain_bytes(tmp_path: Path) -> None:
    """A coordinator of the release before does not know compression."""
    fake = FakeTransfer()
    fake.accepted = ()
    hand_in(Spool(tmp_path), fake, bytes(2 * INLINE_BYTES))
    assert fake.moved == [2 * INLINE_BYTES]


def test_a_model_that_came_with_its_order_is_not_fetched(tmp_path: Path) -> None:
    """Its digest is checked all the same; other bytes are thrown away, and the model is fetched."""
    for offered, calls in ((MODEL, 0), (MODEL[:-1] + b"x", 1)):
        spool, fake = Spool(tmp_path / str(calls)), FakeTransfer(MODEL)

        async def work(transfers: Transfers, data: bytes = offered) -> None:
            transfers.offer(DIGEST, data)
            await transfers.fetch(DIGEST, len(MODEL))

        use(spool, fake, work)
        assert len(fake.offsets) == calls
        assert spool.model(DIGEST).read_bytes() == MODEL


def test_a_model_of_an_earlier_process_is_checked_before_it_is_believed(tmp_path: Path) -> None:
    """Models are not synced: after a power cut a name may stand over other bytes."""
    fetch(Spool(tmp_path), FakeTransfer(MODEL))
    spool, fake = Spool(tmp_path), FakeTransfer(MODEL)
    fetch(spool, fake)
    assert fake.offsets == []
    spool.model(DIGEST).write_bytes(MODEL[:100])
    fetch(Spool(tmp_path), fake)
    assert fake.offsets == [0]


def test_a_small_update_goes_with_its_submission_once(tmp_path: Path) -> None:
    """A retry after a lost answer moves no bytes again."""
    fake = FakeTransfer()
    fake.submissions = [Unavailable("DRAINING", "the answer got lost")]
    hand_in(Spool(tmp_path), fake, MODEL)
    assert [len(one.data) for one in fake.submitted] == [len(MODEL), 0]
    assert fake.moved == []


def test_bytes_that_did_not_arrive_are_uploaded_when_the_coordinator_says_so(
    tmp_path: Path,
) -> None:
    """BLOB_MISSING is the one answer that moves them again."""
    fake = FakeTransfer()
    missing = NotFound("BLOB_MISSING", "not uploaded whole")
    fake.submissions = [Unavailable("DRAINING", "lost"), missing]
    hand_in(Spool(tmp_path), fake, MODEL)
    assert [len(one.data) for one in fake.submitted] == [len(MODEL), 0, 0]
    assert fake.uploaded == MODEL


def test_a_large_update_is_uploaded_once_whatever_happens_to_its_submission(
    tmp_path: Path,
) -> None:
    """After the upload only the submission is repeated, without asking for the bytes' state."""
    fake, data = FakeTransfer(), os.urandom(INLINE_BYTES + 1)
    fake.submissions = [Unavailable("DRAINING", "lost")] * 3
    hand_in(Spool(tmp_path), fake, data)
    assert [len(one.data) for one in fake.submitted] == [0] * 4
    assert fake.moved == [len(data)]


def test_where_more_bytes_have_come_than_there_are_an_upload_begins_again(tmp_path: Path) -> None:
    """Behind its end it would go on for ever."""
    fake, data = FakeTransfer(), os.urandom(INLINE_BYTES + 1)
    fake.uploaded = data + b"more"
    hand_in(Spool(tmp_path), fake, data)
    assert fake.uploaded == data


def test_an_update_of_a_closed_attempt_is_given_up(tmp_path: Path) -> None:
    """An answer that no retry can change ends the hand-in."""
    fake = FakeTransfer()
    fake.submissions = [TooLate("ATTEMPT_CLOSED", "it is booked")]
    with pytest.raises(TooLate):
        hand_in(Spool(tmp_path), fake, MODEL)
    assert len(fake.submitted) == 1


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
    """A worker that died in the middle, or tells of another file, leaves nothing behind."""
    spool = Spool(tmp_path)
    assert not spool.keep_update("a1", DIGEST, len(MODEL))
    spool.out("a1").write_bytes(b"other")
    assert not spool.keep_update("a1", DIGEST, len(MODEL))
    assert not spool.out("a1").exists()
    spool.out("a1").write_bytes(MODEL)
    assert spool.keep_update("a1", DIGEST, len(MODEL))
    assert spool.update(DIGEST).read_bytes() == MODEL


def test_an_update_that_goes_away_while_it_is_uploaded_is_told_as_such(tmp_path: Path) -> None:
    """A policy may withdraw it between two ranges: gRPC would tell a call that was cancelled, which
    nobody answers, and the coordinator would wait for the attempt."""
    update = os.urandom(3 << 20)

    class Withdraws(FakeTransfer):
        async def Upload(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
            answer = await super().Upload(request_iterator, context)
            spool.update(digest_of(update)).unlink(missing_ok=True)
            return answer

    spool = Spool(tmp_path)
    with pytest.raises(FileNotFoundError):
        hand_in(spool, Withdraws(), update)
