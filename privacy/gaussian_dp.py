"""The exact trade-off of Gaussian differential privacy, evaluated on the safe side.

The (epsilon, delta) curve of mu-GDP is
`delta = Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2)`
(Dong, Roth and Su 2019, Corollary 1; Balle and Wang 2018, Theorem 8). With a and b for the two
arguments, `e^epsilon phi(b) = phi(a)`, so that the second term is `phi(a) R(-b)`, where R is
Mills' ratio `Phi(-x)/phi(x)`: nothing overflows and nothing underflows early. Every result
carries a bound on its rounding errors, so that a smaller float can never pass for a guarantee.
"""

import math
import sys
from fractions import Fraction
from functools import lru_cache
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


_HALF_PI: Final = Fraction(math.pi) / 2 + Fraction(1, 10**15)
"""Just above the real one."""

_FLOAT_MOST: Final = Fraction(sys.float_info.max)

_PURE_SMALL: Final = Fraction(1, 10**4)
_PURE_LARGE: Final = 600


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


@lru_cache(maxsize=1024)
def pure_mu_squared(epsilon: Fraction) -> Fraction:
    """An upper bound, tight to 1e-8, on the mu^2 with which every `epsilon`-DP mechanism is mu-GDP.

    `mu = 2 Phi^-1(e^epsilon / (1 + e^epsilon))`: the trade-off function of epsilon-DP lies above
    that of mu-GDP, and they touch at its fixed point (Dong, Roth and Su 2019, arXiv 1905.02383,
    section 2.3).

    At both ends the formula is replaced by a bound on it: mu <= epsilon sqrt(pi/2), because
    Phi^-1 of the logistic function is concave above 0 (see `bounded_range_mu_squared`) and that
    is its tangent at 0; and mu^2 <= 8 epsilon, because Phi(-x) <= e^(-x^2/2) / 2.
    """
    if epsilon < _PURE_SMALL:
        return epsilon**2 * _HALF_PI
    if epsilon > _PURE_LARGE:
        return 8 * epsilon
    exact = float_above(epsilon)
    # The tail that must not be passed, 1 / (1 + e^epsilon), less its rounding errors.
    tail = 1.0 / (1.0 + math.exp(exact)) * (1.0 - _ROUNDING * (8.0 + exact))
    low, high = 0.0, math.sqrt(2.0 * exact)
    while low < (middle := (low + high) / 2.0) < high:
        if _tail_above(middle) <= tail:
            high = middle
        else:
            low = middle
    return min((2 * Fraction(high)) ** 2, 8 * epsilon)


def bounded_range_mu_squared(bounded_range: Fraction) -> Fraction:
    """An upper bound on the mu^2 with which every mechanism of `bounded_range` r is mu-GDP.

    It is that of r/2-DP. Proof. Among mechanisms whose log-ratio over the outcomes spans at most
    r, the worst have two outcomes, with log-ratios t and t - r for some t from 0 to r (Dong,
    Durfee and Rogers 2020, arXiv 1909.13830). Their hockey-stick divergence at e^x is greatest
    for t = (x + r)/2, where it is (e^(r/2) - e^(x/2))^2 / (e^r - 1); the trade-off function of
    that curve is `f(a) = L(L^-1(1 - a) - r)` with L the logistic function, so a mechanism of
    range r is at least as hard to tell as a logistic variable from itself moved by r. mu-GDP is
    the same with Phi for L. Put g = Phi^-1 o L, which is odd and increasing: f lies above the
    trade-off of mu-GDP if g(y) - g(y - r) <= mu for all y. If g is concave above 0, this
    difference is greatest for y = r/2, and mu = 2 g(r/2) will do.

    g is concave above 0: its slope is Phi(z) Phi(-z) / phi(z) at z = g(y), which falls with z > 0
    exactly if q(z) = phi(z) (2 Phi(z) - 1) - z Phi(z) Phi(-z) >= 0. Now q(0) = 0, q tends to 0,
    q' = 2 phi^2 - Phi(z) Phi(-z) is positive at 0 and tends to 0, and q'' = phi (2 Phi(z) - 1 -
    4 z phi) changes its sign once, from - to +, since (2 Phi(z) - 1) / (z phi(z)) increases. So q'
    falls through 0 once and stays below: q rises from 0, then falls towards 0.
    """
    return pure_mu_squared(bounded_range / 2)


def _tail_above(x: float) -> float:
    """Phi(-x) for x >= 0, not less than it is."""
    tail = math.exp(-x * x / 2.0) / _SQRT_2PI * mills_ratio(x)
    return tail * (1.0 + _ROUNDING * (16.0 + x * x))


def float_above(value: Fraction) -> float:
    """The nearest float that is not below `value`; inf where no float is."""
    if value > _FLOAT_MOST:
        return math.inf
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
