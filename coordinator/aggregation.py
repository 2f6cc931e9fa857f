"""Check and average updates, and measure how far the global model moved.

An update is a safetensors file of deltas against the round's model (`protos.updates` has its
form). Nothing in it is interpreted as code.

Everything is done a tile at a time, so that memory is a few MiB whatever the size of the model and
the number of nodes. For each tile of the model the same tile of every update is added up in
float64, in the order in which the updates are given; the caller sorts them by node. So the order
in which updates arrive cannot change a bit of the result, and there is no accumulator as large as
a model that one would want to map into memory.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import numpy as np
from blake3 import blake3

from coordinator.tiles import Tiles, opened, raw_buffer
from protos.encoding import TILE_VALUES, Floats
from protos.errors import Malformed, invariant
from protos.tensors import NotTensors, make_header
from protos.updates import Part, UpdateDtype, taken_names, tensors_for

FOLD_THREADS: Final = 2
"""Of one fold; the sums of each tile are made by one of them, so their number changes no bit."""

FOLD_ALONE_VALUES: Final = 4 * TILE_VALUES
"""Below it, starting threads takes longer than they save."""

_SUM_VALUES: Final = 4096
"""Squares that are added up in float32; such sums are added in float64."""

_NORM_SLACK: Final = 1 + 2**-12
"""Above the error of a norm: 4096 additions in float32 are off by 4096 * 2^-24 of their sum, and
its root by half of that."""


_HEADER_SLACK_BYTES: Final = 64 << 10
"""An update's header may differ in metadata and padding from the one that we would write."""

_Done = TypeVar("_Done")


@dataclass(frozen=True, slots=True)
class Shape:
    """Names and shapes of a model's tensors, and the number of values in all."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def parameters(self) -> int:
        """P, the number of values."""
        return sum(math.prod(shape) for _, shape in self.tensors)


@dataclass(frozen=True, slots=True)
class Folded:
    """What a fold knows of the new model without another look.

    Attributes:
        digest: BLAKE3 of the new model's file, hexadecimal.
        moved: Euclidean distance from the round's model.
        norm: Euclidean norm.
        update_values: values that each update held.
    """

    digest: str
    moved: float
    norm: float
    update_values: tuple[int, ...]


class _Buffers:
    """Room for one tile of what a fold needs; about 1.6 MiB."""

    def __init__(self) -> None:
        self.raw = raw_buffer()
        self.before = np.empty(TILE_VALUES, np.float32)
        self.values = np.empty(TILE_VALUES, np.float32)
        self.term = np.empty(TILE_VALUES, np.float64)
        self.sum = np.empty(TILE_VALUES, np.float64)

    def add(self, file: Tiles, share: float, piece: tuple[str, int, int]) -> None:
        """Add `share` times a file's values to the sum; a tensor that it does not hold is 0."""
        name, first, count = piece
        if name in file.parts:
            values, term, total = self.values[:count], self.term[:count], self.sum[:count]
            file.read(name, first, values, self.raw)
            np.copyto(term, values)
            np.multiply(term, share, out=term)
            np.add(total, term, out=total)


def shape_of(path: Path) -> Shape:
    """Read a model's names and shapes; its values are not looked at.

    Raises:
        Malformed: MODEL_INVALID, not a safetensors file of float32 tensors.
    """
    try:
        return _shape(Tiles(path).parts)
    except NotTensors as error:
        raise _invalid(str(error)) from error


def _shape(parts: dict[str, Part]) -> Shape:
    return Shape(tuple((name, parts[name].shape) for name in sorted(parts)))


def _invalid(what: str) -> Malformed:
    return Malformed("MODEL_INVALID", f"the model was refused: {what}")


def check_model(path: Path, dtype: UpdateDtype = "float32") -> None:
    """Refuse an initial model that is not a safetensors file of finite float32 tensors.

    Args:
        dtype: the form in which its updates are to travel.

    Raises:
        Malformed: MODEL_INVALID.
    """
    shape = shape_of(path)
    if not shape.parameters:
        raise _invalid("it holds no value")
    if taken := taken_names([name for name, _ in shape.tensors], dtype):
        raise _invalid(
            f"its tensor {taken[0]} has the name under which the scales of "
            f"{taken[0].removesuffix('.scale')} travel where update_dtype is {dtype}; rename it, "
            "or choose another update_dtype"
        )
    with opened([path]) as (model,):
        buffers = _Buffers()
        for name, first, count in model.pieces():
            values = buffers.values[:count]
            model.read(name, first, values, buffers.raw)
            if not np.isfinite(values).all():
                raise _invalid(f"tensor {name} holds a value that is not finite")


def check_update(
    path: Path, model: Shape, dtype: UpdateDtype, norm_max: Callable[[int], float]
) -> None:
    """Check one update before it counts.

    It may hold some of the model's tensors only; the others did not change. Which ones is not
    compared between nodes: no node can make another's update refused, and leaving a tensor out
    is no more than sending zeros.

    Args:
        dtype: the form that was ordered.
        norm_max: the largest Euclidean norm that an update of so many values can have, a public
            bound (`update_norm_max`).

    Raises:
        Malformed: UPDATE_INVALID. The message tells which check failed and no value.
    """
    try:
        with opened([path], dtype, _header_bytes_max(model, dtype)) as (update,):
            shape = _shape(update.parts)
            if not shape.parameters or not set(shape.tensors) <= set(model.tensors):
                raise NotTensors("its tensors are not those of the model")
            norm = math.sqrt(_squares_in(update))
    except NotTensors as error:
        raise Malformed("UPDATE_INVALID", f"the update was refused: {error}") from error
    if norm > norm_max(shape.parameters) * _NORM_SLACK:
        raise Malformed(
            "UPDATE_INVALID", "the update was refused: it is larger than such a round can make it"
        )


def _header_bytes_max(model: Shape, dtype: UpdateDtype) -> int:
    """Of an update; one of int8 names each tensor twice, and may be longer than any model's."""
    return len(make_header(tensors_for(dict(model.tensors), dtype))) + _HEADER_SLACK_BYTES


def _squares_in(update: Tiles) -> float:
    """Sum of squares of all values; infinite beyond float32. Raises NotTensors: not finite."""
    buffers, squares = _Buffers(), 0.0
    for name, first, count in update.pieces():
        values = buffers.values[:count]
        update.read(name, first, values, buffers.raw)
        more = _squares(values)
        # A value that is not finite makes the sum so, and no other look at the values is needed.
        if not math.isfinite(more) and not np.isfinite(values).all():
            raise NotTensors("it holds a value that is not finite")
        squares += more
    return squares


def _squares(values: Floats) -> float:
    """Sum of squares, each 4096 by BLAS in float32."""
    whole = len(values) - len(values) % _SUM_VALUES
    blocks, rest = values[:whole].reshape(-1, _SUM_VALUES), values[whole:]
    with np.errstate(all="ignore"):
        sums = np.vecdot(blocks, blocks).sum(dtype=np.float64)
        return float(sums) + float(np.dot(rest, rest))


def fold(
    base: Path,
    updates: Sequence[Path],
    weights: Sequence[float],
    out: Path,
    dtype: UpdateDtype = "float32",
) -> Folded:
    """Write base + the weighted mean of K updates.

    A tensor that an update does not hold counts as zeros with its full weight. So a node moves
    each tensor by its share at most, also one that no other node trained.

    Args:
        base: the round's model, float32.
        updates: K checked updates.
        weights: K weights > 0. Must be public: true record counts are private data.
        out: where the new model goes, synced.

    Each value is the float32 nearest to a sum in float64, which is off by at most (K + 1) * 2^-52
    times the sum of its terms' absolute values.

    Source: McMahan et al. 2017, Algorithm 1.
    """
    invariant(len(updates) == len(weights) > 0, "one weight per update, and at least one")
    invariant(all(w > 0 for w in weights), "weights are positive")
    total = math.fsum(weights)
    moved = norm = 0.0
    with (
        opened([base]) as (model,),
        opened(updates, dtype, _header_bytes_max(_shape(model.parts), dtype)) as files,
        _model_file(out, model) as new,
    ):
        held = tuple(_shape(file.parts).parameters for file in files)

        def folded(piece: tuple[str, int, int], buffers: _Buffers) -> tuple[Floats, float, float]:
            name, first, count = piece
            before, after = buffers.before[:count], buffers.values[:count]
            sums = buffers.sum[:count]
            model.read(name, first, before, buffers.raw)
            np.copyto(sums, before)
            for file, weight in zip(files, weights, strict=True):
                buffers.add(file, weight / total, piece)
            np.copyto(after, sums, casting="same_kind")
            return after, _squares(after), _squares(np.subtract(after, before, out=before))

        for after, squares, squares_moved in _in_order(folded, list(model.pieces())):
            new.write(after.data.cast("B"))
            norm += squares
            moved += squares_moved
    return Folded(new.digest, math.sqrt(moved), math.sqrt(norm), held)


def _in_order(
    work: Callable[[tuple[str, int, int], _Buffers], _Done], pieces: Sequence[tuple[str, int, int]]
) -> Iterator[_Done]:
    """What `work` makes of each piece, in their order, by threads of which each has one piece.

    A result may use the buffers that it was made in: they are used again only when the next result
    is asked for.
    """
    if sum(count for _, _, count in pieces) <= FOLD_ALONE_VALUES:
        buffers = _Buffers()
        yield from (work(piece, buffers) for piece in pieces)
        return
    free = [_Buffers() for _ in range(FOLD_THREADS + 1)]
    begun: deque[tuple[Future[_Done], _Buffers]] = deque()
    with ThreadPoolExecutor(FOLD_THREADS, "fold") as threads:
        for piece in pieces:
            buffers = free.pop()
            begun.append((threads.submit(work, piece, buffers), buffers))
            if not free:
                done, buffers = begun.popleft()
                yield done.result()
                free.append(buffers)
        for done, _ in begun:
            yield done.result()


def mean_of(models: Sequence[Path], out: Path) -> str:
    """Write the plain mean of K models of the same names and shapes, synced; its digest."""
    invariant(len(models) > 0, "at least one model")
    buffers = _Buffers()
    with opened(models) as files, _model_file(out, files[0]) as new:
        for piece in files[0].pieces():
            sums = buffers.sum[: piece[2]]
            sums.fill(0.0)
            for file in files:
                buffers.add(file, 1.0, piece)
            np.divide(sums, len(models), out=sums)
            rounded = buffers.values[: piece[2]]
            np.copyto(rounded, sums, casting="same_kind")
            new.write(rounded.data.cast("B"))
    return new.digest


class _ModelFile:
    """A new file of tensors, written and hashed at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = blake3()

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        self._file.write(data)
        self._hasher.update(data)

    @property
    def digest(self) -> str:
        """BLAKE3 of what was written, hexadecimal."""
        return self._hasher.hexdigest()


@contextmanager
def _model_file(out: Path, like: Tiles) -> Iterator[_ModelFile]:
    """A new file of the same tensors, whose values are to follow in the same order; then synced."""
    tensors: Iterable[Part] = like.parts.values()
    header = make_header((one.values.name, one.values.dtype, one.shape) for one in tensors)
    with out.open("wb") as file:
        new = _ModelFile(file)
        new.write(header)
        yield new
        file.flush()
        os.fsync(file.fileno())


def distance(first: Path, second: Path) -> tuple[float, float]:
    """(Euclidean distance of two models, norm of the second)."""
    moved = norm = 0.0
    buffers = _Buffers()
    with opened([first, second]) as (a, b):
        for name, begin, count in b.pieces():
            before, after = buffers.before[:count], buffers.values[:count]
            a.read(name, begin, before, buffers.raw)
            b.read(name, begin, after, buffers.raw)
            norm += _squares(after)
            moved += _squares(np.subtract(after, before, out=before))
    return math.sqrt(moved), math.sqrt(norm)
