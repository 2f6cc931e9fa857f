"""An ended certificate is replaced for nobody but the node that holds it and may come back."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import Authority, IssuedCertificate
from certs.enrolment import key_digest, make_csr, new_key
from certs.proofs import prove_recovery
from certs.spiffe import Kind, SpiffeId
from coordinator.identities import Identities
from coordinator.quarantine import GRACE_S, Quarantine
from coordinator.rpc.enrollment import EnrollmentService
from coordinator.sessions import Sessions
from coordinator.store import certificates, joins, people
from coordinator.store.database import Database
from protos.errors import FeddpError
from protos.feddp.v1 import enrollment_pb2 as pb

DOMAIN = "test.example"
LIFE = timedelta(days=7)
RECOVERY = timedelta(days=30)


@dataclass
class World:
    """A registry in which the certificate of node alpha ended a day ago."""

    database: Database
    authority: Authority
    key: ec.EllipticCurvePrivateKey
    ended: IssuedCertificate

    def holder(
        self, kind: Kind, name: str, ended_ago: timedelta, *, registered: bool = True
    ) -> "World":
        """As this, and whoever asks shows this certificate."""
        key = new_key()
        issued = self.authority.issue(
            key.public_key(),
            SpiffeId(DOMAIN, kind, name),
            now=datetime.now(UTC) - LIFE - ended_ago,
            lifetime=LIFE,
        )
        if registered:
            digest = key_digest(key.public_key())
            self.database.write_now(lambda c: certificates.add(c, issued, digest))
        return World(self.database, self.authority, key, issued)

    def recover(self, csr: bytes) -> pb.RecoverResponse:
        """One recovery; what it sets off is done when this returns."""
        return asyncio.run(self._recover(csr))

    async def _recover(self, csr: bytes) -> pb.RecoverResponse:
        identities = Identities(self.database, DOMAIN)
        await identities.reload()
        quarantine = Quarantine(self.database, identities, Sessions(30, 10), self.authority)
        service = EnrollmentService(
            *(self.database, self.authority, identities, "c:1", LIFE, RECOVERY, quarantine)
        )
        context: Any = None
        nonce = (await service.Challenge(pb.ChallengeRequest(), context)).nonce
        request = pb.RecoverRequest(
            certificate=self.ended.chain_pem,
            nonce=nonce,
            csr=csr,
            proof=prove_recovery(self.key, nonce, csr),
        )
        try:
            return await service.Recover(request, context)
        finally:
            while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.gather(*tasks)

    def count(self) -> int:
        """How many certificates there are."""
        return self.database.read_now(certificates.counts)[0]

    def quarantines(self) -> dict[str, str]:
        """Who is shut out."""
        return self.database.read_now(people.all_quarantines)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """As its class says."""
    database = Database(f"sqlite:///{tmp_path / 'c.db'}")
    database.migrate()
    authority = Authority.create(tmp_path / "pki", DOMAIN)

    def work(connection: Any) -> None:
        people.invite(
            *(connection, "alpha", "edge", "secret"),
            spiffe_id=f"spiffe://{DOMAIN}/node/alpha",
            now_s=0.0,
            expires_at_s=1.0,
        )
        people.enrol(connection, "secret", "alpha", b"l" * 32, b"chain")

    database.write_now(work)
    empty = World(database, authority, new_key(), None)  # type: ignore[arg-type]
    yield empty.holder("node", "alpha", timedelta(days=1))
    database.close()


def supersede(world: World, ago_s: float) -> None:
    """A newer certificate of alpha came into use so long ago."""
    newer = world.holder("node", "alpha", timedelta(days=-6)).ended
    since_s = time.time() - ago_s
    world.database.write_now(
        lambda c: certificates.put_in_use(c, newer.fingerprint, newer.spiffe_id, since_s)
    )


def test_the_holder_of_an_ended_certificate_gets_the_next_one(world: World) -> None:
    """What the others below are refused; the same request again gets the same answer."""
    csr = make_csr(new_key(), "alpha")
    first = world.recover(csr)
    assert first.generation == 2
    assert world.recover(csr) == first
    assert world.count() == 2


Change = Callable[[World], Any]
"""What is so before; gives whoever asks, if it is not alpha."""

REFUSED: dict[str, tuple[Change, str]] = {
    "revoked": (
        lambda w: w.database.write_now(lambda c: certificates.revoke(c, w.ended.spiffe_id)),
        "CERTIFICATE_REVOKED",
    ),
    "superseded": (lambda w: supersede(w, 2 * GRACE_S), "CERTIFICATE_SUPERSEDED"),
    "quarantined": (
        lambda w: w.database.write_now(lambda c: joins.quarantine(c, "alpha", "a copy runs")),
        "NODE_QUARANTINED",
    ),
    "disabled": (
        lambda w: w.database.write_now(lambda c: people.set_status(c, "alpha", "disabled")),
        "NODE_DISABLED",
    ),
    "without its key": (
        lambda w: World(w.database, w.authority, new_key(), w.ended),
        "RECOVERY_PROOF_INVALID",
    ),
    "a person": (
        lambda w: w.holder("user", "alpha", timedelta(days=1)),
        "CERTIFICATE_UNKNOWN",
    ),
    "not registered": (
        lambda w: w.holder("node", "alpha", timedelta(days=1), registered=False),
        "CERTIFICATE_UNKNOWN",
    ),
    "too late": (
        lambda w: w.holder("node", "beta", RECOVERY + timedelta(minutes=1)),
        "RECOVERY_TOO_LATE",
    ),
}


@pytest.mark.parametrize("who", REFUSED)
def test_nobody_else_does(world: World, who: str) -> None:
    """Each is refused by its own reason, and gets no certificate."""
    change, reason = REFUSED[who]
    changed = change(world)
    world = changed if isinstance(changed, World) else world
    before = world.count()
    with pytest.raises(FeddpError) as caught:
        world.recover(make_csr(new_key()))
    assert caught.value.reason == reason
    assert world.count() == before


def test_the_last_minute_counts(world: World) -> None:
    """The time to come back is as long as the operator has set it."""
    last = world.holder("node", "beta", RECOVERY - timedelta(minutes=1))
    assert last.recover(make_csr(new_key())).generation == 2


def test_a_request_for_another_name_gets_nothing(world: World) -> None:
    """Though the key of alpha's certificate has signed it."""
    with pytest.raises(FeddpError) as caught:
        world.recover(make_csr(new_key(), "beta"))
    assert caught.value.reason == "CSR_NAMES"
    assert world.count() == 1


@pytest.mark.parametrize(("ago_s", "is_shut_out"), [(2 * GRACE_S, True), (GRACE_S / 2, False)])
def test_a_superseded_certificate_that_is_shown_here_quarantines_too(
    world: World, ago_s: float, is_shut_out: bool
) -> None:
    """Whoever shows it holds a key that the node has given up, whichever port it is shown at; what
    was on its way when the newer one came into use is nobody's crime."""
    supersede(world, ago_s)
    with pytest.raises(FeddpError, match="newer certificate"):
        world.recover(make_csr(new_key()))
    assert ("alpha" in world.quarantines()) is is_shut_out
