"""That this database was restored from a backup, and which accounts their nodes have handed in
since. Every function runs inside the caller's transaction."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, Row, Select, and_, bindparam, func, inspect, select

from certs.enrolment import public_bytes_of
from coordinator.store import checkpoints
from coordinator.store.schema import accounts, epochs, reconciled, reservations
from privacy.entries import is_signed
from privacy.epochs import FIRST, Epoch, sign_epoch
from privacy.heads import Checkpoint, Head
from protos.errors import Malformed, WrongPhase

REASON: Final = "LEDGER_RECONCILING"


@dataclass(frozen=True, slots=True)
class Reconciled:
    """An account that its node has handed in at an epoch.

    Attributes:
        seq: of the chain's newest entry then. What stands between the account's place in the
            backup and this was handed in, or made void or posted meanwhile; none was reserved.
    """

    account: str
    epoch: int
    seq: int
    at_s: float


def raise_epoch(
    connection: Connection, key: Ed25519PrivateKey, *, now_s: float, backup_made_at_s: float
) -> Epoch:
    """Declare that this database was just restored from a backup, whatever it holds.

    From then on nothing is reserved on any account until its node has handed in what the backup
    lacks.

    Args:
        key: the coordinator's ledger key.

    Raises:
        Malformed: LEDGER_KEY_CHANGED, the checkpoints here are signed with another key: nodes
            would believe nothing of what this one signs.
    """
    newest_checkpoint = checkpoints.newest(connection)
    before, checkpoint = newest(connection), newest_checkpoint and newest_checkpoint[0]
    for one in signed_last(connection):
        if not is_signed(public_bytes_of(key), one.canonical(), one.signature):
            raise Malformed(
                "LEDGER_KEY_CHANGED",
                "this database's checkpoints are signed with another ledger key than the "
                "installation's; put the key of the same installation beside it",
            )
    heads = checkpoints.heads(connection)
    made = sign_epoch(
        key,
        before,
        checkpoint,
        [head.leaf() for head in heads],
        restored_at_s=now_s,
        backup_made_at_s=backup_made_at_s,
    )
    connection.execute(
        epochs.insert().values(
            number=made.number,
            restored_at_s=made.restored_at_s,
            backup_made_at_s=made.backup_made_at_s,
            checkpoint_number=made.checkpoint_number,
            checkpoint_hash=made.checkpoint_hash,
            heads_root=made.heads_root,
            prev_hash=made.prev_hash,
            signature=made.signature,
            heads=json.dumps([[one.account, one.seq, one.hash] for one in heads]),
        )
    )
    return made


def signed_last(connection: Connection) -> list[Epoch | Checkpoint]:
    """The newest of each that the coordinator's ledger key has signed; empty before the first, and
    in an older version's tables."""
    if not inspect(connection).has_table(epochs.name):
        return []
    checkpoint = checkpoints.newest(connection)
    both = (newest(connection), checkpoint and checkpoint[0])
    return [one for one in both if one is not None]


def newest(connection: Connection) -> Epoch | None:
    """The newest epoch; None for a coordinator that was never restored."""
    row = connection.execute(select(epochs).order_by(epochs.c.number.desc()).limit(1)).one_or_none()
    return None if row is None else _epoch(row)


def all_of(connection: Connection) -> list[Epoch]:
    """Every epoch, in order."""
    return [_epoch(row) for row in connection.execute(select(epochs).order_by(epochs.c.number))]


def places(connection: Connection, number: int) -> list[Head]:
    """Where every account stood in the backup of an epoch, by name."""
    text = connection.execute(
        select(epochs.c.heads).where(epochs.c.number == number)
    ).scalar_one_or_none()
    return [Head(*one) for one in json.loads(text or "[]")]


def unreconciled(connection: Connection, names: Sequence[str] | None = None) -> frozenset[str]:
    """Which of these accounts, or of all, their nodes have not handed in at the present epoch."""
    if names is None:
        return frozenset(connection.execute(_UNRECONCILED).scalars())
    return frozenset(connection.execute(_NAMED, {"names": list(names)}).scalars())


def reconciled_at(connection: Connection, number: int) -> list[Reconciled]:
    """Which accounts were handed in at an epoch, by name."""
    rows = connection.execute(
        select(reconciled).where(reconciled.c.epoch == number).order_by(reconciled.c.account)
    )
    return [Reconciled(row.account, row.epoch, row.seq, row.at) for row in rows]


def reconcile(connection: Connection, account: str, number: int, now_s: float) -> bool:
    """Note that a node has handed in an account; False where it was noted already.

    The caller holds the account's row, and has asked the node.

    Raises:
        WrongPhase: EPOCH_PAST, the coordinator was restored again; ATTEMPTS_OPEN, the chain
            holds reservations that nobody has resolved.
    """
    now = newest(connection)
    if now is None or now.number != number:
        present = FIRST if now is None else now.number
        raise WrongPhase("EPOCH_PAST", f"this coordinator is at epoch {present}, not {number}")
    if account not in unreconciled(connection, [account]):
        return False
    still_open = connection.execute(
        select(func.count()).where(reservations.c.account == account)
    ).scalar_one()
    if still_open:
        raise WrongPhase(
            "ATTEMPTS_OPEN",
            f"account {account} holds {still_open} reservations that its node has not resolved",
        )
    seq = connection.execute(
        select(accounts.c.entries).where(accounts.c.account == account)
    ).scalar_one()
    connection.execute(reconciled.insert().values(account=account, epoch=number, seq=seq, at=now_s))
    return True


def said(account: str, backup_made: str) -> str:
    """Why nothing is reserved, and what ends it, for whoever asks why a node is left out."""
    node = account.partition("/")[0]
    return (
        f"the coordinator was restored from a backup of {backup_made}; node {node} has not yet "
        f"handed in what it released since from account {account}. It does so by itself at its "
        "next session; an agent of 0.1.0 has to be upgraded first"
    )


def refusal(connection: Connection, account: str) -> WrongPhase:
    """For what would have been reserved."""
    now = newest(connection)
    return WrongPhase(REASON, said(account, now.backup_made if now else "an unknown moment"))


_PRESENT = select(func.max(epochs.c.number)).scalar_subquery()
_UNRECONCILED: Select[Any] = (
    select(accounts.c.account)
    .select_from(accounts)
    .outerjoin(
        reconciled,
        and_(reconciled.c.account == accounts.c.account, reconciled.c.epoch == _PRESENT),
    )
    .where(reconciled.c.account.is_(None), select(epochs.c.number).exists())
)
_NAMED = _UNRECONCILED.where(accounts.c.account.in_(bindparam("names", expanding=True)))


def _epoch(row: Row[Any]) -> Epoch:
    return Epoch(
        row.number,
        row.restored_at_s,
        row.backup_made_at_s,
        row.checkpoint_number,
        row.checkpoint_hash,
        row.heads_root,
        row.prev_hash,
        row.signature,
    )
