"""What people and nodes do to a federation so that each of its points is passed.

A scenario acts while one process may die at any moment of it, and gives the jobs that it began,
each with the status in which it must end.
"""

import itertools
import os
import shutil
import signal
import sqlite3
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc
import yaml

from feddp.client import CALL_TIMEOUT_S, Client
from feddp.transfer import upload
from node_agent.enrol import join
from node_agent.identity import load_identity
from node_agent.tasks.registry import initial_model, installed
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2, federation_pb2_grpc, jobs_pb2
from tests.chaos.lives import RESUME_S_MAX, WatchedFederation
from tests.integration.federation import job_file, null_job, wait_for

NODES: Final = ("alpha", "beta", "gamma")
SPARE: Final = "spare"

Jobs = dict[str, str]
Scenario = Callable[[WatchedFederation], Jobs]

_sizes = itertools.count(1000)


def spec(rounds: int = 1, **federation: object) -> bytes:
    """A job whose model nobody has uploaded before."""
    read = yaml.safe_load(null_job(rounds, next(_sizes)))
    read["federation"].update(federation)
    return yaml.safe_dump(read).encode()


def submit(federation: WatchedFederation, what: bytes) -> str:
    """Submit one job, once, however often the coordinator dies meanwhile."""
    read = yaml.safe_load(what)
    model = initial_model(read["task"], read["task_config"], 0)
    request = jobs_pb2.SubmitJobRequest(
        spec=what,
        task_hash=installed()[read["task"]].content_hash,
        request_id=uuid.uuid4().hex,
    )

    def call(client: Client) -> str:
        request.initial_model_digest = upload(client._transfer, model, client._again)
        answer = client._jobs.SubmitJob(request, timeout=CALL_TIMEOUT_S)
        return str(answer.job.job_id)

    first = federation.again(call)
    assert federation.again(call) == first, "the same request made a second job"
    return str(first)


def submit_once(federation: WatchedFederation, what: bytes) -> str:
    """As an engineer does it."""
    return str(federation.again(lambda client: client.submit(what).job_id))


def watch(federation: WatchedFederation, job_id: str) -> None:
    """Look at a job until it has ended."""
    federation.again(lambda client: [None for _ in client.watch(job_id)])


def progress(federation: WatchedFederation, job_id: str) -> tuple[int, bool]:
    """(rounds that are durable, whether the job has ended), from the disk: no call is needed."""
    with federation.database() as database:
        (rounds,) = database.execute(
            "SELECT count(*) FROM models WHERE job_id = ? AND kind = 'round'", (job_id,)
        ).fetchone()
        (status,) = database.execute(
            "SELECT status FROM jobs WHERE job_id = ?", (job_id,)
        ).fetchone()
    return rounds, status != "running"


def rolling(federation: WatchedFederation) -> Jobs:
    """A long job, begun by an earlier call or by this one, goes on by two rounds."""
    job_id = federation.rolling_job = federation.rolling_job or submit_once(federation, spec(60))
    goal, ended = 2 + progress(federation, job_id)[0], False

    def moved_on() -> bool:
        nonlocal ended
        rounds, ended = progress(federation, job_id)
        return ended or rounds >= goal

    wait_for("two rounds more are done", moved_on, 2 * RESUME_S_MAX)
    if not ended:
        return {}
    federation.rolling_job = ""
    return {job_id: "completed"}


def plain(federation: WatchedFederation) -> Jobs:
    """An engineer submits a job, watches it and fetches the model."""
    job_id = submit_once(federation, spec())
    watch(federation, job_id)
    out = federation.folder / "model.safetensors"
    federation.again(lambda client: client.download(job_id, out, force=True))
    return {job_id: "completed"}


def office(federation: WatchedFederation) -> Jobs:
    """People look at everything."""
    ask = federation.again
    jobs = ask(lambda client: client.jobs())
    job_id = next(job.job_id for job in jobs if job.status == "completed")
    ask(lambda client: client.job(job_id))
    watch(federation, job_id)
    ask(lambda client: client.nodes())
    ask(lambda client: client.node(NODES[0]))
    ask(lambda client: client.accounts())
    ask(lambda client: client.ledger())
    ask(lambda client: client.models())
    ask(lambda client: client.model(job_id))
    return {}


def enrolment(federation: WatchedFederation) -> Jobs:
    """A node joins, is disabled and enabled again."""
    folder = federation.agent(f"{SPARE}-{uuid.uuid4().hex[:6]}")
    token = federation.again(lambda client: client.create_token(folder.name, "edge", 3600)).token
    deadline_s = time.monotonic() + RESUME_S_MAX
    while True:
        try:
            join(token, folder)
            break
        except FeddpError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
    for change in (Client.disable, Client.enable):
        federation.again(lambda client, change=change: change(client, folder.name))
    shutil.rmtree(folder)
    return {}


def restart(federation: WatchedFederation) -> Jobs:
    """The coordinator dies while its nodes train."""
    federation.arm("coordinator", "coordinator.rounds.events:BudgetsReserved:journal:after")
    job_id = submit_once(federation, spec(2))
    watch(federation, job_id)
    return {job_id: "completed"}


def again(federation: WatchedFederation) -> Jobs:
    """The same request comes twice."""
    return {submit(federation, spec()): "completed"}


def cancel(federation: WatchedFederation) -> Jobs:
    """An engineer changes their mind."""
    job_id = submit_once(federation, spec(50))
    federation.again(lambda client: client.cancel(job_id))
    return {job_id: "cancelled"}


def refuse(federation: WatchedFederation) -> Jobs:
    """One node takes no model of that size."""
    return _with_settings(federation, model_bytes_max=10)


def withdraw(federation: WatchedFederation) -> Jobs:
    """One node's worker cannot start."""
    return _with_settings(federation, worker={"memory_bytes_max": 1 << 20})


def _with_settings(federation: WatchedFederation, **settings: object) -> Jobs:
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
    return {job_id: "completed"}


def _reborn(federation: WatchedFederation, name: str) -> None:
    federation.send_away(name)
    federation.start(name)
    federation.wait_for_nodes(*NODES)


def lost_update(federation: WatchedFederation) -> Jobs:
    """An agent dies after it has opened the data: the attempt is spent, another follows."""
    federation.arm("alpha", "node_agent.session.training:Training._train:request:before")
    job_id = submit_once(federation, spec())
    watch(federation, job_id)
    return {job_id: "completed"}


def asked_again(federation: WatchedFederation) -> Jobs:
    """A node did not hear that its update was taken, and hands it in again."""
    job_id = submit_once(federation, spec())
    watch(federation, job_id)
    folder = federation.agent("alpha")
    with sqlite3.connect(folder / "state.db", timeout=10) as state:
        attempt_id, digest = state.execute(
            "SELECT attempt_id, update_digest FROM attempts WHERE job_id = ?", (job_id,)
        ).fetchone()
    request = federation_pb2.SubmitUpdateRequest(attempt_id=attempt_id, digest=digest)

    def call(_: Client) -> None:
        credentials = load_identity(folder / "identity").credentials()
        with grpc.secure_channel(federation.address, credentials) as channel:
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


def deadline(federation: WatchedFederation) -> Jobs:
    """A node hangs until the round's deadline has passed."""
    pid = federation.pid("alpha")
    os.kill(pid, signal.SIGSTOP)
    try:
        job_id = submit_once(federation, spec(deadline="1s"))
        watch(federation, job_id)
    finally:
        os.kill(pid, signal.SIGCONT)
    return {job_id: "completed"}


def broken(federation: WatchedFederation) -> Jobs:
    """The disk has lost the model that a job stands on: the job fails and says so."""
    blobs = federation.installation.folder / "blobs"
    before = {path.name for path in blobs.iterdir()}
    for name in NODES:
        federation.send_away(name)
    job_id = submit_once(federation, spec())
    for path in blobs.iterdir():
        if path.is_file() and path.name not in before:
            path.unlink()
    for name in NODES:
        federation.start(name)
    watch(federation, job_id)
    federation.wait_for_nodes(*NODES)
    return {job_id: "failed"}


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
    declared["data_sets"].append({**declared["data_sets"][0], "name": name, "account": name})
    policy["accounts"].append({**policy["accounts"][0], "name": name, "epsilon_limit": 1.1})
    policy["allow"].append({**policy["allow"][0], "data_set": name})
    policy["outcome_tick_s"] = 0.2
    for path, content in (("datasets.yaml", declared), ("policy.yaml", policy)):
        beside = folder / f".{path}"
        beside.write_text(yaml.safe_dump(content))
        beside.replace(folder / path)


def _published(federation: WatchedFederation, name: str) -> bool:
    nodes = federation.again(lambda client: client.nodes())
    return sum(name in {one.name for one in node.data_sets} for node in nodes) == 2


SCENARIOS: Final[dict[str, Scenario]] = {
    one.__name__: one
    for one in (
        office,
        rolling,
        plain,
        again,
        restart,
        cancel,
        enrolment,
        refuse,
        withdraw,
        lost_update,
        asked_again,
        away,
        deadline,
        broken,
        spent,
    )
}
"""The cheap ones first: a point is killed in the first scenario that passes it."""
