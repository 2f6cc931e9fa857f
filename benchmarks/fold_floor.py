"""The floor of a fold: `acc += w * x` for every update, in tiles that stay in the cache."""

import time
from typing import Final

import numpy as np

TILE_VALUES: Final = (256 << 10) // 4
"""256 KiB of float32: two tiles and a product fit into the cache of a core."""


def fold_floor_s(nodes: int, parameters: int) -> float:
    """Seconds to fold `nodes` updates of `parameters` float32 values that are in memory."""
    update = np.random.default_rng().standard_normal(parameters, dtype=np.float32)
    total = np.zeros(parameters, dtype=np.float32)
    weight = np.float32(1 / nodes)
    product = np.empty(min(TILE_VALUES, parameters), dtype=np.float32)
    began_s = time.perf_counter()
    for _ in range(nodes):
        for start in range(0, parameters, TILE_VALUES):
            tile = update[start : start + TILE_VALUES]
            part = product[: len(tile)]
            np.multiply(tile, weight, out=part)
            total[start : start + TILE_VALUES] += part
    return time.perf_counter() - began_s
