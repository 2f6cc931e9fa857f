"""What a tabular classifier predicts, from its tensors; no torch."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


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
    x = features.astype(np.float64)
    layers = sum(name.startswith("hidden.") and name.endswith(".weight") for name in weights)
    for index in range(layers):
        x = x @ weights[f"hidden.{index}.weight"].T + weights[f"hidden.{index}.bias"]
        x = np.maximum(x, 0.0)
    logits = (x @ weights["linear.weight"].T + weights["linear.bias"])[:, 0]
    # tanh does not overflow where exp does.
    probabilities: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(logits / 2.0))
    return probabilities
