"""What a coordinator that lies, or a disk that fails, can do to a transfer."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.connection import transfer
from node_agent.connection.transfer import DAMAGED_MAX
from node_agent.state.spool import Spool
from protos import chunks
from protos.content import INLINE_BYTES, digest_of
from protos.errors import FeddpError, Malformed
from protos.feddp.v1 import transfer_pb2
from tests.node_agent.connection.test_transfer import (
    DIGEST,
    MODEL,
    FakeTransfer,
    fetch,
    hand_in,
    use,
)

DAMAGED = Malformed("DIGEST_MISMATCH", "the bytes do not have the digest that was announced")


class Floods(FakeTransfer):
    """Sends more than was asked for, each message right in itself."""

    async def Download(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        for _ in range(50):
            chunk = chunks.pack(self.blob, zstd=False)
            yield transfer_pb2.DownloadResponse(data=chunk.data, crc32c=chunk.crc32c)


def test_more_bytes_than_were_ordered_fill_no_disk(tmp_path: Path) -> None:
    """The hospital's disk is not the coordinator's to fill: what is too long is not written."""
    spool = Spool(tmp_path)
    with pytest.raises(Malformed) as caught:
        fetch(spool, Floods(MODEL))
    assert caught.value.reason == "MODEL_LONG"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= len(MODEL)
    assert not spool.model(DIGEST).exists()


@pytest.mark.parametrize("times", [1, DAMAGED_MAX - 1, DAMAGED_MAX])
def test_bytes_that_arrive_damaged_are_sent_again_a_few_times(tmp_path: Path, times: int) -> None:
    """Then the update is told as refused: a coordinator that says so for ever is not asked for
    ever."""
    fake = FakeTransfer()
    fake.submissions = [DAMAGED] * times
    if times < DAMAGED_MAX:
        hand_in(Spool(tmp_path), fake, MODEL)
        assert len(fake.submitted) == times + 1
        return
    with pytest.raises(FeddpError) as caught:
        hand_in(Spool(tmp_path), fake, MODEL)
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert len(fake.submitted) == DAMAGED_MAX


class Damages(FakeTransfer):
    """Has each upload damaged on its way, and says so."""

    async def Upload(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        self.submissions = [DAMAGED]
        self.moved.append(0)
        async for _ in request_iterator:
            pass
        return await self.SubmitUpdate(None, context)


def test_an_upload_that_is_damaged_each_time_is_given_up(tmp_path: Path) -> None:
    """As many times as a submission, and each after a wait."""
    fake, update = Damages(), os.urandom(INLINE_BYTES + 1)
    spool = Spool(tmp_path)
    spool.update(digest_of(update)).write_bytes(update)
    raised: list[FeddpError] = []

    async def work(transfers: transfer.Transfers) -> None:
        try:
            await transfers.hand_in("a1", digest_of(update), b"signature")
        except FeddpError as error:
            raised.append(error)

    waits = use(spool, fake, work)
    assert [error.reason for error in raised] == ["DIGEST_MISMATCH"]
    assert (len(fake.moved), len(waits)) == (DAMAGED_MAX, DAMAGED_MAX - 1)


def test_an_update_that_cannot_be_read_on_its_way_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hands it in tries again by that error; gRPC would tell a call that was cancelled,
    and the update would wait for nobody."""

    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(transfer, "read_cached", fails)
    with pytest.raises(OSError, match="Input/output error") as caught:
        hand_in(Spool(tmp_path), FakeTransfer(), os.urandom(INLINE_BYTES + 1))
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(("number", "is_waited_for"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_a_disk_without_room_is_waited_for_and_one_that_fails_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_waited_for: bool
) -> None:
    """Of a model that came with its order, too; an agent whose disk fails ends."""
    spool, faults = Spool(tmp_path), [OSError(number, os.strerror(number))]
    put = spool.put_model

    def put_model(digest: str, data: bytes) -> bool:
        if faults:
            raise faults.pop()
        return put(digest, data)

    monkeypatch.setattr(spool, "put_model", put_model)

    async def work(transfers: transfer.Transfers) -> None:
        transfers.offer(DIGEST, MODEL)
        await asyncio.wait_for(transfers.fetch(DIGEST, len(MODEL)), 20)

    if is_waited_for:
        assert len(use(spool, FakeTransfer(), work)) == 1
        assert spool.model(DIGEST).read_bytes() == MODEL
        return
    with pytest.raises(OSError, match=os.strerror(number)):
        use(spool, FakeTransfer(), work)
