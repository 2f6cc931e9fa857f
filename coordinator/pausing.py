"""The emergency stop: while it is on, no order goes out and no round begins.

What a node has accepted goes on to its end: its data may be open, and what it releases is taken and
booked. An order that was reserved and not accepted is held back; if its round reaches the deadline
meanwhile, its charge is booked whole, as nobody can prove that the node never had it.
"""

import time
from datetime import UTC, datetime
from typing import Final

from coordinator.rounds.events import Absence
from coordinator.store import pauses
from coordinator.store.database import Database
from coordinator.store.pauses import Pause
from protos.errors import Malformed

REASON: Final = "PAUSED"
WORDS_MAX: Final = 500


class Pausing:
    """Whether all work is paused: kept in the database, and here for who asks often."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.now: Pause | None = None

    async def load(self) -> None:
        """Read what was so before this process led."""
        self.now = await self._database.read(pauses.current)

    async def pause(self, by: str, reason: str) -> Pause:
        """Pause; if it is paused already, that pause.

        Raises:
            Malformed: REASON_INVALID.
        """
        words = " ".join(reason.split())
        if not 1 <= len(words) <= WORDS_MAX or not words.isprintable():
            raise Malformed(
                "REASON_INVALID", f"say why, in 1 to {WORDS_MAX} characters: people will wait"
            )
        now_s = time.time()
        await self._database.write(lambda c: pauses.keep(c, now_s, by, words, paused=True))
        await self.load()
        return self.now or Pause(now_s, by, words)

    async def resume(self, by: str) -> bool:
        """Go on; False if nothing was paused."""
        now_s = time.time()
        changed = await self._database.write(lambda c: pauses.keep(c, now_s, by, "", paused=False))
        await self.load()
        return changed


def said(pause: Pause) -> str:
    """Since when, by whom and why, in words."""
    since = datetime.fromtimestamp(pause.since_s, UTC)
    return f"all work is paused since {since:%Y-%m-%d %H:%M} UTC by {pause.by}: {pause.reason}"


def absence(pause: Pause, node: str) -> Absence:
    """Why a node gets no order now."""
    return Absence(node, REASON, f"gets no order: {said(pause)}")
