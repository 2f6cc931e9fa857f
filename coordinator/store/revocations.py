"""Certificates that were revoked, as a restored registry must know them. Every function runs inside
the caller's transaction."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, bindparam, select, true, update

from coordinator.store.schema import certificates


@dataclass(frozen=True, slots=True)
class Revocation:
    """One certificate that is refused for ever, whole: a registry that is older than it has no
    other way to know it. Times are seconds since the epoch."""

    fingerprint: str
    spiffe_id: str
    not_before: float
    not_after: float
    generation: int
    key_digest: str
    issuer: str


def revoked(connection: Connection) -> list[Revocation]:
    """Every certificate that is revoked, by identity and generation."""
    wanted = select(*(certificates.c[name] for name in Revocation.__slots__))
    rows = connection.execute(wanted.where(certificates.c.revoked == true()))
    found = [Revocation(**row._mapping) for row in rows]
    return sorted(found, key=lambda one: (one.spiffe_id, one.generation))


def replay(connection: Connection, revocations: Iterable[Revocation]) -> int:
    """Revoke what was revoked elsewhere, and register what is not known; gives how many of them
    were not revoked here."""
    here = {row.fingerprint: row.revoked for row in connection.execute(_KNOWN)}
    new = [one for one in revocations if not here.get(one.fingerprint, False)]
    unknown = {one.fingerprint: one for one in new if one.fingerprint not in here}
    if unknown:
        connection.execute(
            certificates.insert(),
            [{**asdict(one), "revoked": True} for one in unknown.values()],
        )
    known = {one.fingerprint for one in new} - unknown.keys()
    if known:
        connection.execute(_REVOKE, [{"print": one} for one in sorted(known)])
    return len(unknown) + len(known)


_KNOWN = select(certificates.c.fingerprint, certificates.c.revoked)
_REVOKE = (
    update(certificates)
    .where(certificates.c.fingerprint == bindparam("print"))
    .values(revoked=True, chain=None)
)
