"""Users: operators let people in, and out again."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection

from certs.authority import PERSON_LIFETIME, Authority
from certs.enrolment import key_digest
from certs.rotation import check_names
from certs.spiffe import SpiffeId, check_name
from certs.tokens import JoinToken, new_secret
from coordinator.authz import PEOPLES_ROLES
from coordinator.config.keys import nearest
from coordinator.identities import Identities
from coordinator.rpc.gate import Context, caller
from coordinator.store import certificates, users
from coordinator.store.database import Database
from coordinator.store.users import User
from protos.errors import Malformed
from protos.feddp.v1 import users_pb2 as pb
from protos.feddp.v1 import users_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)

TTL_S_MIN, TTL_S_MAX = 60, 7 * 86400

PROJECT: Final = "default"
"""Of whoever is invited without one."""

_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(slots=True)
class UsersService(pb_grpc.UsersServicer):
    """Serves operators."""

    database: Database
    authority: Authority
    identities: Identities
    enrollment_address: str

    async def InviteUser(
        self, request: pb.InviteUserRequest, context: Context
    ) -> pb.InviteUserResponse:
        """See users.proto."""
        user = User(check_name(request.user), _roles(request.roles), _project(request.project))
        check_ttl(request.ttl_s)
        root = self.authority.root_der
        token = JoinToken(self.enrollment_address, new_secret(), root, "user")
        now_s, by = time.time(), caller().name
        expires_at_s = now_s + request.ttl_s

        def work(connection: Connection) -> None:
            users.invite(
                connection,
                user,
                token.secret_hash(),
                identity=self._identity(user.name),
                invited_by=by,
                now_s=now_s,
                expires_at_s=expires_at_s,
            )

        await self.database.write(work)
        log.warning(
            "user_invited",
            user=user.name,
            roles=sorted(user.roles),
            project=user.project,
            by=by,
        )
        return pb.InviteUserResponse(
            token=token.encode(), expires_at=expires_at_s, root_fingerprint=token.fingerprint
        )

    async def ListUsers(
        self, request: pb.ListUsersRequest, context: Context
    ) -> pb.ListUsersResponse:
        """See users.proto."""
        now_s, trust_domain = time.time(), self.authority.trust_domain
        found = await self.database.read(lambda c: users.standings(c, trust_domain, now_s))
        return pb.ListUsersResponse(users=[_wire(one) for one in found.values()])

    async def RevokeUser(
        self, request: pb.RevokeUserRequest, context: Context
    ) -> pb.RevokeUserResponse:
        """See users.proto."""
        # What is revoked is known here before anybody is told, whether or not the caller waits.
        change = self._revoke(self._identity(check_name(request.user)), caller().name)
        revoked = await asyncio.shield(asyncio.ensure_future(change))
        return pb.RevokeUserResponse(user=_wire(revoked))

    async def _revoke(self, identity: SpiffeId, by: str) -> users.Standing:
        revoked = await self.database.write(lambda c: users.revoke(c, identity, time.time()))
        await self.identities.reload()
        log.warning("user_revoked", user=identity.name, by=by)
        return revoked

    def _identity(self, name: str) -> SpiffeId:
        return SpiffeId(self.authority.trust_domain, "user", name)


@dataclass(frozen=True, slots=True)
class Joined:
    """What a person is told who has joined.

    Attributes:
        chain: the certificate and the issuing authority's, PEM, leaf first.
    """

    user: User
    identity: SpiffeId
    chain: bytes


def join_user(
    connection: Connection,
    authority: Authority,
    secret_hash: str,
    csr: bytes,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
) -> Joined:
    """Redeem an invitation: all of it in this transaction, or an error and nothing.

    Args:
        key: that of `csr`, whose sender holds it.

    Raises:
        Unauthenticated, Malformed: as `users.redeem`.
        Malformed: CSR_NAMES.
        Conflict: USER_EXISTS.
        WrongPhase: AUTHORITY_EXPIRED.
    """
    # 1. The invitation is this key's, and nobody else's.
    digest = key_digest(key)
    won = users.redeem(connection, secret_hash, digest, now.timestamp())
    # 2. The request names nobody else.
    identity = SpiffeId(authority.trust_domain, "user", won.user.name)
    check_names(csr, identity)
    if won.chain:
        return Joined(won.user, identity, won.chain)
    # 3. Issued, kept for a lost reply, registered.
    issued = authority.issue(key, identity, now=now, lifetime=PERSON_LIFETIME)
    users.let_in(connection, won.user, identity, issued.chain_pem, now.timestamp())
    certificates.add(connection, issued, digest)
    return Joined(won.user, identity, issued.chain_pem)


def check_ttl(ttl_s: int) -> None:
    """Refuse a life that a token may not have.

    Raises:
        Malformed: TTL_INVALID.
    """
    if not TTL_S_MIN <= ttl_s <= TTL_S_MAX:
        raise Malformed("TTL_INVALID", f"a token lives {TTL_S_MIN} to {TTL_S_MAX} s, not {ttl_s}")


def _roles(wanted: Sequence[str]) -> frozenset[str]:
    """The roles that a person is to have.

    Raises:
        Malformed: ROLE_INVALID.
    """
    choice = ", ".join(PEOPLES_ROLES)
    if not wanted:
        raise Malformed("ROLE_INVALID", f"nobody is invited without a role; give {choice}")
    for role in wanted:
        if role not in PEOPLES_ROLES:
            near = nearest(role, PEOPLES_ROLES)
            raise Malformed(
                "ROLE_INVALID",
                f"there is no role {role[:40]!a} for people; {f'{near} ' if near else ''}they are "
                f"{choice}",
            )
    return frozenset(wanted)


def _project(wanted: str) -> str:
    """The project that a person is to have.

    Raises:
        Malformed: PROJECT_INVALID.
    """
    if wanted and not _PROJECT.fullmatch(wanted):
        raise Malformed(
            "PROJECT_INVALID",
            f"{wanted[:80]!a} cannot be a project's name; use 1 to 63 letters, digits, '.', '_' "
            "and '-', a letter or digit first",
        )
    return wanted or PROJECT


def _wire(standing: users.Standing) -> pb.User:
    return pb.User(
        name=standing.name,
        roles=sorted(standing.roles),
        status=standing.status,
        certificate_expires_at=standing.certificate_ends_at_s,
        invitation_expires_at=standing.invitation_ends_at_s,
        last_used_at=standing.last_used_at_s,
        invited_by=standing.invited_by,
        project=standing.project,
    )
