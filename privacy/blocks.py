"""Rows in blocks of one shape: what is computed of a row does not depend on the rows beside it.

A sum has the sensitivity that is booked only if adding a patient changes no other patient's part.
In exact arithmetic nothing would; a matrix library, however, takes the rows at the edge of a batch,
or at another address, in another order of operations. That is a last bit, unless whoever chooses
the weights makes terms of 1e30 cancel: then the rounding error is all that is left, and one more
row flips its neighbours' gradients. So

- every pass has the same number of rows, from the *declared* size, filled up with zeros, in the
  same memory: one shape, one alignment, and thus one choice of kernels whoever is in the data;
- the number is a multiple of 16, so that no vector instruction has a remainder to treat apart;
- MKL is asked for the mode in which a result depends on the computation alone (`MKL_CBWR`);
- before a record is computed with, the machine is *tried*: made-up rows at weights of many
  magnitudes, once more in another order and with others beside them, must give the same bits in
  each place.
  Where they do not (another library, another processor) rows are taken one by one, which is slow
  and needs no such property.

What is left to trust is that the order of operations does not follow from the values themselves.
Loads torch.
"""

import os
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

# Read by the library at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO")

LANES: Final = 16
"""Doubles in two of the widest vector registers: element-wise loops take so many at once."""

GRADIENT_VALUES_MAX: Final = 1 << 20
"""Per-row gradient values in a block (8 MiB), where a block of `LANES` rows has no more.

Larger blocks are slower: their arrays are returned to the system and faulted in again each step.
"""

GRADIENT_VALUES_LIMIT: Final = 1 << 22
"""Beyond it (32 MiB) not even `LANES` rows are taken at once."""

_TRIED_DECADES: Final = 3.0


def block_rows(values: int, rows_expected: float) -> int:
    """How many rows a pass has: all that are expected, or as many as memory allows.

    Args:
        values: trained parameters.
        rows_expected: in a step, by public figures alone.
    """
    if values * LANES > GRADIENT_VALUES_LIMIT:
        return 1
    most = max(1, GRADIENT_VALUES_MAX // (values * LANES))
    wanted = max(1, -int(-rows_expected // LANES))
    return LANES * min(most, wanted)


class Block:
    """Room for the rows of one pass, which each pass fills anew.

    Args:
        features: (n, ...) and `labels` (n,): of which type and shape rows are.
        rows: of a pass.
    """

    def __init__(self, features: Tensor, labels: Tensor, rows: int) -> None:
        self.rows = rows
        self.features = features.new_zeros((rows, *features.shape[1:]))
        self.labels = labels.new_zeros((rows, *labels.shape[1:]))

    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Take up to `rows` rows; zeros stand in the other places."""
        count = len(features)
        for room, values in ((self.features, features), (self.labels, labels)):
            room[:count] = values
            room[count:] = 0


def are_apart(computed: Callable[[], Tensor], block: Block) -> bool:
    """Whether each row's result is its own, bit by bit, as far as made-up rows can show it.

    Args:
        computed: gives (rows, ...) for the rows that are in the block.
    """
    g = torch.Generator().manual_seed(block.rows)
    features, labels = _made_up(block.features, g), _made_up(block.labels, g).round().abs() % 2
    block.fill(features, labels)
    first = computed().clone()
    order = torch.randperm(block.rows, generator=g)
    moved, beside = features[order], _made_up(block.features, g)
    replaced = torch.arange(block.rows) % 3 == 0
    moved[replaced] = beside[replaced]
    block.fill(moved, labels[order])
    return bool(torch.equal(first[order][~replaced], computed()[~replaced]))


def wild(like: Tensor, seed: int = 0) -> Tensor:
    """Weights of many magnitudes: another order of a sum shows in its last bits."""
    g = torch.Generator().manual_seed(seed)
    decades = _TRIED_DECADES * (2 * torch.rand(like.shape, generator=g, dtype=like.dtype) - 1)
    return torch.randn(like.shape, generator=g, dtype=like.dtype) * 10**decades


def _made_up(like: Tensor, g: torch.Generator) -> Tensor:
    if like.is_floating_point():
        return torch.rand(like.shape, generator=g, dtype=like.dtype).mul_(6).sub_(3)
    return torch.randint(0, 2, like.shape, generator=g, dtype=like.dtype)
