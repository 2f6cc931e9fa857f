"""A node reads the coordinator's chain, over real gRPC; an end may die at it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import grpc
import pytest

from coordinator.observing.metrics import Metrics
from coordinator.rpc import witness as witness_rpc
from node_agent.session.ledger_thread import LedgerThread
from node_agent.session.witness import Witness
from privacy.ledger import Statement
from protos.feddp.v1 import witness_pb2_grpc
from tests.histories.node import FILTER, Node
from tests.histories.world import World
from tests.integration.test_witness import OpenGate

Cut = Literal["", "handin", "done", "read"]
"""Where the call breaks: after the coordinator has taken over entries, or the last of them, before
the node heard so; before the node has read; nowhere."""


def look(world: World, node: Node, greet: Callable[[World, Node], None], cut: Cut = "") -> None:
    """What the node does when a session begins.

    Args:
        greet: how its live attempts end once the coordinator has said what it holds of them.
    """
    before = node.booked()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(witness_rpc, "caller", type("Caller", (), {"node": node.name}))
        asyncio.run(_look(world, node, greet, cut))
    for entry in node.state.ledger.entries():
        said = entry.statement
        if (
            isinstance(said, Statement)
            and said.kind == "post"
            and (said.attempt_id, said.kind) not in before
        ):
            node.keep_post(said)
    for said, signature in world.said_there(node):
        if said.kind == "void" and signature:
            node.voids.add(said.attempt_id)
    world.say(f"{node.name} looks{f', cut at {cut}' if cut else ''}")


async def _look(world: World, node: Node, greet: Callable[[World, Node], None], cut: Cut) -> None:
    server = grpc.aio.server(interceptors=[OpenGate(None, Metrics())])
    service = _service(cut)(world.database, world.key)
    witness_pb2_grpc.add_WitnessServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    thread = LedgerThread()

    async def met(meeting: Any) -> None:
        await thread.run(greet, world, node)

    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            witness = Witness(channel, node.state, thread, lambda _: FILTER, lambda: 1.0, met=met)
            with suppress(grpc.RpcError):
                await witness.look()
    finally:
        await server.stop(None)
        thread.close()


def _service(cut: Cut) -> type[witness_rpc.WitnessService]:
    """The coordinator's own, which dies where it is told to."""

    class Dying(witness_rpc.WitnessService):
        async def HandIn(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
            answer = await super().HandIn(request, context)
            if cut == ("done" if request.done else "handin"):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
            return answer

        async def ReadEntries(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
            if cut == "read":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
            async for one in super().ReadEntries(request, context):
                yield one

    return Dying
