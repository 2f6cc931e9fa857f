"""Transfer over real gRPC, with rounds that are made up."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from coordinator.blobs import BlobStore
from coordinator.observing.metrics import Metrics
from coordinator.rounds.phases import AttemptState
from coordinator.rpc import transfer
from coordinator.rpc import turns as turns_module
from coordinator.rpc.gate import Gate
from coordinator.rpc.turns import Turns
from protos import chunks
from protos.content import CHUNK_BYTES, digest_of
from protos.errors import NotFound, Unavailable
from protos.feddp.v1 import transfer_pb2 as pb
from protos.feddp.v1 import transfer_pb2_grpc as pb_grpc
from protos.frames import add_transfer
from protos.status import from_rpc

MODEL = os.urandom(12 * CHUNK_BYTES)
UPDATE = os.urandom(3 * CHUNK_BYTES)
DIGEST = digest_of(UPDATE)


class OpenGate(Gate):
    """Admits everybody; maps errors as the real one."""

    def admit(self, context: Any, method: str) -> None:
        return None


class FakeRounds:
    """Attempts "a1" and "b1" of one node, open until `received` names an update."""

    def __init__(self, initial: str) -> None:
        course = SimpleNamespace(initial=initial, model=initial)
        self.live = SimpleNamespace(phase=SimpleNamespace(course=course))
        self.received = ""
        self.finds = self.closes_at = 0

    async def catch_up(self) -> None:
        return None

    async def find(self, attempt_id: str, node: str) -> tuple[Any, Any, Any]:
        self.finds += 1
        if self.finds == self.closes_at:
            self.received = "another"
        if attempt_id not in ("a1", "b1"):
            raise NotFound("ATTEMPT_UNKNOWN", "no such attempt")
        state = AttemptState.RECEIVED if self.received else None
        attempt = SimpleNamespace(
            attempt_id=attempt_id, is_open=not self.received, state=state, digest=self.received
        )
        return self.live, None, attempt


class Bench:
    """A running service and a client of it."""

    def __init__(self, service: transfer.TransferService, stub: Any, rounds: FakeRounds) -> None:
        self.service = service
        self.stub = stub
        self.rounds = rounds

    async def durable(self) -> int:
        request = pb.UploadStatusRequest(attempt_id="a1", digest=DIGEST)
        return int((await self.stub.UploadStatus(request)).durable_bytes)

    async def upload(self, messages: Iterable[pb.UploadRequest]) -> Any:
        return await self.stub.Upload(iter(messages))


Scene = Callable[[Bench], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scene], None]:
    """Runs a scene against a service of its own."""

    async def run(scene: Scene) -> None:
        blobs = BlobStore(tmp_path / "blobs")
        (tmp_path / "model").write_bytes(MODEL)
        rounds = FakeRounds(blobs.adopt_model(tmp_path / "model"))
        metrics = Metrics()
        service = transfer.TransferService(
            cast(Any, None), blobs, cast(Any, rounds), metrics, 1 << 30
        )
        monkeypatch.setattr(transfer, "caller", lambda: SimpleNamespace(node="n", name="n"))
        monkeypatch.setattr(transfer.TransferService, "_is_ordered", lambda *_: True)
        server = grpc.aio.server(interceptors=[OpenGate(None, metrics)])
        add_transfer(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await scene(Bench(service, pb_grpc.TransferStub(channel), rounds))
        finally:
            await server.stop(None)

    return lambda scene: asyncio.run(run(scene))


def header(**changes: Any) -> pb.UploadRequest:
    fields = {"attempt_id": "a1", "digest": DIGEST, "size": len(UPDATE), "offset": 0}
    return pb.UploadRequest(header=pb.UploadHeader(**{**fields, **changes}))


def data(piece: bytes, **changes: Any) -> pb.UploadRequest:
    chunk = chunks.pack(piece, zstd=False)
    return pb.UploadRequest(**{"data": chunk.data, "crc32c": chunk.crc32c, **changes})


def whole(begin: int = 0) -> list[pb.UploadRequest]:
    pieces = [UPDATE[at : at + CHUNK_BYTES] for at in range(begin, len(UPDATE), CHUNK_BYTES)]
    return [header(offset=begin), *map(data, pieces)]


async def until_received(bench: Bench, bytes_: int) -> None:
    """Wait until the service has written so many bytes."""
    registry, labels = bench.service.metrics.registry, {"direction": "received"}
    while registry.get_sample_value("feddp_transfer_bytes_total", labels) != bytes_:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def open_files() -> list[str]:
    """Of this process, as the kernel sees them."""
    folder = Path("/proc/self/fd")
    return [os.readlink(one) for one in folder.iterdir() if one.is_symlink()]


LIES = {
    "HEADER_EXPECTED": [data(UPDATE[:100])],
    "DIGEST_INVALID": [header(digest="../x")],
    "ATTEMPT_UNKNOWN": [header(attempt_id="a2"), data(b"x")],
    "OFFSET_MISMATCH": [header(offset=7), data(b"x")],
    "TOO_LARGE": [header(size=10), data(b"x" * 8), data(b"more")],
    "CHECKSUM_MISMATCH": [header(), data(UPDATE[:500]), data(UPDATE[500:900], crc32c=1)],
    "COMPRESSION_UNKNOWN": [header(), data(UPDATE[:500]), data(b"x", compression=9)],
    "COMPRESSION_INVALID": [header(), data(b"x", compression=pb.COMPRESSION_ZSTD)],
    "DIGEST_MISMATCH": [header(size=5), data(b"wrong")],
}


@pytest.mark.parametrize("reason", LIES)
def test_a_lie_has_its_own_reason_and_the_next_honest_try_works(
    play: Callable[[Scene], None], reason: str
) -> None:
    """Nothing of a refused call counts, not even what was right in it."""

    async def scene(bench: Bench) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            await bench.upload(LIES[reason])
        assert from_rpc(caught.value).reason == reason
        assert await bench.durable() == 0
        assert (await bench.upload(whole())).complete

    play(scene)


def test_more_bytes_than_there_are_do_not_block_the_honest_size(
    play: Callable[[Scene], None],
) -> None:
    """Announced too large at first, an upload would go on behind its end for ever."""

    async def scene(bench: Bench) -> None:
        longer = [header(size=len(UPDATE) + 100), *whole()[1:], data(b"more")]
        assert (await bench.upload(longer)).durable_bytes == len(UPDATE) + 4
        with pytest.raises(grpc.RpcError) as caught:
            await bench.upload(whole(await bench.durable()))
        assert from_rpc(caught.value).reason == "OFFSET_MISMATCH"
        assert (await bench.upload(whole())).complete

    play(scene)


def test_a_call_behind_the_end_that_it_announces_changes_nothing(
    play: Callable[[Scene], None],
) -> None:
    """What was durable stays, whatever such a call says; the next honest try goes on there."""

    async def scene(bench: Bench) -> None:
        half = 2 * CHUNK_BYTES
        assert (await bench.upload(whole()[:3])).durable_bytes == half
        for size, offset in ((10, 20), (10, half), (half - 1, half)):
            with pytest.raises(grpc.RpcError) as caught:
                await bench.upload([header(size=size, offset=offset)])
            assert from_rpc(caught.value).reason == "OFFSET_MISMATCH"
        assert await bench.durable() == half
        assert (await bench.upload(whole(half))).complete

    play(scene)


def test_an_attempt_has_one_whole_update(play: Callable[[Scene], None]) -> None:
    """One attempt cannot fill the disk, one update beside the other."""

    async def scene(bench: Bench) -> None:
        assert (await bench.upload(whole())).complete
        other = b"another"
        with pytest.raises(grpc.RpcError) as caught:
            await bench.upload([header(digest=digest_of(other), size=len(other)), data(other)])
        assert from_rpc(caught.value).reason == "UPDATE_CONFLICT"
        assert bench.service.blobs.received("a1", digest_of(other)) == (0, False)
        assert (await bench.upload(whole())).complete

    play(scene)


def test_an_upload_larger_than_its_model_is_refused_by_its_header(
    play: Callable[[Scene], None],
) -> None:
    """Before a byte is taken; one that is as large and has the longest header is not."""
    most = len(MODEL) + transfer.UPDATE_BYTES_SLACK

    async def scene(bench: Bench) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            await bench.upload([header(size=most + 1)])
        assert from_rpc(caught.value).reason == "TOO_LARGE"
        taken = await bench.upload([header(size=most), *whole()[1:]])
        assert (taken.durable_bytes, taken.complete) == (len(UPDATE), False)

    play(scene)


def test_a_replay_is_answered_and_takes_no_bytes(play: Callable[[Scene], None]) -> None:
    """Of a whole upload, and of one that was handed in and whose bytes are gone."""

    async def scene(bench: Bench) -> None:
        assert (await bench.upload(whole())).complete
        assert (await bench.upload(whole())).complete
        bench.rounds.received = DIGEST
        bench.service.blobs.drop_update("a1", DIGEST)
        request = pb.UploadStatusRequest(attempt_id="a1", digest=DIGEST)
        assert (await bench.stub.UploadStatus(request)).complete
        assert (await bench.upload(whole())).complete
        assert bench.service.blobs.received("a1", DIGEST) == (0, False)
        with pytest.raises(grpc.RpcError) as caught:
            await bench.upload([header(digest="0" * 64)])
        assert from_rpc(caught.value).reason == "ATTEMPT_CLOSED"

    play(scene)


def test_a_part_of_an_update_that_came_while_its_attempt_was_closed_is_dropped(
    play: Callable[[Scene], None], tmp_path: Path
) -> None:
    """Also of a sender that is gone, or that said nonsense: nobody comes for the rest."""

    async def scene(bench: Bench) -> None:
        part = UPDATE[:CHUNK_BYTES]
        for more, reason in (
            ([], "ATTEMPT_CLOSED"),
            ([data(part, crc32c=1)], "CHECKSUM_MISMATCH"),
        ):
            bench.rounds.received, bench.rounds.closes_at = "", bench.rounds.finds + 2
            with pytest.raises(grpc.RpcError) as caught:
                await bench.upload([header(), data(part), *more])
            assert from_rpc(caught.value).reason == reason
            assert parts_of("a1", tmp_path) == []

    play(scene)


def parts_of(attempt_id: str, folder: Path) -> list[Path]:
    """What is kept of uploads that are not whole."""
    return list(folder.glob(f"blobs/partial/{attempt_id}.*"))


def test_what_ended_an_upload_is_told_and_not_that_its_rest_cannot_be_dropped(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender can mend the one and not the other."""

    def away(*_: object) -> None:
        raise Unavailable("STORE_UNREACHABLE", "the shared store is away")

    async def scene(bench: Bench) -> None:
        monkeypatch.setattr(bench.service.blobs, "drop_update", away)
        bench.rounds.closes_at = 2
        with pytest.raises(grpc.RpcError) as caught:
            await bench.upload([header(), data(UPDATE[:CHUNK_BYTES], crc32c=1)])
        assert from_rpc(caught.value).reason == "CHECKSUM_MISMATCH"

    play(scene)


def test_an_update_that_is_whole_only_after_its_attempt_was_closed_is_dropped(
    play: Callable[[Scene], None],
) -> None:
    """Whoever closed it has dropped what there was then, and would not come again."""

    async def scene(bench: Bench) -> None:
        bench.rounds.closes_at = 2
        with pytest.raises(grpc.RpcError) as caught:
            await bench.upload(whole())
        assert from_rpc(caught.value).reason == "ATTEMPT_CLOSED"
        assert bench.service.blobs.received("a1", DIGEST) == (0, False)

    play(scene)


def test_a_model_that_is_still_on_its_way_here_is_asked_for_again(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched from the shared store once for all who ask; nobody's call runs out meanwhile."""

    async def scene(bench: Bench) -> None:
        blobs, arrived = bench.service.blobs, threading.Event()
        digest = bench.rounds.live.phase.course.initial
        path = blobs.model(digest)
        aside = path.rename(path.with_name("aside"))
        fetched: list[Any] = []

        def at_hand(digests: Iterable[str]) -> None:
            if path.exists():
                return
            fetched.append(list(digests))
            arrived.wait(20)
            aside.rename(path)

        monkeypatch.setattr(blobs, "at_hand", at_hand)
        monkeypatch.setattr(transfer, "CALL_S_MAX", 0.2)
        request = pb.DownloadRequest(digest=digest, length=100)
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                await anext(aiter(bench.stub.Download(request)))
            found = from_rpc(caught.value)
            assert (found.reason, found.retry_after_s) == ("MODEL_COMING", 0.5)
        arrived.set()
        monkeypatch.setattr(transfer, "CALL_S_MAX", 9.0)
        received = await anext(aiter(bench.stub.Download(request)))
        assert received.data == MODEL[:100]
        assert fetched == [[digest]]

    play(scene)


def test_a_model_that_cannot_be_fetched_says_why_and_is_fetched_by_the_next_call(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that there is none; and a fetch that failed is not the last one."""

    async def scene(bench: Bench) -> None:
        digest = bench.rounds.live.phase.course.initial
        path = bench.service.blobs.model(digest)
        aside = path.rename(path.with_name("aside"))
        is_away, tried = True, []

        def at_hand(digests: Iterable[str]) -> None:
            tried.append(list(digests))
            if is_away:
                raise Unavailable("STORE_UNREACHABLE", "the shared store is away")
            if not path.exists():
                aside.rename(path)

        monkeypatch.setattr(bench.service.blobs, "at_hand", at_hand)
        request = pb.DownloadRequest(digest=digest, length=100)
        with pytest.raises(grpc.RpcError) as caught:
            await anext(aiter(bench.stub.Download(request)))
        assert (from_rpc(caught.value).reason, tried) == ("STORE_UNREACHABLE", [[digest]])
        is_away = False
        assert (await anext(aiter(bench.stub.Download(request)))).data == MODEL[:100]

    play(scene)


def test_a_call_that_breaks_off_keeps_the_messages_that_came(
    play: Callable[[Scene], None],
) -> None:
    """The next call goes on there; nothing is sent twice."""

    async def scene(bench: Bench) -> None:
        async with asyncio.timeout(20):
            call = bench.stub.Upload()
            for message in whole()[:3]:
                await call.write(message)
            await until_received(bench, 2 * CHUNK_BYTES)
            call.cancel()
            while await bench.durable() < 2 * CHUNK_BYTES:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert (await bench.upload(whole(2 * CHUNK_BYTES))).complete

    play(scene)


def test_a_slow_sender_gets_an_answer_with_what_is_durable(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ends by itself when its time is over, long before a proxy would cut it."""
    monkeypatch.setattr(transfer, "CALL_S_MAX", 0.5)

    async def scene(bench: Bench) -> None:
        call = bench.stub.Upload()
        for message in whole()[:2]:
            await call.write(message)
        assert (await call).durable_bytes == CHUNK_BYTES
        assert await bench.durable() == CHUNK_BYTES

    play(scene)


def test_calls_over_the_bound_wait_and_are_told_when_it_takes_too_long(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metadata comes at once all the same, and a place that is free again is given on."""
    monkeypatch.setattr(turns_module, "WAIT_S_MAX", 0.3)
    monkeypatch.setattr(transfer, "CALL_S_MAX", 60.0)  # the first call ends when it is told to

    async def scene(bench: Bench) -> None:
        bench.service._uploads = Turns(1)
        first = bench.stub.Upload()
        for message in whole()[:2]:
            await first.write(message)
        await until_received(bench, CHUNK_BYTES)
        second = bench.stub.Upload(iter([header(attempt_id="b1"), *whole()[1:]]))
        await second.initial_metadata()
        with pytest.raises(grpc.RpcError) as caught:
            await second
        found = from_rpc(caught.value)
        assert (found.reason, found.retry_after_s) == ("TRANSFERS_BUSY", turns_module.BUSY_RETRY_S)
        monkeypatch.setattr(turns_module, "WAIT_S_MAX", 30.0)
        first.cancel()
        assert (await bench.upload([header(attempt_id="b1"), *whole()[1:]])).complete

    play(scene)


def test_a_download_that_nobody_reads_gives_its_place_up(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fast nodes do not starve behind one that hangs."""
    monkeypatch.setattr(transfer, "CALL_S_MAX", 0.3)
    monkeypatch.setattr(transfer, "STUCK_S", 0.1)

    async def scene(bench: Bench) -> None:
        bench.service._downloads = Turns(1)
        request = pb.DownloadRequest(digest=digest_of(MODEL))
        stuck = bench.stub.Download(request)  # more than gRPC buffers
        await stuck.initial_metadata()
        monkeypatch.setattr(transfer, "CALL_S_MAX", 9.0)
        got = [message async for message in bench.stub.Download(request)]
        assert b"".join(map(chunks.unpack, got)) == MODEL
        stuck.cancel()

    play(scene)


def test_one_caller_that_opens_many_downloads_keeps_nobody_else_out(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all places it holds its own at most, and its calls that wait are in nobody's way."""

    async def scene(bench: Bench) -> None:
        request = pb.DownloadRequest(digest=digest_of(MODEL))
        stuck = [bench.stub.Download(request) for _ in range(20)]
        for call in stuck:
            await call.initial_metadata()
        monkeypatch.setattr(transfer, "caller", lambda: SimpleNamespace(node="m", name="m"))
        monkeypatch.setattr(turns_module, "WAIT_S_MAX", 2.0)
        got = [message async for message in bench.stub.Download(request)]
        assert b"".join(map(chunks.unpack, got)) == MODEL
        for call in stuck:
            call.cancel()

    play(scene)


def test_a_call_that_waits_behind_others_of_its_caller_is_not_read(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can fill the memory with calls that wait; others' uploads go on meanwhile."""
    monkeypatch.setattr(turns_module, "WAIT_S_MAX", 0.5)
    monkeypatch.setattr(transfer, "CALL_S_MAX", 60.0)

    async def scene(bench: Bench) -> None:
        open_ = [bench.stub.Upload() for _ in range(transfer.CALLS_EACH)]
        for call in open_:
            await call.initial_metadata()
        with pytest.raises(grpc.RpcError) as caught:
            await bench.upload([data(b"no header, which is seen only by who reads")])
        assert from_rpc(caught.value).reason == "TRANSFERS_BUSY"
        monkeypatch.setattr(transfer, "caller", lambda: SimpleNamespace(node="m", name="m"))
        assert (await bench.upload(whole())).complete
        for call in open_:
            call.cancel()

    play(scene)


def test_a_download_whose_time_is_over_before_its_first_byte_is_asked_for_again(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer without bytes would say that the model ends there, and the order be given back."""
    monkeypatch.setattr(transfer, "CALL_S_MAX", 0.0)

    async def scene(bench: Bench) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            await bench.stub.Download(pb.DownloadRequest(digest=digest_of(MODEL))).read()
        assert from_rpc(caught.value).reason == "TRANSFERS_BUSY"

    play(scene)


def test_a_download_is_compressed_for_whoever_reads_that_alone(
    play: Callable[[Scene], None], tmp_path: Path
) -> None:
    """Of a model that it pays for."""
    plain = bytes(2 * CHUNK_BYTES)

    async def scene(bench: Bench) -> None:
        (tmp_path / "zeros").write_bytes(plain)
        digest = bench.service.blobs.adopt_model(tmp_path / "zeros")
        for accepted in ([], [pb.COMPRESSION_ZSTD]):
            request = pb.DownloadRequest(digest=digest, accepted=accepted)
            received = [one async for one in bench.stub.Download(request)]
            is_small = sum(len(one.data) for one in received) < len(plain) / 2
            assert is_small == bool(accepted)
            assert b"".join(chunks.unpack(one) for one in received) == plain

    play(scene)


def test_a_download_moves_the_range_that_was_asked_for(play: Callable[[Scene], None]) -> None:
    """In messages of a chunk, each with its checksum; past the end it is refused."""

    async def scene(bench: Bench) -> None:
        digest = digest_of(MODEL)
        request = pb.DownloadRequest(digest=digest, offset=5, length=CHUNK_BYTES + 5)
        got = [message async for message in bench.stub.Download(request)]
        assert [len(message.data) for message in got] == [CHUNK_BYTES, 5]
        assert all(message.HasField("crc32c") for message in got)
        assert b"".join(map(chunks.unpack, got)) == MODEL[5 : CHUNK_BYTES + 10]
        past = pb.DownloadRequest(digest=digest, offset=len(MODEL) + 1)
        with pytest.raises(grpc.RpcError) as caught:
            await anext(aiter(bench.stub.Download(past)))
        assert from_rpc(caught.value).reason == "RANGE_INVALID"

    play(scene)


@pytest.mark.parametrize("is_gone", [False, True])
def test_an_update_waits_where_the_jobs_models_are_damaged(
    play: Callable[[Scene], None], is_gone: bool
) -> None:
    """By the size of what is left of a model every update would be too large, or unheard of: its
    node would take that for the last word, and its training for lost."""

    async def scene(bench: Bench) -> None:
        blobs = bench.service.blobs
        path = blobs.model(bench.rounds.live.phase.course.initial)
        path.unlink()
        if not is_gone:
            path.write_bytes(MODEL[:100])
        for call in (bench.upload(whole()), bench.durable()):
            with pytest.raises(grpc.RpcError) as refused:
                await call
            found = from_rpc(refused.value)
            assert (found.reason, found.retryable) == ("MODEL_DAMAGED", True)
        path.write_bytes(MODEL)
        assert (await bench.upload(whole())).complete

    play(scene)


def test_of_a_model_that_only_the_shared_store_has_the_size_is_asked_for(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that takes an update of 1 GB in calls of seconds does not fetch a model for it."""

    async def scene(bench: Bench) -> None:
        blobs = bench.service.blobs
        initial = bench.rounds.live.phase.course.initial
        blobs.model(initial).unlink()
        monkeypatch.setattr(BlobStore, "is_shared", True)
        monkeypatch.setattr(BlobStore, "model_bytes", lambda _, digest: sizes[digest])
        sizes = {initial: len(MODEL)}
        assert (await bench.upload(whole())).complete

    play(scene)


def test_no_call_leaves_a_file_open(play: Callable[[Scene], None], tmp_path: Path) -> None:
    """A process has about a thousand descriptors, and each range of a model is a call."""

    async def scene(bench: Bench) -> None:
        digest = bench.rounds.live.phase.course.initial
        async for _ in bench.stub.Download(pb.DownloadRequest(digest=digest)):
            pass
        await bench.upload(whole()[:2])
        with pytest.raises(grpc.RpcError):
            await bench.upload([header(offset=CHUNK_BYTES), data(b"x", crc32c=1)])
        assert [one for one in open_files() if one.startswith(str(tmp_path))] == []

    play(scene)
