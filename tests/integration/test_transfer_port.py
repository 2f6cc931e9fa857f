"""Bytes past the leader: replicas that do not lead serve models and take updates."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from benchmarks.postgresql import PostgreSql
from benchmarks.s3_server import S3Server
from feddp.demo.ports import free_ports
from node_agent.joining.identity import load_identity
from protos.content import digest_of
from protos.feddp.v1 import nodes_pb2, transfer_pb2
from tests.integration.federation import NODES, null_job, wait_for
from tests.integration.raw_node import RawNode, reason_of, update_bytes
from tests.integration.replicas import REPLICAS, ReplicatedFederation
from tests.integration.test_failures import check_books, per_round, rounds_done
from tests.integration.transfer_relay import Relay

PARAMETERS = 1_000_000
MODEL_BYTES = 4 * PARAMETERS
SMALL = 200_000
"""Too large to come with an order, small enough for one message."""


class TransferringFederation(ReplicatedFederation):
    """Nodes are told one address for bytes; a relay behind it dials whom the test says."""

    def __init__(self, folder: Path, database_url: str, s3: S3Server) -> None:
        super().__init__(folder, database_url, s3)
        self.relay = Relay()
        self.transfer_ports: dict[str, int] = {}
        for name in REPLICAS:
            (self.transfer_ports[name],) = free_ports(1)
            self.environment[name] |= {
                "FEDDP_SERVER__TRANSFER_PORT": str(self.transfer_ports[name]),
                "FEDDP_SERVER__TRANSFER_ADDRESS": f"127.0.0.1:{self.relay.port}",
            }

    def followers(self) -> list[str]:
        """Replicas that run and do not lead."""
        return [name for name in REPLICAS if self.is_running(name) and not self.leads(name)]

    def past_the_leader(self, *names: str) -> None:
        """Have bytes go to these replicas, to the first that answers; none: to nobody."""
        self.relay.targets = [self.transfer_ports[name] for name in names]

    def close(self) -> None:
        """End everything."""
        super().close()
        self.relay.close()


@pytest.fixture
def replicas(
    postgresql_server: PostgreSql, s3: S3Server, tmp_path: Path
) -> Iterator[TransferringFederation]:
    """Three replicas without nodes; bytes go to the two that do not lead."""
    federation = TransferringFederation(tmp_path, postgresql_server.new_database(), s3)
    try:
        federation.open()
        federation.past_the_leader(*federation.followers())
        yield federation
    finally:
        federation.close()


@pytest.fixture
def federation(replicas: TransferringFederation) -> TransferringFederation:
    """The same with three nodes."""
    for name in NODES[:3]:
        replicas.add_node(name)
        replicas.start(name)
    replicas.wait_for_nodes(*NODES[:3])
    return replicas


def ends_well(federation: TransferringFederation, job_id: str, rounds: int) -> None:
    """The job is completed, and no node trained or was charged twice for a round."""
    job = federation.wait_for_end(job_id)
    assert (job.status, job.rounds_done) == ("completed", rounds), job.message
    check_books(federation, job)
    assert set(per_round(federation).values()) == {1}


def test_no_byte_of_a_node_passes_the_leader(
    federation: TransferringFederation, s3: S3Server
) -> None:
    """Three rounds of three nodes: the leader has taken the engineer's first model and moved
    nothing else; the others have sent every model, looked through every update and averaged them,
    and updates have left the store and their folders. The leader has no model but
    the first, which it was sent."""
    job_id = federation.submit(null_job(3, parameters=PARAMETERS))
    ends_well(federation, job_id, 3)
    sent, received = federation.moved(federation.leader())
    assert (sent, received // MODEL_BYTES, received % MODEL_BYTES < 1024) == (0, 1, True)
    moved = [federation.moved(name) for name in federation.followers()]
    # The first model is all zeros and goes out compressed; the two that follow do not get smaller.
    assert sum(sent for sent, _ in moved) >= 6 * MODEL_BYTES
    assert sum(received for _, received in moved) >= 9 * MODEL_BYTES
    leader = federation.leader()
    averaged = [federation.log(name).count('"average_made"') for name in federation.followers()]
    assert sum(averaged) == 4
    assert "average_not_shared" not in federation.log(leader)
    blobs = federation.folder / leader / "blobs"
    assert len([path for path in blobs.iterdir() if path.is_file()]) == 1
    for name in NODES[:3]:
        assert federation.log(name).count("transfer_address_used") == 1
        assert "transfer_address_left" not in federation.log(name)
    assert not [name for name in s3.names(federation.bucket) if name.startswith("updates/")]
    for name in federation.followers():
        blobs = federation.folder / name / "blobs"
        wait_for("its folder is tidied", lambda at=blobs: kept_in(at) == [], 40)  # type: ignore[misc]


def kept_in(blobs: Path) -> list[str]:
    """Updates, and beginnings of some, that a replica's folder holds."""
    return [str(path) for part in ("updates", "partial") for path in (blobs / part).iterdir()]


@pytest.mark.parametrize("way", ["sent", "answered"])
def test_a_replica_that_is_killed_in_the_middle_of_a_transfer_costs_no_round(
    federation: TransferringFederation, way: str
) -> None:
    """kill -9 while updates go up, or models come down: whoever was in the middle turns to the
    leader at once, and to the other replica when it has rested; nothing is trained or charged
    twice."""
    first, second = federation.followers()
    killed: list[str] = []

    def kill() -> None:
        killed.append(first)
        federation.kill(first)
        federation.relay.cut()  # what the kernel still holds of it would end a call as if it lived

    federation.past_the_leader(first, second)
    job_id = federation.submit(null_job(6, parameters=PARAMETERS))
    rounds_done(federation, job_id, 1)
    federation.relay.once(way, MODEL_BYTES // 2, kill)
    ends_well(federation, job_id, 6)
    assert killed
    assert any("transfer_address_left" in federation.log(name) for name in NODES[:3])


def test_the_leader_may_be_killed_while_bytes_go_past_it(
    federation: TransferringFederation,
) -> None:
    """kill -9 of the leader in the middle of an upload to another: what that one has taken whole is
    not sent again, and the job ends under the next leader."""
    leader = federation.leader()
    job_id = federation.submit(null_job(6, parameters=PARAMETERS))
    rounds_done(federation, job_id, 1)
    federation.relay.once("sent", MODEL_BYTES // 2, lambda: federation.kill(leader))
    wait_for("the leader is killed", lambda: not federation.is_running(leader))
    ends_well(federation, job_id, 6)
    assert federation.relay.sent < 6 * 3 * MODEL_BYTES * 1.2


def test_nodes_that_do_not_reach_it_use_the_connection_that_they_have(
    federation: TransferringFederation,
) -> None:
    """A hospital whose firewall is closed to the address says so once, and works as before."""
    federation.past_the_leader()
    federation.relay.cut()
    job_id = federation.submit(null_job(3, parameters=PARAMETERS))
    ends_well(federation, job_id, 3)
    sent, received = federation.moved(federation.leader())
    assert sent >= 6 * MODEL_BYTES
    assert received >= 10 * MODEL_BYTES
    for name in NODES[:3]:
        assert federation.log(name).count("transfer_address_left") == 1


def test_an_agent_that_knows_nothing_of_it_works_as_before(
    replicas: TransferringFederation,
) -> None:
    """Nodes that speak as 0.1.0 did, by hand, move everything over their session's connection."""
    nodes = [RawNode.enrolled(replicas, name) for name in NODES[:3]]
    for node in nodes:
        node.open()
    job_id = replicas.submit(null_job(1, parameters=SMALL))
    for node in nodes:
        node.train(node.order())
    job = replicas.wait_for_end(job_id)
    assert job.status == "completed", job.message
    assert replicas.relay.sent == 0
    for node in nodes:
        node.close()


def test_a_replica_refuses_what_the_leader_refuses(replicas: TransferringFederation) -> None:
    """Another node's attempt, a model that was not ordered, an update that is too large, and one
    that comes after its attempt was closed: with the leader's reasons."""
    mine, other, third = (RawNode.enrolled(replicas, name) for name in NODES[:3])
    port = replicas.transfer_ports[replicas.followers()[0]]
    here, there = (RawNode(f"127.0.0.1:{port}", node.identity) for node in (mine, other))
    for node in (mine, other, third):
        node.open()
    job_id = replicas.submit(null_job(1, parameters=SMALL))
    order, others = mine.order(), other.order()
    update = update_bytes(here.model(order), 0.001)
    for attempt_id, changes, reason in (
        (others.attempt_id, {}, "ATTEMPT_UNKNOWN"),
        ("0" * 32, {}, "ATTEMPT_UNKNOWN"),
        ("", {}, "NOT_ALLOWED"),
        (order.attempt_id, {"size": len(update) + (1 << 20)}, "TOO_LARGE"),
    ):
        for node in (here, mine):
            with reason_of() as reasons:
                node.upload(attempt_id, update, **changes)
            assert reasons == [reason]
    for node in (here, mine):
        with reason_of() as reasons:
            list(node.transfer.Download(transfer_pb2.DownloadRequest(digest="0" * 64)))
        assert reasons == ["NOT_ALLOWED"]
        with reason_of() as reasons:
            node.nodes.ListNodes(nodes_pb2.ListNodesRequest())
        assert reasons == (["ROLE_REQUIRED"] if node is mine else ["UNIMPLEMENTED"])
    digest = here.upload(order.attempt_id, update)
    mine.submit(order, digest)
    assert here.upload(order.attempt_id, update) == digest, "again: the same answer"
    with replicas.client() as client:
        client.cancel(job_id)
    with reason_of() as reasons:
        there.upload(others.attempt_id, update)
    assert reasons == ["ATTEMPT_CLOSED"]
    for node in (mine, other, third, here, there):
        node.close()


def test_an_update_that_a_replica_finds_wrong_is_refused_by_the_leader(
    replicas: TransferringFederation,
) -> None:
    """It holds a value that is no number: with the reason of the leader's own look, and the next
    try counts. The leader has fetched neither."""
    nodes = [RawNode.enrolled(replicas, name) for name in NODES[:3]]
    port = replicas.transfer_ports[replicas.followers()[0]]
    for node in nodes:
        node.open()
    job_id = replicas.submit(null_job(1, parameters=SMALL))

    def hand_in(node: RawNode, value: float) -> None:
        order = node.order()
        there = RawNode(f"127.0.0.1:{port}", node.identity)
        digest = there.upload(order.attempt_id, update_bytes(there.model(order), value))
        there.close()
        node.submit(order, digest)

    with reason_of() as reasons:
        hand_in(nodes[0], float("nan"))
    assert reasons == ["UPDATE_INVALID"]
    leader = replicas.folder / replicas.leader() / "blobs" / "updates"
    for node in nodes:
        assert list(leader.iterdir()) == []
        hand_in(node, 0.001)
    job = replicas.wait_for_end(job_id)
    assert job.status == "completed", job.message
    for node in nodes:
        node.close()


def test_a_node_that_is_shut_out_is_cut_and_refused_at_a_replica_within_five_seconds(
    replicas: TransferringFederation,
) -> None:
    """An upload to a replica that does not lead is under way when the operator revokes the node at
    the leader: it is cut, and what comes after is refused, with the leader's reason."""
    node, *others = (RawNode.enrolled(replicas, name) for name in NODES[:3])
    port = replicas.transfer_ports[replicas.followers()[0]]
    there = RawNode(f"127.0.0.1:{port}", node.identity)
    for one in (node, *others):
        one.open()
    replicas.submit(null_job(1, parameters=SMALL))
    order = node.order()
    data = b"x" * (1 << 16)
    enough = threading.Event()

    def slowly() -> Iterator[transfer_pb2.UploadRequest]:
        header = transfer_pb2.UploadHeader(
            attempt_id=order.attempt_id, digest=digest_of(data), size=len(data)
        )
        yield transfer_pb2.UploadRequest(header=header)
        enough.wait(20)

    under_way = there.transfer.Upload.future(slowly())
    asked = transfer_pb2.UploadStatusRequest(attempt_id=order.attempt_id, digest=digest_of(data))
    assert not there.transfer.UploadStatus(asked).complete
    with replicas.client() as client:
        client.revoke(node.identity.node)
    began_s = time.monotonic()
    with reason_of() as reasons:
        under_way.result(timeout=8)
    assert time.monotonic() - began_s < 5
    assert reasons == ["CERTIFICATE_REVOKED"]
    with reason_of() as reasons:
        there.transfer.UploadStatus(asked)
    assert reasons == ["CERTIFICATE_REVOKED"]
    enough.set()
    for one in (node, *others, there):
        one.close()


def test_a_replica_that_has_lost_the_database_lets_nobody_in(
    federation: TransferringFederation,
) -> None:
    """Within 5 s, as it could not know who was shut out meanwhile; the nodes turn to the leader,
    and the job ends."""
    settings = yaml.safe_load(federation.installation.config.read_text())
    url = urlsplit(settings["storage"]["database_url"])
    assert url.port is not None
    database = Relay()
    database.targets = [url.port]
    cut_off = federation.followers()[0]
    federation.kill(cut_off)
    through = url._replace(netloc=url.netloc.replace(f":{url.port}", f":{database.port}"))
    federation.environment[cut_off]["FEDDP_STORAGE__DATABASE_URL"] = through.geturl()
    federation.start(cut_off)
    federation.past_the_leader(cut_off)
    federation.relay.cut()
    identity = load_identity(federation.agent(NODES[0]) / "identity")
    there = RawNode(f"127.0.0.1:{federation.transfer_ports[cut_off]}", identity)

    def answer() -> str:
        with reason_of() as reasons:
            there.transfer.UploadStatus(
                transfer_pb2.UploadStatusRequest(attempt_id="x", digest="0" * 64)
            )
        return reasons[0]

    wait_for("it serves", lambda: answer() == "ATTEMPT_UNKNOWN")
    job_id = federation.submit(null_job(8, parameters=PARAMETERS))
    wait_for("bytes go there", lambda: federation.moved(cut_off)[1] > 0)
    database.targets = []
    database.cut()
    wait_for("it lets nobody in", lambda: answer() == "REGISTRY_UNREAD", 5)
    ends_well(federation, job_id, 8)
    assert "leader_not_followed" in federation.log(cut_off)
    there.close()
    database.close()


def test_a_replica_without_its_store_leaves_the_bytes_to_nobody_and_the_round_waits(
    federation: TransferringFederation, s3: S3Server
) -> None:
    """While the store hangs nothing is acknowledged, at a replica no more than at the leader; then
    the job goes on by itself."""
    job_id = federation.submit(null_job(5, parameters=PARAMETERS))
    rounds_done(federation, job_id, 1)
    s3.pause()
    try:
        wait_for(
            "a replica says so",
            lambda: any("store_unreachable" in federation.log(one) for one in REPLICAS),
        )
        assert federation.job(job_id).rounds_done < 5
    finally:
        s3.wake()
    ends_well(federation, job_id, 5)
