"""Read the tensors of a model or of an update a tile at a time, into buffers of the caller's.

Plain reads, no memory map and no whole tensor: what is resident is a few tiles, whatever the size
of the model and the number of files.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protos.encoding import TILE_VALUES, Floats, decode_bfloat16, decode_int8
from protos.tensors import HEADER_BYTES_MAX, NotTensors, parse_header, read_header
from protos.updates import BLOCK_VALUES, Part, UpdateDtype, blocks_of, parts_of

FILES_OPEN_MAX: Final = 64
"""Of more files than this at once, each is opened anew for each tile: descriptors are scarce."""

_Known = dict[tuple[bytes, int], dict[str, Part]]


class Tiles:
    """The tensors of one file, decoded to float32.

    Args:
        header_bytes_max: parsed, a header can take some twenty times its length.
        known: headers that were parsed before; the updates of a round have the same one.

    Raises:
        NotTensors: the file is not an update of this form; a model is one of float32.
    """

    def __init__(
        self,
        path: Path,
        dtype: UpdateDtype = "float32",
        header_bytes_max: int = HEADER_BYTES_MAX,
        known: _Known | None = None,
    ) -> None:
        self._path = path
        self._dtype = dtype
        self._descriptor: int | None = None
        known = {} if known is None else known
        with path.open("rb") as file:
            header = read_header(file, header_bytes_max)
        if header not in known:
            known[header] = parts_of(parse_header(*header), dtype)
        self.parts = known[header]

    def pieces(self) -> Iterator[tuple[str, int, int]]:
        """(name, number of the first value, number of values) of every tile, in the file's order.

        A tile begins with a block of int8.
        """
        for name, part in self.parts.items():
            for first in range(0, part.values.values, TILE_VALUES):
                yield name, first, min(TILE_VALUES, part.values.values - first)

    def read(self, name: str, first: int, out: Floats, raw: NDArray[np.uint8]) -> None:
        """Decode the values from `first` on.

        Args:
            out: (n,), a tile at most; filled.
            raw: a `raw_buffer`, overwritten.
        """
        with self._opened() as descriptor:
            part = self.parts[name]
            offset = part.values.offset
            if part.scales is not None:
                scales = raw[TILE_VALUES : TILE_VALUES + 4 * blocks_of(out.shape)]
                _fill(descriptor, raw.data[: len(out)], offset + first)
                first_scale = part.scales.offset + 4 * (first // BLOCK_VALUES)
                _fill(descriptor, scales.data, first_scale)
                decode_int8(raw[: len(out)].view(np.int8), scales.view(np.float32), out)
            elif self._dtype == "bfloat16":
                _fill(descriptor, raw.data[: 2 * len(out)], offset + 2 * first)
                decode_bfloat16(raw[: 2 * len(out)].view(np.uint16), out)
            else:
                _fill(descriptor, out.data.cast("B"), offset + 4 * first)

    def keep_open(self, stack: ExitStack) -> None:
        """Open the file once, until the stack is left."""
        self._descriptor = os.open(self._path, os.O_RDONLY)
        stack.callback(os.close, self._descriptor)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        if self._descriptor is not None:
            yield self._descriptor
            return
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def raw_buffer() -> NDArray[np.uint8]:
    """Room for a tile of any form before it is decoded."""
    return np.empty(2 * TILE_VALUES, np.uint8)


@contextmanager
def opened(
    paths: Sequence[Path], dtype: UpdateDtype = "float32", header_bytes_max: int = HEADER_BYTES_MAX
) -> Iterator[list[Tiles]]:
    """The tensors of each file; equal headers are kept once. Raises as `Tiles`."""
    known: _Known = {}
    with ExitStack() as stack:
        files = [Tiles(path, dtype, header_bytes_max, known) for path in paths]
        if len(files) <= FILES_OPEN_MAX:
            for file in files:
                file.keep_open(stack)
        yield files


def _fill(descriptor: int, buffer: memoryview, offset: int) -> None:
    while len(buffer):
        count = os.preadv(descriptor, [buffer], offset)
        if not count:
            raise NotTensors("the file became shorter while it was read")
        buffer, offset = buffer[count:], offset + count
