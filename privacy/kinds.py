"""Kinds of step, and fewer of them: noise rounded down and rates rounded up until many are equal.

Less noise and a larger sample never cost less, so that what is counted instead is an upper bound.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Final

from privacy.gaussian_dp import sqrt_above
from privacy.releases import STEPS_MAX, UNNOISED, Release

_FINE: Final = 10**24

_BITS: Final = (10, 8, 6, 5, 4, 3, 2, 1, 0, -1, -2, -4, -6)
"""Numbers keep so many binary digits after the first; below 0, only exponents that are multiples
of 2^-bits are left. Each is coarser than the one before, and makes equal what that made equal."""

_NOISE_LEAST: Final = 2.0**-64
_NOISE_MOST: Final = 2.0**63
_RATE_LEAST: Final = 2.0**-64
"""Beyond these no figure tells the difference; within them the last of `_BITS` leaves few kinds."""


def mu_squared(counts: Mapping[Release, int]) -> Fraction:
    """Of full batches of Gaussian noise, composed: the sum of steps / noise_multiplier^2."""
    # Each is rounded up to 24 decimal places: exact fractions would grow with every term.
    total = sum(
        math.ceil(count * release.steps * _FINE / Fraction(release.noise_multiplier or 0.0) ** 2)
        for release, count in counts.items()
    )
    return Fraction(total, _FINE)


def merged(counts: Mapping[Release, int]) -> dict[Release, int]:
    """Each kind of step, as a release of one, and how many there are.

    All full batches of Gaussian noise are one step with less noise, as they compose exactly.
    """
    full: dict[Release, int] = {}
    steps: defaultdict[Release, int] = defaultdict(int)
    for release, count in counts.items():
        if release.mechanism in ("gaussian", "poisson_gaussian") and release.sample_rate == 1.0:
            full[release] = count
        else:
            steps[replace(release, steps=1)] += count * release.steps
    if full:
        noise = 1.0 / sqrt_above(mu_squared(full))
        noise = math.nextafter(math.nextafter(noise, 0.0), 0.0)
        steps[Release("gaussian", max(noise, math.ulp(0.0)), 1.0, 1)] += 1
    # In one order, whatever that of the ledger was: sums of floats depend on it.
    return dict(sorted(steps.items(), key=lambda one: _place(one[0])))


def coarser_and_coarser(steps: Mapping[Release, int]) -> Iterator[Mapping[Release, int]]:
    """The kinds themselves, then ever fewer of them, each of which costs no less."""
    yield steps
    for bits in _BITS:
        fewer: defaultdict[Release, int] = defaultdict(int)
        for release, count in steps.items():
            fewer[_coarse(release, bits)] += count
        if len(fewer) < len(steps):
            steps = dict(fewer)
            yield steps


def _coarse(release: Release, bits: int) -> Release:
    noise = release.noise_multiplier or 0.0
    beyond_use = noise < _NOISE_LEAST
    noise = math.ulp(0.0) if beyond_use else rounded_down(min(noise, _NOISE_MOST), bits)
    rate = min(1.0, rounded_up(max(release.sample_rate, _RATE_LEAST), bits))
    mechanism = release.mechanism
    if mechanism == "poisson_gaussian" and rate == 1.0:
        mechanism = "gaussian"
    return Release(mechanism, noise, rate, release.steps)


def rounded_up(value: float, bits: int) -> float:
    """`value` > 0 to so many binary digits after the first, never to less."""
    mantissa, exponent = math.frexp(value)  # from 1/2 to 1
    if bits > 0:
        return math.ldexp(math.ceil(math.ldexp(mantissa, bits + 1)), exponent - bits - 1)
    exponent -= mantissa == 0.5
    multiple = 2**-bits
    return math.ldexp(1.0, -(-exponent // multiple) * multiple)


def rounded_down(value: float, bits: int) -> float:
    """`value` > 0 to so many binary digits after the first, never to more."""
    mantissa, exponent = math.frexp(value)
    if bits > 0:
        return math.ldexp(math.floor(math.ldexp(mantissa, bits + 1)), exponent - bits - 1)
    multiple = 2**-bits
    return math.ldexp(1.0, (exponent - 1) // multiple * multiple)


def fewer_releases(counts: Mapping[Release, int], most: int) -> Mapping[Release, int]:
    """About `most` different releases that cost no less each, their steps rounded up as well.

    Those without noise are left out: they have no cost.
    """
    counts = {one: count for one, count in counts.items() if one.mechanism not in UNNOISED}
    for bits in _BITS:
        if len(counts) <= most:
            break
        fewer: defaultdict[Release, int] = defaultdict(int)
        for release, count in counts.items():
            one = _coarse(release, bits)
            steps = min(STEPS_MAX, int(rounded_up(float(release.steps), bits)))
            fewer[replace(one, steps=steps)] += count
        counts = dict(fewer)
    return counts


def _place(release: Release) -> tuple[str, float, float]:
    return release.mechanism, release.noise_multiplier or 0.0, release.sample_rate
