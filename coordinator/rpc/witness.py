"""Witness: what lets nodes find out that the ledger here was changed."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from certs.enrolment import public_bytes_of
from coordinator.rpc.gate import Context, caller
from coordinator.store import checkpoints, epochs, ledger, people
from coordinator.store.checkpoints import Countersigned
from coordinator.store.database import Database
from coordinator.store.handing_in import HandedIn, take
from privacy.heads import Terms
from privacy.ledger import Entry
from privacy.wire import (
    checkpoint_to_wire,
    entry_to_wire,
    epoch_to_wire,
    head_from_wire,
    head_to_wire,
    statement_from_wire,
)
from protos.errors import Malformed, NotFound
from protos.feddp.v1 import witness_pb2 as pb
from protos.feddp.v1 import witness_pb2_grpc as pb_grpc

CHECKPOINTS_MAX = 500
ENTRIES_MAX = 5_000
"""In one call, well within its time; the node goes on where it ended."""

BATCH = 500
"""Entries in one message: some 300 KiB."""

HEADS_MAX = 256

STATEMENTS_MAX = 500
"""Handed in at once."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class WitnessService(pb_grpc.WitnessServicer):
    """Serves nodes."""

    database: Database
    key: Ed25519PrivateKey

    async def ReadHeads(
        self, request: pb.ReadHeadsRequest, context: Context
    ) -> pb.ReadHeadsResponse:
        """See witness.proto."""
        node = caller().node

        def said(connection: Connection) -> pb.ReadHeadsResponse:
            new = checkpoints.after(connection, request.after_checkpoint, CHECKPOINTS_MAX)
            newest = checkpoints.newest(connection)
            reached = newest is not None and newest[0] in new
            heads = checkpoints.heads(connection, node)
            names = [head.account for head in heads]
            return pb.ReadHeadsResponse(
                heads=map(head_to_wire, heads),
                checkpoints=map(checkpoint_to_wire, new),
                leaves=newest[1] if newest is not None and reached else [],
                coordinator_ledger_key=public_bytes_of(self.key),
                epochs=map(epoch_to_wire, epochs.all_of(connection)),
                unreconciled=sorted(epochs.unreconciled(connection, names)),
            )

        def if_current(connection: Connection) -> pb.ReadHeadsResponse | None:
            return None if checkpoints.is_behind(connection) else said(connection)

        def renewed(connection: Connection) -> pb.ReadHeadsResponse:
            checkpoints.renew(connection, self.key, time.time())
            return said(connection)

        # Heads and checkpoint of one transaction: else a node would see them disagree.
        answer = await self.database.read(if_current)
        return await self.database.write(renewed) if answer is None else answer

    async def ReadEntries(
        self, request: pb.ReadEntriesRequest, context: Context
    ) -> AsyncIterator[pb.ReadEntriesResponse]:
        """See witness.proto."""
        node = caller().node

        def work(connection: Connection) -> list[Entry]:
            if ledger.read_account(connection, request.account).node != node:
                raise NotFound("ACCOUNT_UNKNOWN", f"there is no account {request.account}")
            return ledger.chain_after(connection, request.account, request.after_seq, ENTRIES_MAX)

        found = await self.database.read(work)
        for first in range(0, len(found), BATCH):
            some = found[first : first + BATCH]
            yield pb.ReadEntriesResponse(entries=map(entry_to_wire, some))

    async def Countersign(
        self, request: pb.CountersignRequest, context: Context
    ) -> pb.CountersignResponse:
        """See witness.proto."""
        node = caller().node
        if len(request.heads) > HEADS_MAX:
            raise Malformed("TOO_MANY", f"a node signs at most {HEADS_MAX} heads at once")
        signed = [Countersigned(head_from_wire(one), one.node_signature) for one in request.heads]

        def work(connection: Connection) -> None:
            public_key = people.node(connection, node).ledger_public_key
            checkpoints.countersign(connection, node, public_key, signed)

        await self.database.write(work)
        return pb.CountersignResponse()

    async def HandIn(self, request: pb.HandInRequest, context: Context) -> pb.HandInResponse:
        """See witness.proto."""
        node = caller().node
        if len(request.statements) > STATEMENTS_MAX:
            raise Malformed("TOO_MANY", f"a node hands in at most {STATEMENTS_MAX} at once")
        given = HandedIn(
            request.account,
            request.epoch,
            _terms(request) if request.HasField("terms") else None,
            [(statement_from_wire(one), one.node_signature) for one in request.statements],
            request.done,
        )

        def work(connection: Connection) -> int:
            public_key = people.node(connection, node).ledger_public_key
            return take(connection, node, public_key, given, time.time())

        booked = await self.database.write(work)
        if booked or request.done:
            log.warning(
                "account_handed_in",
                account=request.account,
                entries=booked,
                reconciled=request.done,
            )
        return pb.HandInResponse(booked=booked)


def _terms(request: pb.HandInRequest) -> tuple[Terms, bytes]:
    said = request.terms
    terms = Terms(
        request.account, said.filter, said.rdp_order, said.delta, said.epsilon_limit_highest
    )
    return terms, said.node_signature
