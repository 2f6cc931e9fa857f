"""Bugs to plant in the training path, so that the audit can show that it would notice them.

They live here and nowhere else: what is installed at a hospital has no switch for any of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from node_agent.tasks import files
from privacy import dp_sgd
from privacy.blocks import Block
from privacy.clipping import UNITS_PER_BOUND
from privacy.noise import SecureNoise
from tests.audit import checks


@dataclass(frozen=True, slots=True)
class Bug:
    """A fault and the check that must raise an alarm because of it."""

    plant: Callable[[pytest.MonkeyPatch], None]
    caught_by: Callable[[Path], None]
    also_by: Callable[[Path], None] | None = None


def _no_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dp_sgd, "_noise_units", lambda values, *_: torch.zeros(values))


def _noise_twice(patch: pytest.MonkeyPatch) -> None:
    once = dp_sgd._noise_units
    patch.setattr(dp_sgd, "_noise_units", lambda *a: once(*a) + once(*a))


def _half_the_noise(patch: pytest.MonkeyPatch) -> None:
    once = dp_sgd._noise_units
    patch.setattr(dp_sgd, "_noise_units", lambda *a: (once(*a) / 2).round())


def _same_noise(patch: pytest.MonkeyPatch) -> None:
    def gaussian(_: SecureNoise, shape: tuple[int, ...], std: float) -> Any:
        return np.random.default_rng(7).normal(0, std, shape)

    patch.setattr(SecureNoise, "gaussian", gaussian)


def _bias_without_noise(patch: pytest.MonkeyPatch) -> None:
    once = dp_sgd._noise_units

    def but_the_last(*arguments: Any) -> torch.Tensor:
        drawn = once(*arguments)
        drawn[-1] = 0.0
        return drawn

    patch.setattr(dp_sgd, "_noise_units", but_the_last)


def _once_an_attempt(
    patch: pytest.MonkeyPatch, later: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Noise is drawn in an attempt's first step; `later` makes of it that of the others."""
    once, drawn = dp_sgd._noise_units, dict[str, Any]()

    def units(values: int, training: Any, noise: SecureNoise) -> torch.Tensor:
        if drawn.get("by") is not noise:  # each attempt has its own
            drawn.update(by=noise, units=once(values, training, noise))
            return drawn["units"].clone()
        return later(drawn["units"])

    patch.setattr(dp_sgd, "_noise_units", units)


def _first_step_alone(patch: pytest.MonkeyPatch) -> None:
    _once_an_attempt(patch, torch.zeros_like)


def _same_in_each_step(patch: pytest.MonkeyPatch) -> None:
    _once_an_attempt(patch, torch.clone)


def _half_drawn(patch: pytest.MonkeyPatch) -> None:
    once = dp_sgd._noise_units

    def twice(values: int, *rest: Any) -> torch.Tensor:
        return once((values + 1) // 2, *rest).repeat(2)[:values]

    patch.setattr(dp_sgd, "_noise_units", twice)


def _empty_step_silent(patch: pytest.MonkeyPatch) -> None:
    clipped_sum, released, present = dp_sgd._clipped_sum, dp_sgd._released, dict[str, int]()

    def counted(weights: Any, rows: Any, *rest: Any) -> torch.Tensor:
        present["rows"] = len(rows.patients)
        return clipped_sum(weights, rows, *rest)

    def silent(total: torch.Tensor, *rest: Any) -> torch.Tensor:
        return released(total, *rest) if present["rows"] else torch.zeros_like(total)

    patch.setattr(dp_sgd, "_clipped_sum", counted)
    patch.setattr(dp_sgd, "_released", silent)


def _no_clipping(patch: pytest.MonkeyPatch) -> None:
    def unclipped(
        sums: list[torch.Tensor], max_grad_norm: float, _: Any, patients: int
    ) -> torch.Tensor:
        total = torch.cat([s[:patients].sum(0).flatten() for s in sums])
        return (total * (UNITS_PER_BOUND / max_grad_norm)).round()

    patch.setattr(dp_sgd, "clipped_units", unclipped)


def _rows_clipped_apart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dp_sgd, "patient_sums", lambda gradients, *_: list(gradients))


def _passes_by_the_data(patch: pytest.MonkeyPatch) -> None:
    clipped_units = dp_sgd.clipped_units

    def of_all(features: torch.Tensor, labels: torch.Tensor, _: int) -> Block:
        return Block(features, labels, len(features))

    def in_new_room(
        sums: list[torch.Tensor], max_grad_norm: float, _: Any, patients: int
    ) -> torch.Tensor:
        # What is there is for passes of the right size.
        return clipped_units(sums, max_grad_norm, None, patients)

    patch.setattr(dp_sgd, "Block", of_all)
    patch.setattr(dp_sgd, "clipped_units", in_new_room)
    patch.setattr(dp_sgd, "_tried", lambda *_: True)


def _mean_of_realised(patch: pytest.MonkeyPatch) -> None:
    present: list[int] = []
    clipped_sum, released = dp_sgd._clipped_sum, dp_sgd._released

    def counted(weights: Any, rows: Any, *rest: Any) -> torch.Tensor:
        present.append(max(1, len(torch.unique(rows.patients))))
        return clipped_sum(weights, rows, *rest)

    def divided(total: torch.Tensor, training: Any, noise: SecureNoise) -> torch.Tensor:
        return released(total, training, noise) * (training.expected_patients / present[-1])

    patch.setattr(dp_sgd, "_clipped_sum", counted)
    patch.setattr(dp_sgd, "_released", divided)


def _fixed_size_sample(patch: pytest.MonkeyPatch) -> None:
    def chosen(self: SecureNoise, n: int, p: float) -> Any:
        drawn = np.zeros(n, bool)
        drawn[np.argsort(self._integers(n))[: round(n * p)]] = True
        return drawn

    patch.setattr(SecureNoise, "bernoulli", chosen)


def _proximal_clipped(patch: pytest.MonkeyPatch) -> None:
    state: dict[str, Any] = {}
    clipped_sum, patient_sums = dp_sgd._clipped_sum, dp_sgd.patient_sums
    train, descend = dp_sgd.train, dp_sgd._descend

    def started(weights: Any, *rest: Any) -> torch.Tensor:
        state["flat"] = weights.flat
        state.setdefault("start", weights.flat.clone())
        state["training"] = rest[-1]
        return clipped_sum(weights, *rest)

    def pulled(*arguments: Any) -> list[torch.Tensor]:
        sums = patient_sums(*arguments)
        away = (state["flat"] - state["start"]) * state["training"].proximal_mu
        pieces = away.split([s[0].numel() for s in sums])
        return [s + piece.view(s.shape[1:]) for s, piece in zip(sums, pieces, strict=True)]

    def plain(flat: Any, start: Any, gradient: Any, training: Any) -> None:
        descend(flat, flat.clone(), gradient, training)

    def fresh(*arguments: Any) -> None:
        state.clear()
        train(*arguments)

    patch.setattr(dp_sgd, "_clipped_sum", started)
    patch.setattr(dp_sgd, "patient_sums", pulled)
    patch.setattr(dp_sgd, "_descend", plain)
    patch.setattr("node_agent.tasks.tabular.train", fresh)


def _noise_after_spooling(patch: pytest.MonkeyPatch) -> None:
    _no_noise(patch)
    spool_update = files.spool_update

    def spooled(out: Path, delta: Any, *rest: Any) -> tuple[str, int]:
        written = spool_update(out, delta, *rest)
        for value in delta.values():
            value += SecureNoise().gaussian(value.shape, 0.01).astype(np.float32)
        return written

    patch.setattr(files, "spool_update", spooled)


BUGS: Final[Mapping[str, Bug]] = {
    "no-noise": Bug(_no_noise, checks.check_noise_law, checks.check_two_worlds),
    "noise-twice": Bug(_noise_twice, checks.check_noise_law),
    "half-the-noise": Bug(_half_the_noise, checks.check_noise_law),
    "same-noise": Bug(_same_noise, checks.check_noise_law),
    "bias-without-noise": Bug(_bias_without_noise, checks.check_noise_law),
    "first-step-alone": Bug(_first_step_alone, checks.check_noise_law),
    "same-in-each-step": Bug(_same_in_each_step, checks.check_noise_law),
    "half-drawn": Bug(_half_drawn, checks.check_noise_law),
    "empty-step-silent": Bug(_empty_step_silent, checks.check_noise_law),
    "no-clipping": Bug(_no_clipping, checks.check_sensitivity, checks.check_two_worlds),
    "rows-clipped-apart": Bug(_rows_clipped_apart, checks.check_sensitivity),
    "passes-by-the-data": Bug(_passes_by_the_data, checks.check_neighbours),
    "mean-of-realised": Bug(_mean_of_realised, checks.check_sensitivity),
    "fixed-size-sample": Bug(_fixed_size_sample, checks.check_sampling_law),
    "proximal-clipped": Bug(_proximal_clipped, checks.check_proximal),
    "noise-after-spooling": Bug(
        _noise_after_spooling, checks.check_noise_law, checks.check_two_worlds
    ),
}
