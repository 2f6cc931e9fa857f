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

That a patient's vector is its own, whoever else is there, is the matter of `privacy.blocks`. What
neither covers is the noise's own law, computed in double precision (`privacy.noise`).
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

UNITS_PER_BOUND: Final = 1 << 20
"""Units of the grid in the clipping bound C."""


def patient_sums(
    gradients: Sequence[Tensor],
    group: Tensor | None,
    begun: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Gradients of each patient, summed over the patient's rows one after the other.

    Args:
        gradients: for each parameter (rows, *shape) float64.
        group: (rows or fewer,) int64, which patient each row belongs to, 0 to P - 1 ascending; rows
            beyond are nobody's. None where every row is a patient of its own.
        begun: for each parameter (*shape), what the first patient's rows of before come to.

    Returns:
        For each parameter (rows, *shape) float64, of which those beyond the P patients are zero;
        `gradients` where `group` is None.
    """
    if group is None:
        return list(gradients)
    sums = []
    for number, g in enumerate(gradients):
        total = torch.zeros_like(g, memory_format=torch.contiguous_format)
        if begun is not None:
            total[0] = begun[number]
        sums.append(total.index_add_(0, group, g[: len(group)]))
    return sums


def clipped_units(
    sums: Sequence[Tensor],
    max_grad_norm: float,
    room: Tensor | None = None,
    patients: int | None = None,
) -> Tensor:
    """The sum over patients of their clipped gradients, in whole units of the grid.

    Args:
        sums, max_grad_norm, room: as `each_clipped` takes them.
        patients: how many of `sums` count, the first ones; all where None.

    Returns:
        (D,) float64 of whole numbers, parameters one after the other. Each patient has added a
        vector of L2 norm at most `UNITS_PER_BOUND`.
    """
    each = each_clipped(sums, max_grad_norm, room)
    return torch.cat([units[:patients].sum(0) for units in each])


def norms_of(sums: Sequence[Tensor]) -> Tensor:
    """(P,) L2 norms of each patient's gradient, which is in `sums` a parameter at a time."""
    parts = [torch.linalg.vector_norm(s.reshape(s.shape[0], -1), dim=1) for s in sums]
    return parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts), dim=0)


def each_clipped(
    sums: Sequence[Tensor], max_grad_norm: float, room: Tensor | None = None
) -> Iterator[Tensor]:
    """Each patient's clipped gradient in whole units, one parameter after the other.

    A patient whose gradient is not finite counts as zero.

    Args:
        sums: for each parameter (P, *shape) float64; not changed, as two may share memory.
        max_grad_norm: C, from 1e-30 to 1e30, so that no square near it underflows or overflows.
        room: float64 working memory of at least as many values as the largest of `sums`. Memory
            that is used again costs nothing; new memory is faulted in page by page.

    Yields:
        For each parameter (P, its values) float64 of whole numbers, in `room`: the next one is
        written over it.
    """
    patients = sums[0].shape[0]
    flat = [s.reshape(patients, -1) for s in sums]
    values = sum(s.shape[1] for s in flat)
    norms = norms_of(flat)
    finite = torch.isfinite(norms)
    if not finite.all():
        # Not by a factor of 0: zero times infinity is not zero.
        flat = [torch.where(finite.unsqueeze(1), s, 0.0) for s in flat]
        norms = torch.where(finite, norms, 0.0)
    margin = (values + 16) * 2.0**-52
    divisors = norms.clamp(min=max_grad_norm).div_(UNITS_PER_BOUND * (1.0 - margin)).unsqueeze(1)
    if room is None:
        room = torch.empty(max(s.numel() for s in flat), dtype=torch.float64)
    for s in flat:
        yield torch.div(s, divisors, rounding_mode="trunc", out=room[: s.numel()].view(s.shape))
