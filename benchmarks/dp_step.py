"""A DP-SGD step of the training worker beside the bare Opacus loop with the same noise source."""

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor

from benchmarks.results import Result, result
from node_agent.tasks.tabular import TabularModel, loss_per_row
from node_agent.tasks.tabular_config import Feature, TabularConfig
from privacy.dp_sgd import Training, train
from privacy.noise import SecureNoise
from privacy.releases import Release

CLIP: Final = 0.1
LEARNING_RATE: Final = 0.1


class _BareOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's own, but for the source of its noise."""

    source: SecureNoise

    def add_noise(self) -> None:
        """One draw for each parameter, as Opacus does."""
        for p in self.params:
            std = self.noise_multiplier * self.max_grad_norm
            drawn = torch.from_numpy(self.source.gaussian(tuple(p.shape), std))
            p.grad = (p.summed_grad + drawn.to(p.dtype)).view_as(p)


@dataclass(frozen=True, slots=True)
class DpStep:
    """Full-batch steps of the tabular model on made-up rows, one a patient.

    Attributes:
        steps: in one run; setting up a model is shared among them, as in an attempt.
        runs: of each loop, by turns; the median of one run's time over the other's counts.
    """

    patients: int
    features: int
    hidden: tuple[int, ...]
    steps: int
    runs: int

    @property
    def disk_bytes(self) -> int:
        """Nothing."""
        return 0

    def run(self, case: str) -> list[Result]:
        """Median milliseconds of a step, and the bare loop's as the floor."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook")
                ours, bare = self._measured()
        finally:
            torch.set_num_threads(threads)
        return [result(case, "step_time", ours, "ms", bare)]

    def _measured(self) -> tuple[float, float]:
        """Milliseconds of a step, ours and bare; the ratio of the two is the median ratio."""
        g = torch.Generator().manual_seed(0)
        rows = torch.randn((self.patients, self.features), generator=g).clamp(-3, 3)
        labels = torch.randint(0, 2, (self.patients,), generator=g).float()
        ratios, bare_ms = [], []
        for turn in range(self.runs + 1):
            loops = [self._ours, self._bare]
            taken = {
                loop: _milliseconds(loop(rows, labels)) / self.steps
                for loop in (loops if turn % 2 else reversed(loops))
            }
            if turn:
                ratios.append(taken[self._ours] / taken[self._bare])
                bare_ms.append(taken[self._bare])
        bare = statistics.median(bare_ms)
        return bare * statistics.median(ratios), bare

    def _ours(self, rows: Tensor, labels: Tensor) -> Callable[[], Any]:
        release = Release("gaussian", 1.0, 1.0, self.steps)
        training = Training(LEARNING_RATE, self.steps, CLIP, 0.1, release, self.patients)
        model, patients, noise = self._model(), torch.arange(self.patients), SecureNoise()
        return lambda: train(model, rows, labels, patients, loss_per_row, training, noise)

    def _bare(self, rows: Tensor, labels: Tensor) -> Callable[[], Any]:
        model, noise = self._model(), SecureNoise()

        def loop() -> None:
            module = GradSampleModule(model, loss_reduction="sum")
            optimizer = _BareOptimizer(
                torch.optim.SGD(module.parameters(), lr=LEARNING_RATE),
                noise_multiplier=1.0,
                max_grad_norm=CLIP,
                expected_batch_size=self.patients,
            )
            optimizer.source = noise
            for _ in range(self.steps):
                optimizer.zero_grad(set_to_none=True)
                loss_per_row(module(rows), labels).sum().backward()
                optimizer.step()

        return loop

    def _model(self) -> TabularModel:
        torch.manual_seed(0)
        features = [Feature(column=f"c{n}", center=0.0, scale=1.0) for n in range(self.features)]
        kind = "mlp" if self.hidden else "logistic"
        return TabularModel(
            TabularConfig.model_validate(
                {
                    "model": kind,
                    "hidden": list(self.hidden),
                    "learning_rate": LEARNING_RATE,
                    "features": features,
                }
            )
        )


def _milliseconds(run: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began_s)
