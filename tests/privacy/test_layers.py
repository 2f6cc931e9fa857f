"""Which models are refused: by the layer's name, with what to use instead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layer_cases import LAYERS, LayerCase
from noise_fakes import UnsafeNoNoise
from torch import Tensor, nn
from training_cases import F, loss_per_row, random_data, training

from privacy.dp_sgd import train
from privacy.layers import check_layers
from privacy.row_gradients import InDoublePrecision
from protos.errors import Malformed

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")


class Tied(nn.Module):
    """One layer's weight is the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(F, F)
        self.second = nn.Linear(F, F)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).sum(1)


class SameMemory(Tied):
    """Two parameters in one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.second.weight = nn.Parameter(self.first.weight.data)


class OwnLinear(nn.Linear):
    """Computes something else than its name says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Bare(nn.Module):
    """A parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(F))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).sum(1)


class Counting(nn.Module):
    """Keeps a statistic of what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(F, 1)
        self.register_buffer("mean", torch.zeros(F))

    def forward(self, x: Tensor) -> Tensor:
        self.mean += x.detach().mean(0)
        return self.inner(x)


def frozen(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


REFUSED: list[tuple[nn.Module, str, str]] = [
    (nn.Sequential(nn.Linear(F, 3), nn.BatchNorm1d(3)), "layer 1 (BatchNorm1d)", "GroupNorm"),
    (nn.Sequential(nn.Linear(F, 3), nn.BatchNorm1d(3, affine=False)), "layer 1", "GroupNorm"),
    (
        nn.Sequential(nn.Linear(F, 3), nn.BatchNorm1d(3, affine=False, track_running_stats=False)),
        "layer 1 (BatchNorm1d)",
        "GroupNorm",
    ),
    (nn.Sequential(nn.Linear(F, 3), frozen(nn.BatchNorm2d(3))), "BatchNorm2d", "GroupNorm"),
    (nn.SyncBatchNorm(3), "(the model itself) (SyncBatchNorm)", "GroupNorm"),
    (
        nn.Sequential(nn.Linear(F, 3), nn.InstanceNorm1d(3, track_running_stats=True)),
        "layer 1 (InstanceNorm1d) has the buffer running_mean",
        "track_running_stats=False",
    ),
    (nn.Sequential(nn.LSTM(F, 3)), "layer 0 (LSTM)", "Conv1d"),
    (nn.Sequential(nn.GRU(F, 3)), "layer 0 (GRU)", "Conv1d"),
    (nn.MultiheadAttention(4, 2), "MultiheadAttention", "Linear"),
    (nn.EmbeddingBag(9, 4), "EmbeddingBag", "Embedding"),
    (nn.Sequential(nn.Embedding(9, 4, max_norm=1.0)), "layer 0 (Embedding)", "max_norm"),
    (nn.Embedding(9, 4, scale_grad_by_freq=True), "Embedding", "scale_grad_by_freq"),
    (nn.Embedding(9, 4, sparse=True), "Embedding", "sparse"),
    (nn.Embedding(9, 4, padding_idx=0), "Embedding", "leave it out"),
    (nn.Sequential(nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular")), "layer 0", "'zeros'"),
    (nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), "Conv2d", "padding_mode='zeros'"),
    (nn.LayerNorm(3, bias=False), "LayerNorm", "leave it on"),
    (nn.Sequential(nn.Linear(F, 3), nn.Dropout(0.5)), "layer 1 (Dropout)", "leave it out"),
    (nn.Sequential(nn.Conv1d(1, 2, 3), nn.Dropout1d()), "layer 1 (Dropout1d)", "leave it out"),
    (nn.Sequential(nn.Linear(F, 3), nn.AlphaDropout()), "AlphaDropout", "leave it out"),
    (nn.Sequential(nn.Linear(F, 3), nn.RReLU()), "layer 1 (RReLU)", "use ReLU"),
    (nn.Sequential(nn.Bilinear(F, F, 1)), "layer 0 (Bilinear)", "Linear"),
    (nn.Sequential(nn.PReLU()), "layer 0 (PReLU)", "Linear"),
    (OwnLinear(F, 1), "OwnLinear", "Linear"),
    (Bare(), "(the model itself) (Bare)", "Linear"),
    (Counting(), "Counting) has the buffer mean", "nothing clips"),
    (Tied(), "first.weight and second.weight", "its own"),
    (SameMemory(), "first.weight and second.weight", "its own"),
    (frozen(nn.Linear(F, 1)), "no parameter is trained", ""),
]


@pytest.mark.parametrize(("model", "named", "instead"), REFUSED)
def test_what_cannot_be_clipped_for_each_row_is_refused_by_name(
    model: nn.Module, named: str, instead: str
) -> None:
    """The message names the layer and what to use; training refuses before it touches a row."""
    with pytest.raises(Malformed) as caught:
        check_layers(model)
    assert caught.value.reason == "LAYER_UNSUPPORTED"
    assert named in caught.value.message
    assert instead in caught.value.message
    data, source = random_data(1), UnsafeNoNoise()
    with pytest.raises(Malformed, match="cannot be trained"):
        train(model, data.features, data.labels, data.patients, loss_per_row, training(), source)
    assert source.asked == []


class DropsHere(nn.Module):
    """Draws at random without a layer that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(F, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.inner(x), 0.5, self.training).squeeze(1)


def test_a_model_that_draws_at_random_is_refused_before_any_row() -> None:
    """torch begins every process with one seed, and draws for the rows one after the other: a
    patient more would change what the others add, by many times the bound."""
    data, source = random_data(1), UnsafeNoNoise()
    with pytest.raises(Malformed, match="draws at random") as caught:
        train(
            DropsHere(),
            data.features,
            data.labels,
            data.patients,
            loss_per_row,
            training(),
            source,
        )
    assert caught.value.reason == "LAYER_UNSUPPORTED"
    assert source.asked == []


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.layer.__name__)
def test_supported_layers_are_taken(case: LayerCase) -> None:
    """Each by itself, in a model of containers."""
    check_layers(case.model())


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.layer.__name__)
def test_each_row_gradient_is_the_one_that_autograd_gives_for_that_row_alone(
    case: LayerCase,
) -> None:
    """In double precision, for every parameter of every supported layer."""
    g = torch.Generator().manual_seed(3)
    rows, labels = case.rows(5, g), torch.tensor([0.0, 1, 1, 0, 1]).double()
    rows = rows.double() if rows.is_floating_point() else rows
    model = case.model()
    with InDoublePrecision(model) as weights:
        loss_per_row(weights.module(rows), labels).sum().backward()
        found = weights.take_gradients(5)
    alone = case.model().double()
    for row in range(5):
        alone.zero_grad()
        loss_per_row(alone(rows[row : row + 1]), labels[row : row + 1]).sum().backward()
        for parameter, gradients in zip(alone.parameters(), found, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(gradients[row], parameter.grad, rtol=1e-10, atol=1e-12)


class Outside(nn.Module):
    """Its layer's weight counts once more, past the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner.weight
        assert isinstance(weight, Tensor)
        out: Tensor = self.inner(x)
        return out + nn.functional.linear(x, weight) * 0.5


@pytest.mark.parametrize("seed", range(5))
def test_a_weight_that_is_used_outside_its_layer_is_refused(seed: int) -> None:
    """Its row gradients would lack a part: each is clipped, and the model is another one."""
    torch.manual_seed(seed)
    data, source = random_data(1), UnsafeNoNoise()
    model = Outside(nn.Linear(F, 1))
    with pytest.raises(Malformed, match=r"inner\.weight, which is used outside") as caught:
        train(model, data.features, data.labels, data.patients, loss_per_row, training(), source)
    assert caught.value.reason == "LAYER_UNSUPPORTED"
    assert source.asked == []


class Unused(nn.Module):
    """Has a layer that no row passes."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(F, 1)
        self.spare = nn.Linear(F, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Folded(nn.Module):
    """Its rows are not the first dimension of its layer's input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(F, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unsqueeze(0)).reshape(-1, 1)


@pytest.mark.parametrize(
    ("model", "name"), [(Unused(), "spare.weight"), (Folded(), "inner.weight")]
)
def test_a_parameter_without_a_gradient_for_each_row_is_refused(
    model: nn.Module, name: str
) -> None:
    """A layer that is not used, or that takes all rows for one, is found by its gradient."""
    data = random_data(1)
    with pytest.raises(Malformed) as caught:
        train(
            model, data.features, data.labels, data.patients, loss_per_row, training(),
            UnsafeNoNoise(),
        )  # fmt: skip
    assert caught.value.reason == "GRADIENT_SHAPE"
    assert name in caught.value.message


def test_frozen_parameters_stay_as_they_are() -> None:
    """To the bit and in their own precision; only the trained ones move."""
    torch.manual_seed(0)
    model = nn.Sequential(frozen(nn.Linear(F, 4)), nn.Linear(4, 1))
    before = [p.detach().clone() for p in model.parameters()]
    data = random_data(1)
    train(
        model, data.features, data.labels, data.patients, loss_per_row, training(), UnsafeNoNoise()
    )
    after = list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(after[:2], before[:2], strict=True))
    assert not torch.equal(after[2], before[2])
    assert {p.dtype for p in after} == {torch.float32}


FRESH = """
import sys
import torch
from layer_cases import LAYERS
from privacy.row_gradients import InDoublePrecision

assert "torch.distributed.fsdp" not in sys.modules
for case in LAYERS:
    model, rows = case.model(), case.rows(3, torch.Generator().manual_seed(1))
    rows = rows.double() if rows.is_floating_point() else rows
    with InDoublePrecision(model) as weights:
        weights.module(rows).sum().backward()
        weights.take_gradients(3)
    print(case.layer.__name__)
"""


def test_every_supported_layer_trains_in_a_process_that_loads_nothing_else() -> None:
    """As a hospital's worker does. Where a test before has loaded the whole of Opacus, what its
    hooks lack is there."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [case.layer.__name__ for case in LAYERS]
