"""What an account's releases come to by three ways of counting, side by side."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from privacy.accounting import WORK_MAX, epsilon_spent, full_batch_epsilon
from privacy.filters import Filter
from privacy.kinds import fewer_releases
from privacy.releases import Release
from protos.errors import invariant

CLOSED_MAX: Final = 1024
OTHERS_MAX: Final = 128
"""So many different releases are added up one by one, full batches of Gaussian noise and others;
of more, some are counted as dearer ones."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Epsilon of the same releases at the account's one delta, each rounded up.

    None of them is the guarantee, which is the highest limit that was ever in force.

    Attributes:
        running: of them all composed, as if all had been fixed in advance; to 5 digits.
            "Running epsilon" is this figure wherever it is shown.
        booked: what the account's filter has booked for them. It holds for jobs that are chosen
            after seeing the results of earlier ones, and it is what the limit is compared with.
        naive: the sum of each release's own epsilon at the account's delta. A guarantee with
            this epsilon would have that delta once for each release, so it flatters itself.
    """

    running: float
    booked: float
    naive: float

    @property
    def fixed(self) -> float:
        """The least that is known for releases fixed in advance: the smaller of the two.

        `booked` is valid for them too and, unlike `running`, has no grid.
        """
        return min(self.running, self.booked)

    @property
    def efficiency(self) -> float | None:
        """`fixed` over `booked`, at most 1: what is not lost to counting; None for no epsilon."""
        return self.fixed / self.booked if self.booked > 0 else None

    @property
    def booked_to_naive(self) -> float | None:
        """`booked` over `naive`: small is good, and above 1 adding up would have been cheaper."""
        return self.booked / self.naive if self.naive > 0 else None


def figures_of(
    releases: Iterable[Release] | Mapping[Release, int], filter_: Filter
) -> Figures | None:
    """The figures of `releases`, or of so many of each, by an account's filter.

    Returns:
        None where a release is not accounted for: then no figure means anything.

    Raises:
        BudgetRefused: MECHANISM_NOT_COVERED, a release that `filter_` never admitted.
    """
    counts = Counter(releases)
    running = epsilon_spent(counts, filter_.delta)
    if running is None:
        return None
    units = sum(count * filter_.cost_units(release) for release, count in counts.items())
    booked = filter_.epsilon_of(units)
    return Figures(running, booked, _naive(counts, filter_.delta))


def _naive(counts: Mapping[Release, int], delta: float) -> float:
    """Each release's own epsilon, added up, in bounded work."""
    closed = {one: count for one, count in counts.items() if one.mechanism == "gaussian"}
    others = {one: count for one, count in counts.items() if one.mechanism != "gaussian"}
    total = 0.0
    for kinds, most in ((closed, CLOSED_MAX), (others, OTHERS_MAX)):
        apart = fewer_releases(kinds, most)
        # In powers of two, so that the cache is met again.
        work_max = WORK_MAX >> max(0, len(apart) - 1).bit_length()
        total += sum(count * own_epsilon(one, delta, work_max) for one, count in apart.items())
    return total


@lru_cache(maxsize=4096)
def own_epsilon(release: Release, delta: float, work_max: int = WORK_MAX) -> float:
    """Epsilon at `delta` of one release alone, rounded up; 0 for "no_data"."""
    if release.mechanism == "gaussian":
        # The closed form: a plan whose noise changes in every round is still quick to add up.
        return full_batch_epsilon({release: 1}, delta)
    epsilon = epsilon_spent([release], delta, work_max)
    invariant(epsilon is not None, "a release without accounting has no epsilon")
    return epsilon or 0.0
