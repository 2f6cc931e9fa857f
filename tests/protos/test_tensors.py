"""The strict reader of safetensors headers, against the library that everybody else uses."""

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from protos.tensors import HEADER_BYTES_MAX, NotTensors, make_header, parse_header, read_header

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
TYPES = st.sampled_from([np.float32, np.float64, np.int8, np.uint16, np.bool_])
A = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def packed(header: Any, data: bytes = bytes(4)) -> bytes:
    """A file of this header, which may be bytes or what JSON is made of, and these values."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def parsed(data: bytes) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """What the reader finds in a file."""
    found = parse_header(*read_header(io.BytesIO(data)))
    return {t.name: (t.dtype, t.shape, t.offset) for t in found}


def library_takes(data: bytes) -> bool:
    """Whether the safetensors package reads the file."""
    try:
        load(data)
    except (SafetensorError, KeyError, ValueError):
        return False
    return True


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.tuples(TYPES, SHAPES), max_size=5))
def test_what_the_library_writes_is_read_with_the_same_values(tensors: dict[str, Any]) -> None:
    """Names, types, shapes and the place of the values agree, for any names and empty tensors."""
    arrays = {n: np.full(shape, 3, dtype) for n, (dtype, shape) in tensors.items()}
    arrays.pop("__metadata__", None)
    data = save(arrays, metadata={"made": "by us"})
    found = parsed(data)
    assert {n: shape for n, (_, shape, _) in found.items()} == {
        n: a.shape for n, a in arrays.items()
    }
    for name, (_, shape, offset) in found.items():
        raw = np.frombuffer(data, np.uint8, arrays[name].nbytes, offset)
        np.testing.assert_array_equal(raw.view(arrays[name].dtype).reshape(shape), arrays[name])


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(["F32", "I8", "BF16"]), SHAPES)))
def test_headers_of_ours_are_read_by_us_and_by_the_library(tensors: dict[str, Any]) -> None:
    """What `make_header` announces is what both find."""
    tensors.pop("__metadata__", None)
    header = make_header([(n, dtype, shape) for n, (dtype, shape) in tensors.items()])
    sizes = {"F32": 4, "I8": 1, "BF16": 2}
    data = header + bytes(sum(sizes[d] * int(np.prod(s)) for d, s in tensors.values()))
    assert {n: (d, s) for n, (d, s, _) in parsed(data).items()} == tensors
    if not any(dtype == "BF16" for dtype, _ in tensors.values()):  # numpy has no bfloat16
        assert {n: a.shape for n, a in load(data).items()} == {
            n: s for n, (_, s) in tensors.items()
        }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        b"\x80\x04pickle",
        b"\xff" * 64,
        packed({"a": A})[:-1],
        packed({"a": A}) + b"x",
        packed({"a": A})[:20],
        packed(b"[]", b""),
        packed(b"{", b""),
        packed(b'"a"', b""),
        packed(b"[" * 100_000, b""),
        packed({"a": {**A, "dtype": "F31"}}),
        packed({"a": {**A, "dtype": 1}}),
        packed({"a": {**A, "shape": [-1]}}),
        packed({"a": {**A, "shape": [1.0]}}),
        packed({"a": {**A, "shape": [True]}}),
        packed({"a": {**A, "shape": [2**70]}}),
        packed({"a": {**A, "shape": [2]}}),
        packed({"a": {**A, "shape": [-1, -1]}}),
        packed({"a": {**A, "data_offsets": [-4, 0]}}),
        packed({"a": {**A, "data_offsets": [4, 0]}}),
        packed({"a": {**A, "data_offsets": [0]}}),
        packed({"a": {**A, "data_offsets": [0, 2**63]}}),
        packed({"a": {"dtype": "F32", "shape": [1]}}),
        packed({"a": A, "b": A}),
        packed({"a": A, "b": {**A, "data_offsets": [2, 6]}}, bytes(6)),
        packed({"a": A, "b": {**A, "data_offsets": [8, 12]}}, bytes(12)),
        packed({"a": {**A, "data_offsets": [4, 8]}}, bytes(8)),
        packed({"__metadata__": {"a": 1}, "a": A}),
    ],
)
def test_files_that_the_library_refuses_are_refused(data: bytes) -> None:
    """Truncated, overlapping, with gaps, with impossible shapes, or none at all."""
    assert not library_takes(data)
    with pytest.raises(NotTensors):
        parsed(data)


@pytest.mark.parametrize(
    "data",
    [
        packed(json.dumps({"a": A})[:-1].encode() + b"," + json.dumps({"a": A})[1:].encode()),
        packed({"a": {**A, "more": 1}}),
        packed({"__metadata__": None, "a": A}),
        packed(b" " + json.dumps({"a": A}).encode()),
        packed(json.dumps({"a": A}).encode() + b" " * HEADER_BYTES_MAX),
        packed({"a": {**A, "shape": [1] * 33}}),
    ],
)
def test_files_that_mean_two_things_are_refused_though_the_library_reads_them(data: bytes) -> None:
    """A name twice, unknown keys, and headers beyond what a reader's memory should have to hold."""
    assert library_takes(data)
    with pytest.raises(NotTensors):
        parsed(data)


def test_half_a_character_is_no_name() -> None:
    """JSON can escape what no text holds; a model of such a name could not be written again."""
    with pytest.raises(NotTensors):
        parsed(packed(b'{"\\ud800":' + json.dumps(A).encode() + b"}"))


@settings(deadline=None)
@given(st.data())
def test_a_damaged_file_is_never_read_where_the_library_refuses(draw: st.DataObject) -> None:
    """Whatever byte of the header is changed, we accept nothing that the library does not."""
    data = bytearray(save({"ab": np.ones((2, 3), np.float32), "c": np.ones(3, np.int8)}))
    where = draw.draw(st.integers(0, 8 + int.from_bytes(data[:8], "little") - 1))
    data[where] = draw.draw(st.integers(0, 255))
    try:
        parsed(bytes(data))
    except NotTensors:
        return
    # The package's numpy side cannot make an array of some types that its reader knows.
    try:
        load(bytes(data))
    except SafetensorError as error:
        raise AssertionError("the library refuses what we read") from error
    except (KeyError, TypeError, ValueError):
        pass
