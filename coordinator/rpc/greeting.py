"""What a node says first, taken into the store in one transaction, and what it is answered."""

import math
import re
from collections.abc import Iterable
from typing import Final

import structlog
from sqlalchemy import Connection

from coordinator.store import checkpoints, epochs, ledger, limits, people, shares
from privacy.epochs import FIRST
from privacy.wire import (
    entry_to_wire,
    epoch_from_wire,
    epoch_to_wire,
    head_to_wire,
    limit_from_wire,
)
from protos.errors import FeddpError, Malformed
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import ledger_pb2

log = structlog.get_logger(__name__)

PUBLISHED_MAX = 256
DECLARED_N_MAX = 10**12
INSTANCE_CHARACTERS_MAX = 64

LOWER_COUNTS: Final = "the lower one counts; raising it is the hospital's: `feddp agent limit`"
CATCHES_UP: Final = (
    "nothing: the node's ledger is a copy from before a raise, and says the raised limit once it "
    "has caught up"
)
_REASON = re.compile(r"([A-Z][A-Z_]{0,49})?")


def greet(
    connection: Connection, node: str, hello: pb.Hello, now_s: float
) -> tuple[pb.Welcome, int]:
    """Keep what the node publishes; tell which of its attempts are closed, and its limits.

    Returns:
        The answer, and how many raises were appended.
    """
    raised = 0
    if hello.limits:
        # Before what the Hello announces, which is of now: the policy may be lower again since.
        _hear(connection, node, hello, _new_accounts(connection, node, hello))
        raised = sum(_raise_limit(connection, node, message) for message in hello.limits)
    _hear(connection, node, hello, hello.accounts)
    people.keep_hello(connection, node, hello, now_s)
    closed = []
    for attempt_id in hello.open_attempts:
        outcome = ledger.outcome(connection, attempt_id)
        if outcome is not None:
            closed.append(pb.AttemptClosed(attempt_id=attempt_id, outcome=outcome))
    welcome = pb.Welcome(
        closed=closed,
        limits=_limits(connection, node, hello),
        signed=[_signed(connection, f"{node}/{account.name}") for account in hello.accounts],
        epochs=map(epoch_to_wire, epochs.all_of(connection)),
    )
    if hello.HasField("epoch_seen"):
        _tell_if_older(connection, node, hello)
    return welcome, raised


def _tell_if_older(connection: Connection, node: str, hello: pb.Hello) -> None:
    """Say so where the node has seen a later restoration than this database knows; it refuses
    whatever it is told."""
    seen, newest = epoch_from_wire(hello.epoch_seen), epochs.newest(connection)
    if newest is None or newest.restored_at_s < seen.restored_at_s:
        log.error(
            "older_copy_runs",
            node=node,
            epoch=newest.number if newest else FIRST,
            epoch_seen=seen.number,
            restored=seen.restored,
            do="the node knows a later restoration of this coordinator, and refuses this one: stop "
            "it, and run the later one; or restore this one, which declares that it counts",
        )


def _new_accounts(connection: Connection, node: str, hello: pb.Hello) -> list[pb.Account]:
    names = [f"{node}/{account.name}" for account in hello.accounts]
    known = {one.account for one in ledger.named_accounts(connection, names)}
    return [one for one, name in zip(hello.accounts, names, strict=True) if name not in known]


def _hear(
    connection: Connection, node: str, hello: pb.Hello, accounts: Iterable[pb.Account]
) -> None:
    """Open what is new and lower what is lower; an account that contradicts its entries is left."""
    for account in accounts:
        account.ClearField("heard_at_seq")
        account.ClearField("unknown_attempts")
        try:
            with connection.begin_nested():
                kept = ledger.open_account(
                    connection,
                    f"{node}/{account.name}",
                    node,
                    account.filter,
                    account.rdp_order,
                    account.epsilon_limit,
                    account.delta,
                    _raises_known(account),
                )
            shares.hear(kept, account, hello.open_attempts)
        except FeddpError as error:
            log.warning("account_refused", node=node, account=account.name, reason=error.reason)


def _signed(connection: Connection, account: str) -> pb.Signed:
    """What the node has signed last of an account, so that it sees whether its ledger holds it."""
    head, posts = checkpoints.signed_last(connection, account)
    told = pb.Signed(posted=map(entry_to_wire, posts))
    if head is not None:
        told.head.CopyFrom(head_to_wire(head.head, head.signature))
    return told


def _raise_limit(connection: Connection, node: str, message: ledger_pb2.LedgerEntry) -> bool:
    """Append a raise that a node brings; one that does not hold is logged, and changes nothing."""
    try:
        change = limit_from_wire(message)
        with connection.begin_nested():
            public_key = people.node(connection, node).ledger_public_key
            is_new = limits.record(connection, node, public_key, change, message.node_signature)
    except FeddpError as error:
        log.error("limit_refused", node=node, reason=error.reason, detail=error.message)
        return False
    if is_new:
        log.warning(
            "limit_raised",
            account=change.account,
            old=change.terms.epsilon_limit_old,
            new=change.terms.epsilon_limit_new,
            asked_by=change.terms.asked_by,
            agreed_by=change.agreed_by,
        )
    return is_new


def _limits(connection: Connection, node: str, hello: pb.Hello) -> list[pb.AccountLimit]:
    """What the ledger holds the accounts of a Hello to; says where the node announces others."""
    announced = {f"{node}/{account.name}": account for account in hello.accounts}
    found = []
    for kept in ledger.named_accounts(connection, sorted(announced)):
        limit = kept.filter.epsilon_limit
        said = announced[kept.account]
        if limit != said.epsilon_limit:
            is_of_before = ledger.is_of_before(connection, kept.account, _raises_known(said))
            log.warning(
                "account_limits_differ",
                account=kept.account,
                announced=said.epsilon_limit,
                in_force=limit,
                do=CATCHES_UP if is_of_before else LOWER_COUNTS,
            )
        name = kept.account.removeprefix(f"{node}/")
        found.append(
            pb.AccountLimit(
                account=name,
                epsilon_limit=limit,
                epsilon_limit_highest=_highest(connection, kept),
            )
        )
    return found


def _raises_known(account: pb.Account) -> int | None:
    """How often the node's own ledger says that the limit was raised; None if it does not say."""
    return account.raises if account.HasField("raises") else None


def _highest(connection: Connection, kept: ledger.Account) -> float:
    """The highest limit that was ever in force; 0 for an account that has promised nothing yet."""
    if not kept.entries:
        return 0.0
    raised = (one.terms.epsilon_limit_new for one in limits.raises(connection, kept.account))
    return max([kept.epsilon_limit_highest, *raised])


def check_hello(hello: pb.Hello) -> None:
    """Refuse what no honest agent publishes, before any of it is kept.

    Raises:
        Malformed: HELLO_INVALID.
    """
    lists = (hello.data_sets, hello.accounts, hello.tasks, hello.open_attempts, hello.limits)
    sound = (
        all(len(one) <= PUBLISHED_MAX for one in lists)
        and len(hello.instance_id) <= INSTANCE_CHARACTERS_MAX
        and all(
            1 <= d.declared_n <= DECLARED_N_MAX and d.name and _REASON.fullmatch(d.unavailable)
            for d in hello.data_sets
        )
        and all(
            a.name
            and math.isfinite(a.epsilon_per_job_max)
            and a.epsilon_per_job_max > 0
            and math.isfinite(a.noise_multiplier_min)
            and a.noise_multiplier_min >= 0
            and len(a.shares) <= PUBLISHED_MAX
            and _REASON.fullmatch(a.refuses)
            and all(
                one.name and math.isfinite(one.epsilon_limit) and one.epsilon_limit > 0
                for one in a.shares
            )
            for a in hello.accounts
        )
    )
    if not sound:
        raise Malformed("HELLO_INVALID", "the agent's Hello holds values that no policy can have")
