"""Looks at what is wrong from time to time and tells the sinks what changed; sends the digest."""

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import structlog

from node_agent.alerts.conditions import conditions, note_connection
from node_agent.alerts.digest import digest_text
from node_agent.alerts.settings import Alert, AlertsConfig
from node_agent.alerts.sinks import File, Sink, sinks
from node_agent.data.overlaps import Overlap
from node_agent.folder.config import Folder
from node_agent.joining.identity import BUNDLE, CHAIN, Identity, load_identity
from node_agent.policy.steward import Steward
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state.state import State
from protos.content import digest_of
from protos.errors import FeddpError

log = structlog.get_logger(__name__)

DIGEST_NOTE: Final = "digest_at_s"
"""Up to when all sinks were sent the digest, by a version that kept no moment for each."""

DAY_S: Final = 86_400.0

SINK_S: Final = 5.0
"""How long a look waits for its sinks."""

DIGEST_AGAIN_S: Final = 600.0
"""A digest that a sink did not take is tried again so often; making one reads the whole ledger."""


class AlertWatch:
    """Tells each sink once when something begins and once when it is over, also across restarts;
    the file is written at each look, so that its age shows whether the agent runs."""

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
        clock: Callable[[], float] = time.time,
        overlaps: Callable[[], Sequence[Overlap]] = tuple,
    ) -> None:
        self._faults = faults
        self._overlaps = overlaps
        self._folder = folder
        self._identity = identity
        self._config = config
        self._state = state
        self._ledger = ledger
        self._steward = steward
        self._pause = pause
        self._clock = clock
        self._sinks = {name_of(one): one for one in sinks(config)}
        self._told: dict[str, dict[tuple[str, str], Alert]] = {}
        self._silent: dict[tuple[str, str], str] = {}
        self._digest_tried: dict[str, float] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Look, for ever."""
        try:
            while True:
                await self.look()
                await self._pause(self._config.every_s)
        finally:
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)
            self._busy.clear()

    async def look(self) -> None:
        """Once."""
        self._identity = await asyncio.to_thread(self._identity_now)
        with _DISK_MAY_BE_FULL:  # which is the first thing to be told
            await self._ledger.run(note_connection, self._state, self._clock())
        now = await self._ledger.run(
            conditions,
            self._folder,
            self._identity,
            self._state,
            self._steward,
            self._config,
            None,
            dict(self._faults()),
            self._overlaps(),
        )
        told = {one.key: one for one in now}
        for name, sink in self._sinks.items():
            if name not in self._busy:
                self._begin(name, self._tell(name, sink, told))
        await self._wait_for_sinks()
        await self._digests()

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._busy[name] = asyncio.create_task(work)

    async def _wait_for_sinks(self) -> None:
        """For all, or some seconds: a mail server that says nothing keeps neither the others from
        being told nor the file from being written. Who is not done is passed by until then."""
        if self._busy:
            await asyncio.wait(self._busy.values(), timeout=SINK_S)
        for name, task in list(self._busy.items()):
            if task.done():
                del self._busy[name]
                task.result()

    def _identity_now(self) -> Identity:
        """Read anew only when it has changed: keys and certificates take memory to read."""
        folder, known = self._folder.identity, self._identity
        # In the middle of a change the last one tells.
        with contextlib.suppress(OSError, FeddpError):
            read = [(folder / name).read_bytes() for name in (CHAIN, BUNDLE)]
            if read != [known.chain, known.bundle]:
                return load_identity(folder)
        return known

    async def _tell(self, name: str, sink: Sink, now: dict[tuple[str, str], Alert]) -> None:
        """What could not be told is told at the next look."""
        if name not in self._told:
            self._told[name] = await self._ledger.run(self._kept, name)
        told = self._told[name]
        # Another remedy is another thing to do: of a file that was broken and is gone now, say.
        began = [
            one for key, one in now.items() if key not in told or told[key].remedy != one.remedy
        ]
        ended = [one for key, one in told.items() if key not in now]
        if not began and not ended and not isinstance(sink, File):
            return
        work = sink.tell(self._identity.node, began, ended, list(now.values()))
        if await self._passed_on("alert_not_told", name, sink, work):
            self._told[name] = now
            if began or ended:
                with _DISK_MAY_BE_FULL:
                    await self._ledger.run(self._keep, name, now)

    async def _passed_on(self, event: str, name: str, sink: Sink, work: Awaitable[None]) -> bool:
        """Whether a sink took it; where it did not, that is logged once until it does, or fails in
        another way."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - one sink keeps no other from being told
            detail = str(error) if isinstance(error, OSError) else type(error).__name__
            if self._silent.get((event, name)) != detail:
                self._silent[event, name] = detail
                log.warning(event, sink=name, detail=detail, do=sink.remedy)
            return False
        if self._silent.pop((event, name), ""):
            log.info("alerts_told_again", sink=name)
        return True

    async def _digests(self) -> None:
        if not self._config.digest_days or not self._sinks:
            return
        now_s = self._clock()
        since = await self._ledger.run(self._sent_up_to, now_s)
        texts: dict[float, str] = {}
        for name, from_s in since.items():
            tried_s = self._digest_tried.get(name, 0.0)
            is_due = now_s - from_s >= self._config.digest_days * DAY_S
            if not is_due or 0 <= now_s - tried_s < DIGEST_AGAIN_S or name in self._busy:
                continue
            if from_s not in texts:
                texts[from_s] = await self._ledger.run(
                    digest_text,
                    self._folder,
                    self._identity,
                    self._state,
                    self._steward,
                    self._config,
                    from_s,
                    dict(self._faults()),
                    self._overlaps(),
                )
            self._digest_tried[name] = now_s
            self._begin(name, self._send_digest(name, texts[from_s], now_s))
        await self._wait_for_sinks()

    async def _send_digest(self, name: str, text: str, now_s: float) -> None:
        sink = self._sinks[name]
        # The next one begins where the last that was sent has ended.
        if await self._passed_on(
            "digest_not_sent", name, sink, sink.digest(self._identity.node, text)
        ):
            del self._digest_tried[name]
            keep = self._state.notes.keep
            await self._ledger.run(keep, digest_note(name), f"{now_s:.3f}")

    # In the ledger's thread

    def _sent_up_to(self, now_s: float) -> dict[str, float]:
        """Sink -> the end of its last digest. A new one's first comes after a whole period."""
        notes, found = self._state.notes, {}
        before = notes.read(DIGEST_NOTE)
        for name in self._sinks:
            noted = float(notes.read(digest_note(name)) or before or "inf")
            if noted > now_s:  # none, or the clock was ahead then
                noted = now_s
            if notes.read(digest_note(name)) != f"{noted:.3f}":
                notes.keep(digest_note(name), f"{noted:.3f}")
            found[name] = noted
        if before:
            notes.keep(DIGEST_NOTE, "")
        return found

    def _kept(self, name: str) -> dict[tuple[str, str], Alert]:
        """What a sink was told of before this agent started; nothing where it tells others now."""
        text = self._state.notes.read(f"{_TOLD}{name}")
        kept = json.loads(text) if text else {}
        if kept.get("place") != self._place(name):
            return {}
        return {one.key: one for one in (Alert(**alert) for alert in kept["alerts"])}

    def _keep(self, name: str, now: Mapping[tuple[str, str], Alert]) -> None:
        alerts = [asdict(one) for one in now.values()]
        text = json.dumps({"place": self._place(name), "alerts": alerts})
        self._state.notes.keep(f"{_TOLD}{name}", text)

    def _place(self, name: str) -> str:
        """Stands for whom a sink tells; whoever is new there is told everything."""
        return digest_of(self._config.model_dump_json(include={name}).encode())


def name_of(sink: Sink) -> str:
    """As agent.yaml calls it."""
    return type(sink).__name__.lower()


def digest_note(name: str) -> str:
    """The note of up to when a sink was sent the digest."""
    return f"{DIGEST_NOTE}:{name}"


_DISK_MAY_BE_FULL: Final = contextlib.suppress(sqlite3.OperationalError)

_TOLD: Final = "alerts_told:"
"""What a sink was told of, as JSON."""
