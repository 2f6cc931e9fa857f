"""Check and average updates, and measure how far the global model moved.

An update is a safetensors file of float32 deltas against the round's model, with the same names
and shapes. Nothing in it is interpreted as code.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from protos.errors import Malformed, invariant

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shape:
    """Names and shapes of a model's tensors, and the number of values in all."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def parameters(self) -> int:
        """P, the number of values."""
        return sum(math.prod(shape) for _, shape in self.tensors)


def shape_of(path: Path) -> Shape:
    """Read a model's or an update's names and shapes; its values are not looked at.

    Raises:
        Malformed: MODEL_INVALID, not a safetensors file of float32 tensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = []
            for name in sorted(file.keys()):
                part = file.get_slice(name)
                if part.get_dtype() != "F32":
                    raise _invalid(f"tensor {name} is {part.get_dtype()}, not F32")
                tensors.append((name, tuple(part.get_shape())))
            return Shape(tuple(tensors))
    except (SafetensorError, OSError, ValueError) as error:
        raise _invalid("it is not a readable safetensors file") from error


def _invalid(what: str) -> Malformed:
    return Malformed("MODEL_INVALID", f"the model was refused: {what}")


def check_model(path: Path) -> None:
    """Refuse an initial model that is not a safetensors file of finite float32 tensors.

    Raises:
        Malformed: MODEL_INVALID.
    """
    shape = shape_of(path)
    with safe_open(path, framework="numpy") as file:
        for name, _ in shape.tensors:
            if not np.isfinite(file.get_tensor(name)).all():
                raise _invalid(f"tensor {name} holds a value that is not finite")


def check_update(path: Path, expected: Shape, norm_max: float) -> None:
    """Check one update before it counts.

    Args:
        norm_max: the largest Euclidean norm over all tensors; a public bound (`update_norm_max`).

    Raises:
        Malformed: UPDATE_INVALID. The message tells which check failed and no value.
    """
    try:
        shape = shape_of(path)
    except Malformed as error:
        raise Malformed("UPDATE_INVALID", f"the update was refused: {error.message}") from error
    if shape != expected:
        raise Malformed(
            "UPDATE_INVALID", "the update was refused: its tensors are not those of the model"
        )
    squares = 0.0
    with safe_open(path, framework="numpy") as file:
        for name, _ in shape.tensors:
            values = file.get_tensor(name)
            if not np.isfinite(values).all():
                raise Malformed(
                    "UPDATE_INVALID", "the update was refused: it holds a value that is not finite"
                )
            squares += float(np.square(values, dtype=np.float64).sum())
    if math.sqrt(squares) > norm_max:
        raise Malformed(
            "UPDATE_INVALID", "the update was refused: it is larger than such a round can make it"
        )


def fold(base: Path, updates: Sequence[Path], weights: Sequence[float], out: Path) -> None:
    """Write base + the weighted mean of K updates.

    Args:
        base: the round's model, float32.
        updates: K checked updates of the same names and shapes.
        weights: K weights > 0. Must be public: true record counts are private data.
        out: where the new model goes, synced.

    Source: McMahan et al. 2017, Algorithm 1. Sums are float64, in the order of `updates`.
    """
    invariant(len(updates) == len(weights) > 0, "one weight per update, and at least one")
    invariant(all(w > 0 for w in weights), "weights are positive")
    total = math.fsum(weights)
    model: dict[str, NDArray[np.float32]] = {}
    with safe_open(base, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118
            model[name] = file.get_tensor(name)
    for name, values in model.items():
        accumulator = values.astype(np.float64)
        for path, weight in zip(updates, weights, strict=True):
            with safe_open(path, framework="numpy") as file:
                accumulator += np.multiply(file.get_tensor(name), weight / total, dtype=np.float64)
        model[name] = accumulator.astype(np.float32)
    _write(model, out)


def mean_of(models: Sequence[Path], out: Path) -> None:
    """Write the plain mean of K models of the same names and shapes, synced."""
    invariant(len(models) > 0, "at least one model")
    mean: dict[str, NDArray[np.float32]] = {}
    with safe_open(models[0], framework="numpy") as first:
        shapes = {name: first.get_slice(name).get_shape() for name in first.keys()}  # noqa: SIM118
    for name, shape in shapes.items():
        accumulator = np.zeros(shape, dtype=np.float64)
        for path in models:
            with safe_open(path, framework="numpy") as file:
                accumulator += file.get_tensor(name)
        mean[name] = (accumulator / len(models)).astype(np.float32)
    _write(mean, out)


def _write(model: dict[str, NDArray[np.float32]], out: Path) -> None:
    save_file(model, out)
    with out.open("rb+") as file:
        os.fsync(file.fileno())


def distance(first: Path, second: Path) -> tuple[float, float]:
    """(Euclidean distance of two models, norm of the second)."""
    moved, length = 0.0, 0.0
    with safe_open(first, framework="numpy") as a, safe_open(second, framework="numpy") as b:
        for name in b.keys():  # noqa: SIM118
            after = b.get_tensor(name).astype(np.float64)
            moved += float(np.square(after - a.get_tensor(name)).sum())
            length += float(np.square(after).sum())
    return math.sqrt(moved), math.sqrt(length)
