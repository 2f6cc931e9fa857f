"""Hands in, account by account, what a restored coordinator's chain lacks."""

from collections.abc import Mapping
from typing import Final

import grpc
import structlog

from node_agent.ledger.handing_in import FilterOf, Owed
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state.state import State
from privacy.heads import Head
from privacy.ledger import LimitChange, Statement
from privacy.wire import statement_to_wire
from protos.errors import BudgetRefused, Conflict, FeddpError, Malformed, NotFound, WrongPhase
from protos.feddp.v1 import witness_pb2 as pb
from protos.feddp.v1 import witness_pb2_grpc as pb_grpc
from protos.status import from_rpc

log = structlog.get_logger(__name__)

STATEMENTS_MAX: Final = 400
"""In one call: some 250 KiB."""

Taken = Mapping[str, frozenset[Statement | LimitChange]]
"""Accounts, each with what was handed in of it."""

REFUSED: Final = (Malformed, NotFound, Conflict, WrongPhase, BudgetRefused)
"""What the coordinator says of what was handed in; other errors are of the way to it."""


async def hand_in(
    stub: "pb_grpc.WitnessAsyncStub",
    state: State,
    ledger: LedgerThread,
    filter_of_account: FilterOf,
    timeout_s: float,
) -> tuple[Taken, list[tuple[str, str]]]:
    """Hand in what was read to be missing.

    Args:
        filter_of_account: see `HandingIn.owed`.

    Returns:
        What was taken of the accounts of which all was: their chains are to be read again, and hold
        it. Of one that was refused halfway nothing is looked for: the rest is handed in by a later
        look. And the accounts whose budget at the coordinator does not hold what was released, with
        what it says.

    Raises:
        grpc.RpcError: the coordinator does not answer.
    """
    taken: dict[str, frozenset[Statement | LimitChange]] = {}
    beyond = []
    for account, owed in await ledger.run(state.handing_in.owed, filter_of_account):
        for first in range(0, len(owed.statements), STATEMENTS_MAX):
            request = await _request(state, ledger, account, owed)
            request.statements.extend(
                statement_to_wire(*one) for one in owed.statements[first : first + STATEMENTS_MAX]
            )
            if refusal := await _called(stub, request, timeout_s):
                # A steward who has settled that takes the coordinator's chain as it is.
                settled = await ledger.run(state.witnessed.is_settled, account)
                if isinstance(refusal, BudgetRefused) and not settled:
                    text = "the coordinator does not take what this node has released: "
                    beyond.append((account, text + refusal.message))
                break
        else:
            if owed.statements:
                taken[account] = frozenset(one for one, _ in owed.statements)
    return taken, beyond


async def finish(
    stub: "pb_grpc.WitnessAsyncStub",
    state: State,
    ledger: LedgerThread,
    filter_of_account: FilterOf,
    taken: Taken,
    timeout_s: float,
) -> list[tuple[Head, str]]:
    """Say of each account that its chain now holds all that this node knows.

    Args:
        filter_of_account: see `HandingIn.owed`.
        taken: what `hand_in` gave; the chains were read since.

    Returns:
        Accounts whose chain does not hold what was taken, with what is wrong.

    Raises:
        grpc.RpcError: the coordinator does not answer.
    """
    found = []
    for account, owed in await ledger.run(state.handing_in.owed, filter_of_account):
        if owed.statements:
            # Else it was refused, which was logged, or it is owed only since.
            if taken.get(account, frozenset()).intersection(one for one, _ in owed.statements):
                head = await ledger.run(state.witnessed.head, account)
                text = "what this node has handed in was taken, and is not in the chain"
                found.append((head, text))
            continue
        request = await _request(state, ledger, account, owed)
        request.done = True
        if await _called(stub, request, timeout_s) is None:
            await ledger.run(state.handing_in.handed_in, account)
            log.info("account_handed_in", account=account)
    return found


async def _request(
    state: State, ledger: LedgerThread, account: str, owed: Owed
) -> pb.HandInRequest:
    latest = await ledger.run(state.epochs.latest)
    request = pb.HandInRequest(account=account, epoch=latest.number if latest else 0)
    if owed.terms is not None:
        terms, signature = owed.terms
        request.terms.CopyFrom(
            pb.AccountTerms(
                filter=terms.filter,
                rdp_order=terms.rdp_order,
                delta=terms.delta,
                epsilon_limit_highest=terms.epsilon_limit_highest,
                node_signature=signature,
            )
        )
    return request


async def _called(
    stub: "pb_grpc.WitnessAsyncStub", request: pb.HandInRequest, timeout_s: float
) -> FeddpError | None:
    """None where it was taken; what cannot be is logged, and the account stays as it is."""
    try:
        await stub.HandIn(request, timeout=timeout_s)
    except grpc.RpcError as error:
        found = from_rpc(error)
        if not isinstance(found, REFUSED):
            raise
        log.error(
            "hand_in_refused",
            account=request.account,
            reason=found.reason,
            detail=found.message,
            do="orders on this account are refused until it is handed in; compare both ledgers "
            "with the coordinator's operator",
        )
        return found
    return None
