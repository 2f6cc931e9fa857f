"""A small model around each supported layer, with rows for it, for tests of sensitivity."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def tokens(rows: int, g: torch.Generator) -> Tensor:
    return torch.randint(0, 11, (rows, 6), generator=g)


def numbers(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda rows, g: torch.randn((rows, *shape), generator=g) * 2


@dataclass(frozen=True)
class LayerCase:
    """One supported layer in a model, and rows that fit it."""

    layer: type[nn.Module]
    build: Callable[[], nn.Module]
    rows: Callable[[int, torch.Generator], Tensor]

    def model(self) -> nn.Module:
        torch.manual_seed(4)
        return self.build()


class SharedGradient(nn.Module):
    """Two layers that get one and the same gradient, and a third that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.twice = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 4)
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = self.left(x) + self.right(x)
        out: Tensor = self.last(self.twice(torch.tanh(self.twice(both))) + both)
        return out


def chain(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


def linear(wide: int, out: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(wide, out)


LAYERS = (
    LayerCase(nn.Linear, chain(linear(6, 5), nn.Tanh, linear(5, 1)), numbers(6)),
    LayerCase(nn.Linear, SharedGradient, numbers(6)),
    LayerCase(
        nn.Conv1d,
        chain(lambda: nn.Conv1d(2, 3, 3, padding=1), nn.ReLU, nn.Flatten, linear(24, 1)),
        numbers(2, 8),
    ),
    LayerCase(
        nn.Conv2d,
        chain(lambda: nn.Conv2d(2, 3, 3, stride=2), nn.ReLU, nn.Flatten, linear(12, 1)),
        numbers(2, 5, 5),
    ),
    LayerCase(nn.Embedding, chain(lambda: nn.Embedding(11, 4), nn.Flatten, linear(24, 1)), tokens),
    LayerCase(
        nn.LayerNorm,
        chain(linear(6, 5), lambda: nn.LayerNorm(5), nn.ReLU, linear(5, 1)),
        numbers(6),
    ),
    LayerCase(
        nn.GroupNorm,
        chain(linear(6, 6), lambda: nn.GroupNorm(2, 6), nn.ReLU, linear(6, 1)),
        numbers(6),
    ),
    LayerCase(
        nn.InstanceNorm1d,
        chain(lambda: nn.InstanceNorm1d(2, affine=True), nn.Flatten, linear(16, 1)),
        numbers(2, 8),
    ),
    LayerCase(
        nn.InstanceNorm2d,
        chain(lambda: nn.InstanceNorm2d(2, affine=True), nn.Flatten, linear(50, 1)),
        numbers(2, 5, 5),
    ),
)
