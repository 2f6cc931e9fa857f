"""Nodes and their tokens; people are in `users`."""

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, false, func, select, update

from certs.tokens import of_other_kind
from coordinator.store.engines import insert
from coordinator.store.schema import (
    certificates,
    invitations,
    nodes,
    quarantines,
    tokens,
)
from protos.errors import Conflict, NotAllowed, NotFound, Unauthenticated
from protos.feddp.v1 import federation_pb2 as federation

REPLY_LOST_S = 15 * 60
"""How long the same key may redeem its token again, in case the reply was lost."""

WAITING_S = 14 * 86_400
"""How long a machine that waits to be let in may ask again; then its token is used up."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as the coordinator knows it.

    Attributes:
        status: "invited", "enrolled" or "disabled".
        hello: what it published last; empty before its first session.
    """

    name: str
    node_class: str
    status: str
    ledger_public_key: bytes
    last_seen_at: float
    hello: federation.Hello


def _node(row: Row[Any]) -> NodeRecord:
    return NodeRecord(
        row.name,
        row.node_class,
        row.status,
        row.ledger_public_key,
        row.last_seen_at,
        federation.Hello.FromString(row.hello),
    )


def node(connection: Connection, name: str) -> NodeRecord:
    """One node.

    Raises:
        NotFound: NODE_UNKNOWN.
    """
    row = connection.execute(select(nodes).where(nodes.c.name == name)).one_or_none()
    if row is None:
        raise NotFound("NODE_UNKNOWN", f"there is no node {name}; `feddp node list` shows them")
    return _node(row)


def all_nodes(connection: Connection) -> list[NodeRecord]:
    """Every node, by name."""
    # Sorted here: a database may order by the rules of some language.
    return sorted((_node(row) for row in connection.execute(select(nodes))), key=lambda n: n.name)


def invite(
    connection: Connection,
    name: str,
    node_class: str,
    secret_hash: str,
    *,
    spiffe_id: str,
    now_s: float,
    expires_at_s: float,
    approval: bool = False,
    rejoin: bool = False,
) -> None:
    """Make a token for a node; earlier tokens of that node that nobody has joined with are void.

    A node may join again under its name; it must then show the same ledger key, so that the name,
    its accounts and what they spent stay with the hospital.

    Args:
        approval: who redeems it waits until an operator approves.
        rejoin: also for a node that can still connect.

    Raises:
        Conflict: NODE_EXISTS, a node of that name has joined and can still connect.
    """
    row = connection.execute(select(nodes).where(nodes.c.name == name)).one_or_none()
    if row is not None and row.status == "disabled":
        raise Conflict("NODE_EXISTS", f"node {name} is already there, disabled; enable it first")
    ends = connection.execute(
        select(func.max(certificates.c.not_after)).where(
            certificates.c.spiffe_id == spiffe_id, certificates.c.revoked == false()
        )
    ).scalar_one()
    joined = row is not None and row.status != "invited" and name not in all_quarantines(connection)
    if joined and (ends or 0.0) > now_s and not rejoin:
        raise Conflict(
            "NODE_EXISTS",
            f"a node named {name} has already joined and its certificate is valid; for another "
            "hospital choose another name; if this one must join again, give --rejoin",
        )
    connection.execute(
        insert(connection, nodes)
        .values(
            name=name,
            node_class=node_class,
            status="invited",
            ledger_public_key=b"",
            created_at=now_s,
            last_seen_at=0.0,
            hello=b"",
        )
        .on_conflict_do_update(index_elements=["name"], set_={"node_class": node_class})
    )
    void_tokens(connection, name)
    connection.execute(
        tokens.insert().values(
            secret_hash=secret_hash,
            node=name,
            expires_at=expires_at_s,
            redeemed_by="",
            redeemed_at=0.0,
            chain=b"",
            approval="needed" if approval else "",
        )
    )


def void_tokens(connection: Connection, name: str) -> None:
    """Tokens of a node that nobody has joined with yet let nobody in, also not a machine that waits
    or was approved."""
    connection.execute(tokens.delete().where(tokens.c.node == name, tokens.c.chain == b""))


@dataclass(frozen=True, slots=True)
class Redemption:
    """A token that this key may use.

    Attributes:
        chain: the earlier answer, when it is asked for again.
        ledger_public_key: the ledger key that the node joined with before; empty for a new node.
        approval: see `coordinator.store.joins`.
        quarantined: whether the node is shut out.
    """

    node: str
    node_class: str
    chain: bytes
    ledger_public_key: bytes
    approval: str = ""
    quarantined: bool = False


def redeem(connection: Connection, secret_hash: str, key_digest: str, now_s: float) -> Redemption:
    """Mark a token as used by a key: one conditional UPDATE, so that of many callers one wins.

    Raises:
        Unauthenticated: TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_USED.
        NotAllowed: NODE_DISABLED, JOIN_REJECTED.
        Malformed: TOKEN_FOR_PERSON.
    """
    won = connection.execute(
        update(tokens)
        .where(
            tokens.c.secret_hash == secret_hash,
            tokens.c.redeemed_by == "",
            tokens.c.expires_at > now_s,
        )
        .values(redeemed_by=key_digest, redeemed_at=now_s)
    ).rowcount
    row = connection.execute(
        select(
            tokens,
            nodes.c.node_class,
            nodes.c.status,
            nodes.c.ledger_public_key,
            quarantines.c.why,
        )
        .join(nodes, nodes.c.name == tokens.c.node)
        .outerjoin(quarantines, quarantines.c.node == tokens.c.node)
        .where(tokens.c.secret_hash == secret_hash)
    ).one_or_none()
    ask = "ask the coordinator's operator for a new one: `feddp node token"
    again = f"{ask} NAME`"
    if row is None:
        of_a_person = select(invitations.c.name).where(invitations.c.secret_hash == secret_hash)
        if connection.execute(of_a_person).one_or_none() is not None:
            raise of_other_kind("user")
        raise Unauthenticated("TOKEN_INVALID", f"the coordinator does not know this token; {again}")
    again = f"{ask} {row.node}`"
    if row.ledger_public_key:  # it has joined before
        again += ", with --rejoin while its certificate is valid"
    if row.status == "disabled":
        raise NotAllowed(
            "NODE_DISABLED",
            f"node {row.node} is disabled at the coordinator: its operator runs `feddp node enable "
            f"{row.node}` first",
        )
    if not won:
        same_key = row.redeemed_by == key_digest
        if not same_key and not row.redeemed_by:
            raise Unauthenticated("TOKEN_EXPIRED", f"this token has expired; {again}")
        asks_s = REPLY_LOST_S if row.chain else WAITING_S
        if not same_key or now_s > row.redeemed_at + asks_s:
            raise Unauthenticated("TOKEN_USED", f"this token was used already; {again}")
        if row.approval == "rejected":
            raise NotAllowed(
                "JOIN_REJECTED", f"the operator has refused this machine as {row.node}; {again}"
            )
    return Redemption(
        row.node,
        row.node_class,
        row.chain,
        row.ledger_public_key,
        row.approval,
        row.why is not None,
    )


def require_own_ledger_key(connection: Connection, name: str, ledger_public_key: bytes) -> None:
    """Refuse a new name for a machine that has one: two of them would be that machine twice.

    Names that share a key since before this was looked at go on; `name` is none of them. Of two
    that ask at once, the second sees the first.

    Raises:
        NotAllowed: LEDGER_KEY_OF_ANOTHER.
    """
    if connection.dialect.name == "postgresql":  # SQLite writes one transaction at a time
        lock = int.from_bytes(hashlib.sha256(ledger_public_key).digest()[:8], signed=True)
        connection.execute(select(func.pg_advisory_xact_lock(lock)))
    of_it = (nodes.c.ledger_public_key == ledger_public_key) & (nodes.c.name != name)
    other = connection.execute(
        select(nodes.c.name).where(of_it).order_by(nodes.c.name).limit(1)
    ).scalar_one_or_none()
    if other is not None:
        raise NotAllowed(
            "LEDGER_KEY_OF_ANOTHER",
            f"this folder's ledger key is node {other}'s, and no second name is given to one "
            f"machine: ask the coordinator's operator for a token for {other} (`feddp node token "
            f"{other}`), or join as {name} in a folder of its own",
        )


def enrol(
    connection: Connection,
    secret_hash: str,
    name: str,
    ledger_public_key: bytes,
    chain: bytes,
    now_s: float | None = None,
) -> None:
    """Keep what was issued for a token, and let the node in.

    Args:
        now_s: for a join that waited: from now on its reply may be lost.
    """
    waited = {} if now_s is None else {"redeemed_at": now_s}
    connection.execute(
        update(tokens).where(tokens.c.secret_hash == secret_hash).values(chain=chain, **waited)
    )
    connection.execute(
        update(nodes)
        .where(nodes.c.name == name)
        .values(status="enrolled", ledger_public_key=ledger_public_key)
    )
    connection.execute(quarantines.delete().where(quarantines.c.node == name))


def all_quarantines(connection: Connection) -> dict[str, str]:
    """Why each node is shut out that is, until a person lets it in."""
    return {row.node: row.why for row in connection.execute(select(quarantines))}


def set_status(connection: Connection, name: str, status: str) -> NodeRecord:
    """Disable or enable a node; enabling one that never joined makes it "invited".

    Raises:
        NotFound: NODE_UNKNOWN.
    """
    if status == "enrolled" and not node(connection, name).ledger_public_key:
        status = "invited"
    connection.execute(update(nodes).where(nodes.c.name == name).values(status=status))
    return node(connection, name)


def keep_hello(connection: Connection, name: str, hello: federation.Hello, now_s: float) -> None:
    """Remember what a node published and when."""
    connection.execute(
        update(nodes)
        .where(nodes.c.name == name)
        .values(hello=hello.SerializeToString(), last_seen_at=now_s)
    )


def keep_seen(connection: Connection, seen_at_s: dict[str, float]) -> None:
    """Remember when nodes were heard last."""
    if seen_at_s:
        rows = [{"node": name, "at_s": at_s} for name, at_s in sorted(seen_at_s.items())]
        connection.execute(_SEEN, rows)


_SEEN = (
    update(nodes).where(nodes.c.name == bindparam("node")).values(last_seen_at=bindparam("at_s"))
)
