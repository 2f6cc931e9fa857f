"""Frames are the messages of transfer.proto, byte for byte."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from protos import chunks, frames
from protos.content import CHUNK_BYTES
from protos.feddp.v1 import transfer_pb2 as pb

TO_WIRE: list[tuple[Callable[[Any], bytes], Callable[[bytes], Any], Any]] = [
    (frames.upload_to_wire, frames.upload_from_wire, pb.UploadRequest),
    (frames.download_to_wire, frames.download_from_wire, pb.DownloadResponse),
]
FORMS = pytest.mark.parametrize(("to_wire", "from_wire", "kind"), TO_WIRE)
DATA = [b"x", os.urandom(5000), b"text " * 4000, os.urandom(CHUNK_BYTES)]


@FORMS
@pytest.mark.parametrize("data", DATA, ids=len)
@pytest.mark.parametrize("zstd", [False, True])
def test_a_chunk_is_written_and_read_as_protobuf_does(
    data: bytes, zstd: bool, to_wire: Any, from_wire: Any, kind: Any
) -> None:
    """Each end may be of a release that knows protobuf's own classes alone."""
    chunk = chunks.pack(data, zstd=zstd)
    message = kind(data=chunk.data, crc32c=chunk.crc32c, compression=chunk.compression)
    assert to_wire(chunk) == to_wire(message) == message.SerializeToString()
    assert chunks.unpack(from_wire(message.SerializeToString())) == data


@FORMS
def test_a_large_chunk_is_read_without_protobuf(to_wire: Any, from_wire: Any, kind: Any) -> None:
    """Or nothing would be won."""
    assert isinstance(from_wire(to_wire(chunks.pack(DATA[-1], zstd=False))), frames.Frame)


@FORMS
def test_what_is_written_otherwise_is_left_to_protobuf(
    to_wire: Any, from_wire: Any, kind: Any
) -> None:
    """Without a checksum, with a field that is new, or with the fields in another order."""
    bare = kind(data=DATA[-1])
    assert from_wire(bare.SerializeToString()) == bare
    known = to_wire(chunks.pack(DATA[-1], zstd=False))
    new_field = b"\x78\x01"
    assert chunks.unpack(from_wire(known + new_field)) == DATA[-1]
    assert chunks.unpack(from_wire(new_field + known)) == DATA[-1]
    for cut in (known[:-1], known[:5000]):
        with pytest.raises(DecodeError):
            from_wire(cut)


def test_a_header_keeps_its_fields() -> None:
    """It is no chunk."""
    header = pb.UploadRequest(header=pb.UploadHeader(attempt_id="a", digest="d" * 5000, size=3))
    assert frames.upload_from_wire(frames.upload_to_wire(header)) == header
