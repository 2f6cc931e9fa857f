"""Patients' gradients, clipped and rounded to a public grid, so that their sum is exact.

**Grid.** A step's sum is held in whole numbers of a unit of C / 2^20, where C is the clipping
bound. Each patient's gradient s is scaled to `s * 2^20 * (1 - margin) / max(|s|, C)` and every
coordinate is then rounded *towards zero*, which never makes a vector longer. So a patient adds a
vector of whole numbers whose L2 norm is at most 2^20 units, which is C: the rounding is inside the
sensitivity, and nothing is added to the bound for it. The margin pays for the floating point that
comes before the rounding: with unit roundoff u = 2^-53 and d coordinates, the norm is computed with
a relative error of at most (d/2 + 2) u whatever the order of the sum, the divisor and each quotient
add 3 u; margin = (d + 16) 2^-52 is more than twice all of that.

**Sum.** A coordinate of one patient is at most 2^20 units, and whole numbers up to 2^53 are added
in double precision without error, so the sum over fewer than 2^33 patients is exact in any order:
adding or removing a patient changes it by that patient's vector and nothing else.

**Noise** is rounded to whole units too (`privacy.dp_sgd`). For real Gaussian noise Z and a whole
number k, round(k + Z) = k + round(Z): what leaves is a function of k + Z alone, so that the figures
of the Gaussian mechanism hold for it. And as the law of the rounded noise does not depend on k,
the lowest bits of what leaves tell nothing: there is no value that one data set could reach and its
neighbour could not because of how floats are spaced. Sources of the attacks: Mironov 2012 and
Jin et al. 2022 (arXiv 2112.05307) on noise, Casacuberta et al. 2022 (arXiv 2207.10635) on sums.

What this does not cover: the noise's own law, computed in double precision (`privacy.noise`), and
a matrix library that computes a row's gradient with other last bits when other rows stand beside
it. Gradients are taken in double precision, so such a difference is some 2^-30 of a unit and
reaches the sum only where a value lies that near to a multiple of the unit.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

UNITS_PER_BOUND: Final = 1 << 20
"""Units of the grid in the clipping bound C."""


def patient_sums(gradients: Sequence[Tensor], group: Tensor | None) -> list[Tensor]:
    """Gradients of each patient, summed over the patient's rows in their order.

    Args:
        gradients: for each parameter (rows, *shape) float64.
        group: (rows,) int64, which patient each row belongs to, 0 to P - 1 ascending; None where
            every row is a patient of its own.

    Returns:
        For each parameter (P, *shape) float64.
    """
    if group is None:
        return list(gradients)
    patients = int(group[-1]) + 1
    return [g.new_zeros((patients, *g.shape[1:])).index_add_(0, group, g) for g in gradients]


def clipped_units(
    sums: Sequence[Tensor], max_grad_norm: float, room: Tensor | None = None
) -> Tensor:
    """The sum over patients of their clipped gradients, in whole units of the grid.

    A patient whose gradient is not finite counts as zero.

    Args:
        sums: for each parameter (P, *shape) float64; not changed, as two may share memory.
        max_grad_norm: C, from 1e-30 to 1e30, so that no square near it underflows or overflows.
        room: float64 working memory of at least as many values as the largest of `sums`. Memory
            that is used again costs nothing; new memory is faulted in page by page.

    Returns:
        (D,) float64 of whole numbers, parameters one after the other. Each patient has added a
        vector of L2 norm at most `UNITS_PER_BOUND`.
    """
    patients = sums[0].shape[0]
    flat = [s.reshape(patients, -1) for s in sums]
    values = sum(s.shape[1] for s in flat)
    parts = [torch.linalg.vector_norm(s, dim=1) for s in flat]
    norms = parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts), dim=0)
    finite = torch.isfinite(norms)
    if not finite.all():
        # Not by a factor of 0: zero times infinity is not zero.
        flat = [torch.where(finite.unsqueeze(1), s, 0.0) for s in flat]
        norms = torch.where(finite, norms, 0.0)
    margin = (values + 16) * 2.0**-52
    divisors = norms.clamp(min=max_grad_norm).div_(UNITS_PER_BOUND * (1.0 - margin)).unsqueeze(1)
    if room is None:
        room = torch.empty(max(s.numel() for s in flat), dtype=torch.float64)
    totals = []
    for s in flat:
        units = torch.div(s, divisors, rounding_mode="trunc", out=room[: s.numel()].view(s.shape))
        totals.append(units.sum(0))
    return torch.cat(totals)
