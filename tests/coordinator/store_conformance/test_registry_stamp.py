"""Who may call, as a replica that does not lead follows it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from certs.authority import Authority, IssuedCertificate
from certs.enrolment import new_key
from certs.peer import Peer
from certs.spiffe import SpiffeId
from coordinator.identities import BELIEVED_S, Identities
from coordinator.store import certificates, joins, people, registry
from coordinator.store.database import Database
from protos.errors import FeddpError, Unavailable
from tests.coordinator.store_conformance.samples import NODE

DOMAIN = "test.example"
IDENTITY = SpiffeId(DOMAIN, "node", NODE)


class World:
    """Node "a" with a certificate, at a clock that stands."""

    def __init__(self, database: Database, pki: Path) -> None:
        self.database = database
        self.authority = Authority.create(pki, DOMAIN)
        self.now_s = 50.0
        self.identities = Identities(database, DOMAIN, clock=lambda: self.now_s)
        self.first = self.issue()

    def issue(self) -> IssuedCertificate:
        now = datetime.now(UTC)
        issued = self.authority.issue(
            new_key().public_key(), IDENTITY, now=now, lifetime=timedelta(days=7)
        )
        self.database.write_now(lambda c: certificates.add(c, issued))
        return issued

    def follow(self) -> None:
        asyncio.run(self.identities.follow())

    def answer(self, issued: IssuedCertificate | None = None) -> str:
        """The reason of the refusal, or empty."""
        issued = issued or self.first
        try:
            self.identities.caller(Peer(issued.fingerprint, issued.spiffe_id, issued.not_after))
        except FeddpError as error:
            return error.reason
        return ""


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    """As its class says."""
    return World(database, tmp_path / "pki")


def supersede(world: World) -> None:
    later = world.issue()
    world.database.write_now(lambda c: certificates.put_in_use(c, later.fingerprint, IDENTITY))


CHANGES: dict[str, Callable[[World], object]] = {
    "CERTIFICATE_REVOKED": lambda w: w.database.write_now(
        lambda c: certificates.revoke(c, IDENTITY)
    ),
    "CERTIFICATE_SUPERSEDED": supersede,
    "NODE_DISABLED": lambda w: w.database.write_now(
        lambda c: people.set_status(c, NODE, "disabled")
    ),
    "NODE_QUARANTINED": lambda w: w.database.write_now(lambda c: joins.quarantine(c, NODE, "why")),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_whoever_is_shut_out_is_refused_at_the_next_look(world: World, reason: str) -> None:
    """With the leader's reason, whatever it was."""
    world.follow()
    assert world.answer() == ""
    CHANGES[reason](world)
    world.follow()
    assert world.answer() == reason


def test_whoever_is_let_in_again_is_served_at_the_next_look(world: World) -> None:
    """After an operator's `enable` or `release`, and with a certificate that is new."""
    world.follow()
    for shut_out, let_in in (
        (
            lambda c: people.set_status(c, NODE, "disabled"),
            lambda c: people.set_status(c, NODE, "enrolled"),
        ),
        (lambda c: joins.quarantine(c, NODE, "why"), lambda c: joins.release(c, NODE)),
    ):
        world.database.write_now(shut_out)
        world.follow()
        assert world.answer() != ""
        world.database.write_now(let_in)
        world.follow()
        assert world.answer() == ""
    later = world.issue()
    assert world.answer(later) == "CERTIFICATE_UNKNOWN"
    world.follow()
    assert world.answer(later) == ""


def test_what_was_read_too_long_ago_lets_nobody_in(world: World) -> None:
    """Before the first look, and once the database has not answered for a while."""
    assert world.answer() == "REGISTRY_UNREAD"
    world.follow()
    world.now_s += BELIEVED_S
    assert world.answer() == ""
    world.now_s += 0.1
    assert world.answer() == "REGISTRY_UNREAD"
    world.follow()
    assert world.answer() == ""


def test_whoever_leads_believes_what_it_has_read(world: World) -> None:
    """Nobody else changes it then."""
    asyncio.run(world.identities.reload())
    world.now_s += 1e6
    assert world.answer() == ""


@pytest.mark.parametrize("reason", CHANGES)
def test_whoever_leads_reads_again_what_it_could_not_read(
    world: World, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """A database that goes away between the commit that shuts a node out and the reading of it
    keeps nobody in; a look where all is read reads no more."""
    asyncio.run(world.identities.reload())
    asks, read = [0], world.database.read

    async def away(work: Callable[[Connection], object]) -> object:
        asks[0] += 1
        if asks[0] == 2:
            raise Unavailable("DATABASE_AWAY", "the database is away")
        return await read(work)

    monkeypatch.setattr(world.database, "read", away)
    CHANGES[reason](world)
    with pytest.raises(Unavailable):
        asyncio.run(world.identities.reload())
    assert world.answer() == ""
    asyncio.run(world.identities.look())
    assert world.answer() == reason
    asks[0] = 0
    asyncio.run(world.identities.look())
    assert asks == [1]


def test_nothing_is_read_again_while_nothing_changes(world: World) -> None:
    """Two stamps of one state are equal."""
    first = world.database.read_now(registry.stamp)
    assert world.database.read_now(registry.stamp) == first
    supersede(world)
    assert world.database.read_now(registry.stamp) != first
