"""Encodings of an update: unbiased, bounded, and as large as they say."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from protos import encoding
from protos.content import digest_of_file
from protos.encoding import NotFinite, make_room, write_update
from protos.errors import InvariantBroken
from protos.tensors import NotTensors, Tensor, parse_header, read_header
from protos.updates import BLOCK_VALUES, NORM_GROWTH_MAX, UpdateDtype, parts_of

Floats = NDArray[np.float32]
NARROW: list[UpdateDtype] = ["bfloat16", "int8"]
ENCODINGS = 10_000


def mixed(count: int, seed: int = 0) -> Floats:
    """Values over 24 orders of magnitude, of both signs, with zeros between."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(count) * 10.0 ** draw.integers(-20, 4, count)
    values[::7] = 0.0
    return values.astype(np.float32)


def spread(count: int) -> Floats:
    """Values of one magnitude but for a block of zeros and one of very small values."""
    values = np.random.default_rng(1).standard_normal(count).astype(np.float32)
    values[BLOCK_VALUES : 2 * BLOCK_VALUES] = 0.0
    values[2 * BLOCK_VALUES : 3 * BLOCK_VALUES] *= np.float32(1e-30)
    return values


def round_trip(values: Floats, dtype: UpdateDtype, draw: np.random.Generator) -> Floats:
    """Encoded and decoded again."""
    out = np.empty_like(values)
    if dtype == "int8":
        scales = encoding.scales_of(values)
        encoding.decode_int8(encoding.encode_int8(values, scales, draw), scales, out)
    else:
        encoding.decode_bfloat16(encoding.encode_bfloat16(values, draw), out)
    return out


def steps_of(values: Floats, dtype: UpdateDtype) -> NDArray[np.float64]:
    """The distance between the two values that each value is rounded to."""
    if dtype == "int8":
        scales = np.repeat(encoding.scales_of(values), BLOCK_VALUES)[: len(values)]
        return scales.astype(np.float64)
    _, exponent = np.frexp(np.abs(values.astype(np.float64)))
    return np.where(values == 0, 0.0, 2.0 ** (exponent - 8.0))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("values", [mixed(600), spread(3500)], ids=["mixed", "spread"])
def test_the_mean_of_ten_thousand_encodings_is_the_value(
    dtype: UpdateDtype, values: Floats
) -> None:
    """Each mean is within 4 standard errors, and all together show no drift up or down."""
    draw = np.random.default_rng(7)
    total = np.zeros(len(values))
    for _ in range(ENCODINGS):
        total += round_trip(values, dtype, draw)
    step = steps_of(values, dtype)
    exact = values.astype(np.float64)
    up = np.where(step > 0, exact / np.where(step > 0, step, 1.0) % 1.0, 0.0)
    error = step * np.sqrt(up * (1 - up) / ENCODINGS)
    off = total / ENCODINGS - exact
    rolled = (up > 0.01) & (up < 0.99)
    # A value that is rounded up once in a million times is either never seen so, or once.
    rare = np.where(rolled, 0.0, step / ENCODINGS)
    assert (np.abs(off) <= 4 * error + rare).all()
    for side in (rolled & (values > 0), rolled & (values < 0)):
        z = off[side] / error[side]
        assert abs(z.mean()) < 4 / np.sqrt(side.sum())


@pytest.mark.parametrize("dtype", NARROW)
def test_an_encoding_is_off_by_less_than_one_step(dtype: UpdateDtype) -> None:
    """Never further than to the next value, and a value that can be kept is kept; a block of zeros
    is not divided by zero."""
    draw = np.random.default_rng(0)
    for values in (mixed(5000), spread(5000)):
        with np.errstate(divide="raise", invalid="raise"):
            off = np.abs(round_trip(values, dtype, draw).astype(np.float64) - values)
        step = steps_of(values, dtype)
        assert (off <= step * (1 + 1e-6)).all()
        assert (off[values == 0] == 0).all()
    kept = np.float32([0.0, -0.0, 1.0, -2.5, 2.0**100, 2.0**-126])
    np.testing.assert_array_equal(round_trip(kept, "bfloat16", draw), kept)


@pytest.mark.parametrize("dtype", NARROW)
def test_no_rounding_makes_an_update_longer_than_the_bound(dtype: UpdateDtype) -> None:
    """Also where every value of a block but one is just above what rounds away."""
    draw = np.random.default_rng(0)
    worst = np.full(BLOCK_VALUES, 1e-3, np.float32)
    worst[0] = 1.0
    for values in (worst, spread(5000), mixed(5000), np.float32([1.0])):
        before = np.linalg.norm(values.astype(np.float64))
        for _ in range(50):
            after = np.linalg.norm(round_trip(values, dtype, draw).astype(np.float64))
            assert after <= before * NORM_GROWTH_MAX[dtype]


@pytest.mark.parametrize("dtype", NARROW)
def test_the_largest_and_the_smallest_floats_stay_finite(dtype: UpdateDtype) -> None:
    """Nothing overflows to infinity, and blocks below float32's range become zeros or tiny."""
    most = np.finfo(np.float32).max
    draw = np.random.default_rng(0)
    large = np.float32([most, -most, most / 2]) * np.float32(1 if dtype == "bfloat16" else 0.99)
    assert np.isfinite(round_trip(large, dtype, draw)).all()
    tiny = np.full(5, np.finfo(np.float32).smallest_subnormal, np.float32)
    assert (np.abs(round_trip(tiny, dtype, draw)) <= 2.0**-126).all()


@pytest.mark.parametrize("dtype", ["float32", *NARROW])
def test_a_written_update_is_what_it_says(tmp_path: Path, dtype: UpdateDtype) -> None:
    """Digest and size are the file's, the file has the ordered form, and two differ by chance."""
    deltas = {
        "b": np.float32(3.0).reshape(()),
        "a": mixed(3 * 50_000).reshape(3, -1),
        "none": np.empty((0, 2), np.float32),
    }
    out = tmp_path / "update"
    digest, size = write_update(out, deltas, dtype)
    assert (digest, size) == (digest_of_file(out), out.stat().st_size)
    with out.open("rb") as file:
        parts = parts_of(parse_header(*read_header(file)), dtype)
    assert {n: p.shape for n, p in parts.items()} == {n: d.shape for n, d in deltas.items()}
    again, _ = write_update(out, deltas, dtype)
    assert (again == digest) == (dtype == "float32")
    if dtype == "float32":
        np.testing.assert_array_equal(load_file(out)["a"], deltas["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["update"]


@pytest.mark.parametrize("dtype", ["float32", *NARROW])
@pytest.mark.parametrize("trained", [("a", "w"), ("a",)])
def test_an_update_takes_the_room_that_was_made_for_it(
    tmp_path: Path, dtype: UpdateDtype, trained: tuple[str, ...]
) -> None:
    """As much as all tensors need; an update of some of them is no longer than itself."""
    deltas = {"a": mixed(70_000), "w": mixed(3)}
    out = tmp_path / "update"
    make_room(out, {name: delta.shape for name, delta in deltas.items()}, dtype)
    room = [path.stat().st_size for path in tmp_path.iterdir()]
    _, size = write_update(out, {name: deltas[name] for name in trained}, dtype)
    assert room == [size] if len(trained) == 2 else room[0] > size
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("update", size)]


def test_narrow_updates_are_a_half_and_a_quarter_as_large(tmp_path: Path) -> None:
    """Of 200,000 values: four, two, and a little over one byte each."""
    deltas = {"w": mixed(200_000)}
    sizes = [write_update(tmp_path / "u", deltas, d)[1] for d in ("float32", "bfloat16", "int8")]
    assert sizes[1] < 0.502 * sizes[0]
    assert sizes[2] < 0.253 * sizes[0]


@pytest.mark.parametrize("dtype", ["float32", *NARROW])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_leaves_no_file(
    tmp_path: Path, dtype: UpdateDtype, bad: float
) -> None:
    """It is found while it is written, wherever it is."""
    values = mixed(70_000)
    values[-1] = bad
    with pytest.raises(NotFinite):
        write_update(tmp_path / "update", {"a": mixed(10), "w": values}, dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "dtype"),
    [
        ([Tensor("w", "F32", (3,), 0)], "int8"),
        ([Tensor("w", "I8", (3,), 0)], "int8"),
        ([Tensor("w", "I8", (3,), 0), Tensor("w.scale", "F32", (2,), 0)], "int8"),
        ([Tensor("w", "I8", (3,), 0), Tensor("w.scale", "BF16", (1,), 0)], "int8"),
        ([Tensor("w", "I8", (1025,), 0), Tensor("w.scale", "F32", (1,), 0)], "int8"),
        ([Tensor("w", "F32", (3,), 0)], "bfloat16"),
        ([Tensor("w", "BF16", (3,), 0)], "float32"),
        ([Tensor("w", "F64", (3,), 0)], "float32"),
    ],
)
def test_another_form_than_ordered_is_refused(tensors: list[Tensor], dtype: UpdateDtype) -> None:
    """Missing, surplus and misshapen scales, and any other type."""
    with pytest.raises(NotTensors):
        parts_of(tensors, dtype)


def test_a_scale_never_takes_the_place_of_a_tensor(tmp_path: Path) -> None:
    """A model with tensors NAME and NAME.scale cannot travel as int8, and nothing wrong does."""
    with pytest.raises(InvariantBroken):
        write_update(tmp_path / "update", {"w": mixed(3), "w.scale": mixed(1)}, "int8")
    assert list(tmp_path.iterdir()) == []
