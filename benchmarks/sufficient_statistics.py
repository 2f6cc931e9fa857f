"""The rival of DP-SGD on a small linear task: X'X and X'y, released once.

Kept as a measurement only: docs/models.md says why the product has no such strategy.

Each patient gives the vector of all products of two inputs (the upper triangle of x x', a 1 for the
intercept among the inputs) and `balance` times the inputs times label - 1/2. It is clipped to norm
`bound`; a hospital adds its patients up and adds Gaussian noise once. The sums of all hospitals
give a ridge solution. A ridge as large as the noise shrinks it, so that it is made longer again
until it has the least squared error of all its multiples, as far as the noised sums tell. Four
times that is the first Newton step of logistic regression from zero.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feddp.demo import heart
from node_agent.data.records import Records
from privacy.calibration import noise_multiplier_for
from privacy.filters import make_filter
from privacy.noise import SecureNoise

Weights = dict[str, NDArray[np.float32]]

LONGER_MAX: Final = 50.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What a one-shot release leaves to choose, all of it public.

    Attributes:
        bound: L2 norm to which a patient's vector is clipped.
        balance: weight of the products with the label beside those of inputs.
        ridge: multiple of the noise's own size in X'X that is added to its diagonal.
    """

    bound: float
    balance: float
    ridge: float


INPUTS: Final = len(heart.FEATURES) + 1


def settings() -> Iterator[Setting]:
    """A grid from which the best is chosen by the held-out rows.

    Nobody may choose a model so. It is a favour to the rival, that losing may not be a matter of
    its setting; the range was widened until the best was inside it.
    """
    for bound in (7.0, 14.0):
        for balance in (4.0, 8.0, 12.0, 20.0, 40.0):
            for ridge in (1.0, 2.0, 4.0, 8.0, 16.0):
                yield Setting(bound, balance, ridge)


def noised_sums(
    hospitals: Sequence[Records], setting: Setting, epsilon: float, delta: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The sums of all hospitals, each noised for (`epsilon`, `delta`) by add/remove.

    Returns:
        (14, 14) X'X; (14,) X'(y - 1/2); the deviation of the noise in each value of X'X.
    """
    share = make_filter("gdp", 0, epsilon, delta)
    deviation = noise_multiplier_for(share, share.limit_units, 1, 1, 1.0) * setting.bound
    upper = np.triu_indices(INPUTS)
    total = np.zeros(len(upper[0]) + INPUTS)
    for records in hospitals:
        inputs = with_intercept(records.features)
        products = (inputs[:, :, None] * inputs[:, None, :])[:, upper[0], upper[1]]
        targets = setting.balance * inputs * (records.labels[:, None] - 0.5)
        vectors = np.concatenate([products, targets], axis=1)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors *= setting.bound / np.maximum(norms, setting.bound)
        total += vectors.sum(axis=0) + SecureNoise().gaussian(total.shape, deviation)
    square = np.zeros((INPUTS, INPUTS))
    square[upper] = total[: len(upper[0])]
    square = square + np.triu(square, 1).T
    targets_sum = total[len(upper[0]) :] / setting.balance
    return square, targets_sum, deviation * math.sqrt(len(hospitals))


def solve(
    square: NDArray[np.float64], targets: NDArray[np.float64], deviation: float, ridge: float
) -> Weights:
    """A logistic model's tensors from noised sums.

    The ridge is a multiple of the norm that a symmetric matrix of such noise has, twice its
    deviation times sqrt(14), so that the sum stays positive.
    """
    added = ridge * 2.0 * deviation * math.sqrt(INPUTS)
    direction = np.linalg.solve(square + added * np.eye(INPUTS), targets)
    curvature = float(direction @ square @ direction)
    # The noise can make it negative; then nothing is known of the length.
    longer = float(direction @ targets) / curvature if curvature > 0 else 1.0
    solution = 4.0 * min(max(longer, 1.0), LONGER_MAX) * direction
    return {
        "linear.weight": solution[None, 1:].astype(np.float32),
        "linear.bias": solution[:1].astype(np.float32),
    }


def one_shot(
    hospitals: Mapping[str, Records], setting: Setting, epsilon: float, delta: float
) -> Weights:
    """The model that one release of each hospital gives."""
    square, targets, deviation = noised_sums(list(hospitals.values()), setting, epsilon, delta)
    return solve(square, targets, deviation, setting.ridge)


def with_intercept(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """(rows, 14): a 1 before the features."""
    return np.concatenate([np.ones((len(features), 1)), features.astype(np.float64)], axis=1)
