"""Chunks on the wire: checksums, compression, and what a liar may put in them."""

import os

import pytest
import zstandard

from protos import chunks
from protos.content import CHUNK_BYTES, RANGE_BYTES
from protos.errors import FeddpError
from protos.feddp.v1 import transfer_pb2 as pb
from protos.ranges import RANGE_BYTES_FIRST, RANGE_BYTES_MIN, RANGE_S, Pace

TEXT = b"a model that repeats itself " * 4000


def message(plain: bytes, **changes: object) -> pb.DownloadResponse:
    chunk = chunks.pack(plain, zstd=True)
    fields = {"data": chunk.data, "crc32c": chunk.crc32c, "compression": chunk.compression}
    return pb.DownloadResponse(**{**fields, **changes})  # type: ignore[arg-type]


def packed(frame: bytes) -> pb.DownloadResponse:
    return message(b"", data=frame, crc32c=None, compression=pb.COMPRESSION_ZSTD)


@pytest.mark.parametrize("data", [b"", b"x", TEXT, os.urandom(CHUNK_BYTES), bytes(CHUNK_BYTES)])
def test_what_is_packed_is_unpacked(data: bytes) -> None:
    """Whatever the data, and whether or not it was compressed."""
    assert chunks.unpack(message(data)) == data


def test_only_what_shrinks_is_compressed() -> None:
    """Noise travels as it is; so does everything to a peer that cannot unpack."""
    assert chunks.pack(TEXT, zstd=True).compression == pb.COMPRESSION_ZSTD
    assert chunks.pack(TEXT, zstd=False).data == TEXT
    noise = os.urandom(CHUNK_BYTES)
    assert chunks.pack(noise, zstd=True).data == noise


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (message(TEXT, crc32c=1), "CHECKSUM_MISMATCH"),
        (message(b"", data=bytes(CHUNK_BYTES + 1), crc32c=None), "TOO_LARGE"),
        (message(b"x", compression=7), "COMPRESSION_UNKNOWN"),
        (packed(b"not a frame"), "COMPRESSION_INVALID"),
        (packed(zstandard.compress(TEXT)[:-3]), "COMPRESSION_INVALID"),
        (packed(zstandard.compress(bytes(CHUNK_BYTES + 1))), "COMPRESSION_BOMB"),
        (
            packed(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 30))),
            "COMPRESSION_BOMB",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_chunk_that_lies_is_refused_with_its_own_reason(
    lie: pb.DownloadResponse, reason: str
) -> None:
    """Before a byte of it is written, and before memory is reserved for what it claims."""
    with pytest.raises(FeddpError) as caught:
        chunks.unpack(lie)
    assert caught.value.reason == reason


def test_a_damaged_chunk_may_be_sent_again() -> None:
    """Damage on the way is nobody's lie."""
    with pytest.raises(FeddpError) as caught:
        chunks.unpack(message(TEXT, crc32c=1))
    assert caught.value.retryable


def test_ranges_follow_the_speed_of_the_link() -> None:
    """A fast link gets the largest range in two calls; a slow one what it moves in RANGE_S."""
    pace = Pace()
    for _ in range(2):
        pace.moved(pace.range_bytes, 0.01)
    assert pace.range_bytes == RANGE_BYTES
    pace.moved(RANGE_BYTES, 40.0)
    assert pace.range_bytes == int(RANGE_BYTES * RANGE_S / 40)


def test_the_short_end_of_a_blob_measures_nothing() -> None:
    """A few bytes take a round trip, however fast the link."""
    pace = Pace()
    pace.moved(10, 0.1)
    assert pace.range_bytes == RANGE_BYTES_FIRST


def test_a_link_that_breaks_gets_small_ranges_of_several_messages() -> None:
    """Down to a bound; a call that is cut short has moved whole messages."""
    pace = Pace()
    for _ in range(20):
        pace.broke()
    assert pace.range_bytes == RANGE_BYTES_MIN
    assert pace.message_bytes <= RANGE_BYTES_MIN // 4
