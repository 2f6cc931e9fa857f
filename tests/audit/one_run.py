"""A one-run audit: canaries that are in or out by a coin each, and guesses from one update.

Source: Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846), the white-box form: each canary is a
patient who moves a weight of its own, so that one attempt audits all of them.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privacy.accounting import epsilon_spent
from privacy.audit import one_run_epsilon
from privacy.noise import SecureNoise
from privacy.releases import Release
from tests.audit.hospital import Hospital, Row

CANARIES: Final = 1000
DELTA: Final = 1e-5
CONFIDENCE: Final = 0.95
OWN_SHARE: Final = 3 / math.sqrt(10)
"""Of a canary's clipped gradient, what lies on its own weight; the rest is on the bias."""


@dataclass(frozen=True, slots=True)
class Case:
    """A release to audit."""

    name: str
    release: Release

    @property
    def mu(self) -> float:
        """How far a canary that is in moves its weight, in deviations of the noise, about."""
        one = self.release
        steps = one.steps * one.sample_rate
        spread = one.steps * ((one.noise_multiplier or 0) ** 2 + OWN_SHARE**2 * _sampled(one))
        return OWN_SHARE * steps / math.sqrt(spread)


def _sampled(release: Release) -> float:
    """Variance of being in a step, or not, where patients are sampled."""
    return release.sample_rate * (1 - release.sample_rate)


CASES: Final = (
    Case("full-batch-1", Release("gaussian", 16.684, 1.0, 20)),
    Case("full-batch-2", Release("gaussian", 9.0, 1.0, 20)),
    Case("sampled-2", Release("poisson_gaussian", 2.0, 0.1, 100)),
)
"""Claims below about 3.5: a run of so many canaries cannot show more, whatever the fault."""


def planned_guesses(mu: float) -> int:
    """How many guesses to make, half of them "in": what should show most, from public facts only.

    Choosing after seeing the scores would void the confidence.
    """
    best, most = 20, -1.0
    for guesses in range(20, CANARIES + 1, 20):
        threshold = _threshold(mu, guesses / 2 / CANARIES)
        right = float(stats.norm.sf(threshold - mu))
        right = right / (right + float(stats.norm.sf(threshold)))
        found = one_run_epsilon(CANARIES, guesses, int(guesses * right), DELTA, CONFIDENCE)
        if found > most:
            best, most = guesses, found
    return best


def _threshold(mu: float, share: float) -> float:
    """Score above which that share of the canaries lies: half are N(0, 1), half N(mu, 1)."""
    low, high = -10.0, 10.0 + mu
    for _ in range(60):
        middle = (low + high) / 2
        above = (float(stats.norm.sf(middle)) + float(stats.norm.sf(middle - mu))) / 2
        low, high = (middle, high) if above > share else (low, middle)
    return low


def audit(
    case: Case, folder: Path, seconds: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Audit one release in one attempt: what `build/audit.json` says of it."""
    began_s = seconds()
    included = SecureNoise().bernoulli(CANARIES, 0.5)
    scores = _scores(case, folder, included)
    guesses = planned_guesses(case.mu)
    order = np.argsort(scores)
    said_out, said_in = order[: guesses // 2], order[-(guesses // 2) :]
    correct = int((~included[said_out]).sum() + included[said_in].sum())
    claimed = epsilon_spent([case.release], DELTA)
    assert claimed is not None
    return {
        "case": case.name,
        "mechanism": case.release.mechanism,
        "noise_multiplier": case.release.noise_multiplier,
        "sample_rate": case.release.sample_rate,
        "steps": case.release.steps,
        "delta": DELTA,
        "epsilon_claimed": claimed,
        "epsilon_lower_bound": round(
            one_run_epsilon(CANARIES, guesses, correct, DELTA, CONFIDENCE), 4
        ),
        "confidence": CONFIDENCE,
        "canaries": CANARIES,
        "guesses": guesses,
        "correct": correct,
        "seconds": round(seconds() - began_s, 2),
    }


def _scores(case: Case, folder: Path, included: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(CANARIES,) how far each canary's weight went to where the canary would pull it."""
    labels = np.arange(CANARIES) % 2
    rows: Sequence[Row] = [
        Row(f"canary-{number}", int(labels[number]), {number: 3.0})
        for number in range(CANARIES)
        if included[number]
    ]
    hospital = Hospital(folder, rows, features=CANARIES, declared_n=CANARIES // 2)
    return hospital.attempt(case.release)[:CANARIES] * (2 * labels - 1)
