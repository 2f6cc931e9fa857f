"""A certificate that a restored registry has lost shuts its node out until a person has asked."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import Authority, IssuedCertificate
from certs.enrolment import key_digest, new_key, new_ledger_key, spoken
from certs.peer import Peer
from certs.spiffe import Kind, SpiffeId
from coordinator.identities import Identities
from coordinator.quarantine import Quarantine
from coordinator.rpc.renewal import next_certificate
from coordinator.sessions import Sessions
from coordinator.store import certificates, epochs, joins, people
from coordinator.store.database import Database
from protos.errors import FeddpError, Unauthenticated

DOMAIN = "test.example"
NOW = datetime.now(UTC)
MADE = NOW - timedelta(days=3)
BETWEEN = NOW - timedelta(days=2)
RESTORED = NOW - timedelta(days=1)
LIFE = timedelta(days=7)


@dataclass
class World:
    """A registry that has a certificate of node alpha, and was restored; beta was only invited."""

    database: Database
    authority: Authority

    def issue(self, kind: Kind, name: str, at: datetime) -> tuple[IssuedCertificate, str]:
        """A certificate of this authority that nobody has registered, and its key's digest."""
        key = new_key().public_key()
        identity = SpiffeId(DOMAIN, kind, name)
        return self.authority.issue(key, identity, now=at, lifetime=LIFE), key_digest(key)

    def shown(self, issued: IssuedCertificate) -> FeddpError | None:
        """How it is refused, once what follows from that is done; None if it is let in."""
        return asyncio.run(self._show(issued))

    async def _show(self, issued: IssuedCertificate) -> FeddpError | None:
        identities = Identities(self.database, DOMAIN)
        await identities.reload()
        quarantine = Quarantine(self.database, identities, Sessions(30, 10), self.authority)
        peer = Peer(issued.fingerprint, issued.spiffe_id, issued.not_after)
        for _ in range(2):
            try:
                identities.caller(peer)
            except Unauthenticated as error:
                if error.reason != "CERTIFICATE_UNKNOWN":
                    return error
                refused: FeddpError = error
                quarantine.lost(
                    issued.chain_pem.partition(b"-----END CERTIFICATE-----\n")[0]
                    + b"-----END CERTIFICATE-----\n",
                    peer,
                )
                while tasks := [
                    one for one in asyncio.all_tasks() if one is not asyncio.current_task()
                ]:
                    await asyncio.gather(*tasks)
            except FeddpError as error:
                return error
            else:
                return None
        return refused


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """As its class says."""
    database = Database(f"sqlite:///{tmp_path / 'c.db'}")
    database.migrate()
    made = World(database, Authority.create(tmp_path / "pki", DOMAIN))
    first, digest = made.issue("node", "alpha", NOW - timedelta(days=5))

    def work(connection: object) -> None:
        for name in ("alpha", "beta"):
            people.invite(
                *(connection, name, "edge", name),
                spiffe_id=f"spiffe://{DOMAIN}/node/{name}",
                now_s=0.0,
                expires_at_s=1.0,
            )
        people.enrol(connection, "alpha", "alpha", b"l" * 32, first.chain_pem)
        certificates.add(connection, first, digest)
        epochs.raise_epoch(
            connection,
            new_ledger_key(),
            now_s=RESTORED.timestamp(),
            backup_made_at_s=MADE.timestamp(),
        )

    database.write_now(work)
    yield made
    database.close()


def test_a_lost_certificate_shuts_its_node_out_and_is_named(world: World) -> None:
    """Its digest is what both sides compare; the log and `node show` have it."""
    lost, _ = world.issue("node", "alpha", BETWEEN)
    refused = world.shown(lost)
    assert refused is not None
    assert refused.reason == "NODE_QUARANTINED"
    assert spoken(lost.fingerprint) in refused.message
    assert "`feddp agent status` shows" in refused.message


def test_once_released_it_is_let_in_alone_and_renews_itself(world: World) -> None:
    """With the next number, this issuer, its key and end; what came before it is used up."""
    lost, digest = world.issue("node", "alpha", BETWEEN)
    world.shown(lost)
    world.database.write_now(lambda c: joins.release(c, "alpha"))
    assert world.shown(lost) is None
    found = world.database.read_now(lambda c: certificates.find(c, lost.fingerprint))
    assert found is not None
    assert (found.generation, found.superseded, found.revoked) == (2, False, False)
    assert abs((found.not_after - lost.not_after).total_seconds()) < 1
    (used,) = world.database.read_now(lambda c: certificates.in_use(c, NOW.timestamp()))
    assert (used.issuer, used.ends_at_s) == (world.authority.issuer, lost.not_after.timestamp())
    identity = SpiffeId(DOMAIN, "node", "alpha")
    live = world.database.read_now(lambda c: certificates.live(c, identity))
    assert live == {lost.fingerprint: digest}
    key = new_key().public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    following = world.database.write_now(
        lambda c: next_certificate(
            *(c, world.authority, lost.fingerprint, identity, key, NOW, LIFE)
        )
    )
    assert following.renewed.generation == 3


def test_another_lost_certificate_is_another_question(world: World) -> None:
    """While the node is shut out it changes nothing, and after the release it shuts it out anew."""
    lost, other = (world.issue("node", "alpha", BETWEEN)[0] for _ in range(2))
    world.shown(lost)
    assert "NODE_QUARANTINED" in str(world.shown(lost).reason)  # type: ignore[union-attr]
    refused = world.shown(other)
    assert refused is not None
    assert refused.reason == "CERTIFICATE_UNKNOWN"
    world.database.write_now(lambda c: joins.release(c, "alpha"))
    again = world.shown(other)
    assert again is not None
    assert again.reason == "NODE_QUARANTINED"
    assert spoken(other.fingerprint) in again.message


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("alpha", MADE - timedelta(hours=1)),
        ("alpha", RESTORED + timedelta(hours=1)),
        ("beta", BETWEEN),
        ("stranger", BETWEEN),
    ],
)
def test_what_was_not_lost_is_unknown_as_before(world: World, name: str, at: datetime) -> None:
    """Issued before the backup, or after the restore; of a node that never joined before it."""
    lost, _ = world.issue("node", name, at)
    refused = world.shown(lost)
    assert refused is not None
    assert refused.reason == "CERTIFICATE_UNKNOWN"
    assert world.database.read_now(people.all_quarantines) == {}
    assert world.database.read_now(lambda c: certificates.find(c, lost.fingerprint)) is None


@pytest.mark.parametrize("how", ["revoked", "disabled"])
def test_a_node_that_is_shut_out_for_good_stays_so(world: World, how: str) -> None:
    """No question is asked about it."""
    identity = SpiffeId(DOMAIN, "node", "alpha")
    if how == "revoked":
        world.database.write_now(lambda c: certificates.revoke(c, identity))
    else:
        world.database.write_now(lambda c: people.set_status(c, "alpha", "disabled"))
    refused = world.shown(world.issue("node", "alpha", BETWEEN)[0])
    assert refused is not None
    assert refused.reason == "CERTIFICATE_UNKNOWN"
    assert world.database.read_now(people.all_quarantines) == {}


def test_a_person_is_told_who_invites_them_again(world: World) -> None:
    """Nobody is registered for it."""
    refused = world.shown(world.issue("user", "carol", BETWEEN)[0])
    assert refused is not None
    assert "restored from a backup of" in refused.message
    assert "`feddp user invite carol`" in refused.message


def test_a_coordinator_that_was_never_restored_asks_nothing(world: World, tmp_path: Path) -> None:
    """Unknown is unknown there."""
    database = Database(f"sqlite:///{tmp_path / 'other.db'}")
    database.migrate()
    fresh = World(database, world.authority)
    refused = fresh.shown(fresh.issue("node", "alpha", BETWEEN)[0])
    assert refused is not None
    assert "enrol again with a new token" in refused.message
    database.close()
