"""Witness: what lets nodes find out that the ledger here was changed."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from certs.enrolment import public_bytes_of
from coordinator.rpc.gate import Context, caller
from coordinator.store import checkpoints, ledger, people
from coordinator.store.checkpoints import Countersigned
from coordinator.store.database import Database
from privacy.ledger import Entry
from privacy.wire import checkpoint_to_wire, entry_to_wire, head_from_wire, head_to_wire
from protos.errors import Malformed, NotFound
from protos.feddp.v1 import witness_pb2 as pb
from protos.feddp.v1 import witness_pb2_grpc as pb_grpc

CHECKPOINTS_MAX = 500
ENTRIES_MAX = 5_000
"""In one call, well within its time; the node goes on where it ended."""

BATCH = 500
"""Entries in one message: some 300 KiB."""

HEADS_MAX = 256


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
            return pb.ReadHeadsResponse(
                heads=map(head_to_wire, checkpoints.heads(connection, node)),
                checkpoints=map(checkpoint_to_wire, new),
                leaves=newest[1] if newest is not None and reached else [],
                coordinator_ledger_key=public_bytes_of(self.key),
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
