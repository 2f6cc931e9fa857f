"""Chunks of a blob as messages carry them: a checksum each, compressed where it pays.

A message here is an `UploadRequest` or a `DownloadResponse`, or a frame that stands in for one
(`protos.frames`): all have `data`, `crc32c` and `compression`.
"""

# The types of an enum's values are in the stubs only: annotations must stay unevaluated.
from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Final, Protocol

import google_crc32c
import zstandard

from protos.content import CHUNK_BYTES
from protos.errors import Malformed, Unavailable
from protos.feddp.v1 import transfer_pb2 as pb

SAMPLE_BYTES: Final = 16 << 10
"""From the middle of a chunk; tells whether it is worth compressing."""

PAYS: Final = 0.9
"""A chunk that does not shrink below this share of its size travels as it is."""

LEVEL: Final = 1

ACCEPTED: Final = (pb.COMPRESSION_ZSTD,)
"""What `unpack` understands."""

_of_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Chunk:
    """The three fields of a message."""

    data: bytes
    crc32c: int
    compression: pb.Compression.ValueType


def pack(data: bytes, *, zstd: bool) -> Chunk:
    """A chunk for the wire.

    Args:
        data: CHUNK_BYTES at most.
        zstd: whether the receiver can unpack it.
    """
    compression: pb.Compression.ValueType = pb.COMPRESSION_UNSPECIFIED
    if zstd and pays(data):
        packed = _compressor().compress(data)
        if len(packed) < PAYS * len(data):
            data, compression = packed, pb.COMPRESSION_ZSTD
    return Chunk(data, google_crc32c.value(data), compression)


class Message(Protocol):
    """What `unpack` needs of a message."""

    @property
    def data(self) -> bytes:
        """As it travelled."""

    @property
    def crc32c(self) -> int:
        """Of `data`."""

    @property
    def compression(self) -> int:
        """Of `data`."""

    def HasField(self, name: Any) -> bool:  # noqa: N802 - as protobuf calls it
        """Whether a field is set."""


def unpack(message: Message) -> bytes:
    """The bytes of a message, checked; CHUNK_BYTES at most.

    Raises:
        Unavailable: CHECKSUM_MISMATCH, the same bytes may be sent again.
        Malformed: TOO_LARGE, COMPRESSION_UNKNOWN, COMPRESSION_INVALID, COMPRESSION_BOMB.
    """
    data = message.data  # each access copies
    if len(data) > CHUNK_BYTES:
        raise Malformed("TOO_LARGE", f"a message carries at most {CHUNK_BYTES} bytes")
    if message.HasField("crc32c") and google_crc32c.value(data) != message.crc32c:
        raise Unavailable(
            "CHECKSUM_MISMATCH",
            "a chunk was damaged on the way, and nothing of it was kept; go on at the durable byte",
        )
    if message.compression == pb.COMPRESSION_UNSPECIFIED or not data:
        return data
    if message.compression != pb.COMPRESSION_ZSTD:
        raise Malformed(
            "COMPRESSION_UNKNOWN",
            f"compression {message.compression} is not known here; send the bytes as they are",
        )
    return _decompressed(data)


def _decompressed(data: bytes) -> bytes:
    try:
        size = zstandard.get_frame_parameters(data).content_size
        # Looked at first: the decompressor reserves what the frame says, whatever its own bound.
        if size == zstandard.CONTENTSIZE_UNKNOWN or size > CHUNK_BYTES:
            raise Malformed(
                "COMPRESSION_BOMB",
                f"a chunk must state that it unpacks to {CHUNK_BYTES} bytes or fewer; this one "
                "does not",
            )
        return _decompressor().decompress(data, max_output_size=CHUNK_BYTES, allow_extra_data=False)
    except zstandard.ZstdError:
        raise Malformed(
            "COMPRESSION_INVALID", "a chunk is not the Zstandard frame that it claims to be"
        ) from None


def pays(data: bytes) -> bool:
    """Whether a sample says that compressing is worth its time."""
    middle = max(0, (len(data) - SAMPLE_BYTES) // 2)
    sample = data[middle : middle + SAMPLE_BYTES]
    return len(_compressor().compress(sample)) < PAYS * len(sample)


def _compressor() -> zstandard.ZstdCompressor:
    """Of this thread: none may be used by two at once, and making one costs more than its use."""
    if not hasattr(_of_thread, "compressor"):
        _of_thread.compressor = zstandard.ZstdCompressor(level=LEVEL)
    compressor: zstandard.ZstdCompressor = _of_thread.compressor
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_of_thread, "decompressor"):
        _of_thread.decompressor = zstandard.ZstdDecompressor(max_window_size=8 * CHUNK_BYTES)
    decompressor: zstandard.ZstdDecompressor = _of_thread.decompressor
    return decompressor
