"""A renewal that dies at any step leaves a folder that works, and a node that is let in."""

import asyncio
import itertools
import os
import random
import stat
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from sqlalchemy import true

from certs import rollover
from certs.authority import NODE_LIFETIME, Authority
from certs.authority_state import read_state
from certs.enrolment import key_digest, new_key, new_ledger_key, save_private_key
from certs.issued import bundle_roots
from certs.peer import Peer
from certs.spiffe import SpiffeId
from coordinator.identities import Identities
from coordinator.rpc import gate
from coordinator.rpc.renewal import RenewalService
from coordinator.store import certificates, people, schema
from coordinator.store.database import Database
from node_agent.joining.identity import Identity, load_identity
from node_agent.joining.renewal import Renewal
from protos.feddp.v1 import renewal_pb2 as pb
from tests.node_agent.agent_federation import TRUST_DOMAIN
from tests.node_agent.samples import NODE

ROTATIONS = 1000
NAME = SpiffeId(TRUST_DOMAIN, "node", NODE)
WHOLE = {"node.key", "node.crt", "bundle.pem", "ledger.key"}


class Died(BaseException):
    """The process is gone at this moment."""


class Power:
    """Goes off before or after the `left`-th thing that is done to the disk or over the wire."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.look: Callable[[], object] = lambda: None
        for name in ("open", "fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._around(getattr(os, name)))

    def passing(self) -> None:
        self.look()
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Died

    def _around(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.passing()
            done = act(*args, **kwargs)
            try:
                self.passing()
            except Died:
                if act.__name__ == "open":
                    os.close(done)
                raise
            return done

        return watched


class World:
    """A coordinator's registry and rpc, and one node's folder; agents live in it one by one."""

    def __init__(self, path: Path, power: Power) -> None:
        self.power = power
        self.folder = path / "identity"
        self.database = Database(f"sqlite:///{path / 'c.db'}")
        self.database.migrate()
        self.pki = path / "ca"
        self.authority = Authority.create(self.pki, TRUST_DOMAIN)
        self.identities = Identities(self.database, TRUST_DOMAIN)
        self._service = RenewalService(
            self.database, self.authority, self.identities, NODE_LIFETIME
        )
        self.folder.mkdir()
        key = new_key()
        now = datetime.now(UTC)
        issued = self.authority.issue(key.public_key(), NAME, now=now, lifetime=NODE_LIFETIME)
        digest = key_digest(key.public_key())
        invited = {"spiffe_id": str(NAME), "now_s": 0.0, "expires_at_s": 1.0}
        self.database.write_now(lambda c: people.invite(c, NODE, "edge", "s", **invited))
        self.database.write_now(lambda c: certificates.add(c, issued, digest))
        save_private_key(self.folder / "node.key", key)
        save_private_key(self.folder / "ledger.key", new_ledger_key())
        (self.folder / "node.crt").write_bytes(issued.chain_pem)
        (self.folder / "bundle.pem").write_bytes(self.authority.trust_bundle)

    def admitted(self) -> Identity:
        """The folder's identity as the coordinator would see it; raises if it is not let in, or
        does not trust what the coordinator shows."""
        identity = load_identity(self.folder)
        self.identities.caller(peer_of(identity))
        leaf, issuing = x509.load_pem_x509_certificates(identity.chain)
        leaf.verify_directly_issued_by(issuing)
        assert any(issued_by(root, issuing) for root in bundle_roots(self.authority.trust_bundle))
        assert self.authority.root in bundle_roots(identity.bundle)
        return identity

    def roll_over(self) -> None:
        """The next step of an authority that replaces the one before."""
        step = {
            "settled": lambda: rollover.begin(self.pki, TRUST_DOMAIN),
            "begun": lambda: rollover.switch(self.pki),
            "switched": lambda: rollover.finish(self.pki),
        }
        step[read_state(self.pki).phase]()
        self.authority = self._service.authority = Authority.load(self.pki)

    def forget_superseded(self) -> None:
        """So that reading the registry does not take most of the time."""
        old = schema.certificates.c.superseded == true()
        self.database.write_now(lambda c: c.execute(schema.certificates.delete().where(old)))

    async def life(self) -> None:
        """An agent starts, renews and opens a session with what it got."""
        await self.identities.reload()
        identity = self.admitted()
        await self.session(identity)
        renewal = Renewal(self.folder, identity, self.channel(identity), self.channel)
        await renewal.renew()
        await self.session(renewal.identity)

    async def session(self, identity: Identity) -> None:
        self.power.passing()
        seen = peer_of(identity)
        self.identities.caller(seen)
        put = certificates.put_in_use
        await self.database.write(lambda c: put(c, seen.fingerprint, seen.spiffe_id))
        await self.identities.reload()
        self.power.passing()

    def channel(self, identity: Identity) -> Any:
        """A connection with this identity's certificate."""
        return Channel(lambda request: self._renew(identity, request))

    async def _renew(self, identity: Identity, request: pb.RenewRequest) -> pb.RenewResponse:
        self.power.passing()
        seen = peer_of(identity)
        self.identities.caller(seen)
        gate._peer.set(seen)
        answer = await self._service.Renew(request, None)  # type: ignore[arg-type]
        self.power.passing()
        return answer


class Channel:
    """A channel whose one method is a function of this process."""

    def __init__(self, renew: Callable[[pb.RenewRequest], Awaitable[pb.RenewResponse]]) -> None:
        self._renew = renew

    def unary_unary(self, path: str, **_: Any) -> Any:
        if path == "/feddp.v1.Renewal/Renew":
            return lambda request, timeout: self._renew(request)
        return None  # nothing else is called by a node


def issued_by(root: x509.Certificate, issuing: x509.Certificate) -> bool:
    try:
        issuing.verify_directly_issued_by(root)
    except InvalidSignature:
        return False
    return True


def peer_of(identity: Identity) -> Peer:
    leaf = x509.load_pem_x509_certificates(identity.chain)[0]
    digest = leaf.fingerprint(hashes.SHA256()).hex()
    return Peer(digest, identity.spiffe_id, leaf.not_valid_after_utc)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A node that has joined."""
    made = World(tmp_path, Power(monkeypatch))
    yield made
    made.power.left = None
    made.database.close()


async def die_at(world: World, step: int) -> bool:
    """One life that ends at a step; whether it got that far."""
    world.power.left = step
    try:
        await world.life()
    except Died:
        for left_over in world.folder.glob(".*.partial"):  # of a process with another id
            left_over.rename(left_over.with_name(left_over.name.replace(str(os.getpid()), "1")))
        return True
    finally:
        world.power.left = None
    return False


def test_a_renewal_that_dies_at_any_step_is_let_in_and_finished_by_the_next_life(
    world: World,
) -> None:
    """Before and after each write, sync, rename, request and reply: the pair in the folder works,
    is accepted, and the next life ends with one whole new pair and nothing left over."""

    async def play(rolls: bool = False) -> int:
        step = 0
        while True:
            if rolls:  # so that each renewal brings other roots, and they are learned first
                world.roll_over()
            if not await die_at(world, step):
                return step
            await world.identities.reload()
            before = world.admitted().chain
            await world.life()
            after = world.admitted()
            assert after.chain != before
            assert {path.name for path in world.folder.iterdir()} == WHOLE
            assert stat.S_IMODE((world.folder / "node.key").stat().st_mode) == 0o600
            assert bundle_roots(after.bundle) == bundle_roots(world.authority.trust_bundle)
            step += 1

    # Five for each of two files and the key's rename, the request, two sessions: before and after.
    plain = asyncio.run(play())
    assert plain >= 2 * (5 + 1 + 5 + 3 + 2)
    # While authorities follow each other the roots are a file more.
    assert asyncio.run(play(rolls=True)) >= plain + 2 * 5


def test_whoever_reads_the_folder_meanwhile_finds_a_pair_that_works(world: World) -> None:
    """`feddp agent status`, or a backup, at any moment of a renewal: the old pair, then the new."""
    seen: list[bytes] = []
    world.power.look = lambda: seen.append(load_identity(world.folder).chain)
    asyncio.run(world.life())
    assert len(seen) > 30
    changes = sum(one != other for one, other in itertools.pairwise(seen))
    assert changes == 1


def test_a_thousand_renewals_that_die_at_random_never_lock_the_node_out(world: World) -> None:
    """Each life dies once somewhere, or nowhere; the registry never holds more than two that are
    accepted, and only one of them with a number that was never seen."""
    chance = random.Random(20261126)

    async def play() -> tuple[int, int]:
        died = renewed = steps = 0
        while renewed < ROTATIONS:
            before = load_identity(world.folder).chain
            # A step of a rollover after every tenth renewal, each of which was seen in use.
            if renewed // 10 > steps and world.admitted().bundle == world.authority.trust_bundle:
                steps += 1
                world.roll_over()
            died += await die_at(world, chance.randrange(45))
            await world.identities.reload()
            renewed += world.admitted().chain != before
            found = world.database.read_now(certificates.records).values()
            assert 1 <= sum(not one.superseded for one in found) <= 2
            world.forget_superseded()
        await world.life()
        assert steps > ROTATIONS / 20
        return died, renewed

    died, renewed = asyncio.run(play())
    assert died > ROTATIONS / 2
    records = world.database.read_now(certificates.records).values()
    assert max(one.generation for one in records) == renewed + 2
    assert {path.name for path in world.folder.iterdir()} == WHOLE
