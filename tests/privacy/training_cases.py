"""Models, losses and data sets, kind and adversarial, for tests of DP-SGD."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privacy.dp_sgd import Training, train
from privacy.noise import SecureNoise
from privacy.releases import Release

F = 5
MODELS = ("logistic", "mlp")


def model_of(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "logistic":
        return nn.Linear(F, 1)
    return nn.Sequential(nn.Linear(F, 7), nn.ReLU(), nn.Linear(7, 1))


def loss_per_row(outputs: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each row."""
    return nn.functional.binary_cross_entropy_with_logits(
        outputs.squeeze(-1), labels, reduction="none"
    )


def training(mechanism: str = "gaussian", **changes: object) -> Training:
    """C 0.5, learning rate 0.8, n 40, noise 1.3; `changes` by the names of the fields."""
    steps = changes.pop("steps", 1)
    sigma = None if mechanism == "none" else changes.pop("sigma", 1.3)
    rate = changes.pop("rate", 1.0)
    release = Release(mechanism, sigma, rate, steps)  # type: ignore[arg-type]
    fields: dict[str, object] = {
        "learning_rate": 0.8,
        "local_steps": steps,
        "max_grad_norm": 0.5,
        "proximal_mu": 0.0,
        "release": release,
        "declared_n": 40,
    }
    return Training(**{**fields, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Data:
    """Rows and the patient of each."""

    features: Tensor
    labels: Tensor
    patients: Tensor

    def without(self, patient: int) -> "Data":
        """The neighbouring data set: every row of one patient removed, ids closed up."""
        keep = self.patients != patient
        left = self.patients[keep]
        return Data(self.features[keep], self.labels[keep], left - (left > patient).long())


def random_data(seed: int, patients: int = 30, rows_max: int = 4) -> Data:
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, rows_max + 1, (patients,), generator=g)
    ids = torch.repeat_interleave(torch.arange(patients), counts)
    ids = ids[torch.randperm(len(ids), generator=g)]
    features = torch.randn(len(ids), F, generator=g) * 2
    return Data(features, torch.randint(0, 2, (len(ids),), generator=g).float(), ids)


def with_patient(data: Data, rows: int, features: float, label: float) -> Data:
    """One more patient, of `rows` equal rows."""
    new = int(data.patients.max()) + 1 if len(data.patients) else 0
    return Data(
        torch.cat([data.features, torch.full((rows, F), features)]),
        torch.cat([data.labels, torch.full((rows,), label)]),
        torch.cat([data.patients, torch.full((rows,), new)]),
    )


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def delta_of(
    kind: str,
    data: Data,
    how: Training,
    noise: SecureNoise,
    loss: Callable[[Tensor, Tensor], Tensor] = loss_per_row,
) -> Tensor:
    """Trained minus start, as one vector."""
    model = model_of(kind)
    start = flat(model)
    train(model, data.features, data.labels, data.patients, loss, how, noise)
    return flat(model) - start
