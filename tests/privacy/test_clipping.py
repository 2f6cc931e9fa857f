"""The sum on the grid: exact whole numbers, and one patient moves it by at most C."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import LAYERS, LayerCase
from noise_fakes import UnsafeNoNoise, UnsafeSeededNoise
from torch import Tensor, nn
from training_cases import MODELS, Data, loss_per_row, model_of, random_data, training, with_patient

from node_agent.tasks.tabular import TabularModel
from node_agent.tasks.tabular import loss_per_row as tabular_loss
from node_agent.tasks.tabular_config import Feature, TabularConfig
from privacy import dp_sgd
from privacy.clipping import UNITS_PER_BOUND, clipped_units, patient_sums
from privacy.layers import SUPPORTED

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")


def units_of(
    monkeypatch: pytest.MonkeyPatch,
    model: nn.Module,
    data: Data,
    loss: Any = loss_per_row,
    **how: Any,
) -> list[int]:
    """The clipped sum of one step, as Python's whole numbers; fails if any is not whole."""
    seen: list[Tensor] = []
    released = dp_sgd._released

    def tapped(total: Tensor, *rest: Any) -> Tensor:
        seen.append(total.clone())
        return released(total, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(dp_sgd, "_released", tapped)
        dp_sgd.train(
            model, data.features, data.labels, data.patients, loss, training(**how), UnsafeNoNoise()
        )
    (total,) = seen
    assert total.dtype == torch.float64
    assert torch.equal(total, total.round())
    return [int(value) for value in total.tolist()]


def moved_squared(a: list[int], b: list[int]) -> int:
    """Squared L2 distance, in whole numbers."""
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


BOUND_SQUARED = UNITS_PER_BOUND**2


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_every_supported_layer_has_a_case() -> None:
    """A layer joins the list with its proof."""
    assert {case.layer for case in LAYERS} == set(SUPPORTED)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.layer.__name__)
def test_every_patient_moves_the_sum_of_every_layer_by_at_most_the_bound(
    case: LayerCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whole numbers, no tolerance; each patient in turn, of one to four rows."""
    g = torch.Generator().manual_seed(2)
    ids = torch.repeat_interleave(torch.arange(9), torch.randint(1, 5, (9,), generator=g))
    labels = torch.randint(0, 2, (len(ids),), generator=g).float()
    data = Data(case.rows(len(ids), g), labels, ids)
    # A bound that most patients reach.
    whole = units_of(monkeypatch, case.model(), data, max_grad_norm=0.05)
    moved = [
        moved_squared(
            whole, units_of(monkeypatch, case.model(), data.without(one), max_grad_norm=0.05)
        )
        for one in range(9)
    ]
    assert max(moved) <= BOUND_SQUARED
    assert max(moved) > 0.99 * BOUND_SQUARED


ADVERSARIES: list[tuple[int, float, float]] = [
    (1, 1e3, 0.0),
    (1, 1e30, 1.0),
    (1, 3e38, 0.0),
    (1, float("nan"), 1.0),
    (1, float("inf"), 0.0),
    (2, -1e4, 1.0),
    (500, 50.0, 0.0),
    (500, 1e-3, 1.0),
    (500, -3e38, 1.0),
]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_an_adversarial_patient_moves_the_sum_by_at_most_the_bound(
    kind: str, adversary: tuple[int, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 rows, huge, tiny or not finite: in whole numbers, no tolerance."""
    data = random_data(3, patients=12)
    both = [
        units_of(monkeypatch, model_of(kind), one) for one in (data, with_patient(data, *adversary))
    ]
    assert moved_squared(*both) <= BOUND_SQUARED


@pytest.mark.parametrize("hidden", [[], [6], [5, 4]])
def test_every_patient_moves_the_tabular_task_by_at_most_the_bound(
    hidden: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task's own model and loss, features at their limits."""
    config = TabularConfig(
        model="mlp" if hidden else "logistic",
        hidden=hidden,
        learning_rate=1.0,
        features=[Feature(column=f"c{i}", center=0.0, scale=1.0) for i in range(5)],
    )

    def model() -> nn.Module:
        torch.manual_seed(0)
        return TabularModel(config)

    data = random_data(6, patients=10)
    data = Data(data.features.clamp(-3, 3), data.labels, data.patients)
    whole = units_of(monkeypatch, model(), data, tabular_loss, max_grad_norm=0.1)
    moved = [
        moved_squared(
            whole,
            units_of(monkeypatch, model(), data.without(one), tabular_loss, max_grad_norm=0.1),
        )
        for one in range(10)
    ]
    assert 0.99 * BOUND_SQUARED < max(moved) <= BOUND_SQUARED


@pytest.mark.parametrize("values", [1, 2, 14, 1000, 70_000])
@pytest.mark.parametrize("bound", [0.1, 1.0, 1e-3, 1e-30, 1e30, math.pi])
def test_a_clipped_patient_is_never_longer_than_the_bound(values: int, bound: float) -> None:
    """Whatever the length, the bound and the size of the gradient; squared in whole numbers."""
    g = torch.Generator().manual_seed(values)
    for scale in (0.3, 1.0, 1.0 + 2.0**-52, 7.0, 1e9):
        gradient = torch.randn((1, values), generator=g, dtype=torch.float64)
        gradient *= scale * bound / gradient.norm()
        units = [int(value) for value in clipped_units([gradient.clone()], bound).tolist()]
        squared = sum(value**2 for value in units)
        assert squared <= BOUND_SQUARED
        if scale >= 1:
            # Rounding towards zero takes less than one unit from each coordinate.
            assert math.isqrt(squared) + 1 >= UNITS_PER_BOUND - math.sqrt(values) - 1


def test_gradients_that_share_memory_are_clipped_once_each() -> None:
    """Two layers that are added get one gradient tensor; a division in place would hit it twice."""
    g = torch.Generator().manual_seed(7)
    shared = torch.randn((5, 4), generator=g, dtype=torch.float64)
    before = shared.clone()
    found = clipped_units([shared, shared], 0.1)
    assert torch.equal(shared, before)
    assert torch.equal(found, clipped_units([before.clone(), before.clone()], 0.1))
    assert torch.equal(found[:4], found[4:])
    room = torch.full((50,), torch.nan, dtype=torch.float64)
    assert torch.equal(found, clipped_units([shared, shared], 0.1, room))


def test_rounding_is_towards_zero_and_by_less_than_a_unit() -> None:
    """Never away from zero: that would lengthen the vector. Compared in exact fractions."""
    g = torch.Generator().manual_seed(1)
    gradient = torch.randn((1, 50), generator=g, dtype=torch.float64) * 0.01
    units = clipped_units([gradient.clone()], 0.7)
    for value, unit in zip(gradient[0].tolist(), units.tolist(), strict=True):
        exact = Fraction(value) / Fraction(0.7) * UNITS_PER_BOUND
        assert abs(unit) <= abs(exact) < abs(unit) + 1 + Fraction(1, 2**20)
        assert unit * value >= 0


def test_the_sum_does_not_depend_on_the_order_of_patients_or_on_parts() -> None:
    """Whole numbers add up to the same sum in any order, to the last bit."""
    g = torch.Generator().manual_seed(5)
    gradients = torch.randn((4000, 9), generator=g, dtype=torch.float64)
    whole = clipped_units([gradients.clone()], 0.3)
    shuffled = gradients[torch.randperm(4000, generator=g)]
    assert torch.equal(whole, clipped_units([shuffled.clone()], 0.3))
    parts = [clipped_units([part.clone()], 0.3) for part in gradients.split(37)]
    assert torch.equal(whole, torch.stack(parts).sum(0))


def test_rows_of_a_patient_are_added_in_their_own_order() -> None:
    """So that a patient's vector does not depend on who else is in the part."""
    g = torch.Generator().manual_seed(6)
    rows = torch.randn((7, 3), generator=g) * torch.tensor([1e8, 1.0, -1e8, 1, 1e-4, 3, 5])[:, None]
    rows = rows.double()
    alone = patient_sums([rows.clone()], torch.zeros(7, dtype=torch.int64))[0][0]
    group = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 1, 2])
    beside = torch.cat([torch.ones(2, 3).double(), rows, torch.ones(1, 3).double()])
    assert torch.equal(patient_sums([beside], group)[0][1], alone)


def test_noise_is_whole_units_and_the_release_has_no_bits_below_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is released is a whole number of units, so no low bit tells what was added."""
    seen: list[Tensor] = []
    noise_units = dp_sgd._noise_units

    def tapped(*arguments: Any) -> Tensor:
        seen.append(noise_units(*arguments))
        return seen[-1]

    monkeypatch.setattr(dp_sgd, "_noise_units", tapped)
    data = random_data(3)
    how = training(steps=2)
    dp_sgd.train(
        model_of("mlp"), data.features, data.labels, data.patients, loss_per_row, how,
        UnsafeSeededNoise(2),
    )  # fmt: skip
    assert len(seen) == 2
    for drawn in seen:
        assert torch.equal(drawn, drawn.round())
        assert 0.6 * 1.3 * 2**20 < float(drawn.std()) < 1.5 * 1.3 * 2**20


def test_rounded_noise_reaches_every_unit_near_the_centre() -> None:
    """No gaps and no doubles in the lattice: each unit is as likely as the curve says."""
    drawn = np.rint(UnsafeSeededNoise(3).gaussian((400_000,), 20.0)).astype(int)
    counts = np.bincount(drawn + 200, minlength=401)[200 - 40 : 200 + 41]
    centres = np.arange(-40, 41)
    expected = 400_000 * np.exp(-(centres**2) / 800) / (20 * math.sqrt(2 * math.pi))
    assert np.abs(counts - expected).max() < 6 * math.sqrt(expected.max())


@pytest.mark.parametrize("values", [1, 2, 1000])
def test_a_patient_at_the_bound_leaves_room_for_rounding(values: int) -> None:
    """Its longest coordinate stays a unit below the bound, so that an error of the norm, or of the
    quotient, cannot reach it: without the margin it would be the bound itself."""
    gradient = torch.zeros(1, values, dtype=torch.float64)
    gradient[0, 0] = 3.0
    units = clipped_units([gradient], 1.0)
    assert units[0] == UNITS_PER_BOUND - 1
    assert not units[1:].any()
