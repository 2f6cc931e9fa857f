"""Nodes, Budgets and Models: what people look at and operators change."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from certs.authority import Authority
from certs.spiffe import SpiffeId, check_name
from certs.tokens import JoinToken, new_secret
from coordinator import views
from coordinator.identities import Identities
from coordinator.rpc.gate import Context, caller
from coordinator.sessions import Sessions
from coordinator.store import jobs as job_store
from coordinator.store import ledger, people
from coordinator.store.database import Database
from privacy.wire import entry_to_wire
from protos.errors import Malformed, NotFound
from protos.feddp.v1 import (
    budgets_pb2,
    budgets_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    nodes_pb2,
    nodes_pb2_grpc,
)

log = structlog.get_logger(__name__)

NODE_CLASSES = ("edge", "hpc", "cloud")
TTL_S_MIN, TTL_S_MAX = 60, 7 * 86400


@dataclass(slots=True)
class NodesService(nodes_pb2_grpc.NodesServicer):
    """Serves operators."""

    database: Database
    authority: Authority
    identities: Identities
    sessions: Sessions
    enrollment_address: str

    async def CreateToken(
        self, request: nodes_pb2.CreateTokenRequest, context: Context
    ) -> nodes_pb2.CreateTokenResponse:
        """See nodes.proto."""
        check_name(request.node)
        if request.node_class not in NODE_CLASSES:
            raise Malformed("CLASS_INVALID", f"a node's class is one of {', '.join(NODE_CLASSES)}")
        if not TTL_S_MIN <= request.ttl_s <= TTL_S_MAX:
            raise Malformed(
                "TTL_INVALID", f"a token lives {TTL_S_MIN} to {TTL_S_MAX} s, not {request.ttl_s}"
            )
        token = JoinToken(self.enrollment_address, new_secret(), self.authority.root_der)
        now_s = time.time()
        expires_at_s = now_s + request.ttl_s

        def work(connection: Connection) -> None:
            people.invite(
                connection,
                request.node,
                request.node_class,
                token.secret_hash(),
                spiffe_id=str(SpiffeId(self.authority.trust_domain, "node", request.node)),
                now_s=now_s,
                expires_at_s=expires_at_s,
            )

        await self.database.write(work)
        log.info("token_made", node=request.node, user=caller().name)
        return nodes_pb2.CreateTokenResponse(token=token.encode(), expires_at=expires_at_s)

    async def ListNodes(
        self, request: nodes_pb2.ListNodesRequest, context: Context
    ) -> nodes_pb2.ListNodesResponse:
        """See nodes.proto."""
        records = await self.database.read(people.all_nodes)
        return nodes_pb2.ListNodesResponse(nodes=[self._view(record) for record in records])

    async def GetNode(
        self, request: nodes_pb2.GetNodeRequest, context: Context
    ) -> nodes_pb2.GetNodeResponse:
        """See nodes.proto."""
        record = await self.database.read(lambda connection: people.node(connection, request.node))
        return nodes_pb2.GetNodeResponse(node=self._view(record))

    async def DisableNode(
        self, request: nodes_pb2.DisableNodeRequest, context: Context
    ) -> nodes_pb2.DisableNodeResponse:
        """See nodes.proto."""
        record = await self._set_status(request.node, "disabled")
        return nodes_pb2.DisableNodeResponse(node=self._view(record))

    async def EnableNode(
        self, request: nodes_pb2.EnableNodeRequest, context: Context
    ) -> nodes_pb2.EnableNodeResponse:
        """See nodes.proto."""
        record = await self._set_status(request.node, "enrolled")
        return nodes_pb2.EnableNodeResponse(node=self._view(record))

    async def _set_status(self, node: str, status: str) -> people.NodeRecord:
        """Store, registry and session change together, whether or not the caller waits."""
        user = caller().name
        return await asyncio.shield(asyncio.ensure_future(self._change(node, status, user)))

    async def _change(self, node: str, status: str, user: str) -> people.NodeRecord:
        record = await self.database.write(
            lambda connection: people.set_status(connection, node, status)
        )
        await self.identities.reload()
        if status == "disabled":
            self.sessions.cut(node)
        log.info("node_status", node=node, status=status, user=user)
        return record

    def _view(self, record: people.NodeRecord) -> nodes_pb2.Node:
        return views.node(
            record,
            connected=self.sessions.connected(record.name),
            certificate_expires_at=self.identities.expires_at(record.name),
        )


@dataclass(slots=True)
class BudgetsService(budgets_pb2_grpc.BudgetsServicer):
    """Serves privacy officers."""

    database: Database
    ledger_public_key: bytes

    async def ListAccounts(
        self, request: budgets_pb2.ListAccountsRequest, context: Context
    ) -> budgets_pb2.ListAccountsResponse:
        """See budgets.proto."""
        accounts = await self.database.read(
            lambda connection: views.accounts(connection, request.data_set)
        )
        return budgets_pb2.ListAccountsResponse(accounts=accounts)

    async def ListEntries(
        self, request: budgets_pb2.ListEntriesRequest, context: Context
    ) -> AsyncIterator[budgets_pb2.ListEntriesResponse]:
        """See budgets.proto."""

        def work(connection: Connection) -> list[budgets_pb2.ListEntriesResponse]:
            wanted = views.accounts(connection, request.data_set)
            return [
                budgets_pb2.ListEntriesResponse(entry=entry_to_wire(entry))
                for account in wanted
                for entry in ledger.chain(connection, account.account)
            ]

        for response in await self.database.read(work):
            yield response

    async def ListCheckpoints(
        self, request: budgets_pb2.ListCheckpointsRequest, context: Context
    ) -> budgets_pb2.ListCheckpointsResponse:
        """See budgets.proto."""
        key = self.ledger_public_key
        return await self.database.read(lambda connection: views.checkpoints(connection, key))


@dataclass(slots=True)
class ModelsService(models_pb2_grpc.ModelsServicer):
    """Serves engineers."""

    database: Database

    async def _mine(self, job_id: str | None) -> list[job_store.ModelRecord]:
        found = await self.database.read(lambda connection: job_store.models_of(connection, job_id))
        project = caller().project
        return [m for m in found if m.project == project and m.kind != "initial"]

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        """See models.proto."""
        found = await self._mine(request.job_id or None)
        return models_pb2.ListModelsResponse(models=[views.model(m) for m in found])

    async def GetModel(
        self, request: models_pb2.GetModelRequest, context: Context
    ) -> models_pb2.GetModelResponse:
        """See models.proto."""
        for record in await self._mine(None):
            is_answer = record.kind == "answer" and record.job_id == request.id
            if record.digest == request.id or is_answer:
                return models_pb2.GetModelResponse(model=views.model(record))
        raise NotFound(
            "MODEL_UNKNOWN", f"there is no model {request.id[:80]}; `feddp model list` shows them"
        )
