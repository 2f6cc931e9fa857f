"""The safetensors format, read without trust and without mapping: where each tensor's bytes lie.

The `safetensors` package maps the whole file, and mapped pages count as resident memory. What is
accepted here is what it accepts, less: no duplicate names, no gaps, a shorter header, fewer types.

A file is eight bytes of header length (little-endian), a header in JSON, and the tensors' values
one after the other. Source: the format's description in the safetensors repository.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from protos.errors import invariant

HEADER_BYTES_MAX: Final = 2 << 20
"""Room for some 20,000 tensors; parsed, such a header takes a few dozen MiB at the worst."""

_LENGTH_BYTES: Final = 8
_ALIGNMENT: Final = 8
_DIMENSIONS_MAX: Final = 32
_BYTES_EACH: Final = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


class NotTensors(Exception):
    """The bytes are no safetensors file that is accepted here; the text holds no value."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        dtype: as the format writes it: F32, BF16, I8, ...
        offset: of its first byte, from the begin of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_header(file: BinaryIO, header_bytes_max: int = HEADER_BYTES_MAX) -> tuple[bytes, int]:
    """(header, number of bytes after it) of an open file, for `parse_header`.

    Raises:
        NotTensors: the header is too long.
    """
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if size < _LENGTH_BYTES or length > min(header_bytes_max, size - _LENGTH_BYTES):
        raise NotTensors("its header is longer than the file, or than is allowed")
    return file.read(length), size - _LENGTH_BYTES - length


def parse_header(header: bytes, data_bytes: int) -> tuple[Tensor, ...]:
    """The tensors that a header announces, in the order of their bytes, which they must fill.

    Raises:
        NotTensors: they do not, or the header is not one.
    """
    try:
        entries = json.loads(
            header.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise NotTensors("its header is not JSON, or names a tensor twice") from None
    if not isinstance(entries, dict) or not header.startswith(b"{"):
        raise NotTensors("its header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise NotTensors("its metadata is not a mapping of texts")
    spans = sorted(_span(name, entry) for name, entry in entries.items())
    end, tensors = 0, []
    for first, last, name, dtype, shape in spans:
        if first != end or last - first != math.prod(shape) * _BYTES_EACH[dtype]:
            raise NotTensors("a tensor overlaps another, leaves a gap or has another size")
        end = last
        tensors.append(Tensor(name, dtype, shape, _LENGTH_BYTES + len(header) + first))
    if end != data_bytes:
        raise NotTensors("its tensors do not fill it")
    return tuple(tensors)


def _span(name: str, entry: Any) -> tuple[int, int, str, str, tuple[int, ...]]:
    """(first byte, byte after the last, name, type, shape) of one entry of a header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise NotTensors("a tensor's entry has other keys than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES_EACH:
        raise NotTensors("a tensor has an unknown type")
    if not _whole_numbers(shape) or len(shape) > _DIMENSIONS_MAX:
        raise NotTensors("a tensor's shape is not a list of whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise NotTensors("a tensor's data_offsets are not two whole numbers")
    return offsets[0], offsets[1], name, dtype, tuple(shape)


def _whole_numbers(value: Any) -> bool:
    """Whether it is a list of whole numbers that a file could have; `true` is none."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key twice")
    for name in made:
        name.encode()  # half a surrogate pair is a ValueError: no name for a file
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def data_bytes(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> int:
    """Bytes of the values of tensors (name, type, shape), which follow the header."""
    return sum(math.prod(shape) * _BYTES_EACH[dtype] for _, dtype, shape in tensors)


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Length and header of a file whose tensors (name, type, shape) follow in this order.

    Wide types must come first if the values are to be aligned.
    """
    entries: dict[str, object] = {}
    end = 0
    for name, dtype, shape in tensors:
        invariant(name not in entries, "no two tensors of a file have the same name")
        first, end = end, end + math.prod(shape) * _BYTES_EACH[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [first, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
