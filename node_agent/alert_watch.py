"""Looks at what is wrong from time to time and tells the sinks what changed; sends the digest."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from node_agent.alert_sinks import File, Sink, sinks
from node_agent.alerts import Alert, AlertsConfig
from node_agent.conditions import conditions, note_connection
from node_agent.config import Folder
from node_agent.digest import digest_text
from node_agent.identity import Identity, load_identity
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state import State
from node_agent.steward import Steward
from protos.errors import FeddpError

log = structlog.get_logger(__name__)

DIGEST_NOTE: Final = "digest_at_s"
DAY_S: Final = 86_400.0


class AlertWatch:
    """Tells each sink once when something begins and once when it is over; the file is written at
    each look, so that its age shows whether the agent runs."""

    def __init__(
        self,
        folder: Folder,
        identity: Identity,
        config: AlertsConfig,
        state: State,
        ledger: LedgerThread,
        steward: Steward,
        faults: Callable[[], Mapping[str, str]],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._faults = faults
        self._folder = folder
        self._identity = identity
        self._config = config
        self._state = state
        self._ledger = ledger
        self._steward = steward
        self._pause = pause
        self._sinks = sinks(config)
        self._told: dict[int, dict[tuple[str, str], Alert]] = {}

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self.look()
            await self._pause(self._config.every_s)

    async def look(self) -> None:
        """Once."""
        with contextlib.suppress(FeddpError):  # in the middle of a change: the last one tells
            self._identity = await asyncio.to_thread(load_identity, self._folder.identity)
        await self._ledger.run(note_connection, self._state, time.time())
        now = await self._ledger.run(
            conditions,
            self._folder,
            self._identity,
            self._state,
            self._steward,
            self._config,
            None,
            dict(self._faults()),
        )
        for number, sink in enumerate(self._sinks):
            await self._tell(number, sink, {one.key: one for one in now})
        await self._digest()

    async def _tell(self, number: int, sink: Sink, now: dict[tuple[str, str], Alert]) -> None:
        """What could not be told is told at the next look."""
        told = self._told.get(number, {})
        began = [one for key, one in now.items() if key not in told]
        ended = [one for key, one in told.items() if key not in now]
        if not began and not ended and not isinstance(sink, File):
            return
        try:
            await sink.tell(self._identity.node, began, ended, list(now.values()))
        except OSError as error:
            log.warning("alert_not_told", **_said(sink, error))
        else:
            self._told[number] = now

    async def _digest(self) -> None:
        if not self._config.digest_days or not self._sinks:
            return
        noted = await self._ledger.run(self._state.notes.read, DIGEST_NOTE)
        now_s = time.time()
        if not noted:  # the first one comes after a whole period
            await self._ledger.run(self._state.notes.keep, DIGEST_NOTE, f"{now_s:.3f}")
            return
        if now_s - float(noted) < self._config.digest_days * DAY_S:
            return
        text = await self._ledger.run(
            digest_text,
            self._folder,
            self._identity,
            self._state,
            self._steward,
            self._config,
            float(noted),
        )
        await self._ledger.run(self._state.notes.keep, DIGEST_NOTE, f"{now_s:.3f}")
        for sink in self._sinks:
            try:
                await sink.digest(self._identity.node, text)
            except OSError as error:
                log.warning("digest_not_sent", **_said(sink, error))


def _said(sink: Sink, error: OSError) -> dict[str, str]:
    """Which one, what happened and what to do, for the log."""
    return {"sink": type(sink).__name__.lower(), "detail": str(error), "do": sink.remedy}
