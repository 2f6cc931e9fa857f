"""What an agent says whose ended certificate is not replaced."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from structlog.testing import capture_logs

from certs.authority import Authority
from certs.credentials import server_credentials
from node_agent.joining.identity import load_identity
from node_agent.joining.renewal import Renewal
from tests.node_agent.agent_federation import (
    TRUST_DOMAIN,
    WAIT_S,
    machine_certificate,
    make_agent,
)


def failures(logs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was logged of renewals that failed."""
    return [one for one in logs if one["event"] == "certificate_renewal_failed"]


def test_another_authority_at_the_coordinator_is_told_from_one_that_is_away(tmp_path: Path) -> None:
    """The node was off while the authority was replaced: only a new token helps."""
    former = Authority.create(tmp_path / "former", TRUST_DOMAIN)
    present = Authority.create(tmp_path / "present", TRUST_DOMAIN)
    folder = make_agent(tmp_path / "agent", former, 1, timedelta(hours=169))
    chain, key = machine_certificate(present)

    async def advice() -> str:
        server = grpc.aio.server()
        credentials = server_credentials(chain, key, present.trust_bundle)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        address = f"127.0.0.1:{port}"
        channel = grpc.aio.insecure_channel(address)
        renewal = Renewal(
            folder.identity, load_identity(folder.identity), channel, lambda _: channel, address
        )
        with capture_logs() as logs:
            trying = asyncio.create_task(renewal.run())
            async with asyncio.timeout(WAIT_S):
                while not (said := failures(logs)):  # noqa: ASYNC110 - the log has no event
                    await asyncio.sleep(0.01)
            trying.cancel()
        await channel.close()
        await server.stop(None)
        return str(said[0]["do"])

    assert "join again in this folder with a new token" in asyncio.run(advice())
