"""Public bounds on a round: how large an update can be, and what its noise is."""

from dataclasses import replace

import numpy as np
import pytest

from coordinator.rounds import bounds
from coordinator.rounds.events import Offer

ORDER = bounds.RoundOrder(learning_rate=2.0, local_steps=5, max_grad_norm=0.1, proximal_mu=0.01)
OFFER = Offer("a", "a/p", 100, "gaussian", 9.0, 1.0)


def test_the_noise_bound_is_the_law_of_the_ordered_noise() -> None:
    """Each value of an update has deviation lr * sigma * C * sqrt(steps) / n."""
    assert bounds.noise_std(ORDER, OFFER) == pytest.approx(2.0 * 9.0 * 0.1 * 5**0.5 / 100)


def test_a_node_that_does_fewer_steps_has_the_noise_of_those() -> None:
    """The noise is that of the steps that its own order names."""
    assert bounds.noise_std(ORDER, replace(OFFER, local_steps=2)) == pytest.approx(
        2.0 * 9.0 * 0.1 * 2**0.5 / 100
    )


def test_an_honest_update_keeps_within_the_norm_bound() -> None:
    """A thousand draws of the largest honest signal plus noise stay below the bound."""
    generator = np.random.default_rng(0)
    std = bounds.noise_std(ORDER, OFFER)
    assert std is not None
    draws = generator.normal(0.0, std, (1000, 14)) + 2.0 * 5 * 0.1 / 14**0.5
    assert np.linalg.norm(draws, axis=1).max() < bounds.update_norm_max(ORDER, OFFER, 14)


def test_the_norm_bound_leaves_room_for_the_encoding() -> None:
    """Rounding can lengthen an honest update; fewer values hold less noise."""
    narrow = replace(ORDER, update_dtype="int8")
    plain = bounds.update_norm_max(ORDER, OFFER, 14)
    assert bounds.update_norm_max(narrow, OFFER, 14) == pytest.approx(1.252 * plain, rel=1e-3)
    assert bounds.update_norm_max(ORDER, OFFER, 4) < plain


def test_the_noise_of_a_round_is_that_of_the_values_that_were_sent() -> None:
    """Two equal nodes: half the noise each, over as many values as each sent."""
    std = bounds.noise_std(ORDER, OFFER)
    assert std is not None
    both = bounds.global_noise_norm(ORDER, [OFFER, OFFER], [1.0, 1.0], [14, 14])
    assert both == pytest.approx(std * 7**0.5)
    assert bounds.global_noise_norm(ORDER, [OFFER, OFFER], [1.0, 1.0], [14, 2]) == pytest.approx(
        std * 2.0
    )


def test_the_bound_of_sampling_is_met_where_everybody_pulls_by_the_clipping_bound() -> None:
    """A hundred patients whose clipped gradients cancel: the root mean square of 20,000 drawn
    rounds is the bound to 1 %; two equal nodes have it by the root of two less."""
    offer = replace(OFFER, mechanism="poisson_gaussian", sample_rate=0.2)
    generator = np.random.default_rng(0)
    gradients = generator.normal(size=(50, 14))
    gradients *= 0.1 / np.linalg.norm(gradients, axis=1, keepdims=True)
    gradients = np.concatenate([gradients, -gradients])
    drawn = generator.random((20_000, 5, 100)) < 0.2
    moved = drawn.sum(axis=1) @ gradients * 2.0 / (0.2 * 100)
    bound = bounds.sampling_norm(ORDER, offer)
    assert bound is not None
    assert np.sqrt((moved**2).sum(axis=1).mean()) == pytest.approx(bound, rel=0.01)
    both = bounds.global_sampling_norm(ORDER, [offer, offer], [1.0, 1.0])
    assert both == pytest.approx(bound / 2**0.5)


def test_who_is_in_each_step_is_not_left_to_chance_without_sampling() -> None:
    """A full batch moves a still model by nothing; of an unknown step size nothing is known."""
    unknown = replace(ORDER, learning_rate=None)
    assert bounds.sampling_norm(ORDER, OFFER) == 0.0
    assert bounds.sampling_norm(unknown, OFFER) == 0.0
    sampled = replace(OFFER, mechanism="poisson_gaussian", sample_rate=0.2)
    assert bounds.global_sampling_norm(unknown, [sampled], [1.0]) is None


def test_a_pull_that_overflows_has_a_bound_all_the_same() -> None:
    """lr * mu far above 2 makes FedProx diverge; the bound is then the largest norm there is."""
    wild = bounds.RoundOrder(2.0, 300, 0.1, 10.0)
    assert bounds.update_norm_max(wild, OFFER, 14) == bounds.UNBOUNDED_NORM
