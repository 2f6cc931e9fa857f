"""What the coordinator itself answers: identity, clock, version, latency and bandwidth."""

import asyncio
import statistics
import time
from importlib.metadata import version
from typing import Final

from node_agent.connection.clock import SET_CLOCK
from node_agent.connection.proxy import Route
from node_agent.doctor.probe import Probe, Stopped
from node_agent.doctor.report import Check, size, skipped, span
from node_agent.joining.identity import Identity
from node_agent.session.greeting import PROTOCOL_VERSION
from protos.feddp.v1 import diagnosis_pb2 as pb

FIRST_S_MAX: Final = 20.0
TRIES_MAX: Final = 8
"""A tenth of them loses what a coordinator says that refuses at once, on a busy machine."""

ECHOES: Final = 5
MESSAGE_BYTES: Final = 256 << 10
STEPS_BYTES: Final = (64 << 10, 512 << 10, 4 << 20)
"""Moved one after the other while they take less than `STEP_S_ENOUGH`: 4.6 MiB at most."""

STEP_S_ENOUGH: Final = 0.5
STEP_S_MAX: Final = 25.0
"""Before the connection's own keepalive gives up, which takes 30 s."""

SWALLOWED_S_MIN: Final = 8.0
"""gRPC gives up a connection whose bytes nobody acknowledges after 10 s (TCP_USER_TIMEOUT). What
ends sooner was ended by somebody."""

SLOW_BYTES_PER_S: Final = 125_000.0
LATENCY_S_HIGH: Final = 0.5
SKEW_S_WARNED: Final = 60.0
SKEW_S_MAX: Final = 3600.0
"""Certificates begin an hour before they are issued: beyond it a fresh one is refused."""

ASKED: Final = ("coordinator", "clock", "version", "latency", "bandwidth")


async def check_coordinator(route: Route, identity: Identity) -> tuple[list[Check], bool]:
    """(the checks `ASKED`, whether the coordinator can hold a stream for a test)."""
    for _ in range(TRIES_MAX - 1):
        try:
            return await _asked(route, identity, may_lose=False)
        except Stopped:
            # A refusal comes at once, often while the first message is being written.
            continue
    return await _asked(route, identity, may_lose=True)


async def _asked(route: Route, identity: Identity, *, may_lose: bool) -> tuple[list[Check], bool]:
    """See `check_coordinator`.

    Raises:
        Stopped: the first answer's status was lost, and `may_lose` is not said.
    """
    async with Probe(route, identity) as probe:
        try:
            async with asyncio.timeout(FIRST_S_MAX):
                began_s = time.time()
                first = await probe.echo()
                heard_s = time.time()
        except TimeoutError:
            return _unheard(f"no answer within {FIRST_S_MAX:.0f} s over HTTP/2"), False
        except Stopped as stopped:
            if stopped.is_status_lost and not may_lose:
                raise
            return _refused(stopped), False
        checks = [
            Check("coordinator", "ok", f"it takes this node's certificate as {identity.node}"),
            clock_check(first.server_time_s - (began_s + heard_s) / 2, "the coordinator's"),
            _version_check(first),
        ]
        try:
            checks.append(await _latency(probe))
            checks.append(await _bandwidth(probe))
        except TimeoutError:
            checks.append(_swallowed(ASKED[len(checks)]))
        except Stopped as stopped:
            checks.append(_ended(ASKED[len(checks)], stopped, probe.silent_s()))
        missing = ASKED[len(checks) :]
        return [*checks, *skipped("the measurement ended before", *missing)], True


def clock_check(ahead_s: float, whose: str) -> Check:
    """By another clock that is `ahead_s` before this machine's."""
    way = "behind" if ahead_s > 0 else "ahead of"
    found = f"this machine's clock is {span(abs(ahead_s))} {way} {whose}"
    if abs(ahead_s) < SKEW_S_WARNED:
        return Check("clock", "ok", f"this machine's clock agrees with {whose} to a minute")
    if abs(ahead_s) < SKEW_S_MAX:
        return Check("clock", "warning", found, SET_CLOCK)
    return Check("clock", "failed", found, SET_CLOCK)


def _refused(stopped: Stopped) -> list[Check]:
    error = stopped.error
    if error is not None and error.reason == "UNIMPLEMENTED":
        known = Check("coordinator", "ok", "it answers, and is too old for the tests that follow")
        return [known, *skipped("the coordinator is too old for this test", *ASKED[1:])]
    if error is not None and error.code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        failed = Check("coordinator", "failed", f"{error.reason}: {error.message}", _OPERATOR)
        return [failed, *skipped("the coordinator refuses this node", *ASKED[1:])]
    return _unheard(f"no answer over HTTP/2: {stopped.why()}")


_OPERATOR: Final = "show this line to the coordinator's operator"


def _unheard(found: str) -> list[Check]:
    do = (
        "TLS works and HTTP/2 does not: a box between that opens TLS, or the operator's gateway, "
        "holds it up; show this line to both"
    )
    failed = Check("coordinator", "failed", found, do)
    return [failed, *skipped("the coordinator does not answer", *ASKED[1:])]


def _version_check(first: pb.ProbeResponse) -> Check:
    own, theirs = version("feddp"), first.version
    found = f"agent {own}, coordinator {theirs}"
    if first.protocol_version != PROTOCOL_VERSION:
        found += f"; protocol {PROTOCOL_VERSION} and {first.protocol_version}: they do not match"
        return Check("version", "failed", found, "upgrade the older one")
    if _release(own) > _release(theirs):
        do = "the coordinator is upgraded first: ask its operator"
        return Check("version", "warning", f"{found}: the agent is newer", do)
    if _release(own) < _release(theirs):
        do = "upgrade the agent: a coordinator works with agents of its own release and the last"
        return Check("version", "warning", f"{found}: the agent is older", do)
    return Check("version", "ok", found)


def _release(text: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split(".")[:2])


async def _latency(probe: Probe) -> Check:
    taken_s = []
    for _ in range(ECHOES):
        began_s = time.monotonic()
        async with asyncio.timeout(FIRST_S_MAX):
            await probe.echo()
        taken_s.append(time.monotonic() - began_s)
    median_s = statistics.median(taken_s)
    found = f"{median_s * 1000:.1f} ms there and back (median of {ECHOES})"
    if median_s > LATENCY_S_HIGH:
        return Check("latency", "warning", found, "rounds take longer; ask what is on the way")
    return Check("latency", "ok", found)


async def _bandwidth(probe: Probe) -> Check:
    up, down = await _speed(probe, up=True), await _speed(probe, up=False)
    found = f"{size(up)}/s up, {size(down)}/s down"
    if min(up, down) < SLOW_BYTES_PER_S:
        do = "large models will take long; ask for more, or set `transfer` in policy.yaml to hours"
        return Check("bandwidth", "warning", found, do)
    return Check("bandwidth", "ok", found)


async def _speed(probe: Probe, *, up: bool) -> float:
    """Bytes a second, of the largest step that was tried."""
    speed = 0.0
    for step in STEPS_BYTES:
        messages = max(1, step // MESSAGE_BYTES)
        each = step // messages
        began_s = time.monotonic()
        saying = asyncio.create_task(_say_all(probe, messages, each, up=up))
        try:
            async with asyncio.timeout(STEP_S_MAX):
                for _ in range(messages):
                    await probe.hear()
                # The answer may be here before gRPC has told that the last message is gone: to
                # cancel a write that is under way is to cancel the whole call.
                await saying
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)
        taken_s = max(1e-6, time.monotonic() - began_s)
        speed = step / taken_s
        if taken_s > STEP_S_ENOUGH:
            break
    return speed


async def _say_all(probe: Probe, messages: int, each: int, *, up: bool) -> None:
    for _ in range(messages):
        await probe.say(each if up else 0, 0 if up else each)


def _swallowed(name: str) -> Check:
    """Nothing came back in time, and nobody ended the stream."""
    if name != "bandwidth":
        found = "the coordinator answered at first, and then nothing came any more"
        return Check(name, "failed", found, _AGAIN)
    return Check(
        name,
        "failed",
        "short messages come through and longer ones do not",
        "often a VPN or tunnel with a smaller MTU whose firewall drops ICMP: allow ICMP "
        '"fragmentation needed", or lower the MTU of this machine\'s interface',
    )


def _ended(name: str, stopped: Stopped, silent_s: float) -> Check:
    """The stream ended during a measurement, `silent_s` after the last answer."""
    if silent_s >= SWALLOWED_S_MIN:
        return _swallowed(name)
    found = f"the stream was ended during the measurement: {stopped.why()}"
    return Check(name, "failed", found, _AGAIN)


_AGAIN: Final = (
    "run it again: the coordinator may have been restarted; if it stays so, a box between ends "
    "the stream, or the operator's gateway: show this line to both"
)
