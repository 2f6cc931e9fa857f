"""Joins that wait for a person: an operator's approval, or the word of the hospital's steward."""

import re
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import Connection, select, update

from certs.enrolment import SPOKEN_DIGITS, spoken
from coordinator.store import people
from coordinator.store.schema import quarantines, tokens
from protos.errors import Conflict, Malformed, NotFound, WrongPhase

Approval = Literal["", "needed", "waiting", "confirming", "approved", "confirmed", "rejected"]
"""Of a token. `needed` before anybody has redeemed it; `waiting` for an operator; `confirming`
for an operator who has the steward's word; then how it was decided."""

WAITING: Final = ("waiting", "confirming")
STEWARD_CHARACTERS_MAX: Final = 100

_KEY = re.compile(rf"[0-9a-f]{{{SPOKEN_DIGITS},64}}")


@dataclass(frozen=True, slots=True)
class WaitingJoin:
    """A machine that holds a token's right and waits.

    Attributes:
        key_digest: SHA-256 of its certificate's key, hexadecimal.
        confirming: whether the steward's word is needed.
    """

    node: str
    key_digest: str
    confirming: bool


def wait(connection: Connection, secret_hash: str, *, confirming: bool) -> None:
    """Note that a redeemed token waits."""
    connection.execute(
        update(tokens)
        .where(tokens.c.secret_hash == secret_hash)
        .values(approval="confirming" if confirming else "waiting")
    )


def waiting(connection: Connection) -> dict[str, WaitingJoin]:
    """Every join that waits, by node; a node has at most one."""
    rows = connection.execute(select(tokens).where(tokens.c.approval.in_(WAITING)))
    return {
        row.node: WaitingJoin(row.node, row.redeemed_by, row.approval == "confirming")
        for row in rows
    }


def approve(
    connection: Connection, node: str, key: str = "", steward: str = "", by: str = ""
) -> WaitingJoin:
    """Let a waiting machine in.

    Args:
        key: the beginning of its key's digest, as the hospital read it out; empty for whichever
            waits.
        steward: who at the hospital confirmed it; needed for a name that has joined before.
        by: the operator.

    Raises:
        NotFound: NODE_UNKNOWN, JOIN_UNKNOWN.
        Malformed: KEY_INVALID, STEWARD_INVALID.
        Conflict: KEY_MISMATCH.
        WrongPhase: CONFIRMATION_REQUIRED.
    """
    digits = re.sub(r"[-:\s]", "", key.lower())
    if digits and not _KEY.fullmatch(digits):
        raise Malformed(
            "KEY_INVALID",
            f"a key is the first {SPOKEN_DIGITS} or more digits of what `feddp agent join` shows "
            "at the hospital",
        )
    if len(steward) > STEWARD_CHARACTERS_MAX or not steward.isprintable():
        raise Malformed(
            "STEWARD_INVALID", f"the steward's name has at most {STEWARD_CHARACTERS_MAX} characters"
        )
    join = _waiting(connection, node)
    if digits and not join.key_digest.startswith(digits):
        raise Conflict(
            "KEY_MISMATCH",
            f"the machine that waits to join as {node} has the key {spoken(join.key_digest)}, not "
            f"the one given: if the hospital read out the other, this is a stranger's; `feddp node "
            f"reject {node}` and make a new token",
        )
    if join.confirming and not (digits and steward.strip()):
        raise WrongPhase(
            "CONFIRMATION_REQUIRED",
            f"{node} has joined before, and this machine does not prove that it is the same: ask "
            "its data steward, by a way that you know, to read out the key that `feddp agent join` "
            "shows there; then give --key and --steward",
        )
    said = f"{by}; steward {steward.strip()}" if steward.strip() else by
    connection.execute(
        update(tokens)
        .where(tokens.c.node == node, tokens.c.approval.in_(WAITING))
        .values(approval="confirmed" if join.confirming else "approved", approved_by=said[:255])
    )
    return join


def reject(connection: Connection, node: str, by: str = "") -> WaitingJoin:
    """Refuse a waiting machine for good.

    Raises:
        NotFound: NODE_UNKNOWN, JOIN_UNKNOWN.
    """
    join = _waiting(connection, node)
    connection.execute(
        update(tokens)
        .where(tokens.c.node == node, tokens.c.approval.in_(WAITING))
        .values(approval="rejected", approved_by=by[:255])
    )
    return join


def quarantine(connection: Connection, node: str, why: str) -> bool:
    """Shut a node out until a person lets it in; False where it is already."""
    if node in people.all_quarantines(connection):
        return False
    connection.execute(quarantines.insert().values(node=node, why=why))
    return True


def release(connection: Connection, node: str) -> None:
    """End a quarantine.

    Raises:
        NotFound: NODE_UNKNOWN.
        WrongPhase: NODE_NOT_QUARANTINED.
    """
    people.node(connection, node)
    if node not in people.all_quarantines(connection):
        raise WrongPhase(
            "NODE_NOT_QUARANTINED",
            f"node {node} is not quarantined, so that there is nothing to release; `feddp node "
            f"show {node}` says how it stands",
        )
    connection.execute(quarantines.delete().where(quarantines.c.node == node))


def _waiting(connection: Connection, node: str) -> WaitingJoin:
    people.node(connection, node)
    join = waiting(connection).get(node)
    if join is None:
        raise NotFound(
            "JOIN_UNKNOWN", f"no machine waits to join as {node}; `feddp node list` shows who waits"
        )
    return join
