"""How far this machine's clock is from the coordinator's, by what the coordinator says itself."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import grpc
import structlog
from cryptography import x509

from certs.authority import CLOCK_SKEW
from node_agent.doctor.report import span
from protos.feddp.v1 import diagnosis_pb2 as pb
from protos.feddp.v1 import diagnosis_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)

SET_CLOCK: Final = "set the clock, and keep it set (chrony, or `timedatectl set-ntp true`)"

OFF_S_WARNED: Final = 60.0

REPEATED_S_MAX: Final = 1200.0
"""A join whose answer was lost gets the same certificate again for 15 minutes: it is so old then,
and the clock is right."""

CALL_S_MAX: Final = 20.0
TRY_AGAIN_S: Final = 60.0
LOOK_S: Final = 86_400.0

_NOT_THERE: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def off_by_issue(leaf: x509.Certificate, now: datetime) -> str:
    """What a certificate that has just come says of this machine's clock; empty for nothing.

    It begins `CLOCK_SKEW` before the coordinator's clock at its issue, to the second.
    """
    ahead_s = (now - leaf.not_valid_before_utc - CLOCK_SKEW).total_seconds()
    if -OFF_S_WARNED < ahead_s < REPEATED_S_MAX:
        return ""
    return f"{_off(ahead_s)}, by the certificate that it has just issued"


def behind_issue(leaf: x509.Certificate, now: datetime) -> str:
    """That this machine's clock lies before the issue of its own certificate; empty if not."""
    ahead_s = (now - leaf.not_valid_before_utc - CLOCK_SKEW).total_seconds()
    if ahead_s > -OFF_S_WARNED:
        return ""
    return f"{_off(ahead_s)} at least: this node's certificate was issued later than now"


def _off(ahead_s: float) -> str:
    way = "ahead of" if ahead_s > 0 else "behind"
    return f"this machine's clock is {span(abs(ahead_s))} {way} the coordinator's"


async def watch_clock(
    chain: bytes,
    channel: Callable[[], grpc.aio.Channel],
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Log `clock_off` where the two differ by a minute: at the start, and once a day; never ends by
    itself.

    Args:
        chain: the node's own certificate, PEM.
        channel: the newest connection to the coordinator.
    """
    (leaf, *_) = x509.load_pem_x509_certificates(chain)
    # Without a right clock there may never be a session in which the coordinator could be asked.
    if text := behind_issue(leaf, datetime.now(UTC)):
        log.error("clock_off", detail=text, do=SET_CLOCK)
    while True:
        try:
            ahead_s = await ahead_of_coordinator(channel())
        except grpc.RpcError as error:
            # An older coordinator does not know the question, and a refusal the session tells.
            await pause(TRY_AGAIN_S if error.code() in _NOT_THERE else LOOK_S)
            continue
        if abs(ahead_s) >= OFF_S_WARNED:
            log.warning("clock_off", detail=_off(ahead_s), do=SET_CLOCK)
        await pause(LOOK_S)


async def ahead_of_coordinator(channel: grpc.aio.Channel) -> float:
    """Seconds, to half the way there and back.

    Raises:
        grpc.RpcError: it does not say.
    """
    began_s = time.time()
    call = pb_grpc.DiagnosisStub(channel).Probe(iter([pb.ProbeRequest()]), timeout=CALL_S_MAX)
    async for answer in call:
        return (began_s + time.time()) / 2 - float(answer.server_time_s)
    raise grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "no answer"
    )
