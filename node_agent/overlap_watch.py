"""The agent's look at what its data sets have in common; costs a process when files change."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from node_agent.aside import run_aside
from node_agent.config import Folder
from node_agent.overlaps import Overlap, compared
from node_agent.steward import Rules, Steward
from protos.errors import FeddpError

log = structlog.get_logger(__name__)

LOOK_S: Final = 30.0


async def watch_overlaps(
    folder: Folder,
    steward: Steward,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Log what data sets share, at the start and whenever a file changed; never ends by itself."""
    seen: tuple[object, ...] | None = None
    while True:
        rules, now = await asyncio.to_thread(_look, steward)
        if rules is not None and now != seen:
            seen = now
            if len(rules.data_sets) > 1:
                for one in await _compare(folder):
                    say = log.warning if one.is_warning else log.info
                    say("patients_in_two_data_sets", data_sets=one.data_sets, do=one.said())
        await pause(LOOK_S)


def _look(steward: Steward) -> tuple[Rules | None, tuple[object, ...]]:
    try:
        rules = steward.rules()
    except FeddpError:  # the session says so
        return None, ()
    return rules, compared(rules.data_sets)


async def _compare(folder: Folder) -> list[Overlap]:
    found = await run_aside("node_agent.overlaps", folder.root)
    if found is None:
        log.warning("data_sets_not_compared")
        return []
    return [Overlap(tuple(one["data_sets"]), tuple(one["accounts"]), one["kind"]) for one in found]
