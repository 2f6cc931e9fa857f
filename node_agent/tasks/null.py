"""The null task: reads no data and answers with noise; proves a path and times it."""

import numpy as np

from node_agent.tasks.null_config import NullConfig, shapes
from node_agent.tasks.program import Order, Weights

SPREAD = np.float32(1e-3)


class NullProgram:
    """Answers with a fresh random delta: equal ones would share a digest and travel for free."""

    def __init__(self, config: NullConfig) -> None:
        self._shapes = shapes(config)

    def rehearsal_s(self, declared_n: int, steps: int) -> float:
        """Nothing that takes time is done."""
        del declared_n, steps
        return 0.0

    def update(self, base: Weights, order: Order) -> Weights:
        """Independent normal values; `base` and `order` do not matter."""
        del base, order
        draw = np.random.default_rng()
        return {
            name: draw.standard_normal(shape, dtype=np.float32) * SPREAD
            for name, shape in self._shapes.items()
        }
