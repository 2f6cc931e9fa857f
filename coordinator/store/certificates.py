"""The registry of certificates: what was issued to whom, and which generation is in use."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Integer,
    Row,
    cast,
    exists,
    false,
    func,
    select,
    true,
    update,
)

from certs.authority import IssuedCertificate
from certs.registry import CertificateRecord, superseded
from certs.registry import revoked as was_revoked
from certs.spiffe import SpiffeId
from coordinator.store.schema import certificates, nodes
from protos.errors import Conflict


@dataclass(frozen=True, slots=True)
class Renewed:
    """A renewal as it was answered.

    Attributes:
        chain: the certificate and the issuing authority's, PEM.
    """

    fingerprint: str
    generation: int
    chain: bytes


def add(
    connection: Connection,
    issued: IssuedCertificate,
    key_digest: str = "",
    *,
    answered: bool = False,
) -> int:
    """Register a certificate; one that is not registered is refused everywhere.

    Args:
        key_digest: SHA-256 of its public key, hexadecimal.
        answered: keep it until it is in use, for a reply that gets lost.

    Returns:
        Its generation: one more than the highest of its identity.
    """
    identity = str(issued.spiffe_id)
    highest = connection.execute(
        select(func.max(certificates.c.generation)).where(certificates.c.spiffe_id == identity)
    ).scalar_one()
    generation = (highest or 0) + 1
    connection.execute(
        certificates.insert().values(
            fingerprint=issued.fingerprint,
            spiffe_id=identity,
            not_before=issued.not_before.timestamp(),
            not_after=issued.not_after.timestamp(),
            revoked=False,
            generation=generation,
            superseded=False,
            key_digest=key_digest,
            chain=issued.chain_pem if answered else None,
            issuer=issued.issuer,
            bundle=issued.bundle,
        )
    )
    return generation


def records(connection: Connection, since_s: float = 0.0) -> dict[str, CertificateRecord]:
    """Registered certificates that had not ended at `since_s`, by fingerprint."""
    rows = connection.execute(select(certificates).where(certificates.c.not_after >= since_s))
    return {row.fingerprint: _record(row) for row in rows}


def counts(connection: Connection) -> tuple[int, int]:
    """How many certificates are registered, and how many of them are revoked."""
    revoked_ones = func.coalesce(func.sum(cast(certificates.c.revoked, Integer)), 0)
    row = connection.execute(select(func.count(), revoked_ones).select_from(certificates)).one()
    return int(row[0]), int(row[1])


def trust_domain(connection: Connection) -> str:
    """Whose certificates these are; empty where there are none."""
    one = connection.scalar(select(certificates.c.spiffe_id).limit(1))
    return SpiffeId.parse(one).trust_domain if one is not None else ""


def _record(row: Row[Any]) -> CertificateRecord:
    return CertificateRecord(
        row.fingerprint,
        SpiffeId.parse(row.spiffe_id),
        datetime.fromtimestamp(row.not_before, UTC),
        datetime.fromtimestamp(row.not_after, UTC),
        row.revoked,
        row.generation,
        row.superseded,
        row.superseded_at,
    )


def answered_before(
    connection: Connection, fingerprint: str, identity: SpiffeId, key_digest: str
) -> Renewed | None:
    """The renewal that the same key was given already, by the caller's certificate or an earlier
    one; None for a new key.

    Args:
        fingerprint: of the certificate that the caller shows.

    Raises:
        Unauthenticated: CERTIFICATE_SUPERSEDED, a later generation has come into use meanwhile.
        Conflict: CSR_KEY_USED, the key belongs to a certificate that is or was in use.
    """
    used_by = _current(connection, fingerprint, identity)
    rows = connection.execute(
        select(certificates).where(certificates.c.key_digest == key_digest)
    ).all()
    for row in rows:
        waits = row.chain is not None and not row.superseded and not row.revoked
        if waits and row.spiffe_id == str(identity) and row.generation > used_by:
            return Renewed(row.fingerprint, row.generation, row.chain)
    if rows:
        raise Conflict(
            "CSR_KEY_USED",
            f"the key in the request of {identity} has a certificate already; make a new key",
        )
    return None


def drop_unused(connection: Connection, fingerprint: str, keep: str) -> int:
    """Forget certificates that were issued after the caller's and never used, but for `keep`: a
    node has at most one that waits. Gives how many."""
    mine = select(certificates.c.generation).where(certificates.c.fingerprint == fingerprint)
    identity = select(certificates.c.spiffe_id).where(certificates.c.fingerprint == fingerprint)
    return connection.execute(
        certificates.delete().where(
            certificates.c.spiffe_id == identity.scalar_subquery(),
            certificates.c.generation > mine.scalar_subquery(),
            certificates.c.chain.is_not(None),
            certificates.c.fingerprint != keep,
        )
    ).rowcount


def put_in_use(
    connection: Connection, fingerprint: str, identity: SpiffeId, now_s: float | None = None
) -> bool:
    """Note that a certificate is in use: earlier generations of its identity are superseded.

    Args:
        now_s: the time, in seconds since the epoch.

    Returns:
        Whether there were any.

    Raises:
        Unauthenticated: CERTIFICATE_SUPERSEDED, it is itself one of them.
    """
    generation = _current(connection, fingerprint, identity)
    connection.execute(
        update(certificates).where(certificates.c.fingerprint == fingerprint).values(chain=None)
    )
    changed = connection.execute(
        update(certificates)
        .where(
            certificates.c.spiffe_id == str(identity),
            certificates.c.generation < generation,
            certificates.c.superseded == false(),
        )
        .values(
            superseded=True,
            chain=None,
            superseded_at=time.time() if now_s is None else now_s,
        )
    ).rowcount
    return changed > 0


def live(connection: Connection, identity: SpiffeId) -> dict[str, str]:
    """Fingerprint -> digest of the key, of each certificate of an identity that is neither revoked
    nor superseded; also of those that have ended."""
    rows = connection.execute(
        select(certificates.c.fingerprint, certificates.c.key_digest).where(
            certificates.c.spiffe_id == str(identity),
            certificates.c.revoked == false(),
            certificates.c.superseded == false(),
        )
    )
    return {row.fingerprint: row.key_digest for row in rows}


def find(connection: Connection, fingerprint: str) -> CertificateRecord | None:
    """One certificate, however long ago it ended."""
    row = connection.execute(
        select(certificates).where(certificates.c.fingerprint == fingerprint)
    ).one_or_none()
    return _record(row) if row is not None else None


def revoke(connection: Connection, identity: SpiffeId, *, but: Iterable[str] = ()) -> int:
    """Refuse every certificate that an identity has, for ever. Gives how many there were.

    Args:
        but: fingerprints of those that stay.
    """
    return connection.execute(
        update(certificates)
        .where(
            certificates.c.spiffe_id == str(identity),
            certificates.c.revoked == false(),
            certificates.c.fingerprint.not_in(tuple(but)),
        )
        .values(revoked=True, chain=None)
    ).rowcount


def ends(connection: Connection, identity: SpiffeId | None = None) -> dict[str, float]:
    """SPIFFE ID -> end, in seconds since the epoch, of the last certificate that is neither revoked
    nor superseded; of everybody, or of one identity."""
    wanted = [] if identity is None else [certificates.c.spiffe_id == str(identity)]
    rows = connection.execute(
        select(certificates.c.spiffe_id, func.max(certificates.c.not_after).label("last"))
        .where(certificates.c.revoked == false(), certificates.c.superseded == false(), *wanted)
        .group_by(certificates.c.spiffe_id)
    )
    return {row.spiffe_id: row.last for row in rows}


def revoked_identities(connection: Connection) -> set[str]:
    """SPIFFE IDs of those who had certificates, every one of which was revoked."""
    standing = certificates.alias()
    rows = connection.execute(
        select(certificates.c.spiffe_id)
        .distinct()
        .where(
            certificates.c.revoked == true(),
            ~exists().where(
                standing.c.spiffe_id == certificates.c.spiffe_id, standing.c.revoked == false()
            ),
        )
    )
    return {row.spiffe_id for row in rows}


@dataclass(frozen=True, slots=True)
class InUse:
    """The newest certificate in use of somebody who may come back with it.

    Attributes:
        issuer: fingerprint of the issuing authority's certificate; empty from before there was one.
        bundle: digest of the roots that came with it.
        ends_at_s: its end, in seconds since the epoch.
    """

    spiffe_id: str
    issuer: str
    bundle: str
    ends_at_s: float


def in_use(connection: Connection, now_s: float, recovery_s: float = 0.0) -> list[InUse]:
    """Whoever has a valid certificate, and each node that can still replace one that has ended;
    once each, by name.

    Args:
        recovery_s: how long after its end a node's certificate can be replaced.
    """
    rows = connection.execute(
        select(certificates)
        .where(
            certificates.c.revoked == false(),
            certificates.c.superseded == false(),
            certificates.c.chain.is_(None),
            certificates.c.not_after > now_s - recovery_s,
        )
        .order_by(certificates.c.generation)
    )
    found = {
        row.spiffe_id: InUse(row.spiffe_id, row.issuer, row.bundle, row.not_after)
        for row in rows
        if row.not_after > now_s or SpiffeId.parse(row.spiffe_id).kind == "node"
    }
    return sorted(found.values(), key=lambda one: one.spiffe_id)


def _current(connection: Connection, fingerprint: str, identity: SpiffeId) -> int:
    """The generation of a certificate that is neither superseded nor revoked, which it may be since
    its call was let in. Locks its node, so that of two that are put in use at once the second sees
    the first."""
    connection.execute(
        select(nodes.c.name).where(nodes.c.name == identity.name).with_for_update()
    ).one_or_none()
    row = connection.execute(
        select(certificates.c.generation, certificates.c.superseded, certificates.c.revoked).where(
            certificates.c.fingerprint == fingerprint
        )
    ).one_or_none()
    # One that is gone was never used, and another took its place.
    if row is None or row.superseded:
        raise superseded(identity)
    if row.revoked:
        raise was_revoked(identity)
    return int(row.generation)
