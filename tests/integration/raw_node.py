"""A node that speaks the protocol by hand, honestly or not. It has a real certificate."""

import json
import queue
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import grpc
import numpy as np
from safetensors.numpy import load_file, save_file

from node_agent.joining.enrol import join
from node_agent.joining.identity import Identity, load_identity
from node_agent.tasks.registry import installed
from privacy.ledger import Statement, sign
from protos import status
from protos.content import digest_of
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import (
    federation_pb2_grpc,
    jobs_pb2_grpc,
    nodes_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from tests.integration.federation import Federation


@contextmanager
def reason_of() -> Iterator[list[str]]:
    """Collects the reason of the one rpc error that the block must raise."""
    found: list[str] = []
    try:
        yield found
    except grpc.RpcError as error:
        found.append(status.from_rpc(error).reason)
    except FeddpError as error:
        found.append(error.reason)
    assert found, "nothing was refused"


class RawNode:
    """One connection of one node."""

    def __init__(self, address: str, identity: Identity) -> None:
        self.identity = identity
        self.channel = grpc.secure_channel(address, identity.credentials())
        self.federation = federation_pb2_grpc.FederationStub(self.channel)
        self.transfer = transfer_pb2_grpc.TransferStub(self.channel)
        self.jobs = jobs_pb2_grpc.JobsStub(self.channel)
        self.nodes = nodes_pb2_grpc.NodesStub(self.channel)
        self._outgoing: queue.Queue[pb.AgentMessage | None] = queue.Queue()
        self._incoming: Iterator[pb.CoordinatorMessage] = iter(())

    @classmethod
    def enrolled(cls, federation: Federation, name: str) -> Self:
        """A node of this name, joined with a fresh token."""
        with federation.client() as client:
            token = client.create_token(name, "edge", 3600).token
        folder = Path(tempfile.mkdtemp(dir=federation.folder)) / name
        join(token, folder)
        return cls(federation.address, load_identity(folder / "identity"))

    def open(self) -> None:
        """Open the session and publish a data set."""
        task_names = [f"{t.name}@{t.content_hash}" for t in installed().values()]
        hello = pb.Hello(
            protocol_version=1,
            agent_version="raw",
            data_sets=[
                pb.DataSet(
                    name="cohort",
                    account="patients",
                    declared_n=60,
                    schema_json="{}",
                    tasks=task_names,
                )
            ],
            accounts=[
                pb.Account(
                    name="patients",
                    filter="gdp",
                    epsilon_limit=10.0,
                    delta=1e-5,
                    epsilon_per_job_max=10.0,
                    noise_multiplier_min=0.1,
                )
            ],
            tasks=[
                pb.Task(
                    name=t.name,
                    content_hash=t.content_hash,
                    config_schema_json=json.dumps(t.config_schema),
                )
                for t in installed().values()
            ],
        )
        self.say(pb.AgentMessage(hello=hello))
        self._incoming = self.federation.Session(iter(self._outgoing.get, None))
        assert next(self._incoming).HasField("welcome")

    def say(self, message: pb.AgentMessage) -> None:
        """Send a message in the session."""
        self._outgoing.put(message)

    def next(self, kind: str) -> pb.CoordinatorMessage:
        """The next message of a kind."""
        for message in self._incoming:
            if message.WhichOneof("message") == kind:
                return message
        raise AssertionError(f"the stream ended before {kind}")

    def cut(self) -> str:
        """The reason with which the coordinator ends the session; it must, in 30 s."""
        too_late = threading.Timer(30, self.channel.close)
        too_late.start()
        try:
            with reason_of() as reasons:
                self.next("drain")  # never comes
        finally:
            too_late.cancel()
        return reasons[0]

    def order(self) -> pb.WorkOrder:
        """Wait for an order and accept it."""
        order = self.next("work_order").work_order
        accepted = pb.OrderAccepted(
            attempt_id=order.attempt_id, reserve_signature=self.signed(order, "reserve")
        )
        self.say(pb.AgentMessage(order_accepted=accepted))
        return order

    def signed(self, order: pb.WorkOrder, kind: str) -> bytes:
        """The node's signature over an order's statement."""
        release = order.release
        has_noise = release.HasField("noise_multiplier")
        statement = Statement(
            kind,  # type: ignore[arg-type]
            order.attempt_id,
            order.project,
            self.identity.node,
            f"{self.identity.node}/{order.account}",
            order.data_set,
            order.job_id,
            order.round,
            release.unit,
            release.declared_n,
            release.mechanism,  # type: ignore[arg-type]
            release.noise_multiplier if has_noise else None,
            release.sample_rate,
            release.steps,
        )
        return sign(self.identity.ledger_key, statement)

    def model(self, order: pb.WorkOrder) -> dict[str, np.ndarray]:
        """The order's base model."""
        request = transfer_pb2.DownloadRequest(digest=order.base_model_digest)
        data = b"".join(r.data for r in self.transfer.Download(request))
        assert digest_of(data) == order.base_model_digest
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            return load_file(file.name)

    def upload(self, attempt_id: str, data: bytes, **header: object) -> str:
        """Upload bytes in one call; `header` lies where a test wants it to."""
        digest = digest_of(data)
        fields = {"attempt_id": attempt_id, "digest": digest, "size": len(data), "offset": 0}
        lied = transfer_pb2.UploadHeader(**{**fields, **header})  # type: ignore[arg-type]
        requests = [transfer_pb2.UploadRequest(header=lied, data=data)]
        answer = self.transfer.Upload(iter(requests))
        assert answer.complete
        return digest

    def submit(self, order: pb.WorkOrder, digest: str) -> None:
        """Hand in an uploaded update."""
        self.federation.SubmitUpdate(
            pb.SubmitUpdateRequest(
                attempt_id=order.attempt_id,
                digest=digest,
                post_signature=self.signed(order, "post"),
            )
        )

    def submit_inline(self, order: pb.WorkOrder, data: bytes, digest: str = "") -> None:
        """Hand in an update whose bytes come with it."""
        self.federation.SubmitUpdate(
            pb.SubmitUpdateRequest(
                attempt_id=order.attempt_id,
                digest=digest or digest_of(data),
                post_signature=self.signed(order, "post"),
                data=data,
            )
        )

    def train(self, order: pb.WorkOrder, value: float = 0.001) -> None:
        """An honest round: a small constant update."""
        self.submit(order, self.upload(order.attempt_id, update_bytes(self.model(order), value)))

    def close(self) -> None:
        """End the connection."""
        self._outgoing.put(None)
        self.channel.close()


def update_bytes(model: dict[str, np.ndarray], value: float) -> bytes:
    """A delta of the model's shapes with one value everywhere."""
    with tempfile.NamedTemporaryFile() as file:
        delta = {n: np.full_like(v, value, dtype=np.float32) for n, v in model.items()}
        save_file(delta, file.name)
        return Path(file.name).read_bytes()
