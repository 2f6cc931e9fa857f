"""The form of an update on the wire: which tensors its file holds, for each `update_dtype`.

An update holds, for each tensor that was trained, the deltas against the round's model. A tensor
that it does not hold did not change.

| `update_dtype` | a tensor NAME of n values is |
|---|---|
| float32 | NAME, F32 |
| bfloat16 | NAME, BF16 |
| int8 | NAME, I8, and `NAME.scale`, F32, one for each 1024 values: delta = scale * value |

A model with tensors NAME and NAME.scale cannot travel as int8; `taken_names` finds them.

Both narrow forms are rounded stochastically, so that their mean is the delta (`protos.encoding`).
Rounding comes after the noise, and what is computed from a private release alone is as private as
it is: it costs no epsilon.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from protos.tensors import NotTensors, Tensor

UpdateDtype = Literal["float32", "bfloat16", "int8"]
UPDATE_DTYPES: Final[tuple[UpdateDtype, ...]] = get_args(UpdateDtype)

BLOCK_VALUES: Final = 1024
"""Values that share a scale; the last block of a tensor may be shorter."""

INT8_MAX: Final = 127

NORM_GROWTH_MAX: Final[Mapping[UpdateDtype, float]] = {
    "float32": 1.0,
    "bfloat16": 1 + 2**-7,
    "int8": 1 + math.sqrt(BLOCK_VALUES) / INT8_MAX + 1e-6,
}
"""By what factor encoding can lengthen an update at most, however the rounding falls.

A bfloat16 is off by less than 2^-7 of its value. An int8 is off by less than its block's scale,
max/127: the error of a block is below sqrt(1024)/127 of the block's largest value, and so below
that share of the block's norm. (Below 2^-126 a value, where float32 itself ends, not even this
holds; no bound on a norm is that small.)
"""

_VALUES: Final[Mapping[UpdateDtype, str]] = {"float32": "F32", "bfloat16": "BF16", "int8": "I8"}
_SCALE_SUFFIX: Final = ".scale"


@dataclass(frozen=True, slots=True)
class Part:
    """One trained tensor in an update's file.

    Attributes:
        scales: of its blocks; int8 alone has them.
    """

    values: Tensor
    scales: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the deltas."""
        return self.values.shape


def blocks_of(shape: tuple[int, ...]) -> int:
    """Number of scales that a tensor of this shape needs."""
    return -(-math.prod(shape) // BLOCK_VALUES)


def taken_names(names: Collection[str], dtype: UpdateDtype) -> list[str]:
    """Tensors of a model whose names are those under which the scales of others would travel."""
    if dtype != "int8":
        return []
    return sorted({name + _SCALE_SUFFIX for name in names} & set(names))


def tensors_for(
    shapes: Mapping[str, tuple[int, ...]], dtype: UpdateDtype
) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, type, shape) of what a file holds, in the order of its bytes: scales, then values."""
    names = sorted(shapes)
    values = [(name, _VALUES[dtype], shapes[name]) for name in names]
    if dtype != "int8":
        return values
    return [(name + _SCALE_SUFFIX, "F32", (blocks_of(shapes[name]),)) for name in names] + values


def parts_of(tensors: Iterable[Tensor], dtype: UpdateDtype) -> dict[str, Part]:
    """The trained tensors of a file of this form, by name, in the order of their bytes.

    Raises:
        NotTensors: the file has another form.
    """
    values: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for tensor in tensors:
        if tensor.dtype == _VALUES[dtype]:
            values[tensor.name] = tensor
        elif dtype == "int8" and tensor.dtype == "F32":
            scales[tensor.name] = tensor
        else:
            raise NotTensors(f"a tensor is {tensor.dtype} where {_VALUES[dtype]} was ordered")
    parts = {}
    for name, tensor in values.items():
        scale = scales.pop(name + _SCALE_SUFFIX, None)
        if dtype == "int8" and (scale is None or scale.shape != (blocks_of(tensor.shape),)):
            raise NotTensors("a tensor of int8 has no scale for each of its blocks")
        parts[name] = Part(tensor, scale)
    if scales:
        raise NotTensors("a scale belongs to no tensor")
    return parts
