"""The exact trade-off of Gaussian differential privacy, evaluated on the safe side.

The (epsilon, delta) curve of mu-GDP is
`delta = Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2)`
(Dong, Roth and Su 2019, Corollary 1; Balle and Wang 2018, Theorem 8). With a and b for the two
arguments, `e^epsilon phi(b) = phi(a)`, so that the second term is `phi(a) R(-b)`, where R is
Mills' ratio `Phi(-x)/phi(x)`: nothing overflows and nothing underflows early. Every result
carries a bound on its rounding errors, so that a smaller float can never pass for a guarantee.
"""

import math
from fractions import Fraction
from typing import Final

_SQRT2: Final = math.sqrt(2.0)
_SQRT_HALF_PI: Final = math.sqrt(math.pi / 2.0)
_SQRT_2PI: Final = math.sqrt(2.0 * math.pi)

_TAIL_FROM: Final = 5.0
"""From here Mills' ratio comes from its continued fraction."""

_TAIL_TERMS: Final = 60
"""Terms of the continued fraction: at x = 5 what is left out is far below 1e-17 of the value."""

_FAR: Final = -15.0
_FAR_DELTA: Final = 1.0e-48
"""Phi(-15) is below 4e-51: past here delta is below any that an account may have."""

_ROUNDING: Final = 1.0e-15
"""About four and a half units in the last place, for each elementary operation counted below."""


def mills_ratio(x: float) -> float:
    """`Phi(-x)/phi(x)` for x >= 0, relative error below 1e-14.

    Source: Abramowitz and Stegun 26.2.14 (Laplace's continued fraction) for the tail.
    """
    if x < _TAIL_FROM:
        return math.erfc(x / _SQRT2) * math.exp(x * x / 2.0) * _SQRT_HALF_PI
    value = x
    for term in range(_TAIL_TERMS, 0, -1):
        value = x + term / value
    return 1.0 / value


def delta_above(epsilon: float, mu: float) -> float:
    """An upper bound, tight to rounding errors, on the delta of mu-GDP at `epsilon` >= 0."""
    if mu <= 0.0:
        return 0.0
    a = -epsilon / mu + mu / 2.0
    b = -epsilon / mu - mu / 2.0
    if a < _FAR:
        return _FAR_DELTA
    # The arguments carry relative errors of their parts; a tail's logarithm has slope |a| + 1.
    relative = _ROUNDING * (8.0 + -b * (abs(a) + 2.0))
    if relative > 1.0e-3:
        return 1.0
    density = math.exp(-a * a / 2.0) / _SQRT_2PI
    first = density * mills_ratio(-a) if a <= 0.0 else math.erfc(-a / _SQRT2) / 2.0
    second = density * mills_ratio(-b)
    return min(1.0, first * (1.0 + relative) - second * (1.0 - relative))


def epsilon_above(mu: float, delta: float) -> float:
    """The least epsilon that `delta_above` certifies for mu-GDP at `delta`, rounded up.

    Inf where no float does (mu beyond any use).
    """
    if delta_above(0.0, mu) <= delta:
        return 0.0
    high = 1.0
    while delta_above(high, mu) > delta:
        high *= 2.0
        if not math.isfinite(high) or mu > 1.0e5:
            return math.inf
    low = 0.0
    while True:
        middle = (low + high) / 2.0
        if not low < middle < high:
            return high
        if delta_above(middle, mu) <= delta:
            high = middle
        else:
            low = middle


def float_above(value: Fraction) -> float:
    """The nearest float that is not below `value`."""
    near = float(value)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)


def sqrt_above(value: Fraction) -> float:
    """A float whose square is at least `value`, within two ulps; inf past 1e300."""
    if value > 10**300:
        return math.inf
    root = math.sqrt(float_above(value))
    while Fraction(root) ** 2 < value:
        root = math.nextafter(root, math.inf)
    return root
