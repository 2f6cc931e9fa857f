"""Bad input and bad actors: each is refused with its own reason, and nothing is half done."""

import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import Authority
from certs.credentials import channel_credentials
from certs.enrolment import new_key, private_pem
from certs.spiffe import SpiffeId
from certs.tokens import JoinToken, new_secret
from coordinator.installation import init
from node_agent.tasks.registry import initial_model, installed
from protos.content import INLINE_BYTES, digest_of
from protos.feddp.v1 import (
    enrollment_pb2,
    enrollment_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    nodes_pb2,
    nodes_pb2_grpc,
    transfer_pb2,
)
from protos.feddp.v1 import federation_pb2 as pb
from tests.integration.federation import (
    NODES,
    Federation,
    job_file,
    null_job,
    run_cli,
    wait_for,
    write_data,
)
from tests.integration.raw_node import RawNode, reason_of, update_bytes

THREE = NODES[:3]


def refused(*arguments: str) -> tuple[int, str]:
    """(exit code, error text) of a command that must fail without a traceback."""
    code, _, err = run_cli(*arguments)
    assert code != 0
    assert "Traceback" not in err
    assert err.strip()
    return code, err


def root(federation: Federation) -> str:
    return str(federation.installation.folder)


# Tokens and certificates


def test_a_wrong_token_is_refused_and_leaves_no_identity(
    coordinator: Federation, tmp_path: Path
) -> None:
    """A token that is cut off is found out before anything is sent."""
    with coordinator.client() as client:
        token = client.create_token("alpha", "edge", 3600).token
    for wrong in ("nonsense", token[:-5]):
        code, err = refused("agent", "join", wrong, "--dir", str(tmp_path / "x"))
        assert (code, "token" in err) == (2, True)
        assert not (tmp_path / "x/identity").exists()


def test_a_used_token_admits_no_second_machine(coordinator: Federation, tmp_path: Path) -> None:
    """The first machine keeps its place; the second is told to ask for a new token."""
    with coordinator.client() as client:
        token = client.create_token("alpha", "edge", 3600).token
    assert run_cli("agent", "join", token, "--dir", str(tmp_path / "a"))[0] == 0
    code, err = refused("agent", "join", token, "--dir", str(tmp_path / "b"))
    assert (code, "used already" in err) == (3, True)
    assert not (tmp_path / "b/identity/node.crt").exists()


def test_an_expired_token_is_refused(coordinator: Federation, tmp_path: Path) -> None:
    """The error says that it has expired and how to get a new one."""
    with coordinator.client() as client:
        token = client.create_token("alpha", "edge", 3600).token
    with coordinator.database() as database:
        database.execute("UPDATE tokens SET expires_at = 1")
    code, err = refused("agent", "join", token, "--dir", str(tmp_path / "a"))
    assert (code, "expired" in err) == (3, True)


def test_a_token_of_another_coordinator_never_reaches_this_one(
    coordinator: Federation, tmp_path: Path
) -> None:
    """The token pins its own root, so the connection to a stranger fails."""
    other = Authority.create(tmp_path / "other", "other.example")
    with coordinator.client() as client:
        address = JoinToken.parse(client.create_token("alpha", "edge", 3600).token).address
    foreign = JoinToken(address, new_secret(), other.root_der).encode()
    code, _ = refused("agent", "join", foreign, "--dir", str(tmp_path / "a"))
    assert code == 5


def test_a_certificate_of_another_authority_is_refused(
    coordinator: Federation, tmp_path: Path
) -> None:
    """Whoever signed it was not us: the handshake fails."""
    other = Authority.create(tmp_path / "other", "test.example")
    ours = (coordinator.installation.profile / "bundle.pem").read_bytes()
    key = new_key()
    issued = other.issue(
        key.public_key(),
        SpiffeId("test.example", "user", "operator"),
        now=datetime.now(UTC),
        lifetime=timedelta(hours=1),
    )
    assert _list_nodes(coordinator, ours, key, issued.chain_pem) == grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_is_not_registered_is_refused(coordinator: Federation) -> None:
    """Our own authority's signature is not enough: every rpc looks the certificate up."""
    authority = Authority.load(coordinator.installation.folder / "pki")
    key = new_key()
    issued = authority.issue(
        key.public_key(),
        SpiffeId("test.example", "user", "operator"),
        now=datetime.now(UTC),
        lifetime=timedelta(hours=1),
    )
    code = _list_nodes(coordinator, authority.trust_bundle, key, issued.chain_pem)
    assert code == grpc.StatusCode.UNAUTHENTICATED


def _list_nodes(
    federation: Federation, bundle: bytes, key: ec.EllipticCurvePrivateKey, chain: bytes
) -> grpc.StatusCode:
    credentials = channel_credentials(bundle, private_pem(key), chain)
    with (
        grpc.secure_channel(federation.address, credentials) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        nodes_pb2_grpc.NodesStub(channel).ListNodes(nodes_pb2.ListNodesRequest(), timeout=10)
    code: grpc.StatusCode = caught.value.code()
    return code


def test_a_message_larger_than_any_honest_one_is_refused_unread(coordinator: Federation) -> None:
    """A stranger's already at 64 KiB: nobody fills the memory with what will be refused."""
    with coordinator.client() as client:
        token = JoinToken.parse(client.create_token("alpha", "edge", 3600).token)
    root = x509.load_der_x509_certificate(token.root_der).public_bytes(Encoding.PEM)
    join_request = enrollment_pb2.JoinRequest(csr=bytes(100_000))
    with (
        grpc.secure_channel(token.address, grpc.ssl_channel_credentials(root)) as stranger,
        pytest.raises(grpc.RpcError) as caught,
    ):
        enrollment_pb2_grpc.EnrollmentStub(stranger).Join(join_request, timeout=10)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    node = RawNode.enrolled(coordinator, "beta")
    request = pb.SubmitUpdateRequest(attempt_id="none", data=bytes(5 << 20))
    with pytest.raises(grpc.RpcError) as caught:
        node.federation.SubmitUpdate(request, timeout=10)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    node.close()


def test_a_node_cannot_be_named_twice(coordinator: Federation) -> None:
    """A name that has joined gets no second token."""
    coordinator.add_node("alpha")
    code, err = refused("node", "token", "alpha", "--dir", root(coordinator))
    assert (code != 0, "alpha" in err, "already" in err) == (True, True, True)


def test_a_node_whose_certificate_has_ended_joins_again_with_its_own_ledger_key_only(
    coordinator: Federation, tmp_path: Path
) -> None:
    """Its name and budgets stay with its ledger key; another machine cannot take them over."""
    coordinator.add_node("alpha")
    with coordinator.database() as database:
        database.execute("UPDATE certificates SET not_after = 1 WHERE spiffe_id LIKE '%alpha'")
    with coordinator.client() as client:
        token = client.create_token("alpha", "edge", 3600).token
    code, err = refused("agent", "join", token, "--dir", str(tmp_path / "thief"))
    assert (code, "ledger key" in err) == (3, True)
    # Its own folder is only asked to join again once its certificate has ended there too.
    chain = coordinator.agent("alpha") / "identity/node.crt"
    code, err = refused("agent", "join", token, "--dir", str(coordinator.agent("alpha")))
    assert "already" in err
    chain.unlink()
    code, out, err = run_cli("agent", "join", token, "--dir", str(coordinator.agent("alpha")))
    assert code == 0, out + err
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")


def test_a_disabled_node_is_cut_within_five_seconds_and_refused(coordinator: Federation) -> None:
    """Its live stream ends, its calls are refused, and `enable` lets it back in."""
    node = RawNode.enrolled(coordinator, "alpha")
    node.open()
    began_s = time.monotonic()
    with coordinator.client() as client:
        client.disable("alpha")
        with reason_of() as reasons:
            node.next("drain")
        assert time.monotonic() - began_s < 5
        assert reasons == ["NODE_DISABLED"]
        with reason_of() as reasons:
            node.transfer.UploadStatus(transfer_pb2.UploadStatusRequest(digest="0" * 64))
        assert reasons == ["NODE_DISABLED"]
        client.enable("alpha")
    with reason_of() as reasons:
        node.transfer.UploadStatus(transfer_pb2.UploadStatusRequest(digest="0" * 64))
    assert reasons == ["NOT_ALLOWED"]
    node.close()


def test_nodes_may_not_call_what_people_may(coordinator: Federation) -> None:
    """A node cannot make tokens, list nodes or submit jobs."""
    node = RawNode.enrolled(coordinator, "alpha")
    for call, request in (
        (node.nodes.CreateToken, nodes_pb2.CreateTokenRequest(node="x", node_class="edge")),
        (node.nodes.ListNodes, nodes_pb2.ListNodesRequest()),
        (node.jobs.SubmitJob, jobs_pb2.SubmitJobRequest()),
        (node.jobs.ListJobs, jobs_pb2.ListJobsRequest()),
    ):
        with reason_of() as reasons:
            call(request)  # type: ignore[operator]
        assert reasons == ["ROLE_REQUIRED"]
    node.close()


# Installation and ports


def test_a_directory_that_is_initialised_is_not_touched(tmp_path: Path) -> None:
    """A second init is refused and changes no file."""
    init(tmp_path / "c", "test.example")
    before = {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()}
    code, err = refused("coordinator", "init", "--dir", str(tmp_path / "c"))
    assert "already" in err
    assert code != 0
    assert {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()} == before


def test_a_port_in_use_is_named(coordinator: Federation, tmp_path: Path) -> None:
    """A second coordinator on the same ports says which port, and ends with code 2."""
    second = tmp_path / "second"
    shutil.copytree(coordinator.installation.folder, second)
    code, err = refused("coordinator", "serve", "--config", str(second / "coordinator.yaml"))
    port = yaml.safe_load((second / "coordinator.yaml").read_text())["server"]["port"]
    assert (code, str(port) in err) == (2, True)


# Jobs


@pytest.fixture
def three(coordinator: Federation) -> Iterator[list[RawNode]]:
    """Three connected nodes driven by hand."""
    nodes = [RawNode.enrolled(coordinator, name) for name in THREE]
    for node in nodes:
        node.open()
    yield nodes
    for node in nodes:
        node.close()


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"task": "no-such-task"}, 3, "no-such-task"),
        ({"dataset": "no-such-data"}, 3, "cohort"),
        ({"privacy": {"noise_multiplier": 1.5}}, 2, "never both"),
        ({"task_config": {"model": "forest"}}, 2, "task_config"),
        ({"task_config": {"model": "logistic", "surprise": 1}}, 2, "surprise"),
        ({"federation": {"min_participants": 1}}, 2, "min_participants"),
        ({"federation": {"rounds": 101}}, 2, "rounds"),
        ({"privacy": {"target_epsilon": -1.0}}, 2, "target_epsilon"),
        ({"privacy": {"target_epsilon": float("nan")}}, 2, "target_epsilon"),
        ({"surprise": 1}, 2, "surprise"),
    ],
)
def test_a_job_that_cannot_run_is_refused_at_submission(
    coordinator: Federation,
    three: list[RawNode],
    tmp_path: Path,
    changes: dict[str, object],
    code: int,
    said: str,
) -> None:
    """The error names the key or the known names, and no job comes to be."""
    path = tmp_path / "job.yaml"
    path.write_bytes(job_file(**changes))
    got, err = refused("job", "submit", str(path), "--dir", root(coordinator))
    assert (got, said in err) == (code, True), err
    with coordinator.client() as client:
        assert client.jobs() == []


def test_a_task_config_is_checked_by_the_coordinator_too(
    coordinator: Federation, three: list[RawNode]
) -> None:
    """A client that checks nothing is refused by the schema that the nodes published."""
    coordinator.submit(job_file())  # leaves its initial model there
    good = yaml.safe_load(job_file())
    bad = job_file(task_config={"model": "logistic", "learning_rate": "fast", "features": []})
    request = jobs_pb2.SubmitJobRequest(
        spec=bad,
        task_hash=installed()[good["task"]].content_hash,
        initial_model_digest=digest_of(initial_model(good["task"], good["task_config"], 0)),
        request_id="again",
    )
    folder = coordinator.installation.profile
    chain, key = (folder / "chain.pem").read_bytes(), (folder / "key.pem").read_bytes()
    credentials = channel_credentials((folder / "bundle.pem").read_bytes(), key, chain)
    with grpc.secure_channel(coordinator.address, credentials) as channel, reason_of() as reasons:
        jobs_pb2_grpc.JobsStub(channel).SubmitJob(request)
    assert reasons == ["TASK_CONFIG_INVALID"]


def test_fewer_than_three_nodes_wait_and_are_named(coordinator: Federation) -> None:
    """The job waits in the open; it says how many it needs and who is away."""
    nodes = [RawNode.enrolled(coordinator, name) for name in THREE]
    for node in nodes:
        node.open()
    nodes[2].close()
    wait_for("gamma is gone", lambda: not _connected(coordinator, "gamma"))
    job_id = coordinator.submit(null_job(1))
    wait_for("the job waits", lambda: coordinator.job(job_id).status == "waiting")
    waiting = {w.node: w for w in coordinator.job(job_id).waiting}
    assert waiting["gamma"].reason == "OFFLINE"
    assert "2 of at least 3" in waiting[""].message


def _connected(federation: Federation, name: str) -> bool:
    with federation.client() as client:
        return client.node(name).connected


def test_a_node_over_its_budget_is_left_out_and_the_ledger_says_so(
    coordinator: Federation,
) -> None:
    """Four nodes, one whose account cannot pay: three train; the report and the ledger name it."""
    for name in NODES:
        limit = 0.05 if name == "delta" else 10.0
        coordinator.add_node(name, epsilon_limit=limit)
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES)
    job = coordinator.wait_for_end(coordinator.submit(job_file(federation={"rounds": 1})))
    assert job.status == "completed", job.message
    left_out = {p.node: p for p in job.rounds[0].participation if p.outcome == "left_out"}
    assert left_out["delta"].reason == "BUDGET"
    assert "has booked epsilon 0 of 0.05" in left_out["delta"].message
    assert {e.statement.node for e in coordinator.entries()} == set(THREE)
    code, out, _ = run_cli("budget", "show", "--dir", root(coordinator))
    assert (code, "0.05" in out) == (0, True)


def test_exhaustion_below_quorum_ends_the_job_with_code_4(
    coordinator: Federation, tmp_path: Path
) -> None:
    """Three holders, one of whom cannot pay: the job cannot begin, and the exit code says why."""
    for name in THREE:
        coordinator.add_node(name, epsilon_limit=0.05 if name == "gamma" else 10.0)
        coordinator.start(name)
    coordinator.wait_for_nodes(*THREE)
    path = tmp_path / "job.yaml"
    path.write_bytes(job_file())
    code, out, err = run_cli(
        "job",
        "submit",
        str(path),
        "--watch",
        "--dir",
        root(coordinator),
        "--report",
        str(tmp_path / "r.html"),
    )
    assert code == 4, out + err
    assert "gamma" in out + err


# Data


def test_a_broken_file_is_told_in_the_hospital_and_not_outside(coordinator: Federation) -> None:
    """Of the header the coordinator learns that it does not fit; the hospital's log has the
    sentence. Of what is below it learns nothing: see test_local_reports.py."""
    for name in THREE:
        coordinator.add_node(name)
        coordinator.start(name)
    path = coordinator.agent("alpha") / "data/cohort.csv"
    path.write_text(path.read_text().replace("patient_id,x,label", "patient_id,y,label"))
    word, reason = "column 'x'", "SCHEMA_MISMATCH"
    coordinator.wait_for_nodes(*THREE)
    job_id = coordinator.submit(job_file())
    wait_for(
        "the job says why alpha is missing",
        lambda: (
            {"alpha"} <= {w.node for w in coordinator.job(job_id).waiting if w.reason == reason}
        ),
    )
    local = "".join(p.read_text() for p in (coordinator.agent("alpha") / "logs").glob("*"))
    local += coordinator.log("alpha")
    assert word in local
    assert word not in coordinator.log("coordinator")
    with coordinator.client() as client:
        client.cancel(job_id)


# Updates


def start_job(federation: Federation, three: list[RawNode]) -> list[pb.WorkOrder]:
    """Submit a DP job and let every node accept its first order."""
    federation.submit(job_file(federation={"rounds": 1}))
    orders = [node.order() for node in three]
    wait_for(
        "acceptances are booked",
        lambda: len([e for e in federation.entries("reserve") if e.node_signature]) == 3,
    )
    return orders


@pytest.mark.parametrize("lie", ["shape", "nan", "huge", "extra tensor"])
def test_a_wrong_update_is_refused_posted_and_does_not_count(
    coordinator: Federation, three: list[RawNode], lie: str
) -> None:
    """It left the node, so it is charged; it enters no model; the attempt is over."""
    orders = start_job(coordinator, three)
    model = three[0].model(orders[0])
    if lie == "shape":
        model = {name: np.zeros((3, 3), np.float32) for name in model}
    if lie == "extra tensor":
        model["extra"] = np.zeros(1, np.float32)
    value = {"nan": float("nan"), "huge": 1e6}.get(lie, 0.0)
    digest = three[0].upload(orders[0].attempt_id, update_bytes(model, value))
    with reason_of() as reasons:
        three[0].submit(orders[0], digest)
    assert reasons == ["UPDATE_INVALID"]
    with reason_of() as reasons:
        three[0].submit(orders[0], digest)
    assert reasons == ["ATTEMPT_CLOSED"]
    posted = [e.statement.attempt_id for e in coordinator.entries("post")]
    assert posted == [orders[0].attempt_id]


def test_a_wrong_digest_is_refused_and_the_honest_bytes_still_get_in(
    coordinator: Federation, three: list[RawNode]
) -> None:
    """The liar's bytes are dropped; the same attempt can be completed honestly."""
    orders = start_job(coordinator, three)
    data = update_bytes(three[0].model(orders[0]), 0.001)
    with reason_of() as reasons:
        three[0].upload(orders[0].attempt_id, data, digest="0" * 64)
    assert reasons == ["DIGEST_MISMATCH"]
    with reason_of() as reasons:
        three[0].upload(orders[0].attempt_id, data, offset=7, size=len(data) + 7)
    assert reasons == ["OFFSET_MISMATCH"]
    with reason_of() as reasons:
        three[0].upload(orders[0].attempt_id, data, size=len(data) - 1)
    assert reasons == ["TOO_LARGE"]
    for node, order in zip(three, orders, strict=True):
        node.train(order)
    assert coordinator.wait_for_end(orders[0].job_id).status == "completed"


def test_an_update_that_comes_with_its_submission_is_checked_as_an_upload_is(
    coordinator: Federation, three: list[RawNode]
) -> None:
    """Wrong bytes, too many bytes, another node's attempt: each refused; then the honest try."""
    orders = start_job(coordinator, three)
    data = update_bytes(three[0].model(orders[0]), 0.001)
    assert digest_of(orders[0].base_model) == orders[0].base_model_digest
    lies = [
        (orders[0], b"other", "DIGEST_MISMATCH"),
        (orders[0], bytes(INLINE_BYTES + 1), "TOO_LARGE"),
        (orders[1], data, "ATTEMPT_UNKNOWN"),
    ]
    for order, sent, reason in lies:
        with reason_of() as reasons:
            three[0].submit_inline(order, sent, digest_of(data))
        assert reasons == [reason]
    with reason_of() as reasons:
        three[0].submit(orders[0], digest_of(data))
    assert reasons == ["BLOB_MISSING"]
    assert coordinator.entries("post") == []
    for node, order in zip(three, orders, strict=True):
        node.submit_inline(order, data)
    assert coordinator.wait_for_end(orders[0].job_id).status == "completed"


def test_an_order_of_a_round_that_is_over_moves_no_bytes(
    coordinator: Federation, three: list[RawNode]
) -> None:
    """A stale round's model is shut, its upload is too late, and a replay is only answered."""
    coordinator.submit(job_file(federation={"rounds": 2}))
    stale = [node.order() for node in three]
    data = update_bytes(three[0].model(stale[0]), 0.001)
    for node, order in zip(three, stale, strict=True):
        node.submit_inline(order, data)
    fresh = [node.order() for node in three]
    assert {order.round for order in fresh} == {2}
    with reason_of() as reasons:
        three[0].model(stale[0])
    assert reasons == ["NOT_ALLOWED"]
    with reason_of() as reasons:
        three[0].upload(stale[0].attempt_id, b"other")
    assert reasons == ["ATTEMPT_CLOSED"]
    three[0].upload(stale[0].attempt_id, data)
    three[0].submit_inline(stale[0], data)
    assert len(coordinator.entries("post")) == 3
    for node, order in zip(three, fresh, strict=True):
        node.train(order)
    assert coordinator.wait_for_end(fresh[0].job_id).status == "completed"


def test_a_node_can_neither_read_nor_write_anothers_work(
    coordinator: Federation, three: list[RawNode]
) -> None:
    """Another node's attempt does not exist for it, and a model that it was not ordered is shut."""
    orders = start_job(coordinator, three)
    data = update_bytes(three[0].model(orders[0]), 0.001)
    with reason_of() as reasons:
        three[0].upload(orders[1].attempt_id, data)
    assert reasons == ["ATTEMPT_UNKNOWN"]
    with reason_of() as reasons:
        three[0].submit(orders[1], "0" * 64)
    assert reasons == ["ATTEMPT_UNKNOWN"]
    stranger = RawNode.enrolled(coordinator, "stranger")
    with reason_of() as reasons:
        stranger.model(orders[0])
    assert reasons == ["NOT_ALLOWED"]
    stranger.close()


def test_a_forged_signature_is_refused_and_changes_nothing(
    coordinator: Federation, three: list[RawNode]
) -> None:
    """A statement that the node's ledger key did not sign is nobody's word."""
    orders = start_job(coordinator, three)
    digest = three[0].upload(orders[0].attempt_id, update_bytes(three[0].model(orders[0]), 0.001))
    with reason_of() as reasons:
        three[0].federation.SubmitUpdate(
            pb.SubmitUpdateRequest(
                attempt_id=orders[0].attempt_id, digest=digest, post_signature=b"x" * 64
            )
        )
    assert reasons == ["SIGNATURE_INVALID"]
    assert coordinator.entries("post") == []
    three[0].submit(orders[0], digest)


def test_an_update_sent_again_after_a_lost_reply_is_answered_and_not_charged_again(
    coordinator: Federation, three: list[RawNode]
) -> None:
    """The same digest gets the same answer, even after the job has ended; another is a conflict."""
    orders = start_job(coordinator, three)
    data = update_bytes(three[0].model(orders[0]), 0.001)
    digest = three[0].upload(orders[0].attempt_id, data)
    threads = [threading.Thread(target=three[0].submit, args=(orders[0], digest)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(coordinator.entries("post")) == 1
    for node, order in zip(three[1:], orders[1:], strict=True):
        node.train(order)
    coordinator.wait_for_end(orders[0].job_id)
    coordinator.kill("coordinator")
    coordinator.start("coordinator")
    wait_for("the reply is given again", lambda: _submits(three[0], orders[0], digest))
    with reason_of() as reasons:
        three[0].submit(orders[0], "1" * 64)
    assert reasons == ["UPDATE_CONFLICT"]
    assert len(coordinator.entries("post")) == 3


def _submits(node: RawNode, order: pb.WorkOrder, digest: str) -> bool:
    try:
        node.submit(order, digest)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        return False
    return True


def test_an_agent_never_starts_twice_on_one_folder(coordinator: Federation) -> None:
    """Two agents with one ledger would charge twice or not at all."""
    coordinator.add_node("alpha")
    write_data(coordinator.agent("alpha"), 10)
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    code, err = refused("agent", "run", "--dir", str(coordinator.agent("alpha")))
    assert "alpha" in err or "already" in err or "running" in err
    assert code in (1, 2, 3)
