"""The agent's look at what its data sets have in common; costs a process when files change."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from node_agent.data.aside import run_aside
from node_agent.data.overlaps import Overlap, compared
from node_agent.folder.config import Folder
from node_agent.policy.steward import Rules, Steward
from protos.errors import FeddpError

log = structlog.get_logger(__name__)

LOOK_S: Final = 30.0


class OverlapWatch:
    """What data sets share, as of the last comparison.

    Attributes:
        found: in the order of declaration.
    """

    def __init__(self, folder: Folder, steward: Steward) -> None:
        self.found: Sequence[Overlap] = ()
        self._folder = folder
        self._steward = steward
        self._seen: tuple[object, ...] | None = None

    def warnings(self) -> Sequence[Overlap]:
        """Those by which patients spend two accounts, as far as that is known."""
        return [one for one in self.found if one.is_warning and one.kind != "unknown"]

    async def run(self, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Look at the start and whenever a file changed, and log it; never ends by itself."""
        while True:
            rules, now = await asyncio.to_thread(_look, self._steward)
            if rules is not None and now != self._seen:
                self._seen = now
                several = len(rules.data_sets) > 1
                self.found = await _compare(self._folder, self.found) if several else ()
                for one in self.found:
                    say = log.warning if one.is_warning else log.info
                    say("patients_in_two_data_sets", data_sets=one.data_sets, do=one.said())
            await pause(LOOK_S)


def _look(steward: Steward) -> tuple[Rules | None, tuple[object, ...]]:
    try:
        rules = steward.rules()
    except FeddpError:  # the session says so
        return None, ()
    return rules, compared(rules.data_sets)


async def _compare(folder: Folder, before: Sequence[Overlap]) -> Sequence[Overlap]:
    found = await run_aside("node_agent.data.overlaps", folder.root)
    if found is None:
        log.warning("data_sets_not_compared")
        return before
    return [Overlap(tuple(one["data_sets"]), tuple(one["accounts"]), one["kind"]) for one in found]
