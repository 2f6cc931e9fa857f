"""What a tabular classifier predicts, from its tensors; no torch.

Each row's figures are its own, to the last bit, whatever rows stand beside it: else whoever chooses
the weights could have one patient's row change another's (`privacy.blocks` says how). So products
are added up by numpy itself, a row and an output at a time, and not by a matrix library.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

ROWS_AT_ONCE: Final = 64
"""A multiple of the widest vector registers' doubles: no row is in a remainder."""

PRODUCTS_MAX: Final = 1 << 20
"""Held at once, where `ROWS_AT_ONCE` rows have no more (8 MiB)."""


def predict(
    weights: Mapping[str, NDArray[np.float32]], features: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Probability of label 1 for each row.

    Args:
        weights: "hidden.N.weight" (out, in), "hidden.N.bias", ... and "linear.weight" (1, in).
        features: (rows, F).

    Returns:
        (rows,) probabilities.
    """
    layers = sum(name.startswith("hidden.") and name.endswith(".weight") for name in weights)
    names = [*(f"hidden.{index}" for index in range(layers)), "linear"]
    deep = [
        (weights[f"{name}.weight"].astype(np.float64), weights[f"{name}.bias"].astype(np.float64))
        for name in names
    ]
    probabilities = np.empty(len(features), np.float64)
    block = np.zeros((ROWS_AT_ONCE, features.shape[1]), np.float64)
    for begin in range(0, len(features), ROWS_AT_ONCE):
        rows = features[begin : begin + ROWS_AT_ONCE]
        block[: len(rows)] = rows
        block[len(rows) :] = 0.0
        probabilities[begin : begin + len(rows)] = _probabilities(deep, block)[: len(rows)]
    return probabilities


def _probabilities(
    deep: list[tuple[NDArray[np.float64], NDArray[np.float64]]], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(rows,) of a block."""
    for weight, bias in deep[:-1]:
        x = np.maximum(_product(x, weight) + bias, 0.0)
    weight, bias = deep[-1]
    logits = (_product(x, weight) + bias)[:, 0]
    # tanh does not overflow where exp does.
    found: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(logits / 2.0))
    return found


def _product(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """(rows, out) of (rows, in) and (out, in): each sum by itself, in one order."""
    outputs_at_once = max(1, PRODUCTS_MAX // x.size)
    return np.concatenate(
        [
            (x[:, None, :] * weight[None, first : first + outputs_at_once]).sum(axis=2)
            for first in range(0, len(weight), outputs_at_once)
        ],
        axis=1,
    )
