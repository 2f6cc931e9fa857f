"""Looks again and again at what is wrong, and tells the webhook what began and what is over.

What waits is no list of messages but the difference between what is wrong and what the receiver
knows: it cannot grow beyond what is wrong, an alarm is told once, and what came and went while the
receiver was away is not told at all. It is tried again after ever longer pauses, for ever.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from coordinator.alerts.body import Told, body, changes
from coordinator.alerts.conditions import Facts, Limits, conditions
from coordinator.alerts.webhook import NotTaken, Webhook
from coordinator.config.surroundings import Monitoring

log = structlog.get_logger(__name__)

PAUSE_S: Final = (5.0, 15.0, 60.0, 300.0, 600.0)
"""After so many tries that failed in a row, the last for every further one."""

DAY_S: Final = 86_400.0
NODE_CERTIFICATE_SHARE: Final = 0.2
"""Of its life; a node renews when a third of it remains."""


def limits_of(monitoring: Monitoring, node_certificate_life_s: float) -> Limits:
    """From when on something is told, as the configuration says."""
    return Limits(
        node_lost_s=monitoring.alert_node_lost_s,
        job_waiting_s=monitoring.alert_job_waiting_s,
        budget_remaining=monitoring.alert_budget_remaining,
        certificate_s=monitoring.alert_certificate_days * DAY_S,
        node_certificate_s=node_certificate_life_s * NODE_CERTIFICATE_SHARE,
    )


class AlertWatch:
    """One look after the other, beside the coordinator's work.

    Args:
        facts: gathers them; told the time, in seconds since the epoch.
        coordinator: the trust domain.
        every_s: between two looks.
    """

    def __init__(
        self,
        facts: Callable[[float], Awaitable[Facts]],
        limits: Limits,
        webhook: Webhook,
        coordinator: str,
        every_s: float,
    ) -> None:
        self._facts = facts
        self._limits = limits
        self._webhook = webhook
        self._coordinator = coordinator
        self._every_s = every_s
        self._told = Told({})
        self._seen = Told({})
        self._failures = 0
        self._again_at_s = 0.0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look(time.time())
            except Exception:
                log.exception("alert_look_failed")
            await asyncio.sleep(self._every_s)

    async def look(self, now_s: float) -> None:
        """Look once, and tell what has changed unless a pause after a failure goes on."""
        found = conditions(await self._facts(now_s), self._limits)
        self._seen = self._seen.seeing(found, now_s)
        notice = changes(self._told, self._seen)
        if not notice or now_s < self._again_at_s:
            return
        try:
            await self._webhook.post(body(notice, self._coordinator, now_s))
        except NotTaken as error:
            pause_s = PAUSE_S[min(self._failures, len(PAUSE_S) - 1)]
            self._failures += 1
            self._again_at_s = now_s + pause_s
            log.error(
                "alerts_not_told",
                detail=str(error),
                alarms=len(self._seen.alarms),
                again_in_s=pause_s,
                do="check monitoring.alert_webhook and what it names",
            )
            return
        if self._failures:
            log.info("alerts_told_again", failures=self._failures)
        self._told, self._failures, self._again_at_s = self._seen, 0, 0.0
