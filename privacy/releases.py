"""What leaves a node: the mechanism and its parameters, apart from how they are counted."""

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from protos.errors import Malformed

Mechanism = Literal[
    "gaussian",
    "poisson_gaussian",
    "laplace",
    "discrete_gaussian",
    "exponential",
    "no_data",
    "none",
]
MECHANISMS: Final[tuple[Mechanism, ...]] = get_args(Mechanism)

UNNOISED: Final[frozenset[Mechanism]] = frozenset({"no_data", "none"})
"""These have no noise multiplier and no cost; every other mechanism has both."""

TRAINED: Final[frozenset[Mechanism]] = frozenset({"gaussian", "poisson_gaussian"})
"""By these DP-SGD releases; it carries out no other, whatever is ordered."""

GRAD_NORM_MIN: Final = 1e-30
GRAD_NORM_MAX: Final = 1e30
"""Squares of gradients near the clipping bound neither underflow nor overflow between these."""

STEPS_MAX: Final = 2**32 - 1
"""The wire carries `steps` as uint32."""


@dataclass(frozen=True, slots=True)
class Release:
    """Everything that leaves a node in one attempt, for the patients of one account.

    Attributes:
        mechanism: one of
            "gaussian": sums with Gaussian noise, every patient in every step;
            "poisson_gaussian": the same, each patient in a step with probability
            `sample_rate`, independently;
            "laplace": numbers with Laplace noise;
            "discrete_gaussian": whole numbers (counts, votes), of which one patient changes one
            by at most 1, with noise from the discrete Gaussian;
            "exponential": a choice of candidate c with probability proportional to
            exp(score(c) / (noise_multiplier * sensitivity));
            "no_data": no record was read;
            "none": not accounted for, no privacy guarantee.
        noise_multiplier: the noise in units of the sensitivity, which is the most that one
            patient's presence changes; None exactly for "no_data" and "none".
            "gaussian", "poisson_gaussian": standard deviation over the clipping bound (L2);
            "laplace": scale over the sensitivity (L1), so that one step is
            1/noise_multiplier-DP;
            "discrete_gaussian": the parameter sigma, the sensitivity being 1;
            "exponential": as in the formula above, the sensitivity being that of the score, so
            that one step has bounded range 2/noise_multiplier.
        sample_rate: probability that a patient is in a step, in (0, 1]; 1 unless
            "poisson_gaussian".
        steps: how many such releases, at least 1; 0 for "no_data" only.

    Raises:
        Malformed: RELEASE_INVALID, for any other combination, NaN and infinities included.
    """

    mechanism: Mechanism
    noise_multiplier: float | None
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise _invalid(f"mechanism must be one of {', '.join(MECHANISMS)}")
        if self.mechanism not in UNNOISED:
            if not _is_number(self.noise_multiplier) or not float(self.noise_multiplier or 0.0) > 0:
                raise _invalid(f"{self.mechanism} needs a finite noise_multiplier above 0")
            # An integer would give the same release other canonical bytes.
            object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier or 0.0))
        elif self.noise_multiplier is not None:
            raise _invalid(f"{self.mechanism} takes no noise_multiplier")
        if not _is_number(self.sample_rate) or not 0 < self.sample_rate <= 1:
            raise _invalid("sample_rate must be above 0 and at most 1")
        if self.mechanism != "poisson_gaussian" and self.sample_rate != 1:
            raise _invalid(f"sample_rate must be 1 for {self.mechanism}")
        object.__setattr__(self, "sample_rate", float(self.sample_rate))
        steps_min = 0 if self.mechanism == "no_data" else 1
        if type(self.steps) is not int or not steps_min <= self.steps <= STEPS_MAX:
            raise _invalid(f"steps must be a whole number from {steps_min} to {STEPS_MAX}")


def _is_number(value: object) -> bool:
    """A finite real number; True and False are not numbers, nor is an integer beyond float."""
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and abs(value) < 2**53


def _invalid(what: str) -> Malformed:
    return Malformed("RELEASE_INVALID", f"This is no release: {what}.")
