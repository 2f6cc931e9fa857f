"""What befalls nodes, disks and budgets: scenarios, as in `acts`, that pass the rarer points."""

import os
import shutil
import signal
import sqlite3
import uuid
from pathlib import Path

import grpc
import yaml

from feddp.client import CALL_TIMEOUT_S, Client
from feddp.signing import load_key, mandate_to_resume
from node_agent.joining.identity import load_identity
from protos.feddp.v1 import (
    federation_pb2,
    federation_pb2_grpc,
    jobs_pb2,
    transfer_pb2,
    transfer_pb2_grpc,
)
from protos.feddp.v1.mandates_pb2 import SignedMandate
from tests.chaos.acts import NODES, Jobs, alone, bulk, spec, submit_once, watch
from tests.chaos.lives import RESUME_S_MAX, WatchedFederation
from tests.integration.federation import job_file, wait_for
from tests.stewards import vouched


def refuse(federation: WatchedFederation) -> Jobs:
    """One node takes no model of that size."""
    return _with_settings(federation, model_bytes_max=10)


def withdraw(federation: WatchedFederation) -> Jobs:
    """One node's worker cannot start."""
    return _with_settings(federation, worker={"memory_bytes_max": 1 << 20})


def _with_settings(federation: WatchedFederation, **settings: object) -> Jobs:
    ended = alone(federation)
    path = federation.agent("gamma") / "agent.yaml"
    kept = path.read_bytes()
    path.write_text(yaml.safe_dump({**yaml.safe_load(kept), **settings}))
    _reborn(federation, "gamma")
    try:
        job_id = submit_once(federation, spec())
        watch(federation, job_id)
    finally:
        path.write_bytes(kept)
        _reborn(federation, "gamma")
    return {**ended, job_id: "completed"}


def _reborn(federation: WatchedFederation, name: str) -> None:
    federation.send_away(name)
    federation.start(name)
    federation.wait_for_nodes(*NODES)


def lost_update(federation: WatchedFederation) -> Jobs:
    """An agent dies after it has opened the data: the attempt is spent, another follows."""
    federation.arm("alpha", "node_agent.session.training:Training._answer_of:request:before")
    job_id = submit_once(federation, spec())
    watch(federation, job_id)
    return {job_id: "completed"}


def asked_again(federation: WatchedFederation) -> Jobs:
    """A node did not hear that its update was taken, and hands it in again."""
    federation.wait_for_nodes(*NODES)  # a job does not wait for one that is on its way back
    job_id = submit_once(federation, spec())
    watch(federation, job_id)
    folder = federation.agent("alpha")
    with sqlite3.connect(folder / "state.db", timeout=10) as state:
        attempt_id, digest = state.execute(
            "SELECT attempt_id, update_digest FROM attempts WHERE job_id = ?", (job_id,)
        ).fetchone()
    request = federation_pb2.SubmitUpdateRequest(attempt_id=attempt_id, digest=digest)
    status = transfer_pb2.UploadStatusRequest(attempt_id=attempt_id, digest=digest)
    header = transfer_pb2.UploadHeader(attempt_id=attempt_id, digest=digest, size=1)

    def call(_: Client) -> None:
        credentials = load_identity(folder / "identity").credentials()
        with grpc.secure_channel(federation.address, credentials) as channel:
            transfer = transfer_pb2_grpc.TransferStub(channel)
            assert transfer.UploadStatus(status, timeout=5).complete
            begun = iter([transfer_pb2.UploadRequest(header=header)])
            assert transfer.Upload(begun, timeout=5).complete
            federation_pb2_grpc.FederationStub(channel).SubmitUpdate(request, timeout=5)

    federation.again(call)
    return {job_id: "completed"}


def away(federation: WatchedFederation) -> Jobs:
    """A node with an order is away longer than anybody waits, and comes back."""
    federation.arm("alpha", "node_agent.session.training:Training._ready_worker:request:before")
    with federation.leaving_away("alpha"):
        job_id = submit_once(federation, spec())
        watch(federation, job_id)
    federation.start("alpha")
    federation.wait_for_nodes(*NODES)
    return {job_id: "completed"}


def hung(federation: WatchedFederation) -> Jobs:
    """A node hangs; the round has its quorum, and closes without it before the deadline."""
    ended = alone(federation)
    pid = federation.pid("alpha")
    os.kill(pid, signal.SIGSTOP)
    try:
        job_id = submit_once(federation, spec(deadline="4s"))
        watch(federation, job_id)
    finally:
        os.kill(pid, signal.SIGCONT)
    return {**ended, job_id: "completed"}


def overdue(federation: WatchedFederation) -> Jobs:
    """So many nodes hang that the deadline passes below quorum; the round waits for them."""
    ended = alone(federation)
    pids = [federation.pid(name) for name in NODES[:2]]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        job_id = submit_once(federation, spec(deadline="1s"))
        passed = "SELECT count(*) FROM journal WHERE job_id = ? AND CAST(event AS TEXT) LIKE ?"

        def has_passed() -> bool:
            with federation.database() as database:
                row = database.execute(passed, (job_id, "%DeadlinePassed%")).fetchone()
                return bool(row[0])

        wait_for("the deadline has passed", has_passed, 2 * RESUME_S_MAX)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    watch(federation, job_id)
    return {**ended, job_id: "completed"}


def torn(federation: WatchedFederation) -> Jobs:
    """The coordinator dies when the bytes of a model are there and not yet checked."""
    federation.arm("coordinator", "coordinator.uploads:Appending.keep:sync:after")
    return bulk(federation)


def orderly(federation: WatchedFederation) -> Jobs:
    """The coordinator is asked to stop, as for an upgrade, and started again."""
    deaths = federation.deaths.get("coordinator", 0)
    os.kill(federation.pid("coordinator"), signal.SIGTERM)
    wait_for("it stops", lambda: federation.deaths.get("coordinator", 0) > deaths, RESUME_S_MAX)
    federation.again(lambda client: client.nodes())
    federation.wait_for_nodes(*NODES)
    return {}


def broken(federation: WatchedFederation) -> Jobs:
    """The disk has lost the model that a job stands on: the job fails and says so."""
    job_id, _ = _without_its_model(federation)
    return {job_id: "failed"}


def mended(federation: WatchedFederation) -> Jobs:
    """The lost model is put back, and an engineer takes the job up again."""
    job_id, lost = _without_its_model(federation)
    for path, content in lost.items():
        path.write_bytes(content)
    request = jobs_pb2.ResumeJobRequest(job_id=job_id, request_id=uuid.uuid4().hex)
    request.mandate.CopyFrom(federation.again(lambda client: _signed_anew(client, job_id)))

    def resume(client: Client) -> None:
        client._jobs.ResumeJob(request, timeout=CALL_TIMEOUT_S)

    federation.again(resume)
    watch(federation, job_id)
    federation.again(resume)  # the same request again is no second one, nor an error
    return {job_id: "completed"}


def _signed_anew(client: Client, job_id: str) -> SignedMandate:
    key = load_key(client.profile.folder)
    assert key is not None
    asked = jobs_pb2.GetJobRequest(job_id=job_id)
    before = client._jobs.GetJob(asked, timeout=CALL_TIMEOUT_S).mandate
    return mandate_to_resume(key, before, job_id, client.profile.folder)


def _without_its_model(federation: WatchedFederation) -> tuple[str, dict[Path, bytes]]:
    """(a job that has failed, the files that it has failed for)."""
    blobs = federation.installation.folder / "blobs"
    for name in NODES:
        federation.send_away(name)
    before = {path.name for path in blobs.iterdir()}
    job_id = submit_once(federation, spec())
    lost = {
        path: path.read_bytes()
        for path in blobs.iterdir()
        if path.is_file() and path.name not in before
    }
    for path in lost:
        path.unlink()
    for name in NODES:
        federation.start(name)
    watch(federation, job_id)
    federation.wait_for_nodes(*NODES)
    return job_id, lost


def spent(federation: WatchedFederation) -> Jobs:
    """The data sets' budgets admit one round of two: the answer is made of that one."""
    name = f"cohort-{uuid.uuid4().hex[:6]}"
    job = {**yaml.safe_load(job_file(dataset=name)), "name": name}
    job["federation"] = {"rounds": 2, "local_steps": 1}
    job["privacy"] = {"noise_multiplier": 4.0, "delta": 1.0e-5, "max_grad_norm": 1.0}
    for node in NODES[:2]:
        _publish(federation.agent(node), name)
    wanted = yaml.safe_dump(job).encode()
    wait_for("the data set is published", lambda: _published(federation, name), RESUME_S_MAX)
    job_id = submit_once(federation, wanted)
    watch(federation, job_id)
    return {job_id: "budget_exhausted"}


def _publish(folder: Path, name: str) -> None:
    declared = yaml.safe_load((folder / "datasets.yaml").read_text())
    policy = yaml.safe_load((folder / "policy.yaml").read_text())
    first = declared["data_sets"][0]
    # Other patients, as far as the node can see: their records are in a file of their own.
    shutil.copy(folder / first["source"], folder / f"{name}.csv")
    declared["data_sets"].append({**first, "name": name, "source": f"{name}.csv", "account": name})
    policy["accounts"].append({**policy["accounts"][0], "name": name, "epsilon_limit": 1.1})
    policy["allow"].append({**policy["allow"][0], "data_set": name})
    policy["outcome_tick_s"] = 0.2
    paid_by: dict[str, list[str]] = {one["name"]: [] for one in policy["accounts"]}
    for one in declared["data_sets"]:
        paid_by[one.get("account", "patients")].append(one["name"])
    policy |= vouched(paid_by)
    for path, content in (("datasets.yaml", declared), ("policy.yaml", policy)):
        beside = folder / f".{path}"
        beside.write_text(yaml.safe_dump(content))
        beside.replace(folder / path)


def _published(federation: WatchedFederation, name: str) -> bool:
    nodes = federation.again(lambda client: client.nodes())
    return sum(name in {one.name for one in node.data_sets} for node in nodes) == 2
