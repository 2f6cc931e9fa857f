"""The null task: reads no data and answers with noise; proves a path and times it."""

import numpy as np
from numpy.typing import NDArray

from node_agent.tasks.null_config import TENSOR, NullConfig
from node_agent.tasks.program import Order, Weights

SPREAD = np.float32(1e-3)

_PATTERN_VALUES = 1 << 18
"""1 MiB of values are drawn; more are copies of them, as fast as memory is."""


class NullProgram:
    """Answers with a fresh random delta: equal ones would share a digest and travel for free."""

    remark = ""

    def __init__(self, config: NullConfig) -> None:
        self._size = config.parameters
        self._delta: NDArray[np.float32] | None = None

    def check(self, order: Order) -> None:
        """Nothing of it matters."""

    def rehearsal_s(self, declared_n: int, steps: int) -> float:
        """Nothing that takes time is done."""
        del declared_n, steps
        return 0.0

    def update(self, base: Weights, order: Order) -> Weights:
        """Normal values, each time others, repeated after 1 MiB; `base` and `order` do not matter.

        The array is filled anew at the next call.
        """
        del base, order
        if self._delta is None:
            self._delta = np.empty(self._size, np.float32)
        pattern = np.random.default_rng().standard_normal(
            min(self._size, _PATTERN_VALUES), np.float32
        )
        pattern *= SPREAD
        for first in range(0, self._size, _PATTERN_VALUES):
            piece = self._delta[first : first + _PATTERN_VALUES]
            np.copyto(piece, pattern[: len(piece)])
        return {TENSOR: self._delta}
