"""Epsilon of many steps whose losses are known, composed at once by their Fourier transforms.

Bounded: the work is counted beforehand, in points of the grid, from the releases alone, so that
every machine makes the same figure of the same ledger. Imports numpy: not for an idle agent.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from scipy import fft  # type: ignore[import-untyped]

from privacy.loss import SYMMETRIC, Floats, Loss, losses, reach, variance
from privacy.releases import Release

POINTS_MAX: Final = 2**22
"""Points of a grid: 32 MiB for each array of it."""

_LOSS_WORK: Final = 3
"""A point of a loss takes as long as so many points of its transform."""

_TAIL: Final = 1.0e-6
"""What is cut off, as a share of delta: twice, once for all steps and once for their sum."""

_VARIANCE_LOSS: Final = 2.0e-5
"""Relative: a Gaussian's grid is made as wide as adds so much to the variance of the loss. It adds
at most as much to epsilon, a fifth of what two versions' figures may differ by."""

_ROUNDING: Final = 2.0**-54
"""About the error of a transform's value, of which the sum's has one more for each step."""

_ROUNDING_MAX: Final = 0.1
"""Rounding errors may be as much, as a share of delta; they are added to the mass at infinity."""

_NEGLIGIBLE: Final = -60.0
"""e to this, times all frequencies, is far below what rounding adds."""


def composed_epsilon(
    steps: Mapping[Release, int],
    renyi: Mapping[int, float],
    delta: float,
    interval: float,
    work_max: int,
) -> float | None:
    """An upper bound on epsilon at `delta`, tight but for the grid; None for too much work.

    Args:
        steps: kinds of release, each of one step, and how many steps there are of each.
        renyi: order -> an upper bound on the Renyi divergence of all of them.
        interval: the grid's width at the least; full batches and samples may have a wider one.
        work_max: the most work, in points of the grid; see `work`.
    """
    count = sum(steps.values())
    interval = max(interval, _width(steps, count))
    tail = delta * _TAIL
    low, high = _window(steps, renyi, count, tail, interval)
    start = math.floor(low / interval) - 1
    if not math.isfinite(high - low) or (high - low) / interval > POINTS_MAX:
        return None
    size = fft.next_fast_len(math.ceil(high / interval) - start + 2, real=True)
    rounding = _ROUNDING * (4.0 * math.sqrt(size) + count)
    if rounding > _ROUNDING_MAX * delta or work(steps, delta, interval, size) > work_max:
        return None
    ways = (0,) if _is_symmetric(steps) else (0, 1)
    sums = [_Sum(size) for _ in ways]
    for release, times in steps.items():
        both = losses(release, interval, tail / count)
        for way, total in zip(ways, sums, strict=True):
            total.add(both[way], times)
    found = 0.0
    for total in sums:
        masses = np.roll(total.masses(), -start)
        infinite = total.infinite + tail + rounding
        found = max(found, _epsilon(masses, start, infinite, interval, delta))
    return found


def work(steps: Mapping[Release, int], delta: float, interval: float, size: int) -> int:
    """In points of a transform: each kind of step has its loss and a transform of `size`."""
    tail = delta * _TAIL / sum(steps.values())
    ways = 1 if _is_symmetric(steps) else 2
    points = 0
    for release in steps:
        low, high = reach(release, tail)
        points += _LOSS_WORK * math.ceil(min((high - low) / interval, 16.0 * POINTS_MAX)) + size
    return points * ways


class _Sum:
    """The transform of a sum of losses, as logarithm and angle, where it is not negligible."""

    def __init__(self, size: int) -> None:
        self.size, self.infinite = size, 0.0
        self._kept = np.arange(size // 2 + 1)
        self._log = np.zeros(size // 2 + 1)
        self._angle = np.zeros(size // 2 + 1)

    def add(self, loss: Loss, times: int) -> None:
        """`times` independent losses more."""
        self.infinite += times * loss.infinite
        # Modulo `size`, as the transform composes: what passes the window's ends comes in at the
        # other one, and its mass is within the tail.
        at = np.arange(loss.first, loss.first + len(loss.masses)) % self.size
        values = fft.rfft(np.bincount(at, loss.masses, self.size))[self._kept]
        with np.errstate(divide="ignore"):
            self._log += times * np.log(np.abs(values))
        self._angle += times * np.angle(values)
        keep = self._log > _NEGLIGIBLE
        self._kept, self._log, self._angle = self._kept[keep], self._log[keep], self._angle[keep]

    def masses(self) -> Floats:
        """Masses of the sum, at 0, 1, ... modulo `size` times the grid's width."""
        values = np.zeros(self.size // 2 + 1, dtype=np.complex128)
        values[self._kept] = np.exp(self._log + 1j * self._angle)
        masses: Floats = np.maximum(fft.irfft(values, self.size), 0.0)
        return masses


def _is_symmetric(steps: Mapping[Release, int]) -> bool:
    return all(one.mechanism in SYMMETRIC or one.sample_rate == 1.0 for one in steps)


def _width(steps: Mapping[Release, int], count: int) -> float:
    """The grid's width at which sharing losses out adds little; 0 where losses have kinks.

    A step's variance grows by a quarter of the width's square at most.
    """
    variances = [(variance(release), times) for release, times in steps.items()]
    if any(one == 0.0 for one, _ in variances):
        return 0.0
    return math.sqrt(4.0 * _VARIANCE_LOSS * sum(one * n for one, n in variances) / count)


def _window(
    steps: Mapping[Release, int],
    renyi: Mapping[int, float],
    count: int,
    tail: float,
    interval: float,
) -> tuple[float, float]:
    """Between which losses the sum lies, either way round, but for mass `tail` at each end.

    Chernoff's bound from the Renyi divergences, and the sum of what single losses can be. Sharing
    a loss out over the ends of its cell moves its mean by at most width^2/8, and multiplies the
    mean of e^(t loss) by e^(t^2 width^2 / 8) besides (Hoeffding).
    """
    spread = count * interval**2 / 8.0
    needed = -math.log(tail) + _TAIL
    low, high = -math.inf, math.inf
    for order, divergence in renyi.items():
        t = order - 1
        high = min(high, divergence + (t + 1) * spread + needed / t)
        low = max(low, -(t * divergence + needed) / order - order * spread)
    ends = [(reach(release, tail / count), times) for release, times in steps.items()]
    reached_low = sum((one[0] - interval) * times for one, times in ends)
    reached_high = sum((one[1] + interval) * times for one, times in ends)
    return max(low, reached_low), min(high, reached_high)


def _epsilon(masses: Floats, start: int, infinite: float, interval: float, delta: float) -> float:
    """The least epsilon >= 0 at which the divergence is at most `delta`; inf if there is none."""
    if infinite > delta:
        return math.inf
    losses_ = np.arange(start, start + len(masses)) * interval

    def divergence(epsilon: float, first: int) -> float:
        # -expm1 is not below 0 from here on, and nothing overflows.
        return infinite - float(np.sum(np.expm1(epsilon - losses_[first:]) * masses[first:]))

    low = max(0, -start)  # the first point at or above 0
    least = float(losses_[low]) if low < len(masses) else 0.0
    if low >= len(masses) or divergence(least, low) <= delta:
        return least
    high = len(masses) - 1  # at the last point nothing but `infinite` is left
    while high - low > 1:
        middle = (low + high) // 2
        if divergence(float(losses_[middle]), middle) <= delta:
            high = middle
        else:
            low = middle
    upper = infinite + float(masses[high:].sum())
    lower = float(np.sum(np.exp(losses_[high] - losses_[high:]) * masses[high:]))
    return float(losses_[high]) + math.log((upper - delta) / lower)
