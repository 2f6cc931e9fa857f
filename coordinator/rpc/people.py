"""Nodes, Budgets and Models: what people look at and operators change."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from certs.authority import Authority
from certs.enrolment import spoken
from certs.spiffe import SpiffeId, check_name
from certs.tokens import JoinToken, new_secret
from coordinator import views
from coordinator.identities import Identities
from coordinator.rpc.gate import Context, caller
from coordinator.rpc.users import check_ttl
from coordinator.sessions import Sessions
from coordinator.store import certificates, joins, ledger, people
from coordinator.store import jobs as job_store
from coordinator.store.database import Database
from privacy.wire import entry_to_wire
from protos.errors import Malformed, NotFound, WrongPhase
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


@dataclass(slots=True)
class NodesService(nodes_pb2_grpc.NodesServicer):
    """Serves operators."""

    database: Database
    authority: Authority
    identities: Identities
    sessions: Sessions
    enrollment_address: str
    approve_joins: bool = False

    async def CreateToken(
        self, request: nodes_pb2.CreateTokenRequest, context: Context
    ) -> nodes_pb2.CreateTokenResponse:
        """See nodes.proto."""
        check_name(request.node)
        if request.node_class not in NODE_CLASSES:
            raise Malformed("CLASS_INVALID", f"a node's class is one of {', '.join(NODE_CLASSES)}")
        check_ttl(request.ttl_s)
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
                approval=request.approval or self.approve_joins,
                rejoin=request.rejoin,
            )

        await self.database.write(work)
        log.info("token_made", node=request.node, user=caller().name)
        return nodes_pb2.CreateTokenResponse(
            token=token.encode(), expires_at=expires_at_s, root_fingerprint=token.fingerprint
        )

    async def ListNodes(
        self, request: nodes_pb2.ListNodesRequest, context: Context
    ) -> nodes_pb2.ListNodesResponse:
        """See nodes.proto."""
        records, waiting = await self.database.read(_nodes)
        views = [self._view(record, waiting.get(record.name)) for record in records]
        return nodes_pb2.ListNodesResponse(nodes=views)

    async def GetNode(
        self, request: nodes_pb2.GetNodeRequest, context: Context
    ) -> nodes_pb2.GetNodeResponse:
        """See nodes.proto."""
        return nodes_pb2.GetNodeResponse(node=await self._node(request.node))

    async def DisableNode(
        self, request: nodes_pb2.DisableNodeRequest, context: Context
    ) -> nodes_pb2.DisableNodeResponse:
        """See nodes.proto."""
        node = await self._set_status(request.node, "disabled")
        return nodes_pb2.DisableNodeResponse(node=node)

    async def EnableNode(
        self, request: nodes_pb2.EnableNodeRequest, context: Context
    ) -> nodes_pb2.EnableNodeResponse:
        """See nodes.proto."""
        node = await self._set_status(request.node, "enrolled", self._check_not_revoked)
        return nodes_pb2.EnableNodeResponse(node=node)

    async def ApproveJoin(
        self, request: nodes_pb2.ApproveJoinRequest, context: Context
    ) -> nodes_pb2.ApproveJoinResponse:
        """See nodes.proto."""
        user = caller().name

        def work(connection: Connection) -> joins.WaitingJoin:
            return joins.approve(connection, request.node, request.key, request.steward, user)

        join = await self.database.write(work)
        log.warning(
            "join_approved",
            node=join.node,
            key=spoken(join.key_digest),
            user=user,
            steward=request.steward,
        )
        return nodes_pb2.ApproveJoinResponse(node=await self._node(request.node))

    async def RejectJoin(
        self, request: nodes_pb2.RejectJoinRequest, context: Context
    ) -> nodes_pb2.RejectJoinResponse:
        """See nodes.proto."""
        user = caller().name
        join = await self.database.write(lambda c: joins.reject(c, request.node, user))
        log.warning("join_rejected", node=join.node, key=spoken(join.key_digest), user=user)
        return nodes_pb2.RejectJoinResponse(node=await self._node(request.node))

    async def ReleaseNode(
        self, request: nodes_pb2.ReleaseNodeRequest, context: Context
    ) -> nodes_pb2.ReleaseNodeResponse:
        """See nodes.proto."""
        work = functools.partial(joins.release, node=request.node)
        await self._changed(request.node, "released", work, cut=False)
        return nodes_pb2.ReleaseNodeResponse(node=await self._node(request.node))

    async def RevokeNode(
        self, request: nodes_pb2.RevokeNodeRequest, context: Context
    ) -> nodes_pb2.RevokeNodeResponse:
        """See nodes.proto."""

        def work(connection: Connection) -> None:
            identity = SpiffeId(self.authority.trust_domain, "node", request.node)
            people.node(connection, request.node)
            # First the tokens: one that is redeemed at this moment has its certificate by the time
            # that all of them are revoked.
            people.void_tokens(connection, request.node)
            certificates.revoke(connection, identity)

        check_name(request.node)
        await self._changed(request.node, "revoked", work, cut=True)
        return nodes_pb2.RevokeNodeResponse(node=await self._node(request.node))

    def _check_not_revoked(self, connection: Connection, node: str) -> None:
        """A node that is disabled as well is enabled first: only then may it have a new token."""
        record = people.node(connection, node)
        identity = SpiffeId(self.authority.trust_domain, "node", node)
        revoked = certificates.revoked_identities(connection)
        if record.status != "disabled" and str(identity) in revoked:
            raise WrongPhase(
                "NODE_REVOKED",
                f"the certificates of node {node} were revoked for good, which enabling does not "
                f"undo; `feddp node token {node}` makes a token to join again with, in the same "
                "folder and with its steward's confirmation",
            )

    async def _set_status(
        self,
        node: str,
        status: str,
        check: Callable[[Connection, str], None] = lambda _connection, _node: None,
    ) -> nodes_pb2.Node:
        def work(connection: Connection) -> None:
            check(connection, node)
            people.set_status(connection, node, status)

        await self._changed(node, status, work, cut=status == "disabled")
        return await self._node(node)

    async def _changed(
        self, node: str, what: str, work: Callable[[Connection], None], *, cut: bool
    ) -> None:
        """Store, registry and session change together, whether or not the caller waits."""
        change = self._change(node, what, caller().name, work, cut=cut)
        await asyncio.shield(asyncio.ensure_future(change))

    async def _change(
        self, node: str, what: str, user: str, work: Callable[[Connection], None], *, cut: bool
    ) -> None:
        await self.database.write(work)
        await self.identities.reload()
        if cut:
            self.sessions.cut(node)
        log.info("node_status", node=node, status=what, user=user)

    async def _node(self, name: str) -> nodes_pb2.Node:
        def work(connection: Connection) -> tuple[people.NodeRecord, joins.WaitingJoin | None]:
            return people.node(connection, name), joins.waiting(connection).get(name)

        return self._view(*await self.database.read(work))

    def _view(self, record: people.NodeRecord, waiting: joins.WaitingJoin | None) -> nodes_pb2.Node:
        return views.node(
            record,
            waiting,
            connected=self.sessions.connected(record.name),
            certificate_expires_at=self.identities.expires_at(record.name),
            quarantine=self.identities.quarantine_of(record.name),
            revoked=self.identities.is_revoked(record.name),
            second_agent_at=self.sessions.second_at_s(record.name),
        )


def _nodes(
    connection: Connection,
) -> tuple[list[people.NodeRecord], dict[str, joins.WaitingJoin]]:
    return people.all_nodes(connection), joins.waiting(connection)


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
        who = caller()
        return [m for m in found if who.sees(m.project) and m.kind != "initial"]

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
        found = await self._mine(None)
        for record in found:
            is_answer = record.kind == "answer" and record.job_id == request.id
            if record.digest == request.id or is_answer:
                return models_pb2.GetModelResponse(model=views.model(record))
        if any(record.job_id == request.id for record in found):
            raise NotFound(
                "MODEL_UNKNOWN",
                f"job {request.id} has no answer, only models of its rounds; `feddp model list "
                f"--job {request.id}` shows them",
            )
        raise NotFound(
            "MODEL_UNKNOWN", f"there is no model {request.id[:80]}; `feddp model list` shows them"
        )
