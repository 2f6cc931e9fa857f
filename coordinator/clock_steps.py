"""Notices that the clock was set while the coordinator ran: its rounds are timed by the wall clock,
as their moments must outlive the process."""

import time
from collections.abc import Callable
from typing import Final

STEP_S_MIN: Final = 5.0
"""What is less is the slow work of chrony between two looks, or a busy machine."""


class ClockSteps:
    """Compares the wall clock with one that nobody can set.

    Args:
        wall: seconds since the epoch.
        steady: seconds; stands still while the machine sleeps, which counts as a step, too.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._ahead_s = wall() - steady()

    def look(self) -> float:
        """Seconds by which the clock was set forward since the last look, negative if back; 0 for
        not at all."""
        ahead_s = self._wall() - self._steady()
        step_s, self._ahead_s = ahead_s - self._ahead_s, ahead_s
        return step_s if abs(step_s) >= STEP_S_MIN else 0.0
