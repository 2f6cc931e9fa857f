"""Rows that are computed side by side: no row changes what another one adds to the sum."""

import os
from typing import Any

import pytest
import torch
from noise_fakes import UnsafeNoNoise
from test_clipping import BOUND_SQUARED, moved_squared, units_of
from torch import Tensor, nn
from training_cases import Data, training

from node_agent.tasks.tabular import TabularModel, loss_per_row
from node_agent.tasks.tabular_config import Feature, TabularConfig
from privacy import dp_sgd
from privacy.blocks import LANES, Block, are_apart, block_rows

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def cancelling(features: int, hidden: list[int], seed: int) -> nn.Module:
    """A model whose every output is the rounding error of terms up to 1e37 that cancel."""
    g = torch.Generator().manual_seed(seed)
    config = TabularConfig(
        model="mlp" if hidden else "logistic",
        hidden=hidden,
        learning_rate=1.0,
        features=[Feature(column=f"c{i}", center=0.0, scale=1.0) for i in range(features)],
    )
    model = TabularModel(config)
    weights = dict(model.named_parameters())
    for parameter in weights.values():
        nn.init.zeros_(parameter)
    for name, parameter in weights.items():
        if name.startswith("hidden") and name.endswith("bias"):
            nn.init.ones_(parameter)
    last = weights["linear.weight"]
    width = last.shape[1]
    values = torch.randn(width, generator=g) * 10 ** (22 * torch.rand(width, generator=g) + 14)
    order, half = torch.randperm(width, generator=g), width // 2
    values[order[half : 2 * half]] = -values[order[:half]]
    last.data[0] = values
    return model


CASES = [(64, []), (33, []), (16, []), (6, [64]), (13, [8]), (5, [7, 33])]


def crowd(patients: int, features: int) -> Data:
    """One row each, all at the limit of what features may be."""
    g = torch.Generator().manual_seed(7)
    labels = torch.randint(0, 2, (patients,), generator=g).float()
    return Data(torch.full((patients, features), 3.0), labels, torch.arange(patients))


def moves(monkeypatch: pytest.MonkeyPatch, features: int, hidden: list[int], seed: int) -> int:
    """How far the first and the last of 28 patients move the sum, squared, at most."""
    found = []
    data = crowd(28, features)
    for left_out in (0, 27):
        both = [
            units_of(
                monkeypatch,
                cancelling(features, hidden, seed),
                one,
                loss_per_row,
                max_grad_norm=0.1,
                declared_n=28,
            )
            for one in (data, data.without(left_out))
        ]
        found.append(moved_squared(*both))
    return max(found)


@pytest.mark.parametrize(("features", "hidden"), CASES)
def test_no_choice_of_weights_lets_a_patient_move_the_sum_by_more_than_the_bound(
    features: int, hidden: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever chooses the model chooses it so that a last bit decides: each patient's part is its
    own all the same. In whole numbers, no tolerance."""
    for seed in range(12):
        assert moves(monkeypatch, features, hidden, seed) <= BOUND_SQUARED


class _Mixing(nn.Module):
    """A row's output has a last bit that its neighbour decides: what kernels may do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The last bit of each output goes up where the row before has a positive one."""
        out: Tensor = self.inner(x)
        return out * (1 + 2.0**-52 * (out.detach().roll(1, 0) > 0).double())


def test_where_arithmetic_mixes_rows_they_are_taken_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found out on made-up rows; nothing but the time tells."""
    passes: list[int] = []

    def counted(outputs: Tensor, labels: Tensor) -> Tensor:
        passes.append(len(labels))
        return loss_per_row(outputs, labels)

    data = crowd(20, 64)
    how = training(steps=1, declared_n=20)
    dp_sgd.train(
        _Mixing(), data.features, data.labels, data.patients, counted, how, UnsafeNoNoise()
    )
    assert passes[2:] == [1] * 20
    assert passes[:2] == [32, 32]


def test_a_computation_that_looks_at_its_place_or_its_neighbours_is_found_out() -> None:
    """By one bit in one place; what treats rows alike is taken."""
    block = Block(torch.zeros(5, 3), torch.zeros(5), 32)

    def apart() -> Tensor:
        return block.features * 3 + block.labels[:, None]

    def by_place() -> Tensor:
        out = apart()
        out[-1] *= 1 + 2**-20
        return out

    def by_neighbour() -> Tensor:
        return apart() + block.features.roll(1, 0) * 1e-6

    def by_all() -> Tensor:
        # Of all rows alike: in another order it is the same to the last bit.
        return apart() + block.features.amax(0)

    assert are_apart(apart, block)
    assert not are_apart(by_all, block)
    assert not are_apart(by_place, block)
    assert not are_apart(by_neighbour, block)


@pytest.mark.parametrize(
    ("values", "expected", "rows"),
    [
        (14, 199, 208),
        (14, 0.3, LANES),
        (14, 1e9, 74896),
        (16_000, 1000.0, 64),
        (262_144, 1000.0, LANES),
        (262_145, 1000.0, 1),
        (10**9, 5.0, 1),
    ],
)
def test_the_rows_of_a_pass_follow_from_public_figures(
    values: int, expected: float, rows: int
) -> None:
    """A multiple of what vector registers hold, or one; bounded by memory."""
    assert block_rows(values, expected) == rows


def test_every_pass_has_as_many_rows_whoever_is_there() -> None:
    """By the declared size: by how many there are, one patient more would be another computation
    for all. The library is asked for results that depend on nothing else."""
    passes: set[int] = set()

    def counted(outputs: Tensor, labels: Tensor) -> Tensor:
        passes.add(len(labels))
        return loss_per_row(outputs, labels)

    for patients in (0, 1, 39, 40, 41, 200):
        one = crowd(patients, 6)
        model = cancelling(6, [], 0)
        how = training(steps=1, declared_n=40)
        dp_sgd.train(model, one.features, one.labels, one.patients, counted, how, UnsafeNoNoise())
    assert passes == {48}
    assert os.environ["MKL_CBWR"]


def test_a_block_holds_nothing_of_the_pass_before() -> None:
    """Places without a row are zeros."""
    block = Block(torch.zeros(9, 2), torch.zeros(9), 4)
    where = block.features.data_ptr()
    block.fill(torch.ones(4, 2), torch.ones(4))
    block.fill(torch.full((1, 2), 5.0), torch.full((1,), 1.0))
    assert block.features.tolist() == [[5.0, 5.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert block.labels.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert block.features.data_ptr() == where


def _shape_of_the_data(patch: pytest.MonkeyPatch) -> None:
    def of_all(features: Tensor, labels: Tensor, _rows: int) -> Any:
        return Block(features, labels, len(features))

    patch.setattr(dp_sgd, "Block", of_all)
    patch.setattr(dp_sgd, "_tried", lambda *_: True)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="another library's kernels")
def test_a_pass_of_as_many_rows_as_there_are_breaks_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attack is real: without blocks of one shape these very models succeed with it."""
    _shape_of_the_data(monkeypatch)
    assert max(moves(monkeypatch, 64, [], seed) for seed in range(12)) > BOUND_SQUARED
