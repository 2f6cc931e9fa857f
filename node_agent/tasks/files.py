"""What the worker reads and writes: the round's model, and the update."""

import errno
from pathlib import Path
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from node_agent.tasks.no_update import NoUpdate
from node_agent.tasks.program import Weights
from node_agent.tasks.registry import Shapes
from protos.encoding import NotFinite, make_room, write_update
from protos.tensors import NotTensors, parse_header, read_header
from protos.updates import UpdateDtype, parts_of

PIECE_BYTES: Final = 1 << 20
"""Read and hashed in one go, so that the bytes are still in a core's cache."""


class Room:
    """The memory that a job's models are read into, one after the other.

    A large array that is freed goes back to the kernel, and every page of the next one is faulted
    in and zeroed again: for a model of 100 MB half of all that the null task's worker did.
    """

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def of(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes, with whatever was there before."""
        if self._bytes.size != size:
            self._bytes = np.empty(0, np.uint8)
            self._bytes = np.empty(size, np.uint8)
        return self._bytes


def read_base(path: Path, digest: str, shapes: Shapes, room: Room) -> Weights:
    """The round's model, read once and checked against its digest and the task's own model.

    Args:
        room: where its values go; those of the model before end there.

    Raises:
        NoUpdate.
    """
    try:
        with path.open("rb") as file:
            header, data_bytes = read_header(file)
            file.seek(0)
            start = file.read(file_begin := 8 + len(header))
            # Room of its own for the values aligns them, whatever the length of the header.
            data = room.of(data_bytes)
            hasher = blake3(start)
            for first in range(0, data_bytes, PIECE_BYTES):
                piece = data.data[first : first + PIECE_BYTES]
                if file.readinto(piece) != len(piece):
                    raise NoUpdate("the base model cannot be read")
                hasher.update(piece)
        if hasher.hexdigest() != digest:
            raise NoUpdate("the base model's bytes do not match its digest")
        parts = parts_of(parse_header(header, data_bytes), "float32")
    except (OSError, NotTensors):
        raise NoUpdate("the base model cannot be read") from None
    if {name: part.shape for name, part in parts.items()} != shapes:
        raise NoUpdate("the base model's tensors are not the task's")
    weights = {}
    for name, part in parts.items():
        first = part.values.offset - file_begin
        values = data[first : first + 4 * part.values.values].view(np.float32)
        if not np.isfinite(values).all():
            raise NoUpdate(f"tensor {name} of the base model is not finite")
        weights[name] = values.reshape(part.shape)
    return weights


def reserve_room(out: Path, shapes: Shapes, dtype: UpdateDtype) -> bool:
    """Take the room that the largest update needs, before the data is open: a disk that is full
    afterwards would cost a release. False if the disk has less."""
    try:
        make_room(out, shapes, dtype)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


def spool_update(out: Path, delta: Weights, shapes: Shapes, dtype: UpdateDtype) -> tuple[str, int]:
    """Write an update in the form that was ordered, whole or not at all.

    Returns:
        (digest, number of bytes).

    Raises:
        NoUpdate: its tensors are not some of the model's, or a value is not finite.
    """
    found = {name: value.shape for name, value in delta.items()}
    if not found or not found.items() <= shapes.items():
        raise NoUpdate("the update's tensors are not the model's")
    try:
        return write_update(out, delta, dtype)
    except NotFinite:
        raise NoUpdate("the update is not finite") from None
