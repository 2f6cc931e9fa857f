"""Hands in the node's signatures over heads, and finds out what it means that one is not known."""

from collections.abc import Sequence
from typing import Final

import grpc
import structlog

from privacy.entries import Entry
from privacy.heads import Head
from privacy.wire import entry_from_wire, head_from_wire
from protos.feddp.v1 import witness_pb2 as pb
from protos.feddp.v1 import witness_pb2_grpc as pb_grpc
from protos.status import from_rpc

log = structlog.get_logger(__name__)

HEADS_MAX: Final = 256
"""The most that a coordinator takes at once."""


async def countersign(
    stub: "pb_grpc.WitnessAsyncStub", signed: Sequence[pb.LedgerHead], timeout_s: float
) -> list[tuple[Head, str]]:
    """Hand in signed heads of the coordinator's chains that this node has seen there.

    A head may have moved on since it was seen, which changes nothing: entries are only added, and
    whoever has shown one has it for ever. So a coordinator that does not know one is asked for that
    very entry, and what it gives decides.

    Returns:
        The first head of each account that its chain does not hold any more, with what is wrong;
        none of the account's after it is handed in.

    Raises:
        grpc.RpcError: the coordinator does not answer, or refuses for another reason.
    """
    found: dict[str, tuple[Head, str]] = {}
    for first in range(0, len(signed), HEADS_MAX):
        some = signed[first : first + HEADS_MAX]
        if await _is_known(stub, some, timeout_s):
            continue
        for one in some:  # the others are kept, whatever has become of one
            if one.account in found or await _is_known(stub, [one], timeout_s):
                continue
            head = head_from_wire(one)
            if text := denied(head, await _entry(stub, head, timeout_s)):
                found[head.account] = (head, text)
            else:
                log.warning("head_not_taken", account=head.account, seq=head.seq)
    return list(found.values())


def denied(head: Head, there: Entry | None) -> str:
    """What is wrong where a coordinator does not know a head that it has shown; empty where its
    chain holds the head after all.

    Args:
        there: the entry that it gives in this place now; None for none.
    """
    if there is None or there.seq != head.seq:
        return f"entry {head.seq}, which this node has seen there, is gone"
    if there.hash != head.hash:
        return f"entry {head.seq} is another one than this node has seen there"
    return ""


async def _is_known(
    stub: "pb_grpc.WitnessAsyncStub", signed: Sequence[pb.LedgerHead], timeout_s: float
) -> bool:
    try:
        await stub.Countersign(pb.CountersignRequest(heads=signed), timeout=timeout_s)
    except grpc.RpcError as error:
        if from_rpc(error).reason != "HEAD_UNKNOWN":
            raise
        return False
    return True


async def _entry(stub: "pb_grpc.WitnessAsyncStub", head: Head, timeout_s: float) -> Entry | None:
    """The entry in a head's place, as the coordinator gives it now."""
    request = pb.ReadEntriesRequest(account=head.account, after_seq=head.seq - 1)
    try:
        async for answer in stub.ReadEntries(request, timeout=timeout_s):
            for one in answer.entries:
                return entry_from_wire(one)
    except grpc.RpcError as error:
        if from_rpc(error).reason != "ACCOUNT_UNKNOWN":
            raise
    return None
