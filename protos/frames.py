"""The messages that carry chunks, to and from the wire with one copy of their data.

Protobuf's own classes copy the data when they parse it, again at each look, and twice more when
they send it; for a chunk of 1 MiB that is most of what a message costs. The bytes on the wire are
those of `UploadRequest` and `DownloadResponse`: a peer that uses these classes notices nothing.
What is not written as we write it is left to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import grpc

from protos.chunks import Chunk
from protos.feddp.v1 import transfer_pb2 as pb
from protos.feddp.v1 import transfer_pb2_grpc as pb_grpc

_SMALL_BYTES: Final = 4096
"""Below it protobuf's classes are as fast."""

_LENGTH_DELIMITED: Final = 2
_FIXED32: Final = 5
_UPLOAD_FIELD: Final = 2
_DOWNLOAD_FIELD: Final = 1
"""Number of `data`; `crc32c` and `compression` are the two after it."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A large message that arrived; stands in for the class of its kind."""

    data: bytes
    crc32c: int
    compression: int

    def HasField(self, name: str) -> bool:  # noqa: N802 - as protobuf calls it
        """Whether a field is set; a header never comes with so many bytes."""
        return name == "crc32c"


def upload_from_wire(raw: bytes) -> pb.UploadRequest | Frame:
    """An `UploadRequest`."""
    return _parsed(raw, _UPLOAD_FIELD) or pb.UploadRequest.FromString(raw)


def download_from_wire(raw: bytes) -> pb.DownloadResponse | Frame:
    """A `DownloadResponse`."""
    return _parsed(raw, _DOWNLOAD_FIELD) or pb.DownloadResponse.FromString(raw)


def upload_to_wire(message: pb.UploadRequest | Chunk) -> bytes:
    """An `UploadRequest`, or the one that carries a chunk."""
    if isinstance(message, Chunk):
        return _written(message, _UPLOAD_FIELD)
    return message.SerializeToString()


def download_to_wire(message: pb.DownloadResponse | Chunk) -> bytes:
    """A `DownloadResponse`, or the one that carries a chunk."""
    if isinstance(message, Chunk):
        return _written(message, _DOWNLOAD_FIELD)
    return message.SerializeToString()


def _written(chunk: Chunk, field: int) -> bytes:
    """Data, checksum and compression, in the order of their numbers."""
    length, size = bytearray(), len(chunk.data)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    end = bytes([field + 1 << 3 | _FIXED32]) + chunk.crc32c.to_bytes(4, "little")
    if chunk.compression:
        end += bytes([field + 2 << 3, chunk.compression])
    return b"".join((bytes([field << 3 | _LENGTH_DELIMITED]), length, chunk.data, end))


def _parsed(raw: bytes, field: int) -> Frame | None:
    """A large message that is written as `_written` does; None for every other one."""
    if len(raw) < _SMALL_BYTES or raw[0] != (field << 3 | _LENGTH_DELIMITED):
        return None
    size, begin, shift = 0, 1, 0
    while raw[begin] > 0x7F and shift < 28:
        size |= (raw[begin] & 0x7F) << shift
        begin, shift = begin + 1, shift + 7
    size |= raw[begin] << shift
    begin += 1
    end = begin + size
    rest = raw[end:] if end < len(raw) else b""
    if len(rest) not in (5, 7) or rest[0] != (field + 1 << 3 | _FIXED32):
        return None
    compression = 0
    if len(rest) > 5:
        if rest[5] != field + 2 << 3 or rest[6] > 0x7F:
            return None
        compression = rest[6]
    return Frame(raw[begin:end], int.from_bytes(rest[1:5], "little"), compression)


def add_transfer(servicer: pb_grpc.TransferServicer, server: grpc.aio.Server) -> None:
    """Serve Transfer; downloads may answer with a `Chunk`, and uploads may get a `Frame`."""
    handlers: dict[str, Any] = {
        "Download": grpc.unary_stream_rpc_method_handler(
            servicer.Download,
            request_deserializer=pb.DownloadRequest.FromString,
            response_serializer=download_to_wire,
        ),
        "Upload": grpc.stream_unary_rpc_method_handler(
            servicer.Upload,
            request_deserializer=upload_from_wire,
            response_serializer=pb.UploadResponse.SerializeToString,
        ),
        "UploadStatus": grpc.unary_unary_rpc_method_handler(
            servicer.UploadStatus,
            request_deserializer=pb.UploadStatusRequest.FromString,
            response_serializer=pb.UploadResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("feddp.v1.Transfer", handlers),)
    )


class TransferCalls:
    """The calls of Transfer; an upload may send a `Chunk`, and a download may give a `Frame`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        calls: Any = channel
        self.Download = calls.unary_stream(
            "/feddp.v1.Transfer/Download",
            request_serializer=pb.DownloadRequest.SerializeToString,
            response_deserializer=download_from_wire,
        )
        self.Upload = calls.stream_unary(
            "/feddp.v1.Transfer/Upload",
            request_serializer=upload_to_wire,
            response_deserializer=pb.UploadResponse.FromString,
        )
        self.UploadStatus = calls.unary_unary(
            "/feddp.v1.Transfer/UploadStatus",
            request_serializer=pb.UploadStatusRequest.SerializeToString,
            response_deserializer=pb.UploadResponse.FromString,
        )
