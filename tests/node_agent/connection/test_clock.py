"""A running agent compares its clock with the coordinator's, and says where they differ."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from certs.authority import NODE_LIFETIME, Authority
from certs.enrolment import new_key
from certs.spiffe import SpiffeId
from node_agent.connection.clock import LOOK_S, TRY_AGAIN_S, watch_clock
from protos.feddp.v1 import diagnosis_pb2 as pb
from protos.feddp.v1 import diagnosis_pb2_grpc as pb_grpc
from tests.node_agent.agent_federation import TRUST_DOMAIN
from tests.node_agent.samples import NODE


class Enough(Exception):
    """So many looks."""


class Clock(pb_grpc.DiagnosisServicer):
    """A coordinator that tells a time."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    async def Probe(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.ProbeResponse]:  # noqa: N802
        """Answer each."""
        async for _ in request_iterator:
            yield pb.ProbeResponse(server_time_s=time.time() + self._ahead_s)


def watched(chain: bytes, service: Clock | None, looks: int = 1) -> tuple[list[Any], list[float]]:
    """(lines of the log, seconds until each next look), against a real server."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == looks:
            raise Enough

    async def work() -> None:
        server = grpc.aio.server()
        if service is not None:
            pb_grpc.add_DiagnosisServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(Enough):
                await watch_clock(chain, lambda: channel, pause)
        await server.stop(None)

    with capture_logs() as logs:
        asyncio.run(work())
    return list(logs), pauses


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A coordinator's."""
    return Authority.create(tmp_path / "ca", TRUST_DOMAIN)


def chain(authority: Authority, ahead: timedelta = timedelta(0)) -> bytes:
    """A node's certificate, issued at a moment of another clock."""
    now = datetime.now(UTC) + ahead
    node = SpiffeId(TRUST_DOMAIN, "node", NODE)
    issued = authority.issue(new_key().public_key(), node, now=now, lifetime=NODE_LIFETIME)
    return issued.chain_pem


@pytest.mark.parametrize(
    ("ahead_s", "found"),
    [(-172_800.0, "2 days ahead of"), (172_800.0, "2 days behind"), (600.0, "10 minutes behind")],
)
def test_a_clock_that_is_off_is_said_with_what_to_do(
    authority: Authority, ahead_s: float, found: str
) -> None:
    """Two days ahead everything works at first, and renewals come at the wrong time."""
    (line,), pauses = watched(chain(authority), Clock(ahead_s))
    assert (line["event"], line["log_level"], pauses) == ("clock_off", "warning", [LOOK_S])
    assert f"this machine's clock is {found} the coordinator's" in line["detail"]
    assert "chrony" in line["do"]


def test_a_clock_that_agrees_is_no_line_of_the_log(authority: Authority) -> None:
    """Looked at once a day."""
    assert watched(chain(authority), Clock(5.0), looks=2) == ([], [LOOK_S, LOOK_S])


def test_an_older_coordinator_is_asked_once_a_day_only(authority: Authority) -> None:
    """It does not know the question."""
    assert watched(chain(authority), None) == ([], [LOOK_S])


def test_a_clock_before_the_nodes_own_certificate_is_said_at_once(authority: Authority) -> None:
    """There may never be a session with such a clock, and so nobody to ask."""
    logs, _ = watched(chain(authority, timedelta(days=2)), None)
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("clock_off", "error")
    assert "2 days behind the coordinator's at least" in line["detail"]


def test_a_coordinator_that_is_away_is_asked_again(authority: Authority) -> None:
    """After a minute."""

    async def pause(seconds: float) -> None:
        assert seconds == TRY_AGAIN_S
        raise Enough

    async def work() -> None:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            with pytest.raises(Enough):
                await watch_clock(chain(authority), lambda: channel, pause)

    asyncio.run(work())
