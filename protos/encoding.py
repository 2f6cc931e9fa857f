"""Encode an update's values with unbiased rounding, write its file, and decode it again.

The rounding's randomness is numpy's, seeded by the system: it is not secret and need not be, as
the noise is in the values before. An update is encoded once, into the file that is kept until the
coordinator has it: a retry sends the same bytes.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protos.content import beside_of
from protos.tensors import data_bytes, make_header
from protos.updates import BLOCK_VALUES, INT8_MAX, UpdateDtype, blocks_of, tensors_for

Floats = NDArray[np.float32]

TILE_VALUES: Final = 1 << 16
"""Values that are worked at in one go: 256 KiB of float32, which stays in a core's cache."""

_SCALE_MIN: Final = np.float32(2.0**-126)
"""Of a block of zeros, too: dividing by it is safe."""

_SCALE_OVER: Final = np.float32(1 + 2.0**-22)
"""A scale is this much over max/127, so that no quotient is above 127 after float32's rounding."""


class NotFinite(Exception):
    """An update holds a value that is not finite."""


def scales_of(values: Floats) -> Floats:
    """A scale for each block.

    Args:
        values: (n,).

    Returns:
        (ceil(n / 1024),), each at least 1/127 of its block's largest absolute value.
    """
    starts = np.arange(0, len(values), BLOCK_VALUES)
    if not len(starts):
        return np.empty(0, np.float32)
    largest = np.maximum(np.maximum.reduceat(values, starts), -np.minimum.reduceat(values, starts))
    scales = largest / np.float32(INT8_MAX) * _SCALE_OVER
    return np.maximum(scales, _SCALE_MIN)


def encode_int8(values: Floats, scales: Floats, draw: np.random.Generator) -> NDArray[np.int8]:
    """Values over their block's scale, rounded up or down by chance so that the mean is exact.

    The chance is a multiple of 2^-24: what bias that leaves is below the scale * 2^-24, which is
    float32's own precision at the block's largest value.

    Args:
        values: (n,), beginning with a block.
        scales: of these blocks.
    """
    size = np.abs(values) / np.repeat(scales, BLOCK_VALUES)[: len(values)]
    down = np.floor(size)
    size -= down  # exact, as both are close
    down += draw.random(len(values), np.float32) < size
    rounded: NDArray[np.int8] = np.copysign(down, values).astype(np.int8)
    return rounded


def encode_bfloat16(values: Floats, draw: np.random.Generator) -> NDArray[np.uint16]:
    """The upper halves of float32s, rounded up or down by chance so that the mean is exact.

    A float32's bits grow with its absolute value, evenly between two neighbours of bfloat16: adding
    16 random bits carries into the upper half exactly as often as it must.

    Args:
        values: (n,).
    """
    bits = values.view(np.uint32)
    lower = draw.integers(0, 1 << 16, len(values), np.uint16)
    rounded: NDArray[np.uint16] = ((bits + lower) >> np.uint32(16)).astype(np.uint16)
    # The largest float32s would be rounded up to infinity; they stay at the largest bfloat16.
    overflown = (rounded & np.uint16(0x7F80)) == np.uint16(0x7F80)
    rounded[overflown] -= np.uint16(1)
    return rounded


def decode_int8(values: NDArray[np.int8], scales: Floats, out: Floats) -> None:
    """Undo `encode_int8`, into `out`."""
    np.copyto(out, values)
    whole = len(out) // BLOCK_VALUES
    blocks = out[: whole * BLOCK_VALUES].reshape(-1, BLOCK_VALUES)
    blocks *= scales[:whole, None]
    if len(scales) > whole:
        out[whole * BLOCK_VALUES :] *= scales[whole]


def decode_bfloat16(values: NDArray[np.uint16], out: Floats) -> None:
    """Undo `encode_bfloat16`, into `out`."""
    bits = out.view(np.uint32)
    np.copyto(bits, values)
    np.left_shift(bits, np.uint32(16), out=bits)


def make_room(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: UpdateDtype) -> None:
    """Take the room on the disk that `write_update` needs for tensors of these shapes.

    Raises:
        OSError: ENOSPC or EDQUOT, there is less; nothing is left behind.
    """
    tensors = tensors_for(shapes, dtype)
    beside = beside_of(path)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, len(make_header(tensors)) + data_bytes(tensors))
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def write_update(path: Path, deltas: Mapping[str, Floats], dtype: UpdateDtype) -> tuple[str, int]:
    """Write an update beside `path`, synced, and rename it there: whole or not at all.

    The new name is not: whoever takes the file over gives it another one, and syncs that.

    Takes a few tiles of memory beside `deltas`, and the room that `make_room` has taken, if it has.

    Returns:
        (BLAKE3 of the bytes, hexadecimal; number of bytes).

    Raises:
        NotFinite: a value is not; nothing is left behind.
    """
    beside = beside_of(path)
    hasher, size = blake3(), 0
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in encoded(deltas, dtype):
                hasher.update(piece)
                size += file.write(piece)
            file.truncate()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return hasher.hexdigest(), size


def encoded(deltas: Mapping[str, Floats], dtype: UpdateDtype) -> Iterator[memoryview]:
    """The bytes of an update's file, in pieces of at most a tile. Raises as `write_update`."""
    draw = np.random.Generator(np.random.SFC64())
    flat = {name: np.ascontiguousarray(deltas[name], np.float32).ravel() for name in sorted(deltas)}
    shapes = {name: np.shape(delta) for name, delta in deltas.items()}
    yield memoryview(make_header(tensors_for(shapes, dtype)))
    scales: dict[str, Floats] = {}
    if dtype == "int8":
        for name, values in flat.items():
            scales[name] = scales_of(values)
            yield _bytes(scales[name])
    for name, values in flat.items():
        for first in range(0, len(values), TILE_VALUES):
            tile = values[first : first + TILE_VALUES]
            if not np.isfinite(tile).all():
                raise NotFinite(name)
            if dtype == "int8":
                block = first // BLOCK_VALUES
                blocks = scales[name][block : block + blocks_of(tile.shape)]
                yield _bytes(encode_int8(tile, blocks, draw))
            elif dtype == "bfloat16":
                yield _bytes(encode_bfloat16(tile, draw))
            else:
                yield _bytes(tile)


def _bytes(values: NDArray[Any]) -> memoryview:
    return values.data.cast("B") if values.size else memoryview(b"")
