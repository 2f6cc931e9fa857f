"""Work that goes on beside an agent's session, each in a task that is begun again when it fails."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from traceback import extract_tb
from typing import Final

import structlog

log = structlog.get_logger(__name__)

AGAIN_S: Final = 60.0
"""Before it is begun again: what fails at each start fills no log."""

PLACES_MAX: Final = 4


async def keep_up(
    name: str,
    work: Callable[[], Awaitable[None]],
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Do a work that has no end of its own; where it fails, log that and begin it anew.

    Args:
        name: for the log; stable.
    """
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the session goes on whatever it is
            log.error(
                "work_beside_failed",
                work=name,
                error=type(error).__name__,
                places=_places(error),
                do=f"nothing, if it does not come again: it is begun anew in {AGAIN_S:.0f} s; else "
                "look for room on the disk, and send this line to whoever maintains feddp",
            )
        else:
            return
        await pause(AGAIN_S)


def _places(error: Exception) -> str:
    """Where it went through, without what the error says, which may hold anything."""
    frames = extract_tb(error.__traceback__)[-PLACES_MAX:]
    return " > ".join(f"{Path(one.filename).name}:{one.lineno}" for one in frames)
