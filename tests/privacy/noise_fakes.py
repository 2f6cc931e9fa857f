"""Sources of noise that only tests may have."""

import numpy as np
from numpy.typing import NDArray

from privacy.noise import SecureNoise


class UnsafeSeededNoise(SecureNoise):
    """The same draws every time: statistics of a test do not change from run to run."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = np.random.default_rng(seed)

    def _random_bytes(self, count: int) -> bytes:
        return self._generator.bytes(count)


class UnsafeNoNoise(UnsafeSeededNoise):
    """No noise at all, and a record of the noise that was asked for."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.asked: list[tuple[tuple[int, ...], float]] = []

    def gaussian(self, shape: tuple[int, ...], std: float) -> NDArray[np.float64]:
        self.asked.append((shape, std))
        return np.zeros(shape)
