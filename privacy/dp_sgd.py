"""DP-SGD on a node: per-patient clipping and noise with Opacus, FedProx after both.

Only the training worker imports this module: it loads torch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor

from privacy.noise import SecureNoise
from privacy.releases import Release
from protos.errors import Malformed

GRADIENT_VALUES_MAX: Final = 1 << 24
"""Per-row gradient values held at once; more rows are taken in turns of whole patients."""

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
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise _invalid(f"{name} must be finite and above 0")
        if not (math.isfinite(self.proximal_mu) and self.proximal_mu >= 0):
            raise _invalid("proximal_mu must be finite and not negative")
        if self.release.mechanism == "no_data":
            raise _invalid("a release without data trains nothing")
        if self.local_steps != self.release.steps:
            raise _invalid("local_steps must equal the steps that are booked")
        if type(self.declared_n) is not int or self.declared_n < 1:
            raise _invalid("declared_n must be a whole number from 1")

    @property
    def expected_patients(self) -> float:
        """What a step's sum is divided by: public, and the same for neighbouring data sets."""
        return self.release.sample_rate * self.declared_n

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each coordinate of a step's clipped sum."""
        return (self.release.noise_multiplier or 0.0) * self.max_grad_norm


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
    finite counts as zero; each sum clipped to `max_grad_norm`; all added up; noise added once;
    divided by `expected_patients`; then `proximal_mu * (w - w_global)` added, which depends on no
    patient; then plain SGD. A step that samples nobody is a step of noise alone.

    Args:
        model: without buffers (batch normalisation mixes patients; Opacus refuses it).
        features: (rows, F).
        labels: (rows,).
        patients: (rows,) int64, the patient of each row, 0 to the number of patients - 1.
        loss_per_row: (outputs, labels) -> (rows,), the loss of each row by itself: no mean over
            the batch, no weight that depends on other rows.

    Raises:
        Malformed: LOSS_SHAPE, the loss is not (rows,); ROWS_MISMATCH, the tensors do not fit.
    """
    _check_rows(features, labels, patients)
    order = torch.argsort(patients, stable=True)
    features, labels, patients = features[order], labels[order], patients[order]
    was_training = model.training
    model.train()
    # "sum": the rows' losses are added up, so that a row's gradient is that of its own loss.
    module = GradSampleModule(model, loss_reduction="sum")
    try:
        parameters = [p for p in module.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in parameters]
        optimizer = _PatientOptimizer(
            torch.optim.SGD(parameters, lr=training.learning_rate), training, noise
        )
        for _ in range(training.local_steps):
            chosen = _chosen_rows(patients, training.release, noise)
            optimizer.zero_grad(set_to_none=True)
            for part in _parts(patients, chosen, sum(p.numel() for p in parameters)):
                losses = loss_per_row(module(features[part]), labels[part])
                if losses.shape != part.shape:
                    raise Malformed(
                        "LOSS_SHAPE",
                        "The task's loss must have one value for each row, shape (rows,): any "
                        "other shape would escape clipping.",
                    )
                losses.sum().backward()
                optimizer.take(patients[part])
            optimizer.pre_step()
            for parameter, origin in zip(parameters, start, strict=True):
                parameter.grad.add_(parameter.detach() - origin, alpha=training.proximal_mu)
            optimizer.original_optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    finally:
        module.to_standard_module()
        for parameter in model.parameters():
            # What Opacus leaves on the tensors is computed from records.
            parameter.__dict__.pop("summed_grad", None)
            parameter.grad = None
        model.train(was_training)


class _PatientOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's optimizer with patients for samples and `SecureNoise` for noise."""

    def __init__(self, optimizer: Any, training: Training, noise: SecureNoise) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=training.release.noise_multiplier or 0.0,
            max_grad_norm=training.max_grad_norm,
            expected_batch_size=training.expected_patients,
            loss_reduction="mean",
        )
        self._training = training
        self._noise = noise

    def take(self, patients: Tensor) -> None:
        """Clip and add up the row gradients of the last backward pass, then forget them.

        Args:
            patients: (rows,) sorted; every row of each patient that is in the step.
        """
        _, group = torch.unique_consecutive(patients, return_inverse=True)
        groups = int(group[-1]) + 1
        # In double precision, so that rounding cannot lift a clipped sum above the bound.
        sums = [
            torch.zeros((groups, *p.shape), dtype=torch.float64).index_add_(
                0, group, self._get_flat_grad_sample(p).detach().double()
            )
            for p in self.params
        ]
        norms = torch.stack([s.reshape(groups, -1).norm(dim=1) for s in sums]).norm(dim=0)
        finite = torch.isfinite(norms)
        factors = self.max_grad_norm / norms.clamp(min=self.max_grad_norm)
        for p, s in zip(self.params, sums, strict=True):
            # Not by a factor of 0: zero times infinity is not zero.
            s[~finite] = 0.0
            clipped = torch.einsum("i,i...->...", torch.where(finite, factors, 0.0), s)
            p.summed_grad = clipped if p.summed_grad is None else p.summed_grad + clipped
            p.grad_sample = None

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Turn what `take` added up into `p.grad`: with noise, divided by the public divisor."""
        self.add_noise()
        return True

    def add_noise(self) -> None:
        """Once for each step, also when nobody was sampled, in double precision."""
        for p in self.params:
            total = torch.zeros(p.shape, dtype=torch.float64)
            if p.summed_grad is not None:
                total += p.summed_grad
            if self._training.release.mechanism != "none":
                drawn = self._noise.gaussian(tuple(p.shape), self._training.noise_std)
                total += torch.from_numpy(drawn)
            p.summed_grad = None
            p.grad = (total / self.expected_batch_size).to(p.dtype)


def _chosen_rows(patients: Tensor, release: Release, noise: SecureNoise) -> Tensor:
    """Indices of the rows in this step: all, or all rows of the patients that were sampled."""
    if release.mechanism != "poisson_gaussian" or len(patients) == 0:
        return torch.arange(len(patients))
    drawn = noise.bernoulli(int(patients[-1]) + 1, release.sample_rate)
    return torch.from_numpy(drawn)[patients].nonzero().flatten()


def _parts(patients: Tensor, rows: Tensor, row_values: int) -> Iterator[Tensor]:
    """`rows` in parts that hold whole patients and, where one patient allows, fit the memory."""
    if len(rows) == 0:
        return
    _, counts = torch.unique_consecutive(patients[rows], return_counts=True)
    rows_max = max(1, GRADIENT_VALUES_MAX // max(1, row_values))
    begin = end = 0
    for count in counts.tolist():
        if end > begin and end + count - begin > rows_max:
            yield rows[begin:end]
            begin = end
        end += count
    yield rows[begin:end]


def _check_rows(features: Tensor, labels: Tensor, patients: Tensor) -> None:
    rows = features.shape[0]
    if labels.shape != (rows,) or patients.shape != (rows,) or patients.dtype != torch.int64:
        raise Malformed(
            "ROWS_MISMATCH", "features (rows, F), labels (rows,) and patients (rows,) must agree."
        )
    if rows and int(patients.min()) < 0:
        raise Malformed("ROWS_MISMATCH", "patients must be indices from 0.")


def _invalid(what: str) -> Malformed:
    return Malformed("TRAINING_INVALID", f"This training cannot run: {what}.")
