"""A coordinator that is not reached, where gRPC says why: the log says what to do about that."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from certs.authority import Authority
from node_agent.connection.proxy import Route
from node_agent.joining.identity import Identity, load_identity
from node_agent.session import link
from node_agent.session.link import Link
from protos.errors import NotAllowed
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.doctor.test_doctor import OldCoordinator
from tests.node_agent.proxies import ConnectProxy


class Enough(Exception):
    """It has been tried once."""


def said(identity: Identity, route: Route) -> str:
    """What a real session that cannot be opened says is to be done."""

    async def once(_: float) -> None:
        raise Enough

    async def work() -> None:
        credentials = identity.credentials()
        options = route.options()
        async with grpc.aio.secure_channel(route.address, credentials, options) as channel:
            tried = Link(channel, route.address, lambda _: None, lambda: 0.0, once)
            with pytest.raises(Enough):
                await tried.run()

    with capture_logs() as logs:
        asyncio.run(work())
    (line,) = (one for one in logs if one["event"] == "coordinator_unreachable")
    assert isinstance(line["do"], str)
    return line["do"]


class Site:
    """A node and its coordinator, whose clock is so far ahead."""

    def __init__(self, path: Path, ahead: timedelta) -> None:
        now = datetime.now(UTC) + ahead
        authority = Authority.create(path / "ca", TRUST_DOMAIN, now)
        self.coordinator = OldCoordinator(authority, now, ["127.0.0.1"])
        self.address = f"127.0.0.1:{self.coordinator.port}"
        self.identity = load_identity(
            make_agent(path / "agent", authority, self.coordinator.port).identity
        )


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A test's parameter moves the coordinator's clock."""
    made = Site(tmp_path, getattr(request, "param", timedelta(0)))
    yield made
    made.coordinator.stop()


@pytest.mark.parametrize(
    ("status", "found"),
    [("407 Proxy Authentication Required", "credentials_file"), ("403 Forbidden", "allow CONNECT")],
)
def test_what_a_proxy_answers_is_what_is_to_be_done(site: Site, status: str, found: str) -> None:
    """The answer stands in gRPC's own words: no list of what else it could be."""
    with ConnectProxy(status=status) as proxy:
        do = said(site.identity, Route(site.address, f"127.0.0.1:{proxy.port}", "agent.yaml"))
    assert found in do
    assert "TLS inspection" not in do


@pytest.mark.parametrize(
    ("site", "found"),
    [(timedelta(days=2), "has not begun"), (timedelta(days=-9), "has ended")],
    indirect=["site"],
)
def test_a_certificate_of_another_time_is_a_matter_of_the_clock(site: Site, found: str) -> None:
    """Whose it is, is known."""
    do = said(site.identity, Route(site.address))
    assert found in do
    assert "chrony" in do


def test_where_nothing_is_known_the_clock_is_among_what_it_may_be(site: Site) -> None:
    """The list names it too."""
    site.coordinator.stop()
    do = said(site.identity, Route(site.address))
    assert "this machine's clock" in do
    assert "TLS inspection" in do


@pytest.mark.parametrize(
    ("reason", "do"),
    [
        (
            "NODE_DISABLED",
            "comes back by itself; ask the coordinator's operator why, and for `feddp node enable",
        ),
        ("NODE_QUARANTINED", "`feddp node release NAME` ends it"),
        (
            "CERTIFICATE_REVOKED",
            "then stop the agent, `feddp agent join TOKEN --again`, and start it",
        ),
    ],
)
def test_a_node_that_is_shut_out_is_told_what_lets_it_in_again(reason: str, do: str) -> None:
    """No token can be made for a disabled node, and the other two need none, or no agent beside."""
    assert do in link._advice("node_shut_out", NotAllowed(reason, "it is shut out"))
