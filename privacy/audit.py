"""Lower bounds on epsilon from attacks: what an audit may claim from what it has seen.

Pure statistics. The attacks, on the real training path, are in `tests/audit`.
"""

import math
from collections.abc import Sequence
from typing import Final

from scipy import stats  # type: ignore[import-untyped]

_EPSILON_MAX: Final = 64.0
_HALVINGS: Final = 40


def one_run_p_value(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """How likely so many correct guesses are, at most, if training were (epsilon, delta)-DP.

    Args:
        canaries: m examples, each included with probability 1/2, independently.
        guesses: r canaries of which the auditor said "in" or "out"; it abstained from the others.
        correct: v of them that were right.

    Source: Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846), Theorem 5.2 and appendix D: the
    number of correct guesses is at most Binomial(r, e^eps / (1 + e^eps)), but for a part of delta:
    P[>= v] <= P[Bin >= v] + 2 m delta max_i P[v - i <= Bin < v] / i.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError("correct <= guesses <= canaries must hold")
    right = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, right))
    # P[v - i <= Bin < v] for i from 1 to v, each over i.
    below = stats.binom.pmf(range(correct - 1, -1, -1), guesses, right).cumsum()
    steepest = max((float(mass) / i for i, mass in enumerate(below, start=1)), default=0.0)
    return min(1.0, tail + 2.0 * canaries * delta * steepest)


def one_run_epsilon(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> float:
    """The largest epsilon that so many correct guesses refute, with that confidence; 0 if none."""
    error = 1.0 - confidence
    low, high = 0.0, _EPSILON_MAX
    if one_run_p_value(canaries, guesses, correct, 0.0, delta) > error:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        if one_run_p_value(canaries, guesses, correct, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low


def two_world_mu(without: Sequence[bool], with_canary: Sequence[bool], confidence: float) -> float:
    """A lower bound on the mu of Gaussian DP from one test in many independent runs of two worlds.

    Args:
        without: for each run without the canary, whether the test said "in".
        with_canary: the same for each run with it.

    The error rates are bounded from above by Clopper and Pearson, each with half of the error that
    `confidence` leaves; mu-GDP allows no test better than Phi^-1(1 - fpr) - Phi^-1(fnr).

    Source: Nasr et al. 2023 (arXiv 2302.07956), section 4.
    """
    error = (1.0 - confidence) / 2.0
    fpr = _rate_max(sum(without), len(without), error)
    fnr = _rate_max(len(with_canary) - sum(with_canary), len(with_canary), error)
    return max(0.0, float(stats.norm.isf(fpr) - stats.norm.ppf(fnr)))


def _rate_max(count: int, runs: int, error: float) -> float:
    return 1.0 if count == runs else float(stats.beta.isf(error, count + 1, runs - count))
