"""DP-SGD on a node: per-patient clipping, one noise for each step, FedProx after both.

Gradients of each row: `privacy.row_gradients`. Clipping, rounding and their sensitivity:
`privacy.clipping`. Only the training worker imports this module: it loads torch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from privacy.clipping import UNITS_PER_BOUND, clipped_units, patient_sums
from privacy.layers import check_layers
from privacy.noise import SecureNoise
from privacy.releases import GRAD_NORM_MAX, GRAD_NORM_MIN, Release
from privacy.row_gradients import InDoublePrecision
from protos.errors import Malformed

GRADIENT_VALUES_MAX: Final = 1 << 19
"""Per-row gradient values held at once (4 MiB); more rows are taken in parts of whole patients.

Larger parts are slower: their arrays are returned to the system and faulted in again each step.
"""

NOISE_MULTIPLIER_MAX: Final = float(1 << 20)
"""Noise is computed to 2^-12 of a unit up to here, and every sum stays exact."""

LossPerRow = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Training:
    """One attempt's training, every number of it fixed before the data is opened.

    Attributes:
        local_steps: SGD steps; equals `release.steps`.
        max_grad_norm: most that one patient may move the summed gradient, in L2 norm (C).
        proximal_mu: FedProx mu; 0 for FedAvg.
        release: what will be booked. "none" clips all the same and adds no noise.
        declared_n: the size that the data steward typed; the divisor, whatever is really there.

    Raises:
        Malformed: TRAINING_INVALID.
    """

    learning_rate: float
    local_steps: int
    max_grad_norm: float
    proximal_mu: float
    release: Release
    declared_n: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise _invalid("learning_rate must be finite and above 0")
        if not GRAD_NORM_MIN <= self.max_grad_norm <= GRAD_NORM_MAX:
            raise _invalid(f"max_grad_norm must be from {GRAD_NORM_MIN} to {GRAD_NORM_MAX}")
        if not (math.isfinite(self.proximal_mu) and self.proximal_mu >= 0):
            raise _invalid("proximal_mu must be finite and not negative")
        if self.release.mechanism == "no_data":
            raise _invalid("a release without data trains nothing")
        if (self.release.noise_multiplier or 0.0) > NOISE_MULTIPLIER_MAX:
            raise _invalid(f"noise_multiplier must be at most {NOISE_MULTIPLIER_MAX:.0f}")
        if self.local_steps != self.release.steps:
            raise _invalid("local_steps must equal the steps that are booked")
        if type(self.declared_n) is not int or self.declared_n < 1:
            raise _invalid("declared_n must be a whole number from 1")

    @property
    def expected_patients(self) -> float:
        """What a step's sum is divided by: public, and the same for neighbouring data sets."""
        return self.release.sample_rate * self.declared_n

    @property
    def noise_std_units(self) -> float:
        """Standard deviation of the noise on each coordinate of a step's sum, in grid units."""
        return (self.release.noise_multiplier or 0.0) * UNITS_PER_BOUND


def train(
    model: torch.nn.Module,
    features: Tensor,
    labels: Tensor,
    patients: Tensor,
    loss_per_row: LossPerRow,
    training: Training,
    noise: SecureNoise,
) -> None:
    """Train `model` in place, starting at the round's global weights.

    Each step: gradients of each row, summed over each patient's rows; a patient whose sum is not
    finite counts as zero; each sum clipped to `max_grad_norm` and rounded to the grid; all added
    up; noise added once, on the grid; divided by `expected_patients`; then
    `proximal_mu * (w - w_global)` added, which depends on no patient; then plain SGD. A step that
    samples nobody is a step of noise alone. All of it in double precision.

    Args:
        model: of the layers that `privacy.layers.check_layers` takes.
        features: (rows, ...); computed in double precision where they are floating point.
        labels: (rows,).
        patients: (rows,) int64, the patient of each row, 0 to the number of patients - 1.
        loss_per_row: (outputs, labels) -> (rows,), the loss of each row by itself: no mean over
            the batch, no weight that depends on other rows.

    Raises:
        Malformed: LAYER_UNSUPPORTED, see `check_layers`; ROWS_MISMATCH, the tensors do not fit;
            LOSS_SHAPE, the loss is not (rows,); GRADIENT_SHAPE, a parameter has no gradient for
            each row.
    """
    check_layers(model)
    rows = _Rows.of(features, labels, patients)
    with InDoublePrecision(model, GRADIENT_VALUES_MAX) as weights:
        start = weights.flat.clone()
        everyone = rows.parts(weights.values)
        for _ in range(training.local_steps):
            if training.release.mechanism == "poisson_gaussian":
                chosen = rows.sampled(training.release.sample_rate, noise)
                total = _clipped_sum(
                    weights, chosen, chosen.parts(weights.values), loss_per_row, training
                )
            else:
                total = _clipped_sum(weights, rows, everyone, loss_per_row, training)
            _descend(weights.flat, start, _released(total, training, noise), training)


def _clipped_sum(
    weights: InDoublePrecision,
    rows: "_Rows",
    parts: Sequence["_Part"],
    loss_per_row: LossPerRow,
    training: Training,
) -> Tensor:
    """(D,) whole units: what the patients of `rows` add up to at the present weights."""
    total = torch.zeros(weights.values, dtype=torch.float64)
    for part in parts:
        losses = loss_per_row(
            weights.module(rows.features[part.begin : part.end]), rows.labels[part.begin : part.end]
        )
        if losses.shape != (part.end - part.begin,):
            raise Malformed(
                "LOSS_SHAPE",
                "The task's loss must have one value for each row, shape (rows,): any other shape"
                " would escape clipping.",
            )
        # The sum, never the mean: a row's gradient is that of its own loss.
        losses.sum().backward()
        sums = patient_sums(weights.take_gradients(part.end - part.begin), part.group)
        total += clipped_units(sums, training.max_grad_norm, weights.room)
    return total


def _released(total: Tensor, training: Training, noise: SecureNoise) -> Tensor:
    """(D,) what a step releases: the sum with its noise, in units of the gradient per patient."""
    if training.release.mechanism != "none":
        total = total + _noise_units(len(total), training, noise)
    return total * (training.max_grad_norm / UNITS_PER_BOUND / training.expected_patients)


def _noise_units(values: int, training: Training, noise: SecureNoise) -> Tensor:
    """(D,) whole numbers: Gaussian noise on the grid, once for each step, whoever is in it."""
    drawn = noise.gaussian((values,), training.noise_std_units)
    return torch.from_numpy(np.rint(drawn, out=drawn))


def _descend(flat: Tensor, start: Tensor, gradient: Tensor, training: Training) -> None:
    """A step of FedProx: the proximal gradient joins after clipping and noise."""
    gradient += (flat - start).mul_(training.proximal_mu)
    flat.sub_(gradient, alpha=training.learning_rate)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that are taken at once: whole patients.

    Attributes:
        group: (end - begin,) which patient of the part each row is of; None where each is its own.
    """

    begin: int
    end: int
    group: Tensor | None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows in the order of their patients, a patient's own in their given order."""

    features: Tensor
    labels: Tensor
    patients: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, patients: Tensor) -> "_Rows":
        rows = features.shape[0]
        if labels.shape != (rows,) or patients.shape != (rows,) or patients.dtype != torch.int64:
            raise Malformed(
                "ROWS_MISMATCH",
                "features (rows, ...), labels (rows,) and patients (rows,) must agree.",
            )
        if rows and int(patients.min()) < 0:
            raise Malformed("ROWS_MISMATCH", "patients must be indices from 0.")
        order = torch.argsort(patients, stable=True)
        return cls(_double(features[order]), _double(labels[order]), patients[order])

    def sampled(self, rate: float, noise: SecureNoise) -> "_Rows":
        """All rows of the patients that are drawn, each by itself with probability `rate`."""
        if len(self.patients) == 0:
            return self
        drawn = noise.bernoulli(int(self.patients[-1]) + 1, rate)
        rows = torch.from_numpy(drawn)[self.patients].nonzero().flatten()
        return _Rows(self.features[rows], self.labels[rows], self.patients[rows])

    def parts(self, row_values: int) -> list[_Part]:
        """Parts that, where one patient allows, hold at most `GRADIENT_VALUES_MAX` values."""
        rows_max = max(1, GRADIENT_VALUES_MAX // row_values)
        _, counts = torch.unique_consecutive(self.patients, return_counts=True)
        parts: list[_Part] = []
        begin = end = 0
        for count in counts.tolist():
            if end > begin and end + count - begin > rows_max:
                parts.append(self._part(begin, end))
                begin = end
            end += count
        return parts if end == begin else [*parts, self._part(begin, end)]

    def _part(self, begin: int, end: int) -> _Part:
        _, group = torch.unique_consecutive(self.patients[begin:end], return_inverse=True)
        return _Part(begin, end, None if int(group[-1]) + 1 == end - begin else group)


def _double(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _invalid(what: str) -> Malformed:
    return Malformed("TRAINING_INVALID", f"This training cannot run: {what}.")
