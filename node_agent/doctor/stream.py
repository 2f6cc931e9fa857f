"""How long a stream lives on the way: one that speaks as the agent does, and one that is quiet."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from node_agent.connection.proxy import Route
from node_agent.doctor.probe import Probe, Stopped
from node_agent.doctor.report import Check, Result, span
from node_agent.joining.identity import Identity
from node_agent.session.link import HEARTBEAT_S

ANSWER_S_MAX: Final = 20.0
"""For an echo, once the time of the test is over."""

SILENCE_S_MIN: Final = 15.0
"""A box that ends quiet streams sooner may end one between two heartbeats that came late."""

Say = Callable[[str], None]


async def check_stream(route: Route, identity: Identity, hold_s: float, say: Say) -> Check:
    """Hold two streams: one that speaks as the agent does, and one that keeps still."""
    say(f"holding a stream for {hold_s:g} s; --hold 0 leaves this out")
    speaking, still = await asyncio.gather(
        _lived(_speak(route, identity, hold_s, say), hold_s),
        _lived(_keep_still(route, identity, hold_s), hold_s),
    )
    return _stream_check(hold_s, speaking, still)


def _stream_check(hold_s: float, speaking: tuple[float, str], still: tuple[float, str]) -> Check:
    """What two lives, in seconds, and how they ended say; an empty end is that of the test."""
    lived_s, why = speaking
    if why:
        return Check(
            "stream",
            "failed",
            f"a stream that speaks every {HEARTBEAT_S:g} s was ended after {span(lived_s)}: {why}",
            "a firewall, proxy or gateway limits how long a connection lives: ask for an hour at "
            "least for this destination; the agent reconnects, but each break delays a round",
        )
    lived_s, why = still
    if why:
        result: Result = "warning" if lived_s >= SILENCE_S_MIN else "failed"
        return Check(
            "stream",
            result,
            f"a quiet stream was ended after {span(lived_s)}, one that speaks every "
            f"{HEARTBEAT_S:g} s was not: {why}",
            "ask for an idle time-out of 60 s or more for this destination"
            + ("; the agent speaks often enough to live with it" if result == "warning" else ""),
        )
    return Check("stream", "ok", f"held for {hold_s:g} s, speaking and quiet")


async def _lived(work: Awaitable[None], hold_s: float) -> tuple[float, str]:
    """(how long a stream lived, why it ended before its time)."""
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(hold_s + ANSWER_S_MAX):
            await work
    except Stopped as stopped:
        return time.monotonic() - began_s, stopped.why()
    except TimeoutError:
        return time.monotonic() - began_s, "nothing came through any more"
    return hold_s, ""


async def _speak(route: Route, identity: Identity, hold_s: float, say: Say) -> None:
    ends_s = time.monotonic() + hold_s
    async with Probe(route, identity) as probe:
        await probe.echo()
        while (left_s := ends_s - time.monotonic()) > 0:
            await _quiet(probe, min(HEARTBEAT_S, left_s))
            say(f"  {max(0.0, ends_s - time.monotonic()):.0f} s to go")


async def _keep_still(route: Route, identity: Identity, hold_s: float) -> None:
    async with Probe(route, identity) as probe:
        await probe.echo()
        await _quiet(probe, hold_s)


async def _quiet(probe: Probe, seconds: float) -> None:
    """Say nothing for a while, and notice when the stream ends; then ask whether it still lives."""
    hearing = asyncio.create_task(probe.hear())
    try:
        await asyncio.wait([hearing], timeout=seconds)
        if not hearing.done():
            await probe.say()
        await hearing
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
