"""What can go wrong in a seed, how often, and until when."""

import random
from collections import Counter

KINDS = {
    "crash_before_commit": 0.015,
    "crash_after_commit": 0.025,
    "crash_between_commands": 0.02,
    "slow_disk": 0.05,
    "database_fails": 0.02,
    "commit_unheard": 0.015,
    "effect_fails": 0.03,
    "step_failed": 0.25,
    "order_failed": 0.01,
    "stream_broken": 0.02,
    "message_lost": 0.04,
    "message_twice": 0.04,
    "message_reordered": 0.08,
    "call_lost": 0.08,
    "reply_lost": 0.10,
    "call_late": 0.04,
    "call_twice": 0.06,
    "worker_starts_late": 0.15,
    "worker_died": 0.08,
    "update_damaged": 0.05,
    "impostor": 0.15,
    "hello_late": 0.1,
    "raise_interrupted": 0.15,
    "raise_in_greeting": 0.3,
    "raise_sent_again": 0.15,
}
"""Chance of each at every place where it can happen, before a seed scales it."""

TIMED = (
    *("crash", "partition", "one_way_partition", "policy_changed", "stop", "clock_jump"),
    "limit_raised",
)
"""Drawn beforehand, each at a moment."""

MET = (
    *("grace_passed", "steps_too_many", "busy", "caught_up", "job_resumed"),
    *("raise_recorded", "raise_booked", "raise_stale", "job_after_raise"),
)
"""What seeds are to meet without a fault of their own; counted with the faults."""


class Faults:
    """A seed's dice. Each seed has only some kinds, so that rare ones meet in many ways."""

    def __init__(self, dice: random.Random, until_s: float) -> None:
        self._dice = dice
        self.until_s = until_s
        self.counts: Counter[str] = Counter()
        scale = dice.choice([0.5, 1.0, 2.0])
        self.rates = {
            kind: rate * scale if dice.random() < 0.65 else 0.0 for kind, rate in KINDS.items()
        }
        self.timed = {kind: dice.random() < 0.6 for kind in TIMED}

    def strike(self, kind: str, now_s: float) -> bool:
        """Whether this fault happens here and now."""
        rate = self.rates[kind]
        if rate == 0.0 or now_s >= self.until_s or self._dice.random() >= rate:
            return False
        self.counts[kind] += 1
        return True

    def note(self, kind: str) -> None:
        """Count a fault that a seed had drawn beforehand."""
        self.counts[kind] += 1
