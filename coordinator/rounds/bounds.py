"""Public bounds on one round: how large an update can be, and what chance alone would do.

Everything here follows from what was ordered; nothing is measured from updates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.rounds.events import Offer
from protos.updates import NORM_GROWTH_MAX, UpdateDtype

UNBOUNDED_NORM = 1e6
"""For tasks whose step size the coordinator does not know."""

_DECLARED_N_SLACK = 4.0
"""A hospital may hold up to four times the records that its steward declared."""

_NOISE_DEVIATIONS = 12.0


@dataclass(frozen=True, slots=True)
class RoundOrder:
    """What every node of a round is told.

    Attributes:
        learning_rate: step size of plain SGD; None when the task has no such thing.
        max_grad_norm: the clipping bound C.
        update_dtype: how the values of an update travel.
    """

    learning_rate: float | None
    local_steps: int
    max_grad_norm: float
    proximal_mu: float
    update_dtype: UpdateDtype = "float32"


def noise_std(order: RoundOrder, offer: Offer) -> float | None:
    """Standard deviation of the noise in each value of one node's update; None if unknown."""
    if offer.noise_multiplier is None:
        return 0.0
    if order.learning_rate is None:
        return None
    per_step = _largest_pull(order.learning_rate, order, offer) * offer.noise_multiplier
    return per_step * math.sqrt(offer.local_steps or order.local_steps)


def sampling_norm(order: RoundOrder, offer: Offer) -> float | None:
    """Bound on the root mean square of how far a node's update moves because patients are sampled:
    each of the declared ones is in a step or not, and pulls by at most the clipping bound.

    Of n patients at the sample rate q whose clipped gradients g_i add up to nothing, a step's sum
    has the variance q (1 - q) sum |g_i|^2. None if the step size is unknown.
    """
    if offer.sample_rate >= 1:
        return 0.0
    if order.learning_rate is None:
        return None
    left_to_chance = offer.declared_n * offer.sample_rate * (1 - offer.sample_rate)
    steps = offer.local_steps or order.local_steps
    return _largest_pull(order.learning_rate, order, offer) * math.sqrt(left_to_chance * steps)


def _largest_pull(learning_rate: float, order: RoundOrder, offer: Offer) -> float:
    """How far one patient can move the model in one step."""
    return learning_rate * order.max_grad_norm / (offer.sample_rate * offer.declared_n)


def update_norm_max(order: RoundOrder, offer: Offer, values: int) -> float:
    """The largest norm that an honest node's update can have, but for one chance in 10^20.

    Args:
        values: number of values that the update holds.
    """
    std = noise_std(order, offer)
    if order.learning_rate is None or std is None:
        return UNBOUNDED_NORM
    signal = order.learning_rate * order.local_steps * order.max_grad_norm * _DECLARED_N_SLACK
    noise = std * (math.sqrt(values) + _NOISE_DEVIATIONS)
    pull = max(1.0, abs(1.0 - order.learning_rate * order.proximal_mu))
    if order.local_steps * math.log(pull) > math.log(UNBOUNDED_NORM):
        return UNBOUNDED_NORM
    encoded = NORM_GROWTH_MAX[order.update_dtype]
    return min(UNBOUNDED_NORM, (signal + noise) * pull**order.local_steps * encoded)


def global_noise_norm(
    order: RoundOrder, offers: Sequence[Offer], weights: Sequence[float], values: Sequence[int]
) -> float | None:
    """Expected norm of the noise that one round adds to the global model; None if unknown.

    Rounding to int8, the coarsest encoding, adds a deviation of about a hundredth of the noise's
    own; in the sum of squares that is nothing.

    Args:
        values: number of values that each node's update holds.
    """
    total, variance = math.fsum(weights), 0.0
    for offer, weight, count in zip(offers, weights, values, strict=True):
        std = noise_std(order, offer)
        if std is None:
            return None
        variance += (weight / total * std) ** 2 * count
    return math.sqrt(variance)


def global_sampling_norm(
    order: RoundOrder, offers: Sequence[Offer], weights: Sequence[float]
) -> float | None:
    """Bound on the root mean square of how far sampled patients move a global model that stands
    still, in one round; None if unknown."""
    total, variance = math.fsum(weights), 0.0
    for offer, weight in zip(offers, weights, strict=True):
        norm = sampling_norm(order, offer)
        if norm is None:
            return None
        variance += (weight / total * norm) ** 2
    return math.sqrt(variance)
