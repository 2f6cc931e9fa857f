"""Nodes without an agent: real certificates, connections, sessions and signatures; made-up updates.

Many in one process, so that a machine can hold more of them than of agents. Each line on stdin is a
question; see `main`.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import numpy as np

from node_agent.connection.channels import OPTIONS
from node_agent.joining.identity import Identity, load_identity
from node_agent.tasks.null import SPREAD
from node_agent.tasks.null_config import TENSOR
from node_agent.tasks.registry import NULL, installed
from privacy.ledger import Statement, sign
from protos.content import digest_of
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import federation_pb2_grpc
from protos.tensors import make_header

HEARTBEAT_S: Final = 5.0
CONNECTING_MAX: Final = 16
"""At once: as many as an arriving crowd with jitter."""


@dataclass(slots=True)
class FleetNode:
    """One node's session; it takes every order and answers it at once."""

    address: str
    identity: Identity
    welcomed: asyncio.Event = field(default_factory=asyncio.Event)
    _outgoing: "asyncio.Queue[pb.AgentMessage]" = field(default_factory=asyncio.Queue)

    async def run(self, entering: asyncio.Semaphore) -> None:
        """Stay connected; raises when the session ends."""
        async with grpc.aio.secure_channel(
            self.address, self.identity.credentials(), options=OPTIONS
        ) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            async with entering:
                await self._outgoing.put(pb.AgentMessage(hello=_hello()))
                session = stub.Session(self._messages())
                incoming = aiter(session)
                await anext(incoming)
                self.welcomed.set()
            async for message in incoming:
                if message.HasField("work_order"):
                    await self._work(stub, message.work_order)

    async def _messages(self) -> AsyncIterator[pb.AgentMessage]:
        while True:
            try:
                yield await asyncio.wait_for(self._outgoing.get(), HEARTBEAT_S)
            except TimeoutError:
                yield pb.AgentMessage(heartbeat=pb.Heartbeat())

    async def _work(
        self, stub: "federation_pb2_grpc.FederationAsyncStub", order: pb.WorkOrder
    ) -> None:
        """Training that takes no time; the update comes with its message, as small ones do."""
        signatures = [self._signed(order, "reserve"), self._signed(order, "post")]
        update = update_of(order)
        await stub.SubmitUpdate(
            pb.SubmitUpdateRequest(
                attempt_id=order.attempt_id,
                digest=digest_of(update),
                data=update,
                reserve_signature=signatures[0],
                post_signature=signatures[1],
            )
        )

    def _signed(self, order: pb.WorkOrder, kind: str) -> bytes:
        release, node = order.release, self.identity.node
        statement = Statement(
            kind=kind,  # type: ignore[arg-type]
            attempt_id=order.attempt_id,
            project=order.project,
            node=node,
            account=f"{node}/{order.account}",
            dataset=order.data_set,
            job_id=order.job_id,
            round=order.round,
            unit=release.unit,
            declared_n=release.declared_n,
            mechanism=release.mechanism,  # type: ignore[arg-type]
            noise_multiplier=(
                release.noise_multiplier if release.HasField("noise_multiplier") else None
            ),
            sample_rate=release.sample_rate,
            steps=release.steps,
        )
        return sign(self.identity.ledger_key, statement)


def update_of(order: pb.WorkOrder) -> bytes:
    """Small normal values, each time others, as the null task's."""
    count = json.loads(order.task_config_json)["parameters"]
    values = np.random.default_rng().standard_normal(count, np.float32) * SPREAD
    header: bytes = make_header([(TENSOR, "F32", (count,))])
    return header + bytes(values)


def _hello() -> pb.Hello:
    task = installed()[NULL]
    name = f"{task.name}@{task.content_hash}"
    return pb.Hello(
        protocol_version=1,
        agent_version="fleet",
        data_sets=[
            pb.DataSet(
                name="none", account="patients", declared_n=1, schema_json="{}", tasks=[name]
            )
        ],
        accounts=[
            pb.Account(
                name="patients",
                filter="gdp",
                epsilon_limit=1.0,
                delta=1e-5,
                epsilon_per_job_max=1.0,
                noise_multiplier_min=1.0,
            )
        ],
        tasks=[
            pb.Task(
                name=task.name,
                content_hash=task.content_hash,
                config_schema_json=json.dumps(task.config_schema),
            )
        ],
        instance_id=os.urandom(8).hex(),
    )


async def _run(address: str, folders: list[Path]) -> None:
    nodes = [FleetNode(address, load_identity(one / "identity")) for one in folders]
    entering = asyncio.Semaphore(CONNECTING_MAX)
    began_s = time.monotonic()
    running = [asyncio.create_task(node.run(entering)) for node in nodes]
    ready = asyncio.gather(*(node.welcomed.wait() for node in nodes))
    ready.add_done_callback(lambda _: print(f"{time.monotonic() - began_s}", flush=True))
    await asyncio.gather(*running)


def main() -> None:
    """`python -m benchmarks.fleet_node ADDRESS FOLDER ...`: prints the seconds until all are in."""
    asyncio.run(_run(sys.argv[1], [Path(one) for one in sys.argv[2:]]))


if __name__ == "__main__":
    main()
