"""What people and nodes do to a federation so that each of its points is passed.

A scenario acts while one process may die at any moment of it, and gives the jobs that it began,
each with the status in which it must end.
"""

import itertools
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable
from typing import Final

import yaml

from feddp.client import CALL_TIMEOUT_S, Client
from node_agent.enrol import join
from node_agent.tasks.registry import initial_model, installed
from protos.errors import FeddpError
from protos.feddp.v1 import jobs_pb2
from tests.chaos.lives import RESUME_S_MAX, WatchedFederation
from tests.integration.federation import null_job

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
        from feddp.transfer import upload

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
    job_id = ask(lambda client: client.jobs())[0].job_id
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
    """The coordinator's machine loses power in the middle of a job."""
    job_id = submit_once(federation, spec(2))
    federation.kill("coordinator")
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


def same_update(federation: WatchedFederation) -> Jobs:
    """The coordinator dies between booking an update and saying so; the agent asks again."""
    federation.arm("coordinator", "coordinator.rounds.events:UpdateReceived:journal:after")
    job_id = submit_once(federation, spec())
    watch(federation, job_id)
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


SCENARIOS: Final[dict[str, Scenario]] = {
    one.__name__: one
    for one in (office, plain, again, restart, cancel, enrolment, refuse, withdraw, lost_update,
                same_update, away, deadline)
}
"""The cheap ones first: a point is killed in the first scenario that passes it."""
