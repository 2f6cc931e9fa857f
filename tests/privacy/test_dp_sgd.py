"""DP-SGD: one patient moves a step by at most lr * C / declared n, and FedProx is FedProx."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from noise_fakes import UnsafeNoNoise, UnsafeSeededNoise
from scipy import stats
from torch import Tensor, nn
from training_cases import (
    MODELS,
    Data,
    F,
    delta_of,
    flat,
    loss_per_row,
    model_of,
    random_data,
    training,
    with_patient,
)

from privacy import dp_sgd
from privacy.clipping import UNITS_PER_BOUND
from privacy.dp_sgd import train
from privacy.noise import SecureNoise
from protos.errors import Malformed

# Data needs no gradient, which torch remarks on at each first backward pass.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def step(kind: str, data: Data, noise: SecureNoise | None = None, **changes: Any) -> Tensor:
    return delta_of(kind, data, training(**changes), noise or UnsafeNoNoise())


ADVERSARIES: list[tuple[int, float, float]] = [
    (1, 1e3, 0.0),
    (1, 1e30, 1.0),
    (1, 3e38, 0.0),
    (1, float("nan"), 1.0),
    (1, float("inf"), 0.0),
    (1, 1.0, float("nan")),
    (2, -1e4, 1.0),
    (2, 1e20, 0.0),
    (500, 50.0, 0.0),
    (500, 1e-3, 1.0),
    (500, -3e38, 1.0),
]


# Sensitivity


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_one_patient_moves_a_step_by_at_most_its_bound(
    kind: str, adversary: tuple[int, float, float]
) -> None:
    """Removing a patient, of 1, 2 or 500 rows, however extreme: at most lr * C / declared n."""
    data = random_data(3, patients=12)
    both = step(kind, with_patient(data, *adversary)), step(kind, data)
    assert torch.isfinite(both[0]).all()
    # Weights are single precision: a step of about 0.1 is stored to some 1e-8.
    assert (both[0] - both[1]).norm() <= 0.8 * 0.5 / 40 + 1e-6


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(8))
def test_every_patient_of_random_data_stays_within_the_bound(kind: str, seed: int) -> None:
    """Each patient in turn, patients of one to six rows; the clipped sum changes by C at most."""
    data = random_data(seed, patients=14, rows_max=6)
    # declared n 1 and learning rate 1 make the step the clipped sum itself.
    how: dict[str, Any] = {"declared_n": 1, "learning_rate": 1.0, "max_grad_norm": 0.05}
    whole = step(kind, data, **how)
    moved = [(whole - step(kind, data.without(p), **how)).norm() for p in range(14)]
    assert max(moved) <= 0.05 + 2e-6
    assert max(moved) > 0.04


def test_rows_of_a_patient_are_summed_before_clipping() -> None:
    """500 rows of one patient are one contribution; as 500 patients they are 500."""
    empty = Data(torch.zeros(0, F), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    one = with_patient(empty, 500, 2.0, 1.0)
    many = Data(one.features, one.labels, torch.arange(500))
    how: dict[str, Any] = {"declared_n": 1, "learning_rate": 1.0}
    assert step("logistic", one, **how).norm() == pytest.approx(0.5, rel=1e-5)
    assert step("logistic", many, **how).norm() == pytest.approx(250.0, rel=1e-5)


def test_opposite_rows_of_a_patient_cancel_before_clipping() -> None:
    """Clipping each row and then adding would leave something here."""
    data = Data(torch.ones(2, F) * 40, torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.int64))
    model = nn.Linear(F, 1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    train(
        model, data.features, data.labels, data.patients, loss_per_row, training(), UnsafeNoNoise()
    )
    assert flat(model).norm() == 0


LOOSE = 64.0
"""A bound that no patient of `random_data` reaches."""

GRID_LOSS = 0.8 / 40 * 30 * LOOSE / 2**20
"""The most that rounding 30 patients to the grid of `LOOSE` takes from a coordinate of a step."""


@pytest.mark.parametrize("kind", MODELS)
def test_small_gradients_are_not_changed(kind: str) -> None:
    """Below the bound the step is torch's own gradient step, but for the grid's rounding."""
    data = random_data(1)
    reference = model_of(kind)
    loss_per_row(reference(data.features), data.labels).sum().backward()
    gradient = torch.cat([p.grad.double().flatten() for p in reference.parameters()])  # type: ignore[union-attr]
    found = step(kind, data, max_grad_norm=LOOSE)
    assert torch.allclose(found, -0.8 / 40 * gradient, rtol=0, atol=GRID_LOSS + 1e-7)


@pytest.mark.parametrize("kind", MODELS)
def test_the_divisor_is_the_declared_size(kind: str) -> None:
    """Twice the declared n is half the step, whatever number of patients is there."""
    data = random_data(2)
    assert torch.allclose(
        step(kind, data, declared_n=40), 2 * step(kind, data, declared_n=80), atol=1e-6
    )


def test_a_patient_that_is_not_finite_counts_as_zero() -> None:
    """The step is that of the data without this patient, also when only one row is bad."""
    data = random_data(5)
    bad = with_patient(data, 3, 1.0, 1.0)
    bad.features[-1, 2] = float("nan")
    for kind in MODELS:
        assert torch.equal(step(kind, bad), step(kind, data))


@pytest.mark.parametrize("rows", [1, 16, 48])
def test_passes_of_any_size_give_the_same_step(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """A patient whose rows are in several passes is clipped once, whole."""
    data = with_patient(random_data(6, rows_max=5), 40, 3.0, 0.0)
    whole = {kind: step(kind, data) for kind in MODELS}
    passes: list[int] = []
    monkeypatch.setattr(dp_sgd, "block_rows", lambda *_: rows)

    def counted(outputs: Tensor, labels: Tensor) -> Tensor:
        passes.append(len(labels))
        return loss_per_row(outputs, labels)

    for kind in MODELS:
        found = delta_of(kind, data, training(), UnsafeNoNoise(), counted)
        assert torch.equal(found, whole[kind])
    assert set(passes) == {rows}
    assert len(passes) > 2


# The loss


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: loss_per_row(o, y).unsqueeze(1),
        lambda o, y: loss_per_row(o, y).mean(),
        lambda o, y: loss_per_row(o, y).sum().reshape(1),
        lambda o, y: nn.functional.mse_loss(o, y.expand(len(y), len(y)), reduction="none"),
    ],
)
def test_a_loss_that_is_not_one_value_a_row_is_refused(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Shape (rows, 1) and reduced losses escape clipping in silence elsewhere."""
    with pytest.raises(Malformed) as caught:
        delta_of("logistic", random_data(1), training(), UnsafeNoNoise(), loss)
    assert caught.value.reason == "LOSS_SHAPE"


# FedProx


def reference_fedprox(kind: str, data: Data, mu: float, steps: int) -> list[Tensor]:
    """FedProx in plain torch: mean loss plus mu/2 |w - w_global|^2, one gradient at a time."""
    model = model_of(kind)
    start = [p.detach().clone() for p in model.parameters()]
    path = [flat(model)]
    for _ in range(steps):
        model.zero_grad()
        distance = sum(((p - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True))
        loss = loss_per_row(model(data.features), data.labels).sum() / 40 + mu / 2 * distance
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.8 * p.grad  # type: ignore[operator]
        path.append(flat(model))
    return path


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("mu", [0.0, 0.1, 0.9])
def test_training_is_fedprox(kind: str, mu: float) -> None:
    """Without noise and with a bound that never binds: the plain loop's weights, but the grid."""
    data = random_data(7)
    path = reference_fedprox(kind, data, mu, 6)
    found = step(kind, data, max_grad_norm=LOOSE, proximal_mu=mu, steps=6)
    assert torch.allclose(found, path[-1] - path[0], rtol=0, atol=6 * GRID_LOSS)
    without = reference_fedprox(kind, data, 0.0, 6)
    assert mu == 0 or (without[-1] - path[-1]).abs().max() > 20 * GRID_LOSS


@pytest.mark.parametrize("kind", MODELS)
def test_mu_adds_exactly_the_proximal_term(kind: str) -> None:
    """From equal weights, with clipping and noise: step 2 differs by lr * mu * (w1 - w0)."""
    data = random_data(8)
    first = step(kind, data, UnsafeSeededNoise(4))
    plain = step(kind, data, UnsafeSeededNoise(4), steps=2)
    proximal = step(kind, data, UnsafeSeededNoise(4), steps=2, proximal_mu=0.7)
    assert torch.allclose(plain - proximal, 0.8 * 0.7 * first, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_the_proximal_term_is_not_inert(kind: str) -> None:
    """Over several steps the weights stay visibly nearer to the round's model."""
    data = random_data(9)
    far, near = (step(kind, data, steps=8, proximal_mu=mu).norm() for mu in (0.0, 1.0))
    assert near < 0.7 * far


def test_the_proximal_term_does_not_touch_sensitivity() -> None:
    """It depends on no patient: a first step is the same with and without it."""
    data = random_data(10)
    assert torch.equal(step("mlp", data), step("mlp", data, proximal_mu=5.0))


# Noise


def zero_gradient(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs * 0.0).squeeze(-1)


@pytest.mark.parametrize("mechanism", ["gaussian", "poisson_gaussian"])
def test_released_noise_has_the_booked_law(mechanism: str) -> None:
    """Deviation lr * sigma * C / n, normal, and no correlation from draw to draw."""
    source, data = UnsafeSeededNoise(11), random_data(1, patients=8)
    rate = 0.3 if mechanism == "poisson_gaussian" else 1.0
    how = training(mechanism, rate=rate)
    draws = torch.stack([delta_of("mlp", data, how, source, zero_gradient) for _ in range(120)])
    unit = draws.numpy() / (0.8 * 1.3 * 0.5 / (rate * 40))
    count = unit.size
    assert 1e-4 < stats.chi2(count).cdf(float(np.sum(unit**2))) < 1 - 1e-4
    assert stats.kstest(unit.ravel(), "norm").pvalue > 1e-4
    for axis in (0, 1):
        a, b = np.moveaxis(unit, axis, 0)[:-1], np.moveaxis(unit, axis, 0)[1:]
        assert abs(float(np.mean(a * b))) < 4.5 / a.size**0.5


def test_noise_of_two_trainers_is_uncorrelated() -> None:
    """Two hospitals with the same model, data and seeds of everything else."""
    data = random_data(1, patients=3)
    how = training(steps=40)

    def noise_of() -> np.ndarray[Any, Any]:
        torch.manual_seed(0)
        return np.concatenate(
            [delta_of("mlp", data, how, SecureNoise(), zero_gradient).numpy() for _ in range(4)]
        )

    a, b = noise_of(), noise_of()
    assert abs(float(np.corrcoef(a, b)[0, 1])) < 6 / a.size**0.5


def test_noise_is_drawn_once_for_each_step() -> None:
    """At sigma * C, in units of C / 2^20, whatever the data; none without accounting."""
    data, source = random_data(1), UnsafeNoNoise()
    step("logistic", data, source, steps=3)
    assert source.asked == [((F + 1,), 1.3 * 2**20)] * 3
    bare = UnsafeNoNoise()
    step("logistic", data, bare, mechanism="none", steps=3)
    assert bare.asked == []


def test_a_release_without_accounting_is_clipped_all_the_same() -> None:
    """The same training as with noise, less the noise."""
    data = random_data(4)
    bare = step("mlp", data, mechanism="none", steps=2)
    assert torch.equal(bare, step("mlp", data, steps=2))


# Sampling


@pytest.mark.parametrize("kind", MODELS)
def test_a_step_that_samples_nobody_is_noise_alone(kind: str) -> None:
    """It is taken, not skipped: skipping would tell that nobody was drawn."""
    data, source = random_data(1), UnsafeNoNoise()
    found = step(kind, data, source, mechanism="poisson_gaussian", rate=1e-12, steps=3)
    assert found.norm() == 0
    assert len(source.asked) == 3
    moved = step(kind, data, UnsafeSeededNoise(1), mechanism="poisson_gaussian", rate=1e-12)
    assert moved.norm() > 0


@pytest.mark.parametrize("mechanism", ["gaussian", "poisson_gaussian"])
def test_a_data_set_without_rows_is_noise_alone(mechanism: str) -> None:
    """An empty hospital releases what a full one could have released."""
    empty = Data(torch.zeros(0, F), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    rate = 1.0 if mechanism == "gaussian" else 0.2
    assert step("mlp", empty, mechanism=mechanism, rate=rate).norm() == 0
    assert step("mlp", empty, UnsafeSeededNoise(1), mechanism=mechanism, rate=rate).norm() > 0


class Drawn(UnsafeNoNoise):
    """Keeps the draws that it made."""

    def bernoulli(self, n: int, p: float) -> np.ndarray[Any, Any]:
        self.drawn = super().bernoulli(n, p)
        return self.drawn


@pytest.mark.parametrize("kind", MODELS)
def test_patients_are_sampled_whole_and_divided_by_the_expected_number(kind: str) -> None:
    """A drawn patient brings all rows; the divisor is rate * declared n, whoever is drawn."""
    data, source = random_data(12, rows_max=5), Drawn(3)
    found = step(kind, data, source, mechanism="poisson_gaussian", rate=0.4)
    assert source.drawn.shape == (30,)
    assert 0 < source.drawn.sum() < 30
    left = data
    for patient in reversed(range(30)):
        if not source.drawn[patient]:
            left = left.without(patient)
    assert torch.allclose(found, step(kind, left) / 0.4, atol=1e-6)


# Refusals and traces


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": float("inf")},
        {"max_grad_norm": 1e-31},
        {"max_grad_norm": 1e31},
        {"proximal_mu": -0.1},
        {"proximal_mu": float("nan")},
        {"declared_n": 0},
        {"declared_n": 2.5},
        {"local_steps": 2},
        {"sigma": 2.0**21},
    ],
)
def test_a_training_that_differs_from_what_is_booked_cannot_run(changes: dict[str, Any]) -> None:
    """Steps other than the booked ones, a bound of zero, a negative mu: refused beforehand."""
    with pytest.raises(Malformed) as caught:
        training(**changes)
    assert caught.value.reason == "TRAINING_INVALID"


def test_rows_that_do_not_fit_together_are_refused() -> None:
    """Nothing is trained with patients that belong to other rows."""
    data = random_data(1)
    rows = len(data.patients)
    for labels, patients in (
        (data.labels[1:], data.patients),
        (data.labels, data.patients[1:]),
        (data.labels.reshape(rows, 1), data.patients),
        (data.labels, data.patients.float()),
        (data.labels, data.patients - 1),
    ):
        with pytest.raises(Malformed) as caught:
            delta_of("mlp", Data(data.features, labels, patients), training(), UnsafeNoNoise())
        assert caught.value.reason == "ROWS_MISMATCH"


def test_nothing_computed_from_records_stays_on_the_model() -> None:
    """After training, no gradient, row gradient, hook or activation is left, only the weights."""
    data, model = random_data(1), model_of("mlp").eval()
    train(model, data.features, data.labels, data.patients, loss_per_row, training(), SecureNoise())
    assert not model.training
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None
        assert not vars(parameter)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not getattr(module, "activations", None)


def test_production_training_takes_no_seed() -> None:
    """Only tests can inject noise; there is no argument that fixes noise or sampling."""
    assert not any("seed" in name for name in inspect.signature(train).parameters)


def test_no_bit_of_what_a_step_releases_lies_below_its_noise() -> None:
    """Whole units, as the sum is: else the spacing of floats would tell which sum the noise was
    added to. Powers of two, so that the division hides nothing."""
    how = training(declared_n=64, sigma=0.37)
    released = dp_sgd._released(torch.arange(1000, dtype=torch.float64), how, SecureNoise())
    units = released * (UNITS_PER_BOUND / how.max_grad_norm * 64)
    assert torch.equal(units, units.round())
    assert not torch.equal(units, torch.arange(1000, dtype=torch.float64))
