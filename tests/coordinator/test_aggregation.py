"""Averaging and checking models and updates."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from coordinator import aggregation
from coordinator.rounds import bounds, convergence
from coordinator.rounds.events import Offer
from protos.errors import Malformed


def save(path: Path, **tensors: object) -> Path:
    save_file({name: np.asarray(v, dtype=np.float32) for name, v in tensors.items()}, path)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", w=[[1.0, 2.0]], b=[3.0])


def test_fold_adds_the_mean_weighted_by_public_sizes(tmp_path: Path, base: Path) -> None:
    """base + (1 * u1 + 3 * u2) / 4, tensor by tensor."""
    one = save(tmp_path / "1", w=[[4.0, 0.0]], b=[8.0])
    two = save(tmp_path / "2", w=[[0.0, 4.0]], b=[0.0])
    aggregation.fold(base, [one, two], [1.0, 3.0], tmp_path / "out")
    model = load_file(tmp_path / "out")
    np.testing.assert_array_equal(model["w"], [[2.0, 5.0]])
    np.testing.assert_array_equal(model["b"], [5.0])


def test_mean_of_models_is_plain(tmp_path: Path, base: Path) -> None:
    """The answer is the unweighted mean of global models."""
    other = save(tmp_path / "o", w=[[3.0, 0.0]], b=[1.0])
    aggregation.mean_of([base, other], tmp_path / "out")
    np.testing.assert_array_equal(load_file(tmp_path / "out")["w"], [[2.0, 1.0]])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w": [[1.0, 2.0, 3.0]], "b": [0.0]}, "not those of the model"),
        ({"w": [[1.0, 2.0]]}, "not those of the model"),
        ({"w": [[1.0, 2.0]], "b": [0.0], "x": [0.0]}, "not those of the model"),
        ({"w": [[float("nan"), 0.0]], "b": [0.0]}, "not finite"),
        ({"w": [[float("inf"), 0.0]], "b": [0.0]}, "not finite"),
        ({"w": [[100.0, 0.0]], "b": [0.0]}, "larger than"),
    ],
)
def test_a_wrong_update_is_refused_before_it_counts(
    tmp_path: Path, base: Path, tensors: dict[str, object], said: str
) -> None:
    """Shape, names, finite values and norm are checked; the message holds no value."""
    update = save(tmp_path / "u", **tensors)
    with pytest.raises(Malformed, match=said) as caught:
        aggregation.check_update(update, aggregation.shape_of(base), 10.0)
    assert caught.value.reason == "UPDATE_INVALID"
    assert "100" not in caught.value.message


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, base: Path, data: bytes) -> None:
    """Nothing received is interpreted as anything but tensors."""
    (tmp_path / "u").write_bytes(data)
    with pytest.raises(Malformed):
        aggregation.check_update(tmp_path / "u", aggregation.shape_of(base), 10.0)


def test_other_precisions_are_refused(tmp_path: Path, base: Path) -> None:
    """float64 tensors of the right shape are not what was ordered."""
    save_file({"w": np.zeros((1, 2)), "b": np.zeros(1)}, tmp_path / "u")
    with pytest.raises(Malformed, match="F64"):
        aggregation.check_update(tmp_path / "u", aggregation.shape_of(base), 10.0)


ORDER = bounds.RoundOrder(
    learning_rate=2.0, local_steps=5, max_grad_norm=0.1, proximal_mu=0.01, parameters=14
)
OFFER = Offer("a", "a/p", 100, "gaussian", 9.0, 1.0)


def test_the_noise_bound_is_the_law_of_the_ordered_noise() -> None:
    """Each value of an update has deviation lr * sigma * C * sqrt(steps) / n."""
    assert bounds.noise_std(ORDER, OFFER) == pytest.approx(2.0 * 9.0 * 0.1 * 5**0.5 / 100)


def test_an_honest_update_keeps_within_the_norm_bound() -> None:
    """A thousand draws of the largest honest signal plus noise stay below the bound."""
    generator = np.random.default_rng(0)
    std = bounds.noise_std(ORDER, OFFER)
    assert std is not None
    draws = generator.normal(0.0, std, (1000, 14)) + 2.0 * 5 * 0.1 / 14**0.5
    assert np.linalg.norm(draws, axis=1).max() < bounds.update_norm_max(ORDER, OFFER)


def test_a_pull_that_overflows_has_a_bound_all_the_same() -> None:
    """lr * mu far above 2 makes FedProx diverge; the bound is then the largest norm there is."""
    wild = bounds.RoundOrder(2.0, 300, 0.1, 10.0, 14)
    assert bounds.update_norm_max(wild, OFFER) == bounds.UNBOUNDED_NORM


def test_pure_noise_never_settles_and_a_still_model_does() -> None:
    """Noise above the threshold is not resolvable; without noise three still rounds are."""
    noisy = convergence.choose_window(10, 3, 0.001, 0.13, 1.0)
    assert not noisy.resolvable
    assert not convergence.settled(noisy, 0.0, 0.04, 0.001)
    still = convergence.choose_window(10, 3, 0.001, 0.0, 1.0)
    assert (still.rounds, still.resolvable) == (3, True)
    assert convergence.settled(still, 0.0005, 0.0, 0.001)
    assert not convergence.settled(still, 0.0015, 0.0, 0.001)


def test_the_window_grows_until_noise_no_longer_hides_the_drift() -> None:
    """Noise of 0.002 a round is below half the threshold over 16 rounds, given 32 were done."""
    assert convergence.choose_window(32, 3, 0.001, 0.002, 1.0) == convergence.Window(16, True)
    assert not convergence.choose_window(20, 3, 0.001, 0.002, 1.0).resolvable


def test_unknown_noise_never_settles() -> None:
    """A task whose step size is unknown runs its planned rounds."""
    assert not convergence.choose_window(50, 3, 0.001, None, 1.0).resolvable
