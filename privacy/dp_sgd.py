"""DP-SGD on a node: per-patient clipping, one noise for each step, FedProx after both.

Gradients of each row: `privacy.row_gradients`. Clipping, rounding and their sensitivity:
`privacy.clipping`. Only the training worker imports this module: it loads torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog
import torch
from torch import Tensor

from privacy.blocks import Block, are_apart, block_rows, wild
from privacy.clipping import UNITS_PER_BOUND, clipped_units, norms_of, patient_sums
from privacy.layers import check_layers
from privacy.noise import SecureNoise
from privacy.releases import GRAD_NORM_MAX, GRAD_NORM_MIN, Release
from privacy.row_gradients import InDoublePrecision
from protos.errors import Malformed

log = structlog.get_logger(__name__)

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
    def rows_expected(self) -> float:
        """Of a step, by public figures, if every patient had one; rarely more are drawn."""
        spread = 1.0 - self.release.sample_rate
        return self.expected_patients + 3 * math.sqrt(self.expected_patients * spread)

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
    values = sum(p.numel() for p in model.parameters() if p.requires_grad)
    at_once = block_rows(values, training.rows_expected)
    with InDoublePrecision(model, at_once * values) as weights:
        start = weights.flat.clone()
        block = Block(rows.features, rows.labels, at_once)
        if not _tried(weights, block, loss_per_row):
            log.warning("rows_one_by_one", why="this machine's arithmetic mixes rows", slow=True)
            block = Block(rows.features, rows.labels, 1)
        for _ in range(training.local_steps):
            chosen = rows
            if training.release.mechanism == "poisson_gaussian":
                chosen = rows.sampled(training.release.sample_rate, noise)
            total = _clipped_sum(weights, chosen, block, loss_per_row, training)
            _descend(weights.flat, start, _released(total, training, noise), training)


def _clipped_sum(
    weights: InDoublePrecision,
    rows: "_Rows",
    block: Block,
    loss_per_row: LossPerRow,
    training: Training,
) -> Tensor:
    """(D,) whole units: what the patients of `rows` add up to at the present weights."""
    total = torch.zeros(weights.values, dtype=torch.float64)
    begun: list[Tensor] | None = None
    for begin in range(0, len(rows.patients), block.rows):
        end = min(begin + block.rows, len(rows.patients))
        block.fill(rows.features[begin:end], rows.labels[begin:end])
        group = rows.group(begin, end)
        _, gradients = _row_gradients(weights, block, loss_per_row)
        sums = patient_sums(gradients, group, begun)
        count = end - begin if group is None else int(group[-1]) + 1
        # A patient whose rows go on in the next pass is clipped there, whole.
        begun = None
        if rows.go_on(end):
            count -= 1
            begun = [s[count].clone() for s in sums]
        total += clipped_units(sums, training.max_grad_norm, weights.room, count)
    return total


def _row_gradients(
    weights: InDoublePrecision, block: Block, loss_per_row: LossPerRow, *, check: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """(rows, ...) what the model says of the rows in the block, and for each trained parameter
    (rows, *shape) their gradients."""
    outputs = weights.module(block.features)
    losses = loss_per_row(outputs, block.labels)
    if losses.shape != (block.rows,):
        raise Malformed(
            "LOSS_SHAPE",
            "The task's loss must have one value for each row, shape (rows,): any other shape"
            " would escape clipping.",
        )
    # The sum, never the mean: a row's gradient is that of its own loss.
    losses.sum().backward()
    if check:
        weights.check_gradients()
    return outputs.detach(), weights.take_gradients(block.rows)


def _tried(weights: InDoublePrecision, block: Block, loss_per_row: LossPerRow) -> bool:
    """Whether what is computed of a row is its own here, and all of it is in some row's gradient;
    at made-up weights and rows alone.

    Raises:
        Malformed: LAYER_UNSUPPORTED, see `InDoublePrecision.check_gradients`; or the model or its
            loss draws at random, where the draws of each row hang on how many rows are before it.
    """

    def computed() -> Tensor:
        outputs, gradients = _row_gradients(weights, block, loss_per_row, check=True)
        figures = [outputs, norms_of(gradients), *gradients]
        return torch.cat([one.reshape(block.rows, -1) for one in figures], dim=1)

    before, drawn = weights.flat.clone(), torch.get_rng_state()
    weights.flat.copy_(wild(before))
    try:
        apart = are_apart(computed, block)
    finally:
        weights.flat.copy_(before)
    if not torch.equal(torch.get_rng_state(), drawn):
        raise Malformed(
            "LAYER_UNSUPPORTED",
            "This model cannot be trained with DP-SGD: it, or its loss, draws at random, so that "
            "one patient more would change the draws of others; leave that out.",
        )
    return apart


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
class _Rows:
    """Rows in the order of their patients, a patient's own in their given order."""

    features: Tensor
    labels: Tensor
    patients: Tensor
    each_alone: bool

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
        patients = patients[order]
        alone = not bool((patients[1:] == patients[:-1]).any())
        return cls(_double(features[order]), _double(labels[order]), patients, alone)

    def sampled(self, rate: float, noise: SecureNoise) -> "_Rows":
        """All rows of the patients that are drawn, each by itself with probability `rate`."""
        if len(self.patients) == 0:
            return self
        drawn = noise.bernoulli(int(self.patients[-1]) + 1, rate)
        rows = torch.from_numpy(drawn)[self.patients].nonzero().flatten()
        return _Rows(self.features[rows], self.labels[rows], self.patients[rows], self.each_alone)

    def group(self, begin: int, end: int) -> Tensor | None:
        """(end - begin,) which patient each of these rows is of, from 0; None where each is of a
        patient that has no other row."""
        if self.each_alone:
            return None
        _, group = torch.unique_consecutive(self.patients[begin:end], return_inverse=True)
        return group

    def go_on(self, end: int) -> bool:
        """Whether the patient of the row before `end` has more of them."""
        last = len(self.patients)
        return 0 < end < last and bool(self.patients[end - 1] == self.patients[end])


def _double(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _invalid(what: str) -> Malformed:
    return Malformed("TRAINING_INVALID", f"This training cannot run: {what}.")
