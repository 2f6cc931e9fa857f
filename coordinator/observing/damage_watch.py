"""Tells once of each account that turns out to be damaged, and shows how many there are."""

from collections.abc import Set

import structlog

from coordinator.observing.metrics import Metrics
from coordinator.store.damage import REASON, said

log = structlog.get_logger(__name__)


class DamageWatch:
    """What was found damaged at the last look."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._known: Set[str] = frozenset()

    def found(self, damaged: Set[str]) -> None:
        """Log what is new since the last look."""
        for account in sorted(damaged - self._known):
            log.error("account_damaged", account=account, reason=REASON, detail=said(account))
        for account in sorted(self._known - damaged):
            log.warning("account_sound_again", account=account)
        self._known = damaged
        self._metrics.damaged_accounts(len(damaged))
