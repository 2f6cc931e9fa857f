"""People: who is invited, who has joined, and who was shut out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, bindparam, select, update

from certs.spiffe import SpiffeId
from certs.tokens import of_other_kind
from coordinator.config.keys import nearest
from coordinator.store import certificates
from coordinator.store.engines import insert
from coordinator.store.people import REPLY_LOST_S
from coordinator.store.schema import invitations, tokens, users
from protos.errors import Conflict, NotFound, Unauthenticated, WrongPhase

OPERATOR = "operator"

Status = Literal["invited", "joined", "revoked"]

_AGAIN = "ask the coordinator's operator for a new invitation: `feddp user invite NAME`"


@dataclass(frozen=True, slots=True)
class User:
    """A person or program that calls for people's rpcs."""

    name: str
    roles: frozenset[str]
    project: str


def add_user(connection: Connection, user: User) -> None:
    """Register a user."""
    connection.execute(
        users.insert().values(name=user.name, roles=_joined(user.roles), project=user.project)
    )


def all_users(connection: Connection) -> dict[str, User]:
    """Everybody who has joined, by name, those whose certificates were revoked included."""
    # These columns, so that a database can be looked into before it is upgraded.
    found = connection.execute(select(users.c.name, users.c.roles, users.c.project))
    return {row.name: User(row.name, _split(row.roles), row.project) for row in found}


@dataclass(frozen=True, slots=True)
class Standing:
    """A person as operators see them.

    Attributes:
        roles: of an open invitation, those that it gives; else what the person may do, or might.
        certificate_ends_at_s: of the last certificate that is not revoked; 0 for none.
        invitation_ends_at_s: of an open invitation; 0 for none.
        last_used_at_s: of the newest call; 0 for none that is known.
        invited_by: empty for whoever came with the installation.
        project: as the roles.

    Times are seconds since the epoch.
    """

    name: str
    roles: frozenset[str]
    status: Status
    certificate_ends_at_s: float
    invitation_ends_at_s: float
    last_used_at_s: float
    invited_by: str
    project: str

    def is_operator(self, now_s: float) -> bool:
        """Whether this person can invite others now."""
        return OPERATOR in self.roles and self.certificate_ends_at_s > now_s


def invite(
    connection: Connection,
    user: User,
    secret_hash: str,
    *,
    identity: SpiffeId,
    invited_by: str,
    now_s: float,
    expires_at_s: float,
) -> None:
    """Make an invitation; an earlier one of the same person is void.

    Raises:
        Conflict: USER_EXISTS.
    """
    _require_absent(connection, identity, now_s)
    values = {
        "secret_hash": secret_hash,
        "roles": _joined(user.roles),
        "project": user.project,
        "invited_by": invited_by,
        "invited_at": now_s,
        "expires_at": expires_at_s,
        "withdrawn": False,
        "redeemed_by": "",
        "redeemed_at": 0.0,
        "chain": b"",
    }
    connection.execute(
        insert(connection, invitations)
        .values(name=user.name, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )


@dataclass(frozen=True, slots=True)
class Redemption:
    """An invitation that this key may use.

    Attributes:
        chain: the earlier answer, when it is asked for again.
    """

    user: User
    chain: bytes


def redeem(connection: Connection, secret_hash: str, key_digest: str, now_s: float) -> Redemption:
    """Mark an invitation as used by a key: one conditional UPDATE, so that of many callers one
    wins.

    Raises:
        Unauthenticated: TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_USED, TOKEN_WITHDRAWN.
        Malformed: TOKEN_FOR_NODE.
    """
    won = connection.execute(
        update(invitations)
        .where(
            invitations.c.secret_hash == secret_hash,
            invitations.c.redeemed_by == "",
            invitations.c.expires_at > now_s,
        )
        .values(redeemed_by=key_digest, redeemed_at=now_s)
    ).rowcount
    row = connection.execute(
        select(invitations).where(invitations.c.secret_hash == secret_hash)
    ).one_or_none()
    if row is None:
        of_a_node = select(tokens.c.node).where(tokens.c.secret_hash == secret_hash)
        if connection.execute(of_a_node).one_or_none() is not None:
            raise of_other_kind("node")
        raise Unauthenticated(
            "TOKEN_INVALID", f"the coordinator does not know this token; {_AGAIN}"
        )
    if row.withdrawn:
        raise Unauthenticated(
            "TOKEN_WITHDRAWN", f"an operator has withdrawn the invitation of {row.name}; {_AGAIN}"
        )
    if not won:
        if not row.redeemed_by:
            raise Unauthenticated("TOKEN_EXPIRED", f"this token has expired; {_AGAIN}")
        if row.redeemed_by != key_digest or now_s > row.redeemed_at + REPLY_LOST_S:
            raise Unauthenticated("TOKEN_USED", f"this token was used already; {_AGAIN}")
    return Redemption(User(row.name, _split(row.roles), row.project), row.chain)


def let_in(
    connection: Connection, user: User, identity: SpiffeId, chain: bytes, now_s: float
) -> None:
    """Keep what was issued for an invitation that was just redeemed, and give the person its roles.
    Called before the certificate is registered.

    Raises:
        Conflict: USER_EXISTS, they were given another certificate meanwhile.
    """
    _require_absent(connection, identity, now_s)
    values = {"roles": _joined(user.roles), "project": user.project}
    connection.execute(
        insert(connection, users)
        .values(name=user.name, last_used_at=0.0, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )
    connection.execute(
        update(invitations).where(invitations.c.name == user.name).values(chain=chain)
    )


def standings(connection: Connection, trust_domain: str, now_s: float) -> dict[str, Standing]:
    """Everybody, by name."""
    known = {row.name: row for row in connection.execute(select(users))}
    invited = {row.name: row for row in connection.execute(select(invitations))}
    ends = certificates.ends(connection)
    revoked = certificates.revoked_identities(connection)
    found = {}
    for name in sorted({*known, *invited}):
        identity = str(SpiffeId(trust_domain, "user", name))
        is_revoked = identity in revoked
        found[name] = _standing(
            name, known.get(name), invited.get(name), ends.get(identity, 0.0), is_revoked, now_s
        )
    return found


def _standing(
    name: str,
    known: Row[Any] | None,
    invited: Row[Any] | None,
    ends_at_s: float,
    is_revoked: bool,
    now_s: float,
) -> Standing:
    is_open = invited is not None and not invited.withdrawn and not invited.redeemed_by
    status: Status = "joined"
    if ends_at_s <= now_s:
        if is_open:
            status = "invited"
        elif is_revoked or known is None:
            status = "revoked"
    source = invited if invited is not None and (status == "invited" or known is None) else known
    return Standing(
        name,
        _split(source.roles) if source is not None else frozenset(),
        status,
        ends_at_s,
        invited.expires_at if invited is not None and is_open else 0.0,
        known.last_used_at if known is not None else 0.0,
        invited.invited_by if invited is not None else "",
        source.project if source is not None else "",
    )


def revoke(connection: Connection, identity: SpiffeId, now_s: float) -> Standing:
    """Refuse every certificate of a person for ever, and withdraw their invitation.

    Their name and roles stay, and nobody else's change.

    Raises:
        NotFound: USER_UNKNOWN.
        WrongPhase: LAST_OPERATOR.
    """
    name, trust_domain = identity.name, identity.trust_domain
    # Two operators who revoke each other at once come one after the other.
    connection.execute(select(users.c.name).order_by(users.c.name).with_for_update()).all()
    before = standings(connection, trust_domain, now_s)
    if name not in before:
        near = nearest(name, before)
        raise NotFound(
            "USER_UNKNOWN",
            f"there is no user {name}; {f'{near} ' if near else ''}`feddp user list` shows them",
        )
    others = (one for one in before.values() if one.name != name)
    if before[name].is_operator(now_s) and not any(one.is_operator(now_s) for one in others):
        raise WrongPhase(
            "LAST_OPERATOR",
            f"{name} is the only operator who can still connect, and nobody could invite anybody "
            "after them; first let another one join: `feddp user invite NAME --role operator`",
        )
    # First the invitation: one that is redeemed at this moment has its certificate by the time
    # that all of them are revoked.
    connection.execute(
        update(invitations).where(invitations.c.name == name).values(withdrawn=True, chain=b"")
    )
    certificates.revoke(connection, identity)
    return standings(connection, trust_domain, now_s)[name]


def keep_used(connection: Connection, used_at_s: Mapping[str, float]) -> None:
    """Remember when people called last."""
    if used_at_s:
        rows = [{"user": name, "at_s": at_s} for name, at_s in sorted(used_at_s.items())]
        connection.execute(_USED, rows)


_USED = (
    update(users).where(users.c.name == bindparam("user")).values(last_used_at=bindparam("at_s"))
)


def _require_absent(connection: Connection, identity: SpiffeId, now_s: float) -> None:
    if certificates.ends(connection, identity).get(str(identity), 0.0) > now_s:
        raise Conflict(
            "USER_EXISTS",
            f"a user named {identity.name} has joined and their certificate is valid; choose "
            f"another name, or if it is lost or the roles change: `feddp user revoke "
            f"{identity.name}`, then invite them again",
        )


def _joined(roles: Collection[str]) -> str:
    return ",".join(sorted(roles))


def _split(roles: str) -> frozenset[str]:
    return frozenset(roles.split(","))
